//! An instance that is asked for while its daemon ends: that may take as long as clients keep their connections.

use prestack_abi::LAYOUT;

use crate::{
    lock::Lock,
    maps::Controls,
    state::{Instance, State, StateError},
    translations::Translations,
    units::{InstanceName, counted},
};

/// The daemon of an instance has been told to end, and waits for connections.
#[derive(Debug, thiserror::Error)]
#[error(
    "the instance named {name} is ending, and waits for {} that it carries: try again when it has ended; \
     `prestack detach --instance {name} --drain-timeout 0s` has them reset and ends it at once",
    counted(*.left, "connection")
)]
pub struct Ending {
    name: InstanceName,
    left: usize,
}

/// Takes the lock of an instance.
///
/// # Errors
/// Another process has it, which may be ending, or the lock file cannot be made.
pub fn lock(instance: &Instance) -> anyhow::Result<Lock> {
    match instance.lock() {
        Err(StateError::Running { name }) => Err(match waits_for(instance) {
            Some(left) => Ending { name, left }.into(),
            None if has_daemon(instance) => StateError::Running { name }.into(),
            None => StateError::Busy { name }.into(),
        }),
        locked => Ok(locked?),
    }
}

/// Whether it is a daemon that has the lock, and not a `detach`, or a run that has not come to serve. Where that cannot
/// be seen it is.
fn has_daemon(instance: &Instance) -> bool {
    match instance.state() {
        Ok(Some(state)) => instance.is_run_by(state.pid).unwrap_or(true),
        Ok(None) => false,
        Err(_) => true,
    }
}

/// How many connections a daemon waits for that has been told to end; `None` if it has not, or does not tell.
fn waits_for(instance: &Instance) -> Option<usize> {
    let state = instance.state().ok()??;
    let is_daemon = instance.is_run_by(state.pid).ok()?;
    let left = carried(&state).filter(|_| is_daemon)?;
    let controls = Controls::open(&state.maps).ok()?;
    (controls.is_draining() && controls.has_stopped_serving()).then_some(left)
}

/// How many connections an instance carries; `None` if it carries none at all, or its maps cannot be read.
pub(super) fn carried(state: &State) -> Option<usize> {
    if !state.tcp_hits || state.layout != LAYOUT {
        return None;
    }
    Translations::open(&state.maps).ok()?.count().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_it_at_once_is_told() {
        let name = "two".parse().expect("a name");
        let said = Ending { name, left: 1 }.to_string();
        assert!(said.contains("waits for 1 connection that"), "{said}");
        assert!(
            said.contains("detach --instance two --drain-timeout 0s`"),
            "{said}"
        );
    }
}
