//! Runs the tests that need a kernel in a virtual machine, on the kernel of a Debian release.

mod archive;
mod image;
mod kernel;
mod qemu;

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, bail};
use clap::Args;
use prestack_vm_init::{PLAN, PROGRAMS, Plan, Test};

use crate::{
    build::{self, Executable, HOST_PACKAGES, Profile},
    packages::{self, Requirement},
    process, test,
};
use image::Image;

/// The package whose integration tests run in the machine.
const TESTS: &str = "prestack-tests";

/// Programs the tests may use, beside themselves and prestack.
const TOOLS: [&str; 14] = [
    "bpftool",
    "cat",
    "ethtool",
    "ip",
    "kill",
    "memcached",
    "nsenter",
    "sh",
    "sleep",
    "ss",
    "sysctl",
    "tc",
    "tcpdump",
    "unshare",
];

const REQUIREMENTS: &[Requirement] = &[
    Requirement::program("qemu-system-x86_64", "qemu-system-x86"),
    Requirement::file(archive::KEYRING, "debian-archive-keyring"),
    Requirement::program("depmod", "kmod"),
    Requirement::program("bpftool", "bpftool"),
    Requirement::program("ethtool", "ethtool"),
    Requirement::program("ip", "iproute2"),
    Requirement::program("memcached", "memcached"),
    Requirement::program("sysctl", "procps"),
    Requirement::program("tcpdump", "tcpdump"),
];

/// Accounts of the machine: memcached refuses to run as root, and tcpdump gives root up.
const PASSWD: &str = "root:x:0:0::/:/bin/sh\nmemcache:x:1:1::/:/bin/sh\ntcpdump:x:2:2::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n";
const GROUP: &str = "root:x:0:\nmemcache:x:1:\ntcpdump:x:2:\nnogroup:x:65534:\n";

/// Options of `cargo xtask vmtest`.
#[derive(Args)]
pub struct Options {
    /// Series of the kernel
    #[arg(long, value_enum)]
    kernel: kernel::Series,
    /// Run this test program only (repeatable); all of the prestack-tests package otherwise
    #[arg(long = "test", value_name = "NAME")]
    tests: Vec<String>,
    /// Minutes after which the machine is stopped and the tests have failed
    #[arg(long, default_value_t = 20, value_name = "MINUTES")]
    timeout: u64,
    /// Passed to every test program: a filter, --nocapture and the like
    #[arg(last = true)]
    args: Vec<String>,
}

/// What it takes to boot a machine.
pub fn requirements() -> Result<()> {
    packages::provide(REQUIREMENTS)
}

/// Boots the machine and runs the tests in it.
pub fn run(options: &Options) -> Result<()> {
    requirements()?;
    let directory = process::workspace().join("target/vm");
    let kernel = kernel::fetch(options.kernel, &directory)?;
    let prestack = build::prestack(Profile::Dev)?;
    let init = build::dev_program("prestack-vm-init")?;
    let tests = test_programs(&options.tests)?;

    let mut image = Image::default();
    image.text("/etc/passwd", PASSWD);
    image.text("/etc/group", GROUP);
    image.text("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n");
    for link in ["/bin", "/sbin", "/usr/sbin"] {
        image.link(link, PROGRAMS);
    }
    image.link("/var/run", "/run");
    image.program("/init", &init)?;
    image.program(&format!("{PROGRAMS}/prestack"), &prestack)?;
    for tool in TOOLS {
        let path = process::find(tool).with_context(|| format!("{tool} is not installed"))?;
        image.program(&format!("{PROGRAMS}/{tool}"), &path)?;
    }
    let mut plan = Plan {
        modules: Vec::new(),
        tests: Vec::new(),
    };
    for module in kernel.modules()? {
        let path = Path::new("/modules").join(module.file_name().context("a module has no name")?);
        image.file(&path, &module);
        plan.modules.push(path);
    }
    for Executable { name, path } in tests {
        let program = format!("/tests/{name}");
        image.program(&program, &path)?;
        let args = test::options(&name).map(str::to_owned);
        let args = args
            .into_iter()
            .chain(options.args.iter().cloned())
            .collect();
        plan.tests.push(Test {
            name,
            program: program.into(),
            args,
        });
    }
    image.text(PLAN, &serde_json::to_string(&plan)?);

    let initramfs = directory.join("initramfs.cpio");
    image.write(&initramfs)?;
    let timeout = Duration::from_secs(60 * options.timeout);
    let names: Vec<_> = plan.tests.into_iter().map(|test| test.name).collect();
    qemu::run(&kernel.image, &initramfs, &names, timeout)
}

/// Builds the integration tests, and returns those asked for.
fn test_programs(wanted: &[String]) -> Result<Vec<Executable>> {
    let known = test::integration_tests(Some(TESTS))?;
    if let Some(name) = wanted.iter().find(|name| !known.contains(name)) {
        bail!("{TESTS} has no test {name}; it has {}", known.join(", "));
    }
    let names = if wanted.is_empty() { &known } else { wanted };
    let mut args = vec!["test", "--no-run"];
    args.extend(HOST_PACKAGES);
    args.extend(names.iter().flat_map(|name| ["--test", name]));
    let mut programs = build::executables(&args)?;
    // Building a package's tests builds its programs too.
    programs.retain(|program| names.contains(&program.name));
    Ok(programs)
}
