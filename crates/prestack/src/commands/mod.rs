//! The subcommands.

pub mod detach;
pub mod flush;
pub mod inspect;
pub mod run;
pub mod stats;
pub mod status;

use std::process::ExitCode;

use crate::{
    cli::NOT_RUNNING,
    maps::{CacheMaps, Controls, MapsError},
    preflight::{self, PreflightError},
    state::{Instance, State, StateError},
    units::InstanceName,
};

/// Why an instance cannot be asked.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum AskError {
    #[error("no instance named {0} is running: start one with `prestack run`")]
    NotRunning(InstanceName),
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

/// The exit status that goes with an error.
#[must_use]
pub fn exit_code(error: &anyhow::Error) -> ExitCode {
    match error.downcast_ref() {
        Some(AskError::NotRunning(_)) => ExitCode::from(NOT_RUNNING),
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
        let has_daemon = instance.is_running()?;
        let Some(state) = instance.state()? else {
            return Err(if has_daemon {
                AskError::Starting(name.clone())
            } else {
                AskError::NotRunning(name.clone())
            });
        };
        if !has_daemon && !state.pinned {
            // The daemon was killed, and its programs went with it.
            return Err(AskError::NotRunning(name.clone()));
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
            Err(_) if !has_daemon => Err(AskError::NotRunning(name.clone())),
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

/// Prints the rows of a table in two columns.
fn print_pairs<V: AsRef<str>>(rows: &[(&str, V)]) {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in rows {
        println!("{name:width$}  {}", value.as_ref());
    }
}
