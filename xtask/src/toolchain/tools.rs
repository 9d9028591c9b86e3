//! Subcommands of cargo that a toolchain may come without.

use std::{
    env,
    ffi::{OsStr, OsString},
    process::Command,
};

use anyhow::{Result, bail};

use super::debian;
use crate::{packages, process};

/// A subcommand, and what brings it.
pub struct Tool {
    subcommand: &'static str,
    /// rustup's name of the component.
    component: &'static str,
    /// Debian's name of the package that goes with cargo-web.
    package: &'static str,
}

/// Formatting and lints.
pub const CHECKS: [Tool; 2] = [
    Tool {
        subcommand: "fmt",
        component: "rustfmt",
        package: "rustfmt-web",
    },
    Tool {
        subcommand: "clippy",
        component: "clippy",
        package: "rust-web-clippy",
    },
];

/// Where the cargo that runs us is from.
#[derive(Debug, PartialEq, Eq)]
enum Source {
    /// A toolchain of rustup's, by its name.
    Rustup(OsString),
    Debian,
    Unknown,
}

impl Source {
    /// As cargo, and rustup which may have started it, say.
    fn of(cargo: Option<&OsStr>, rustup: Option<OsString>) -> Self {
        match rustup {
            Some(toolchain) => Self::Rustup(toolchain),
            None if cargo.is_some_and(|cargo| cargo == debian::CARGO) => Self::Debian,
            None => Self::Unknown,
        }
    }
}

/// Installs the tools that are missing, or says which are and what brings them.
pub fn provide(tools: &[Tool]) -> Result<()> {
    let missing: Vec<_> = tools.iter().filter(|tool| !tool.is_there()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let components: Vec<_> = missing.iter().map(|tool| tool.component).collect();
    let packages: Vec<_> = missing.iter().map(|tool| tool.package).collect();
    let cargo = env::var_os("CARGO");
    match Source::of(cargo.as_deref(), env::var_os("RUSTUP_TOOLCHAIN")) {
        Source::Rustup(toolchain) => {
            println!("installing with rustup: {}", components.join(" "));
            process::run(
                Command::new("rustup")
                    .args(["component", "add", "--toolchain"])
                    .arg(toolchain)
                    .args(components),
            )
        }
        Source::Debian => packages::install(&packages),
        Source::Unknown => bail!(
            "this cargo lacks {}: rustup's components of that name, or Debian's {} with its cargo-web, bring it",
            components.join(" and "),
            packages.join(" and ")
        ),
    }
}

impl Tool {
    /// Whether the cargo that runs us has it. rustup has a program for each tool, there or not, so it is asked.
    fn is_there(&self) -> bool {
        process::output(process::cargo().args([self.subcommand, "--version"])).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cargo_that_runs_us_says_where_it_is_from() {
        let debian = Some(OsStr::new("/usr/bin/cargo"));
        let nightly = OsString::from("nightly");
        assert_eq!(Source::of(debian, None), Source::Debian);
        assert_eq!(
            Source::of(debian, Some(nightly.clone())),
            Source::Rustup(nightly)
        );
        let other = Some(OsStr::new("/opt/rust/bin/cargo"));
        assert_eq!(Source::of(other, None), Source::Unknown);
        assert_eq!(Source::of(None, None), Source::Unknown);
    }
}
