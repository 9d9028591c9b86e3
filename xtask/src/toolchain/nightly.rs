//! rustup's nightly with the component `rust-src`.

use std::process::Command;

use anyhow::{Result, anyhow, bail};

use super::{Compiler, Source, has_library_sources, unsteered};
use crate::process;

/// The nightly that is installed, if it has what it takes.
pub fn find() -> Result<Compiler> {
    require_rustup()?;
    let sysroot = process::output(&mut rustc(&["--print", "sysroot"]))
        .map_err(|_| anyhow!("it is not installed"))?;
    if !has_library_sources(&sysroot) {
        bail!("it lacks rust-src");
    }
    Compiler::of(Source::Nightly, rustc)
}

/// As [`find`], but adds what is missing. A nightly that is there is not updated.
pub fn find_or_install() -> Result<Compiler> {
    find().or_else(|_| {
        require_rustup()?;
        let mut rustup = Command::new("rustup");
        if process::output(&mut rustc(&["--version"])).is_ok() {
            println!("installing with rustup: rust-src for nightly");
            rustup.args(["component", "add", "rust-src", "--toolchain", "nightly"]);
        } else {
            println!("installing with rustup: nightly with rust-src");
            rustup.args(["toolchain", "install", "nightly", "--profile", "minimal"]);
            rustup.args(["--component", "rust-src", "--no-self-update"]);
        }
        process::run(&mut rustup)?;
        find()
    })
}

/// Its cargo.
pub fn cargo() -> Command {
    let mut command = unsteered("rustup");
    command.args(["run", "nightly", "cargo"]);
    command
}

fn rustc(args: &[&str]) -> Command {
    let mut command = unsteered("rustup");
    command.args(["run", "nightly", "rustc"]).args(args);
    command
}

fn require_rustup() -> Result<()> {
    if process::find("rustup").is_none() {
        bail!("rustup is not installed, see https://rustup.rs");
    }
    Ok(())
}
