//! All tests of the workspace, on this machine.

use std::path::Path;

use anyhow::{Context, Result, bail};
use cargo_metadata::{MetadataCommand, TargetKind};

use crate::{
    build::{self, HOST_PACKAGES},
    process, setup,
};

/// Tests that measure time on real sockets, or fill the machine with processes: one at a time.
const SERIAL: [&str; 2] = ["netns", "coherence"];

/// The option that makes a test binary run its tests one at a time.
const ONE_AT_A_TIME: &str = "--test-threads=1";

/// Sets up, builds and tests; `args` go to every test binary.
pub fn run(args: &[String]) -> Result<()> {
    setup::require_root("cargo xtask test")?;
    setup::tests()?;
    let built = build::for_tests(&["--tests"])?;
    let tests = Tests {
        prestack: built.program("prestack")?,
        args,
    };

    let (serial, parallel): (Vec<_>, Vec<_>) = integration_tests(None)?
        .into_iter()
        .partition(|name| is_serial(name));
    let mut quick = vec!["--lib", "--bins"];
    quick.extend(parallel.iter().flat_map(|name| ["--test", name]));
    let mut failed = Vec::new();
    let mut run = |what, selection: &[&str], threads| {
        if let Err(error) = tests.run(selection, threads) {
            failed.push(format!("{what}: {error:#}"));
        }
    };
    run("unit and datapath tests", &quick, None);
    run("documentation tests", &["--doc"], None);
    for name in &serial {
        run(name, &["--test", name], options(name));
    }
    if !failed.is_empty() {
        bail!("tests failed\n{}", failed.join("\n"));
    }
    Ok(())
}

/// The options a test binary gets by its name.
pub fn options(name: &str) -> Option<&'static str> {
    is_serial(name).then_some(ONE_AT_A_TIME)
}

fn is_serial(name: &str) -> bool {
    SERIAL.contains(&name)
}

struct Tests<'a> {
    prestack: &'a Path,
    args: &'a [String],
}

impl Tests<'_> {
    fn run(&self, selection: &[&str], threads: Option<&str>) -> Result<()> {
        process::run(
            process::cargo()
                .args(["test", "--no-fail-fast"])
                .args(HOST_PACKAGES)
                .args(selection)
                .arg("--")
                .args(threads)
                .args(self.args)
                .env("PRESTACK_BIN", self.prestack)
                // What a failed test says stands at the end of what is printed, not above a backtrace.
                .env("RUST_BACKTRACE", "0"),
        )
    }
}

/// Names of the integration tests of a package, or of the whole workspace.
pub fn integration_tests(package: Option<&str>) -> Result<Vec<String>> {
    let metadata = MetadataCommand::new()
        .current_dir(process::workspace())
        .no_deps()
        .exec()
        .context("cannot list the workspace's targets")?;
    Ok(metadata
        .packages
        .into_iter()
        .filter(|found| package.is_none_or(|name| found.name == name))
        .flat_map(|found| found.targets)
        .filter(|target| target.kind.contains(&TargetKind::Test))
        .map(|target| target.name)
        .collect())
}
