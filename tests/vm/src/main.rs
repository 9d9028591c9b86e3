//! First process of a test machine: prepares the system, runs the planned test programs, reports
//! on the console and powers off.

use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use nix::{
    kmod::{ModuleInitFlags, finit_module},
    mount::{MsFlags, mount},
    sys::{
        reboot::{RebootMode, reboot},
        resource::{RLIM_INFINITY, Resource, setrlimit},
        wait::{WaitStatus, wait},
    },
    unistd::Pid,
};
use prestack_vm_init::{PLAN, PROGRAMS, Plan, Report, Test};

/// Kind and place of every file system to mount, in order.
const FILE_SYSTEMS: [(&str, &str); 8] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/run"),
    ("tmpfs", "/tmp"),
    ("bpf", "/sys/fs/bpf"),
    ("cgroup2", "/sys/fs/cgroup"),
    ("tracefs", "/sys/kernel/tracing"),
];

/// The kernel unpacks the module; not among nix's flags. See `MODULE_INIT_COMPRESSED_FILE` in
/// linux/module.h.
const COMPRESSED: ModuleInitFlags = ModuleInitFlags::from_bits_retain(4);

fn main() {
    report(&Report::Up);
    match carry_out() {
        Ok(()) => report(&Report::Finished),
        Err(error) => eprintln!("the test machine's init failed: {error:#}"),
    }
    let Err(error) = reboot(RebootMode::RB_POWER_OFF);
    eprintln!("cannot power off: {error}");
}

fn report(report: &Report) {
    // On a line of its own, whatever the last program left behind.
    println!("\n{}", report.line());
}

fn carry_out() -> Result<()> {
    mount_file_systems()?;
    let plan = fs::read(PLAN).with_context(|| format!("cannot read {PLAN}"))?;
    let plan: Plan = serde_json::from_slice(&plan).with_context(|| format!("bad {PLAN}"))?;
    for module in &plan.modules {
        load(module).with_context(|| format!("cannot load {}", module.display()))?;
    }
    // Where BPF maps count against it (before 5.11, and wherever a test lowers its privileges), the
    // default of 8 MiB is too little.
    setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY)
        .context("cannot raise RLIMIT_MEMLOCK")?;
    if !succeeds(program("ip").args(["link", "set", "lo", "up"]))? {
        bail!("cannot set lo up");
    }
    for test in &plan.tests {
        run(test)?;
    }
    Ok(())
}

fn mount_file_systems() -> Result<()> {
    for (kind, target) in FILE_SYSTEMS {
        fs::create_dir_all(target).with_context(|| format!("cannot make {target}"))?;
        mount(
            Some(kind),
            target,
            Some(kind),
            MsFlags::empty(),
            None::<&str>,
        )
        .with_context(|| format!("cannot mount {target}"))?;
    }
    symlink("/proc/self/fd", "/dev/fd").context("cannot make /dev/fd")
}

fn load(module: &Path) -> Result<()> {
    let compressed = module
        .extension()
        .is_some_and(|extension| extension != "ko");
    let flags = if compressed {
        COMPRESSED
    } else {
        ModuleInitFlags::empty()
    };
    finit_module(File::open(module)?, c"", flags)?;
    Ok(())
}

fn run(test: &Test) -> Result<()> {
    println!("\nrunning {} {}", test.name, test.args.join(" "));
    let passed = succeeds(Command::new(&test.program).args(&test.args))?;
    let name = test.name.clone();
    report(&if passed {
        Report::Passed(name)
    } else {
        Report::Failed(name)
    });
    Ok(())
}

fn program(name: &str) -> Command {
    Command::new(Path::new(PROGRAMS).join(name))
}

/// Runs a program to its end.
fn succeeds(command: &mut Command) -> Result<bool> {
    let child = command
        .env_clear()
        .env("PATH", PROGRAMS)
        .env("HOME", "/")
        .env("PRESTACK_VM", "1")
        .env("PRESTACK_BIN", Path::new(PROGRAMS).join("prestack"))
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {command:?}"))?;
    let child = Pid::from_raw(child.id().try_into()?);
    loop {
        // The first process inherits, and must reap, what its descendants leave behind.
        match wait().context("cannot wait for a process")? {
            WaitStatus::Exited(pid, code) if pid == child => return Ok(code == 0),
            WaitStatus::Signaled(pid, signal, _) if pid == child => {
                println!("{command:?} was killed by {signal}");
                return Ok(false);
            }
            _ => {}
        }
    }
}
