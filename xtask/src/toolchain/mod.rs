//! A Rust that compiles for BPF: it must rebuild `core` for a target that ships without one, so it
//! needs the library's sources and the right to use `-Z build-std`.

mod debian;
mod nightly;
pub mod tools;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, anyhow, bail};

use crate::{bpf_linker, process};

/// The oldest Rust that compiles the workspace.
const OLDEST: &str = env!("CARGO_PKG_RUST_VERSION");

/// Variables by which the cargo that runs us would steer the nested one to the wrong compiler,
/// target or flags.
const FOREIGN_VARIABLES: [&str; 9] = [
    "CARGO",
    "RUSTC",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTDOC",
    "RUSTUP_TOOLCHAIN",
    "RUSTFLAGS",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "LD_LIBRARY_PATH",
];

/// A compiler and a linker that fit.
pub struct Toolchain {
    compiler: Compiler,
    linker: PathBuf,
}

struct Compiler {
    source: Source,
    /// First line of `rustc --version --verbose`.
    version: String,
    /// Major version of the LLVM whose bitcode it writes.
    llvm: u32,
}

#[derive(Clone, Copy)]
enum Source {
    Nightly,
    Debian,
}

impl Toolchain {
    /// `cargo` of this toolchain, to be run in the workspace's root.
    pub fn cargo(&self) -> Command {
        let mut command = match self.compiler.source {
            Source::Nightly => nightly::cargo(),
            Source::Debian => debian::cargo(),
        };
        command.env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &self.linker);
        command
    }
}

/// Finds a toolchain, installing what is missing, and says which it is and why.
pub fn find_or_install() -> Result<Toolchain> {
    let nightly = with_linker(nightly::find()).context("rustup's nightly");
    let why_not_nightly = match &nightly {
        Ok(_) => String::new(),
        Err(error) => format!(" ({error:#})"),
    };
    let toolchain = nightly
        .or_else(|_| with_linker(debian::find()))
        .or_else(|_| install())?;
    let Compiler {
        source,
        version,
        llvm,
    } = &toolchain.compiler;
    let compiler = match source {
        Source::Nightly => format!("rustup's nightly, {version}"),
        Source::Debian => format!("Debian's pair, {version}{why_not_nightly}"),
    };
    let linker = toolchain.linker.display();
    println!("BPF toolchain: {compiler}; LLVM {llvm}; {linker}");
    Ok(toolchain)
}

fn with_linker(compiler: Result<Compiler>) -> Result<Toolchain> {
    let compiler = compiler?;
    let linker = bpf_linker::find(compiler.llvm)?;
    Ok(Toolchain { compiler, linker })
}

/// Installs what is missing of either toolchain.
fn install() -> Result<Toolchain> {
    // The distribution's packages first: they match each other, and they do not add to the
    // user's own rustup.
    with_new_linker(debian::find_or_install(), process::cargo).or_else(|debian| {
        with_new_linker(nightly::find_or_install(), nightly::cargo).map_err(|nightly| {
            anyhow!(
                "no Rust here compiles for BPF. One of these must work:\n\
                 - Debian's pair: {debian:#}\n\
                 - rustup's nightly: {nightly:#}"
            )
        })
    })
}

/// `cargo` is what to compile or fetch a linker with, if need be.
fn with_new_linker(compiler: Result<Compiler>, cargo: fn() -> Command) -> Result<Toolchain> {
    let compiler = compiler?;
    let linker = bpf_linker::find_or_install(compiler.llvm, cargo)?;
    Ok(Toolchain { compiler, linker })
}

impl Compiler {
    /// Asks a compiler what it is; `rustc` makes a command of the arguments for it.
    fn of(source: Source, rustc: impl Fn(&[&str]) -> Command) -> Result<Self> {
        let answer = process::output(&mut rustc(&["--version", "--verbose"]))?;
        let unclear = || format!("rustc --version is not understood: {answer}");
        let release = minor_release(field(&answer, "release: ").with_context(unclear)?)
            .with_context(unclear)?;
        if Some(release) < minor_release(OLDEST) {
            bail!("its rustc is 1.{release}, and {OLDEST} or newer is needed");
        }
        let llvm = field(&answer, "LLVM version: ").with_context(unclear)?;
        Ok(Self {
            source,
            llvm: llvm_major(llvm).with_context(unclear)?,
            version: answer.lines().next().unwrap_or_default().to_owned(),
        })
    }
}

fn field<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    answer.lines().find_map(|line| line.strip_prefix(name))
}

/// The minor number of Rust 1.
fn minor_release(version: &str) -> Option<u32> {
    version.split('.').nth(1)?.parse().ok()
}

fn llvm_major(version: &str) -> Option<u32> {
    version.split('.').next()?.parse().ok()
}

/// Whether a sysroot, as `rustc --print sysroot` tells it, has the library's sources.
fn has_library_sources(sysroot: &str) -> bool {
    Path::new(sysroot.trim())
        .join("lib/rustlib/src/rust/library")
        .is_dir()
}

/// A command in the workspace's root that chooses its compiler itself.
fn unsteered(program: &str) -> Command {
    let mut command = Command::new(program);
    command.current_dir(process::workspace());
    for variable in FOREIGN_VARIABLES {
        command.env_remove(variable);
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rustc_tells_its_versions() {
        let answer = "rustc 1.97.0-nightly (e50aa6fba 2026-05-19)\n\
                      release: 1.97.0-nightly\n\
                      LLVM version: 22.1.8\n";
        assert_eq!(field(answer, "release: ").and_then(minor_release), Some(97));
        assert_eq!(
            field(answer, "LLVM version: ").and_then(llvm_major),
            Some(22)
        );
        assert_eq!(field(answer, "host: "), None);
    }
}
