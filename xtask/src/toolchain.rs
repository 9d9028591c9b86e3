//! A Rust that compiles for BPF: it must rebuild `core` for a target that ships without one, so it
//! needs the library's sources and the right to use `-Z build-std`.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, anyhow, bail};

use crate::{bpf_linker, packages, process};

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
const DEBIAN_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];

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
    RustupNightly,
    DebianPair,
}

impl Toolchain {
    /// `cargo` of this toolchain, to be run in the workspace's root.
    pub fn cargo(&self) -> Command {
        let mut command = match self.compiler.source {
            Source::RustupNightly => {
                let mut command = Command::new("rustup");
                command.args(["run", "nightly", "cargo"]);
                command
            }
            Source::DebianPair => Command::new(DEBIAN_CARGO),
        };
        for variable in FOREIGN_VARIABLES {
            command.env_remove(variable);
        }
        if let Source::DebianPair = self.compiler.source {
            // It is a stable release: this lets it use `-Z build-std`.
            command
                .env("RUSTC_BOOTSTRAP", "1")
                .env("RUSTC", DEBIAN_RUSTC);
        }
        command
            .current_dir(process::workspace())
            .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &self.linker);
        command
    }
}

/// Finds a toolchain, installing what is missing, and says which it is and why.
pub fn find_or_install() -> Result<Toolchain> {
    let nightly = find_nightly();
    let why_not_nightly = match &nightly {
        Ok(_) => String::new(),
        Err(error) => format!(" ({error:#})"),
    };
    let toolchain = nightly.or_else(|_| find_debian()).or_else(|_| install())?;
    let Compiler {
        source,
        version,
        llvm,
    } = &toolchain.compiler;
    let compiler = match source {
        Source::RustupNightly => format!("rustup's nightly, {version}"),
        Source::DebianPair => format!("Debian's pair, {version}{why_not_nightly}"),
    };
    let linker = toolchain.linker.display();
    println!("BPF toolchain: {compiler}; LLVM {llvm}; {linker}");
    Ok(toolchain)
}

/// Installs what is missing of either toolchain.
fn install() -> Result<Toolchain> {
    // The distribution's packages first: they match each other, and they do not add to the
    // user's own rustup.
    install_debian().or_else(|debian| {
        install_nightly().map_err(|nightly| {
            anyhow!(
                "no Rust here compiles for BPF. One of these must work:\n\
                 - Debian's pair: {debian:#}\n\
                 - rustup's nightly: {nightly:#}"
            )
        })
    })
}

fn find_nightly() -> Result<Toolchain> {
    let compiler = nightly()?;
    let linker = bpf_linker::find(compiler.llvm)?;
    Ok(Toolchain { compiler, linker })
}

fn find_debian() -> Result<Toolchain> {
    let compiler = debian()?;
    let linker = bpf_linker::find(compiler.llvm)?;
    Ok(Toolchain { compiler, linker })
}

fn install_debian() -> Result<Toolchain> {
    let compiler = debian().or_else(|_| {
        packages::install(&DEBIAN_PACKAGES)?;
        debian()
    })?;
    let linker = bpf_linker::find_or_install(compiler.llvm)?;
    Ok(Toolchain { compiler, linker })
}

fn install_nightly() -> Result<Toolchain> {
    let compiler = nightly().or_else(|_| {
        add_nightly()?;
        nightly()
    })?;
    let linker = bpf_linker::find_or_install(compiler.llvm)?;
    Ok(Toolchain { compiler, linker })
}

fn nightly() -> Result<Compiler> {
    require_rustup()?;
    let sysroot = process::output(&mut nightly_rustc(&["--print", "sysroot"]))
        .map_err(|_| anyhow!("rustup has no nightly toolchain"))?;
    if !has_library_sources(Path::new(sysroot.trim())) {
        bail!("rustup's nightly lacks rust-src");
    }
    let version = process::output(&mut nightly_rustc(&["--version", "--verbose"]))?;
    Compiler::new(Source::RustupNightly, &version)
}

fn nightly_rustc(args: &[&str]) -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", "nightly", "rustc"]).args(args);
    for variable in FOREIGN_VARIABLES {
        command.env_remove(variable);
    }
    command
}

/// Adds what is missing, and leaves alone (does not update) a nightly that is there.
fn add_nightly() -> Result<()> {
    require_rustup()?;
    let mut rustup = Command::new("rustup");
    if process::output(&mut nightly_rustc(&["--version"])).is_ok() {
        println!("installing with rustup: rust-src for nightly");
        rustup.args(["component", "add", "rust-src", "--toolchain", "nightly"]);
    } else {
        println!("installing with rustup: nightly with rust-src");
        rustup.args(["toolchain", "install", "nightly", "--profile", "minimal"]);
        rustup.args(["--component", "rust-src", "--no-self-update"]);
    }
    process::run(&mut rustup)
}

fn require_rustup() -> Result<()> {
    if process::find("rustup").is_none() {
        bail!("rustup is not installed; see https://rustup.rs");
    }
    Ok(())
}

fn debian() -> Result<Compiler> {
    let [rustc, cargo, sources] = DEBIAN_PACKAGES;
    for (file, package) in [(DEBIAN_RUSTC, rustc), (DEBIAN_CARGO, cargo)] {
        if !Path::new(file).exists() {
            bail!("{file} is missing (package {package})");
        }
    }
    let sysroot = process::output(Command::new(DEBIAN_RUSTC).args(["--print", "sysroot"]))?;
    if !has_library_sources(Path::new(sysroot.trim())) {
        bail!("{DEBIAN_RUSTC} lacks the sources of its library (package {sources})");
    }
    let version = process::output(Command::new(DEBIAN_RUSTC).args(["--version", "--verbose"]))?;
    Compiler::new(Source::DebianPair, &version)
}

fn has_library_sources(sysroot: &Path) -> bool {
    sysroot.join("lib/rustlib/src/rust/library").is_dir()
}

impl Compiler {
    fn new(source: Source, verbose_version: &str) -> Result<Self> {
        let llvm = llvm_major(verbose_version)
            .with_context(|| format!("no LLVM version in rustc's answer: {verbose_version}"))?;
        let version = verbose_version
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned();
        Ok(Self {
            source,
            version,
            llvm,
        })
    }
}

fn llvm_major(verbose_version: &str) -> Option<u32> {
    let llvm = verbose_version
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?;
    llvm.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rustc_tells_its_llvm() {
        let version =
            "rustc 1.96.0 (ac68faa20 2026-05-25)\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        assert_eq!(llvm_major(version), Some(22));
        assert_eq!(llvm_major("rustc 1.96.0\n"), None);
    }
}
