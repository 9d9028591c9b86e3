//! Makes this machine ready. Every part does nothing when nothing is missing.

use std::fs;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};

use crate::{lint, memcached, packages, packages::Requirement, toolchain, vm};

/// What `prestack demo` and `prestack bench` need.
const RUNTIME: &[Requirement] = &[
    Requirement::program("memcached", "memcached"),
    Requirement::program("ip", "iproute2"),
    Requirement::program("ethtool", "ethtool"),
];

/// What the tests need beyond that.
const TESTS: &[Requirement] = &[
    Requirement::program("memccapable", "libmemcached-tools"),
    Requirement::file(
        "/usr/lib/python3/dist-packages/pymemcache",
        "python3-pymemcache",
    ),
    Requirement::program("tcpdump", "tcpdump"),
    Requirement::program("tshark", "tshark"),
    Requirement::program("nutcracker", "nutcracker"),
];

const BPFFS: &str = "/sys/fs/bpf";

/// Everything that any of the commands needs.
pub fn everything() -> Result<()> {
    toolchain::find_or_install()?;
    lint::requirements()?;
    tests()?;
    memcached::requirements()?;
    vm::requirements()
}

/// What it takes to run the tests on this machine.
pub fn tests() -> Result<()> {
    packages::provide(RUNTIME.iter().chain(TESTS))?;
    mount_bpffs()
}

/// What it takes to run memcached and prestack.
pub fn runtime() -> Result<()> {
    packages::provide(RUNTIME.iter())?;
    mount_bpffs()
}

/// Refuses to go on without root.
pub fn require_root(command: &str) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("`{command}` loads BPF programs and makes network namespaces: run it as root");
    }
    Ok(())
}

fn mount_bpffs() -> Result<()> {
    let mounts = fs::read_to_string("/proc/mounts").context("cannot read /proc/mounts")?;
    if is_mounted(&mounts, BPFFS, "bpf") {
        return Ok(());
    }
    println!("mounting bpffs at {BPFFS}");
    mount(
        Some("bpf"),
        BPFFS,
        Some("bpf"),
        MsFlags::empty(),
        None::<&str>,
    )
    .with_context(|| {
        format!("cannot mount bpffs; as root, run `mount -t bpf -o mode=700 bpf {BPFFS}`")
    })
}

fn is_mounted(mounts: &str, target: &str, kind: &str) -> bool {
    mounts.lines().any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        fields.next() == Some(target) && fields.next() == Some(kind)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_found_by_target_and_kind() {
        let mounts = "sysfs /sys sysfs rw 0 0\nnone /sys/fs/bpf bpf rw,mode=700 0 0\n";
        assert!(is_mounted(mounts, "/sys/fs/bpf", "bpf"));
        assert!(!is_mounted(mounts, "/sys", "bpf"));
        assert!(!is_mounted("bpf /mnt bpf rw 0 0\n", "/sys/fs/bpf", "bpf"));
    }
}
