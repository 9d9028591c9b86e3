//! Building what the prestack binary carries, and the programs that carry or test it.

use std::{
    collections::BTreeMap,
    fs,
    io::BufReader,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, bail};
use cargo_metadata::{Artifact, Message};

use crate::{process, toolchain};

const PRESTACK: &str = "prestack";
/// The packages of BPF programs, each with the name of the object that it becomes: prestack's own,
/// and those that measure them.
pub const BPF_PACKAGES: [(&str, &str); 2] = [
    ("prestack-ebpf", "prestack.bpf.o"),
    ("prestack-bench-ebpf", "prestack-bench.bpf.o"),
];
const BPF_TARGET: &str = "bpfel-unknown-none";

/// The package of the library that is preloaded into memcached, and the library's name.
const LIBRARY: (&str, &str) = ("prestack-reuseport", "libprestack_reuseport.so");

/// Debug information becomes BTF, which the loader needs for the maps.
const BPF_RUSTFLAGS: &str = "-C debuginfo=2 -C link-arg=--btf";

/// Everything that compiles for the host. One selection for all commands, for another one can mean
/// other features of the dependencies, and so compiling these again.
pub const HOST_PACKAGES: [&str; 5] = [
    "--workspace",
    "--exclude",
    BPF_PACKAGES[0].0,
    "--exclude",
    BPF_PACKAGES[1].0,
];

/// How to build the prestack binary.
#[derive(Clone, Copy)]
pub enum Profile {
    /// Quickly.
    Dev,
    /// As users run it.
    Release,
}

/// Builds what crates for the host embed, always optimised: the BPF objects, and the library that is
/// preloaded into memcached.
pub fn embedded() -> Result<()> {
    bpf_objects()?;
    library()
}

fn bpf_objects() -> Result<()> {
    // A target directory of its own: sharing it would mean waiting for the lock of a cargo that
    // builds for the host.
    let directory = process::workspace().join("target/bpf");
    let toolchain = toolchain::find_or_install()?;
    process::run(
        toolchain
            .cargo()
            .args(["build", "--quiet", "--release"])
            .args(BPF_PACKAGES.map(|(package, _)| format!("--package={package}")))
            .args(["--target", BPF_TARGET, "-Z", "build-std=core"])
            .arg("--target-dir")
            .arg(&directory)
            .env("RUSTFLAGS", BPF_RUSTFLAGS),
    )?;
    for (package, object) in BPF_PACKAGES {
        let built = directory.join(BPF_TARGET).join("release").join(package);
        let object = directory.join(object);
        publish(&built, &object)
            .with_context(|| format!("cannot copy {} to {}", built.display(), object.display()))?;
    }
    Ok(())
}

fn library() -> Result<()> {
    // Its own target directory, as what it depends on is built with other options here.
    let directory = process::workspace().join("target/reuseport");
    let (package, library) = LIBRARY;
    process::run(
        process::cargo()
            .args(["build", "--quiet", "--release", "--package", package])
            .args(["--config", "profile.release.strip='symbols'"])
            .arg("--target-dir")
            .arg(&directory),
    )?;
    let built = directory.join("release").join(library);
    let library = directory.join(library);
    publish(&built, &library)
        .with_context(|| format!("cannot copy {} to {}", built.display(), library.display()))
}

/// Copies a file, unless the copy is there already: its age decides whether cargo rebuilds what
/// embeds it.
fn publish(from: &Path, to: &Path) -> Result<()> {
    let new = fs::read(from)?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    // Whoever builds at the same time finds the old one or the new one whole.
    let unfinished = to.with_extension(std::process::id().to_string());
    fs::write(&unfinished, new)?;
    fs::rename(unfinished, to)?;
    Ok(())
}

/// Builds the prestack binary with what it carries, and returns the binary's path.
pub fn prestack(profile: Profile) -> Result<PathBuf> {
    embedded()?;
    let mut args = vec!["--package", PRESTACK, "--bin", PRESTACK];
    if let Profile::Release = profile {
        args.push("--release");
    }
    Ok(host(&args)?.program(PRESTACK)?.to_owned())
}

/// Builds the prestack binary with what it carries, and a selection of other programs and tests, all
/// with the dev profile: it is quick to build, and checks for overflows.
///
/// One command, because what cargo builds together shares the dependencies and their features.
pub fn for_tests(selection: &[&str]) -> Result<Built> {
    embedded()?;
    host(&[&HOST_PACKAGES[..], &["--bin", PRESTACK], selection].concat())
}

/// What cargo has built, by name.
pub struct Built {
    programs: BTreeMap<String, PathBuf>,
    tests: BTreeMap<String, PathBuf>,
}

impl Built {
    /// The path of a program.
    pub fn program(&self, name: &str) -> Result<&Path> {
        let path = self.programs.get(name);
        Ok(path.with_context(|| format!("cargo built no program {name}"))?)
    }

    /// The path of a test program.
    pub fn test(&self, name: &str) -> Result<&Path> {
        let path = self.tests.get(name);
        Ok(path.with_context(|| format!("cargo built no test {name}"))?)
    }
}

/// Runs `cargo build`.
fn host(args: &[&str]) -> Result<Built> {
    let mut cargo = process::cargo();
    cargo
        .args(["build", "--message-format=json-render-diagnostics"])
        .args(args)
        .stdout(Stdio::piped());
    let mut child = cargo.spawn().context("cannot start cargo")?;
    let messages = child.stdout.take().context("cargo has no stdout")?;
    let mut built = Built {
        programs: BTreeMap::new(),
        tests: BTreeMap::new(),
    };
    for message in Message::parse_stream(BufReader::new(messages)) {
        let message = message.context("cannot read cargo's messages")?;
        if let Message::CompilerArtifact(Artifact {
            target,
            profile,
            executable: Some(path),
            ..
        }) = message
        {
            let kind = if profile.test {
                &mut built.tests
            } else {
                &mut built.programs
            };
            kind.insert(target.name, path.into());
        }
    }
    let status = child.wait().context("cannot wait for cargo")?;
    if !status.success() {
        bail!("`cargo build {}` failed: {status}", args.join(" "));
    }
    Ok(built)
}
