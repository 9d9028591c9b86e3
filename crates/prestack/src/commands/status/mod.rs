//! `prestack status`.

mod report;
mod serving;
mod text;

use super::{Running, print};
use crate::{cli::StatusArgs, units::InstanceName};

use report::Report;

/// What `--check` finds amiss.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum CheckError {
    #[error("instance {0} serves nothing, or not every memcached: its status says why")]
    Unserved(InstanceName),
    #[error("instance {0} serves, and has problems")]
    Problems(InstanceName),
}

/// Prints what the running instance serves.
///
/// # Errors
/// The instance does not run, or cannot be asked; with `--check` also if all is not well.
pub fn status(args: &StatusArgs) -> anyhow::Result<()> {
    let name = &args.instance.instance;
    let report = Report::of(name, &Running::find(name)?)?;
    if args.json {
        print(&(serde_json::to_string_pretty(&report)? + "\n"))?;
    } else {
        print(&report.to_text())?;
    }
    if !args.check {
        return Ok(());
    }
    if !report.serving {
        return Err(CheckError::Unserved(name.clone()).into());
    }
    if !report.problems.is_empty() {
        return Err(CheckError::Problems(name.clone()).into());
    }
    Ok(())
}
