//! Debian's rustc-web and cargo-web, which are newer than the release's own Rust and have their
//! library's sources as a package.

use std::{path::Path, process::Command};

use anyhow::{Result, bail};

use super::{Compiler, Source, has_library_sources, unsteered};
use crate::{packages, process};

const RUSTC: &str = "/usr/bin/rustc";
/// Where it is.
pub(super) const CARGO: &str = "/usr/bin/cargo";
const PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];

/// The pair that is installed, if it has what it takes.
pub fn find() -> Result<Compiler> {
    for program in [RUSTC, CARGO] {
        if !Path::new(program).exists() {
            bail!("{program} is missing");
        }
    }
    let sysroot = process::output(&mut rustc(&["--print", "sysroot"]))?;
    if !has_library_sources(&sysroot) {
        bail!("{RUSTC} lacks the sources of its library");
    }
    Compiler::of(Source::Debian, rustc)
}

/// As [`find`], but installs what is missing.
pub fn find_or_install() -> Result<Compiler> {
    find().or_else(|_| {
        packages::install(&PACKAGES)?;
        find()
    })
}

/// Its cargo.
pub fn cargo() -> Command {
    let mut command = unsteered(CARGO);
    // It is a stable release: this lets it use `-Z build-std`.
    command.env("RUSTC_BOOTSTRAP", "1").env("RUSTC", RUSTC);
    command
}

fn rustc(args: &[&str]) -> Command {
    let mut command = unsteered(RUSTC);
    command.args(args);
    command
}
