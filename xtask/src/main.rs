//! The project's set-up, build and test commands: `cargo xtask --help`.

mod archive;
mod bpf_linker;
mod build;
mod lint;
mod memcached;
mod packages;
mod process;
mod setup;
mod test;
mod toolchain;
mod vm;

use std::{
    ffi::OsString,
    process::{Command, ExitCode},
};

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::build::Profile;

/// Set-up, build, test, demo and benchmarks of prestack.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is missing on this machine to build, test and demonstrate prestack
    Setup,
    /// Build the prestack binary and what it carries, and print its path
    Build {
        /// Build the binary with the dev profile (what it carries is always optimised)
        #[arg(long)]
        debug: bool,
    },
    /// Set up, build, and run all tests of the workspace on this machine (as root)
    Test {
        /// Passed to every test binary: a filter, --nocapture and the like
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Build, then show stock memcached without and with prestack (as root)
    Demo {
        /// Passed to `prestack demo`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Build, then run the benchmarks (as root)
    Bench {
        /// Passed to `prestack bench`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Check formatting, lints and documentation; any warning is an error
    Lint,
    /// Fetch the memcached of another Debian release, to test with, and print its path
    ///
    /// `PRESTACK_MEMCACHED=PATH cargo xtask test -- FILTER` runs tests with it.
    Memcached {
        /// The release's code name
        #[arg(long, value_name = "NAME", default_value = "trixie")]
        suite: String,
    },
    /// Run the datapath and namespace tests on another kernel, in a virtual machine
    Vmtest(vm::Options),
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Setup => setup::everything(),
        Task::Build { debug } => {
            let profile = if debug {
                Profile::Dev
            } else {
                Profile::Release
            };
            println!("{}", build::prestack(profile)?.display());
            Ok(())
        }
        Task::Test { args } => test::run(&args),
        Task::Demo { args } => prestack("demo", &args),
        Task::Bench { args } => prestack("bench", &args),
        Task::Lint => lint::run(),
        Task::Memcached { suite } => {
            println!("{}", memcached::fetch(&suite)?.display());
            Ok(())
        }
        Task::Vmtest(options) => vm::run(&options),
    }
}

/// Runs a subcommand of the release binary that needs root and memcached.
fn prestack(subcommand: &str, args: &[OsString]) -> Result<()> {
    setup::require_root(&format!("cargo xtask {subcommand}"))?;
    setup::runtime()?;
    let binary = build::prestack(Profile::Release)?;
    process::run(Command::new(binary).arg(subcommand).args(args))
}
