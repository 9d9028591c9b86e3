//! What the virtual machine's first process and the one who boots the machine agree on.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where the machine's file system has its [`Plan`], as JSON.
pub const PLAN: &str = "/plan.json";

/// Where it has the programs that [`Plan::tests`] may use; the whole `PATH`.
pub const PROGRAMS: &str = "/usr/bin";

/// Begins the console's lines that are meant for who booted the machine.
pub const MARK: &str = "prestack-vm:";

/// What the machine is to do.
#[derive(Debug, Serialize, Deserialize)]
pub struct Plan {
    /// Kernel modules to load, dependencies first.
    pub modules: Vec<PathBuf>,
    /// Test programs to run, one after another.
    pub tests: Vec<Test>,
}

/// A test program.
#[derive(Debug, Serialize, Deserialize)]
pub struct Test {
    /// The name it is reported by.
    pub name: String,
    /// Its path in the machine.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
}

/// What the machine reports on its console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// User space runs.
    Up,
    /// This test program succeeded.
    Passed(String),
    /// This test program failed.
    Failed(String),
    /// All of the plan has been carried out.
    Finished,
}

impl Report {
    /// The line that says so.
    pub fn line(&self) -> String {
        match self {
            Self::Up => format!("{MARK} up"),
            Self::Passed(name) => format!("{MARK} passed {name}"),
            Self::Failed(name) => format!("{MARK} failed {name}"),
            Self::Finished => format!("{MARK} finished"),
        }
    }

    /// What a line of the console says, if it is a report.
    pub fn parse(line: &str) -> Option<Self> {
        // The kernel's own messages may have begun the line.
        let (_, report) = line.split_once(MARK)?;
        let mut words = report.split_whitespace();
        match (words.next()?, words.next()) {
            ("up", None) => Some(Self::Up),
            ("passed", Some(name)) => Some(Self::Passed(name.to_owned())),
            ("failed", Some(name)) => Some(Self::Failed(name.to_owned())),
            ("finished", None) => Some(Self::Finished),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_survive_the_console() {
        let name = || "datapath".to_owned();
        for report in [
            Report::Up,
            Report::Passed(name()),
            Report::Failed(name()),
            Report::Finished,
        ] {
            let line = format!("[ 1.5] device x{}\r", report.line());
            assert_eq!(Report::parse(&line), Some(report));
        }
        assert_eq!(Report::parse("test result: ok"), None);
        assert_eq!(Report::parse("prestack-vm: panicked"), None);
    }
}
