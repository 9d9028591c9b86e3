//! Building the BPF object, and the programs that carry or test it.

use std::{fs, io::BufReader, path::PathBuf, process::Stdio};

use anyhow::{Context, Result, bail};
use cargo_metadata::{Artifact, Message};

use crate::{process, toolchain};

const BPF_PACKAGE: &str = "prestack-ebpf";
const BPF_TARGET: &str = "bpfel-unknown-none";

/// Debug information becomes BTF, which the loader needs for the maps.
const BPF_RUSTFLAGS: &str = "-C debuginfo=2 -C link-arg=--btf";

/// Everything that compiles for the host. One selection for all commands, for another one can mean
/// other features of the dependencies, and so compiling these again.
pub const HOST_PACKAGES: [&str; 3] = ["--workspace", "--exclude", BPF_PACKAGE];

/// A profile of the host's programs.
#[derive(Clone, Copy)]
pub enum Profile {
    /// Quick to build, with overflow checks.
    Dev,
    /// What users run.
    Release,
}

/// Builds the BPF object, which the prestack crate embeds, and returns its path.
pub fn bpf_object() -> Result<PathBuf> {
    // A target directory of its own: sharing it would mean waiting for the lock of a cargo that
    // builds for the host.
    let directory = process::workspace().join("target/bpf");
    let toolchain = toolchain::find_or_install()?;
    process::run(
        toolchain
            .cargo()
            .args(["build", "--quiet", "--release", "--package", BPF_PACKAGE])
            .args(["--target", BPF_TARGET, "-Z", "build-std=core"])
            .arg("--target-dir")
            .arg(&directory)
            .env("RUSTFLAGS", BPF_RUSTFLAGS),
    )?;
    let built = directory.join(BPF_TARGET).join("release").join(BPF_PACKAGE);
    let object = directory.join("prestack.bpf.o");
    publish(&built, &object)
        .with_context(|| format!("cannot copy {} to {}", built.display(), object.display()))?;
    Ok(object)
}

/// Copies a file, unless the copy is there already: its age decides whether cargo rebuilds what
/// embeds it.
fn publish(from: &PathBuf, to: &PathBuf) -> Result<()> {
    let new = fs::read(from)?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    let unfinished = to.with_extension("new");
    fs::write(&unfinished, new)?;
    fs::rename(unfinished, to)?;
    Ok(())
}

/// Builds the BPF object and the prestack binary, and returns the binary's path.
pub fn prestack(profile: Profile) -> Result<PathBuf> {
    bpf_object()?;
    match profile {
        Profile::Dev => dev_program("prestack"),
        Profile::Release => program(&["--release", "--package", "prestack"], "prestack"),
    }
}

/// Builds a program of the workspace with the dev profile, and returns its path.
pub fn dev_program(name: &str) -> Result<PathBuf> {
    program(&HOST_PACKAGES, name)
}

fn program(selection: &[&str], name: &str) -> Result<PathBuf> {
    let built = executables(&[&["build", "--bin", name], selection].concat())?;
    let program = built.into_iter().find(|program| program.name == name);
    Ok(program
        .with_context(|| format!("cargo built no {name}"))?
        .path)
}

/// A program that cargo has built.
pub struct Executable {
    /// Name of the target: a binary's or an integration test's.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
}

/// Runs a cargo command that builds, and returns the programs it has built.
pub fn executables(args: &[&str]) -> Result<Vec<Executable>> {
    let mut cargo = process::cargo();
    cargo
        .args(args)
        .arg("--message-format=json-render-diagnostics")
        .stdout(Stdio::piped());
    let mut child = cargo.spawn().context("cannot start cargo")?;
    let messages = child.stdout.take().context("cargo has no stdout")?;
    let mut found = Vec::new();
    for message in Message::parse_stream(BufReader::new(messages)) {
        let message = message.context("cannot read cargo's messages")?;
        if let Message::CompilerArtifact(Artifact {
            target,
            executable: Some(path),
            ..
        }) = message
        {
            found.push(Executable {
                name: target.name,
                path: path.into(),
            });
        }
    }
    let status = child.wait().context("cannot wait for cargo")?;
    if !status.success() {
        bail!("`cargo {}` failed: {status}", args.join(" "));
    }
    Ok(found)
}
