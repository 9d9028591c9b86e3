//! What can go wrong with the files of an instance.

use std::{io, path::PathBuf};

use super::RUN_FOLDER;
use crate::units::InstanceName;

/// The state of an instance cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum StateError {
    #[error("cannot use {path}: {source}{}", remedy(.source))]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{path} is not the state of this version of prestack ({source}): remove it if no such instance runs"
    )]
    Malformed {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error(
        "{path} ends in the middle ({source}), so what it told is lost: remove it, then run `prestack detach \
         --instance {name}` to remove what that instance may have left"
    )]
    CutOff {
        path: PathBuf,
        name: InstanceName,
        source: serde_json::Error,
    },
    #[error(
        "an instance named {name} is already running: stop it with `prestack detach --instance \
         {name}`, or give this one another name with --instance"
    )]
    Running { name: InstanceName },
    #[error(
        "another process is starting or ending the instance named {name}, or its daemon is in another pid namespace: \
         try again when it has done so, or give this one another name with --instance"
    )]
    Busy { name: InstanceName },
}

/// What helps where the run folder cannot be used.
fn remedy(error: &io::Error) -> String {
    let remedy = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "make room in",
        io::ErrorKind::ReadOnlyFilesystem => "mount a file system that can be written to at",
        io::ErrorKind::PermissionDenied => "run prestack as root, and let root write to",
        _ => return String::new(),
    };
    format!(
        "; {remedy} {RUN_FOLDER}, where prestack notes what other commands and the next run need to know"
    )
}
