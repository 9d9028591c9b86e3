//! bpf-linker, which turns LLVM bitcode into a BPF object. Its LLVM must be at least as new as the
//! compiler's, else it cannot read the bitcode.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use cargo_metadata::semver::Version;

use crate::{packages, process};

/// What is installed when there is none, and the oldest that will do.
const VERSION: Version = Version::new(0, 13, 0);

/// The newest LLVM that this version can be built with.
const NEWEST_LLVM: u32 = 23;

/// A linker that reads the bitcode of this LLVM.
pub fn find(compiler_llvm: u32) -> Result<PathBuf> {
    let linker = locate().with_context(|| format!("bpf-linker {VERSION} is not installed"))?;
    let answer = process::output(Command::new(&linker).arg("--version"))?;
    let path = linker.display();
    let version = answer
        .split_whitespace()
        .nth(1)
        .and_then(|version| Version::parse(version).ok())
        .with_context(|| format!("{path} tells no version: {answer}"))?;
    if version < VERSION {
        bail!("{path} is version {version}, and {VERSION} or newer is needed");
    }
    // The prebuilt linkers carry their LLVM inside and link nothing: `ldd` fails on those, and
    // they have the newest LLVM of their time.
    let libraries = process::output(Command::new("ldd").arg(&linker)).unwrap_or_default();
    if let Some(llvm) = linked_llvm(&libraries)
        && llvm < compiler_llvm
    {
        bail!("{path} reads the bitcode of LLVM {llvm} and older, not of LLVM {compiler_llvm}");
    }
    Ok(linker)
}

/// As [`find`], but installs a linker for this LLVM if there is none, by a cargo of its choice.
pub fn find_or_install(compiler_llvm: u32, cargo: fn() -> Command) -> Result<PathBuf> {
    find(compiler_llvm).or_else(|_| {
        match llvm_prefix(compiler_llvm) {
            Ok((llvm, prefix)) => compile(llvm, &prefix, cargo())?,
            Err(error) => download(cargo).with_context(|| format!("{error:#}"))?,
        }
        find(compiler_llvm)
    })
}

fn locate() -> Option<PathBuf> {
    process::find("bpf-linker").or_else(|| {
        // Cargo installs here, whether or not it is in PATH.
        let home = env::var_os("CARGO_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(env::home_dir()?.join(".cargo")))?;
        let installed = home.join("bin/bpf-linker");
        installed.exists().then_some(installed)
    })
}

/// The LLVM library a dynamically linked program uses, from what `ldd` says of it.
fn linked_llvm(ldd: &str) -> Option<u32> {
    let name = ldd.split_whitespace().find_map(|word| {
        word.strip_prefix("libLLVM.so.")
            .or_else(|| word.strip_prefix("libLLVM-"))
    })?;
    let digits = name.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

/// An LLVM with its development files that can read what the compiler writes.
fn llvm_prefix(compiler_llvm: u32) -> Result<(u32, PathBuf)> {
    let installed = |llvm: u32| {
        let prefix = PathBuf::from(format!("/usr/lib/llvm-{llvm}"));
        prefix
            .join("lib/libLLVM.so")
            .exists()
            .then_some((llvm, prefix))
    };
    if let Some(found) = (compiler_llvm..=NEWEST_LLVM).find_map(installed) {
        return Ok(found);
    }
    let package = format!("llvm-{compiler_llvm}-dev");
    packages::install(&[&package])?;
    installed(compiler_llvm).with_context(|| format!("{package} brought no LLVM library"))
}

fn compile(llvm: u32, prefix: &Path, mut cargo: Command) -> Result<()> {
    println!("installing with cargo: bpf-linker {VERSION} for LLVM {llvm}");
    process::run(
        cargo
            .args(["install", "--force", "--locked", &package()])
            .args(["--no-default-features", "--features"])
            .arg(format!("llvm-{llvm}"))
            .env("LLVM_PREFIX", prefix),
    )
}

/// Fetches the linker that its project has built: static, with an LLVM of its own.
fn download(cargo: fn() -> Command) -> Result<()> {
    if process::find("cargo-binstall").is_none() {
        println!("installing with cargo: cargo-binstall, to fetch a prebuilt bpf-linker");
        process::run(cargo().args(["install", "--locked", "cargo-binstall"]))?;
    }
    println!("installing with cargo-binstall: bpf-linker {VERSION}");
    process::run(
        cargo()
            .args(["binstall", "--no-confirm", "--force"])
            // It would else compile it, which is what has failed already.
            .args(["--strategies", "crate-meta-data", &package()]),
    )
}

fn package() -> String {
    format!("bpf-linker@{VERSION}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldd_tells_the_linked_llvm() {
        let debian =
            "\tlibLLVM.so.22.1 => /usr/lib/llvm-22/lib/libLLVM.so.22.1 (0x00007fe223000000)\n";
        assert_eq!(linked_llvm(debian), Some(22));
        assert_eq!(
            linked_llvm("\tlibLLVM-19.so.1 => /usr/lib/libLLVM-19.so.1 (0x0)"),
            Some(19)
        );
        assert_eq!(linked_llvm("\tstatically linked\n"), None);
    }
}
