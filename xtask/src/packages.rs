//! Debian and Ubuntu packages: found by the files they bring, installed only when those are absent.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, bail};

use crate::process;

/// Something this machine needs, and the package that brings it.
pub struct Requirement {
    /// Debian's name of the package.
    pub package: &'static str,
    proof: Proof,
}

/// What shows that a requirement is met, however it came to the machine.
enum Proof {
    Program(&'static str),
    File(&'static str),
}

impl Requirement {
    /// A program, looked up in `PATH` and the `sbin` directories.
    pub const fn program(program: &'static str, package: &'static str) -> Self {
        let proof = Proof::Program(program);
        Self { package, proof }
    }

    /// A file or directory.
    pub const fn file(path: &'static str, package: &'static str) -> Self {
        let proof = Proof::File(path);
        Self { package, proof }
    }

    /// Whether the machine has it.
    pub fn is_met(&self) -> bool {
        match self.proof {
            Proof::Program(program) => process::find(program).is_some(),
            Proof::File(path) => Path::new(path).exists(),
        }
    }
}

/// Installs the packages of those requirements that are not met.
pub fn provide(requirements: impl Iterator<Item = &'static Requirement>) -> Result<()> {
    let missing: Vec<_> = requirements
        .filter(|requirement| !requirement.is_met())
        .map(|requirement| requirement.package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    install(&missing)
}

/// Installs packages, or says which are missing and how to install them.
pub fn install(packages: &[&str]) -> Result<()> {
    let names = packages.join(" ");
    if process::find("apt-get").is_none() {
        bail!("missing: {names} (Debian's names); this machine has no apt, install them by hand");
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("missing: {names}; run `sudo apt-get install {names}`");
    }
    println!("installing with apt: {names}");
    apt_get(&["update"])
        .and_then(|()| {
            apt_get(&[&["install", "--yes", "--no-install-recommends"], packages].concat())
        })
        .with_context(|| format!("missing: {names}"))
}

fn apt_get(args: &[&str]) -> Result<()> {
    process::output(
        Command::new("apt-get")
            .args(args)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
    .map(drop)
}
