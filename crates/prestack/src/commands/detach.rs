//! `prestack detach`.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::AskError;
use crate::{cli::InstanceArgs, leftovers, preflight, state::Instance, units::InstanceName};

/// How long the daemon is given to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why an instance cannot be stopped.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum DetachError {
    #[error("instance {0} runs, but has not written down its pid yet: try again")]
    Starting(InstanceName),
    #[error("cannot signal the daemon of instance {name} (pid {pid}): {source}")]
    Signal {
        name: InstanceName,
        pid: u32,
        source: Errno,
    },
    #[error(
        "the daemon of instance {name} (pid {pid}) has not ended within {} s: look at it, or end it \
         with `kill -9 {pid}` and run `prestack detach` again", PATIENCE.as_secs()
    )]
    Stuck { name: InstanceName, pid: u32 },
}

/// Stops the daemon and removes everything that is attached or pinned; says what that was.
///
/// # Errors
/// Something cannot be stopped or removed, or there is nothing.
pub fn detach(args: &InstanceArgs) -> anyhow::Result<String> {
    preflight::privileges()?;
    let instance = Instance::new(args.instance.clone());
    let mut done = Vec::new();
    if instance.is_running()? {
        done.push(format!("stopped the daemon (pid {})", stop(&instance)?));
    }
    // Nobody must start the instance anew meanwhile. With the lock goes the file of one that was
    // killed.
    let _lock = instance.lock()?;
    let removed = leftovers::remove(&instance)?;
    done.extend(removed.into_iter().map(|what| format!("removed {what}")));
    if done.is_empty() {
        return Err(AskError::NothingThere {
            name: args.instance.clone(),
            others: instance.others(),
        }
        .into());
    }
    Ok(format!(
        "detached instance {}: {}\n",
        args.instance,
        done.join(", ")
    ))
}

/// Ends the daemon and waits until it has.
fn stop(instance: &Instance) -> anyhow::Result<u32> {
    let name = instance.name().clone();
    let Some(state) = instance.state()? else {
        return Err(DetachError::Starting(name).into());
    };
    let pid = state.pid;
    match kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM) {
        // It has ended by itself.
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(source) => return Err(DetachError::Signal { name, pid, source }.into()),
    }
    let deadline = Instant::now() + PATIENCE;
    while instance.is_running()? {
        if Instant::now() >= deadline {
            return Err(DetachError::Stuck { name, pid }.into());
        }
        sleep(Duration::from_millis(20));
    }
    Ok(pid)
}
