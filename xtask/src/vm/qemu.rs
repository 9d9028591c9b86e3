//! Boots the machine, follows its console, and sums up what it reports.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use prestack_vm_init::Report;

/// A machine with hardware virtualisation that has not come up by now never will.
const KVM_PATIENCE: Duration = Duration::from_secs(15);

/// An oops is a failure. Emulated processors on a busy host look stuck when they are slow, which
/// is none.
const KERNEL_OPTIONS: &str = "console=ttyS0 loglevel=5 oops=panic panic=-1 mitigations=off \
                              nowatchdog rcupdate.rcu_cpu_stall_suppress=1";

#[derive(Clone, Copy, PartialEq)]
enum Accelerator {
    Kvm,
    Emulation,
}

/// Boots the machine and checks that it reports success of all these tests.
pub fn run(kernel: &Path, initramfs: &Path, tests: &[String], timeout: Duration) -> Result<()> {
    let deadline = Instant::now() + timeout;
    // Whether it works is only known after trying: the device may be there and not do.
    if File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_ok()
    {
        let mut machine = Machine::boot(kernel, initramfs, Accelerator::Kvm)?;
        if machine.is_up(Instant::now() + KVM_PATIENCE) {
            return machine.follow(tests, deadline);
        }
        println!("KVM does not work here: emulating the processor, which is slow");
    }
    let mut machine = Machine::boot(kernel, initramfs, Accelerator::Emulation)?;
    machine.follow(tests, deadline)
}

/// A running machine; stopped when dropped.
struct Machine {
    qemu: Child,
    console: Receiver<String>,
}

impl Machine {
    fn boot(kernel: &Path, initramfs: &Path, accelerator: Accelerator) -> Result<Self> {
        let acceleration = match accelerator {
            Accelerator::Kvm => ["-accel", "kvm", "-cpu", "host"],
            // Without CMPXCHG16B, after which QEMU 7.2 leaves garbage in the flags now and then: the
            // kernel's allocator, from 6.12 on, falls over it.
            Accelerator::Emulation => ["-accel", "tcg,thread=multi", "-cpu", "max,-cx16"],
        };
        // An interrupted test must not leave a machine behind.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
            .args(acceleration)
            .args(["-smp", "2", "-m", "3G", "-nic", "none", "-display", "none"])
            .args(["-serial", "stdio", "-no-reboot", "-append", KERNEL_OPTIONS])
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(initramfs)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        if accelerator == Accelerator::Kvm {
            // That it does not work is no news for the user.
            command.stderr(Stdio::null());
        }
        let mut qemu = command.spawn().context("cannot start qemu-system-x86_64")?;
        let output = qemu.stdout.take().context("qemu has no stdout")?;
        let (lines, console) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                if lines.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self { qemu, console })
    }

    /// Waits for user space.
    fn is_up(&mut self, deadline: Instant) -> bool {
        while let Ok(line) = self.next_line(deadline) {
            if Report::parse(&line) == Some(Report::Up) {
                return true;
            }
        }
        false
    }

    /// Shows the console until the machine is off, and checks that each of the tests has passed.
    fn follow(&mut self, tests: &[String], deadline: Instant) -> Result<()> {
        let mut reports = Vec::new();
        let end = loop {
            match self.next_line(deadline) {
                Ok(line) => {
                    println!("{line}");
                    reports.extend(Report::parse(&line));
                }
                Err(end) => break end,
            }
        };
        if end == RecvTimeoutError::Timeout {
            bail!("the machine was stopped: it has not finished in time (see --timeout)");
        }
        verdict(tests, &reports)
    }

    fn next_line(&self, deadline: Instant) -> Result<String, RecvTimeoutError> {
        let rest = deadline.saturating_duration_since(Instant::now());
        self.console.recv_timeout(rest)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Fails when it is off already, which is fine.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

fn verdict(tests: &[String], reports: &[Report]) -> Result<()> {
    let failed: Vec<_> = tests
        .iter()
        .filter(|test| !reports.contains(&Report::Passed(test.to_string())))
        .map(|test| {
            let reported = reports.contains(&Report::Failed(test.to_string()));
            format!(
                "{test} {}",
                if reported { "failed" } else { "did not finish" }
            )
        })
        .collect();
    if !failed.is_empty() {
        bail!("in the machine, {}", failed.join(", "));
    }
    if !reports.contains(&Report::Finished) {
        bail!("the machine died after its tests; see its last messages above");
    }
    println!("passed in the machine: {}", tests.join(", "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn success_takes_every_test_and_an_orderly_end() {
        let tests = ["a".to_owned(), "b".to_owned()];
        let passed = |name: &str| Report::Passed(name.to_owned());
        let all = [Report::Up, passed("a"), passed("b"), Report::Finished];
        assert!(verdict(&tests, &all).is_ok());
        assert!(verdict(&tests, &all[..3]).is_err());
        let failed = [
            passed("a"),
            Report::Failed("b".to_owned()),
            Report::Finished,
        ];
        let message = verdict(&tests, &failed).unwrap_err().to_string();
        assert_eq!(message, "in the machine, b failed");
        let message = verdict(&tests, &[passed("a")]).unwrap_err().to_string();
        assert_eq!(message, "in the machine, b did not finish");
    }
}
