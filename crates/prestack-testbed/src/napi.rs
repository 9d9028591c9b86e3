//! Threaded NAPI: a kernel thread per device that receives its packets.
//!
//! Packets on a veth pair are by default received on the sender's time and CPU. With threaded
//! NAPI each end has its own threads, `napi/DEV-ID`, which can be pinned and whose CPU time tells
//! what receiving costs, XDP programs included.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cpu::{self, Scheduling};
use crate::namespace::Namespace;
use crate::pace::wait_for;

/// Makes the device `dev` in `namespace` use threaded NAPI.
///
/// # Errors
/// When the kernel does not know it (before 5.12).
pub fn set_threaded(namespace: &Namespace, dev: &str) -> Result<()> {
    let path = format!("/sys/class/net/{dev}/threaded");
    namespace.run_with_sysfs(|| {
        fs::write(&path, "1").with_context(|| format!("switching threaded NAPI of {dev} on"))
    })
}

/// Keeps the NAPI threads of `dev` on `cpus`, and has them scheduled like the caller, so that `chrt` before a
/// measurement holds for all of it; waits until there is one.
///
/// # Errors
/// When there is none.
pub fn pin(dev: &str, cpus: &[usize]) -> Result<()> {
    let threads = wait_for(
        &format!("NAPI threads of {dev}"),
        Duration::from_secs(5),
        || Ok(Some(threads(dev)?).filter(|t| !t.is_empty())),
    )?;
    let scheduling = Scheduling::own()?;
    for thread in threads {
        cpu::pin_process(thread, cpus)?;
        scheduling.set(thread)?;
    }
    Ok(())
}

/// Has `dev` receive only when nothing else wants the CPU of its NAPI threads, until they are [pinned](pin)
/// again.
///
/// # Errors
/// When a thread ended meanwhile.
pub fn receive_last(dev: &str) -> Result<()> {
    let threads = threads(dev)?;
    threads
        .into_iter()
        .try_for_each(|thread| Scheduling::LAST.set(thread))
}

/// CPU time that the NAPI threads of `dev` have used.
///
/// # Errors
/// When a thread ended meanwhile.
pub fn time_of(dev: &str) -> Result<Duration> {
    threads(dev)?.into_iter().map(cpu::time_of).sum()
}

/// The NAPI threads of `dev`. A device's name must be unique on the host: kernel threads belong
/// to no network namespace.
fn threads(dev: &str) -> Result<Vec<i32>> {
    let name = format!("napi/{dev}-");
    let mut threads = Vec::new();
    for entry in fs::read_dir("/proc").context("listing processes")? {
        let entry = entry?.file_name();
        let Some(pid) = entry.to_str().and_then(|e| e.parse().ok()) else {
            continue;
        };
        // A process that ended since it was listed has no name.
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if comm.starts_with(&name) {
            threads.push(pid);
        }
    }
    Ok(threads)
}
