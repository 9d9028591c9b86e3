//! Formatting, lints and documentation.

use std::process::Command;

use anyhow::Result;

use crate::{
    build::{self, BPF_PACKAGES, HOST_PACKAGES},
    process,
    toolchain::tools,
};

/// What it takes to check them.
pub fn requirements() -> Result<()> {
    tools::provide(&tools::CHECKS)
}

/// Checks them all; any warning is an error.
pub fn run() -> Result<()> {
    requirements()?;
    process::run(process::cargo().args(["fmt", "--all", "--check"]))?;
    // Crates for the host do not compile without what they embed.
    build::embedded()?;
    clippy(
        process::cargo()
            .args(["clippy", "--all-targets"])
            .args(HOST_PACKAGES),
    )?;
    // A program without std cannot unwind, and the host's default is to unwind.
    clippy(
        process::cargo()
            .arg("clippy")
            .args(BPF_PACKAGES.map(|(package, _)| format!("--package={package}")))
            .env("CARGO_PROFILE_DEV_PANIC", "abort"),
    )?;
    process::run(
        process::cargo()
            .args(["doc", "--workspace", "--no-deps"])
            .env("RUSTDOCFLAGS", "--deny warnings"),
    )
}

fn clippy(command: &mut Command) -> Result<()> {
    process::run(command.args(["--", "--deny", "warnings"]))
}
