//! Formatting, lints and documentation.

use anyhow::Result;

use crate::{build, process};

/// Checks them all; any warning is an error.
pub fn run() -> Result<()> {
    process::run(process::cargo().args(["fmt", "--all", "--check"]))?;
    // The prestack crate embeds the object, and so does not compile without one.
    build::bpf_object()?;
    process::run(
        process::cargo()
            .args(["clippy", "--workspace", "--all-targets"])
            .args(["--", "--deny", "warnings"]),
    )?;
    process::run(
        process::cargo()
            .args([
                "doc",
                "--workspace",
                "--no-deps",
                "--document-private-items",
            ])
            .env("RUSTDOCFLAGS", "--deny warnings"),
    )
}
