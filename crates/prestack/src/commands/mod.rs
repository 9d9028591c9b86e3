//! The subcommands.

pub mod detach;
mod ending;
pub mod flush;
pub mod inspect;
pub mod memcached;
pub mod run;
pub mod stats;
pub mod status;

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use status::CheckError;

use crate::{
    cli::{HAS_PROBLEMS, NOT_RUNNING, UNSERVED},
    maps::{CacheMaps, Controls, MapsError},
    preflight::{self, PreflightError},
    state::{Instance, State, StateError},
    units::InstanceName,
};

/// Why an instance cannot be asked.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum AskError {
    #[error(
        "no instance named {name} is running{}: start one with `prestack run`, or name another \
         with --instance", there_are(.others)
    )]
    NotRunning {
        name: InstanceName,
        others: Vec<String>,
    },
    #[error("nothing to detach: there is no instance named {name}{}", there_are(.others))]
    NothingThere {
        name: InstanceName,
        others: Vec<String>,
    },
    #[error("instance {0} is starting: try again")]
    Starting(InstanceName),
    #[error(
        "instance {name} was started by prestack {version}, whose maps are laid out differently: use \
         that version, or stop it with `prestack detach`"
    )]
    OtherVersion { name: InstanceName, version: String },
    #[error(transparent)]
    Privileges(#[from] PreflightError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Maps(#[from] MapsError),
}

/// Prints what a command has to say.
///
/// # Errors
/// Standard output takes nothing.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // The reader, such as `head`, has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => printed.map_err(|source| PrintError { source }.into()),
    }
}

/// Which instances there are instead.
fn there_are(others: &[String]) -> String {
    match others {
        [] => String::new(),
        others => format!(" (there are: {})", others.join("; ")),
    }
}

/// Standard output takes nothing.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output: {source}")]
struct PrintError {
    source: io::Error,
}

/// The exit status that goes with an error.
#[must_use]
pub fn exit_code(error: &anyhow::Error) -> ExitCode {
    match (error.downcast_ref(), error.downcast_ref()) {
        (Some(AskError::NotRunning { .. } | AskError::NothingThere { .. }), _) => {
            ExitCode::from(NOT_RUNNING)
        }
        (_, Some(CheckError::Unserved(_))) => ExitCode::from(UNSERVED),
        (_, Some(CheckError::Problems(_))) => ExitCode::from(HAS_PROBLEMS),
        _ => ExitCode::FAILURE,
    }
}

/// An instance whose datapath is attached, with a daemon or without.
#[derive(Debug)]
pub struct Running {
    /// What it has written down.
    pub state: State,
    /// Whether its daemon runs.
    pub has_daemon: bool,
    /// The maps that steer it.
    pub controls: Controls,
}

impl Running {
    /// Finds the instance of this name.
    ///
    /// # Errors
    /// There is none, or it cannot be asked.
    pub fn find(name: &InstanceName) -> Result<Self, AskError> {
        preflight::privileges()?;
        let instance = Instance::new(name.clone());
        let not_running = || AskError::NotRunning {
            name: name.clone(),
            others: instance.describe_others(),
        };
        let has_daemon = instance.is_running()?;
        let Some(state) = instance.state()? else {
            return Err(if has_daemon {
                AskError::Starting(name.clone())
            } else {
                not_running()
            });
        };
        if !has_daemon && !state.pinned {
            // The daemon was killed, and its programs went with it.
            return Err(not_running());
        }
        if state.layout != prestack_abi::LAYOUT {
            return Err(AskError::OtherVersion {
                name: name.clone(),
                version: state.version,
            });
        }
        match Controls::open(&state.maps) {
            Ok(controls) => Ok(Self {
                state,
                has_daemon,
                controls,
            }),
            // Someone has removed the pins.
            Err(_) if !has_daemon => Err(not_running()),
            Err(error) => Err(error.into()),
        }
    }

    /// Maps the cache.
    ///
    /// # Errors
    /// It is gone.
    pub fn cache(&self) -> Result<CacheMaps, AskError> {
        Ok(CacheMaps::open(&self.state.maps, self.state.buckets)?)
    }

    /// How many backend numbers have been given.
    #[must_use]
    pub fn backends(&self) -> u8 {
        // At most `MAX_BACKENDS`.
        self.state.backends.len() as u8
    }
}

/// The rows of a table in two columns.
fn table<V: AsRef<str>>(rows: &[(&str, V)]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    rows.iter()
        .map(|(name, value)| format!("{name:width$}  {}\n", value.as_ref()))
        .collect()
}
