//! Formatting, lints and documentation.

use std::process::Command;

use anyhow::Result;

use crate::{
    build::{self, BPF_PACKAGE, HOST_PACKAGES},
    process,
};

/// Checks them all; any warning is an error.
pub fn run() -> Result<()> {
    process::run(process::cargo().args(["fmt", "--all", "--check"]))?;
    // The prestack crate embeds the object, and so does not compile without one.
    build::bpf_object()?;
    clippy(
        process::cargo()
            .args(["clippy", "--all-targets"])
            .args(HOST_PACKAGES),
    )?;
    // A program without std cannot unwind, and the host's default is to unwind.
    clippy(
        process::cargo()
            .args(["clippy", "--package", BPF_PACKAGE])
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
