//! The kernel that the tests run on.

use anyhow::{Context, Result};
use nix::sys::utsname::uname;

/// The kernel's major and minor version.
#[must_use]
pub fn version() -> (u32, u32) {
    let release = uname().map(|name| name.release().to_string_lossy().into_owned());
    let release = release.unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map_while(|n| n.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// One of the counters of TCP (`TcpExt` in proc_pid_net(5)) of the caller's network namespace.
///
/// # Errors
/// When the kernel has no such counter.
pub fn counted(name: &str) -> Result<u64> {
    let counters = std::fs::read_to_string("/proc/thread-self/net/netstat")?;
    let mut lines = counters.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next(), lines.next());
    let (names, values) = names.zip(values).context("no counters of TCP")?;
    names
        .split(' ')
        .zip(values.split(' '))
        .find(|(its_name, _)| *its_name == name)
        .with_context(|| format!("no {name}"))?
        .1
        .parse()
        .context("not a number")
}
