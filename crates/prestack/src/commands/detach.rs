//! `prestack detach`.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd},
    thread::sleep,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, poll},
    sys::signal::Signal,
};
use prestack_abi::LAYOUT;
use tracing::info;

use super::{AskError, ending::carried};
use crate::{
    cli::DetachArgs,
    discovery::process::{ProcessId, signal},
    drain::{Carried, Drained, drain},
    leftovers::{self, LeftoverError, namespace_exists},
    orphan::Orphan,
    preflight,
    settings::DEFAULT_DRAIN_TIMEOUT,
    state::{Instance, State, current_netns},
    units::{InstanceName, Span, counted},
};

/// How long the daemon is given to end, once it waits for no connection any more.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked at what the daemon does, in ms.
const LOOK_MS: u8 = 20;

/// Why an instance cannot be stopped.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum DetachError {
    #[error(
        "another process is starting or ending instance {0}, or its daemon is in another pid namespace: try \
         again, or there"
    )]
    Busy(InstanceName),
    #[error("cannot signal the daemon of instance {name} (pid {pid}): {source}")]
    Signal {
        name: InstanceName,
        pid: u32,
        source: io::Error,
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
pub fn detach(args: &DetachArgs) -> anyhow::Result<String> {
    preflight::privileges()?;
    let name = &args.instance.instance;
    let instance = Instance::new(name.clone());
    let timeout = args.drain_timeout.map(|span| span.0);
    let elsewhere = where_it_is(&instance)?;
    let mut done = Vec::new();
    if instance.is_running()? {
        done.push(format!(
            "stopped the daemon (pid {})",
            stop(&instance, timeout)?
        ));
    }
    // Nobody must start the instance anew meanwhile. With the lock goes the file of one that was
    // killed.
    let _lock = instance.lock()?;
    let folder = instance.pin_folder();
    let reset = match instance.state()? {
        Some(state) => end_connections(&instance, &state, timeout)?,
        None => match Orphan::find(&folder)? {
            Some(orphan) => end_orphan(&orphan, timeout)?,
            None => 0,
        },
    };
    if reset > 0 {
        done.push(format!("reset {}", counted(reset, "connection")));
    }
    let removed = leftovers::remove(&instance)?;
    done.extend(removed.into_iter().map(|what| format!("removed {what}")));
    if done.is_empty() {
        return Err(AskError::NothingThere {
            name: name.clone(),
            others: instance.describe_others(),
        }
        .into());
    }
    let done = done.join(", ");
    Ok(format!("detached instance {name}{elsewhere}: {done}\n"))
}

/// What is to be said of an instance that is not in this network namespace.
fn where_it_is(instance: &Instance) -> anyhow::Result<&'static str> {
    Ok(match instance.state()? {
        Some(state) if state.netns != current_netns()? => " in another network namespace",
        _ => "",
    })
}

/// Waits until the pinned programs carry no connection, and ends those that are left. Returns how many.
fn end_connections(
    instance: &Instance,
    state: &State,
    timeout: Option<Duration>,
) -> anyhow::Result<usize> {
    let are_pinned = leftovers::are_pinned(instance, state, leftovers::PURPOSE)?;
    if !state.tcp_hits || !are_pinned || !namespace_exists(state.netns) {
        return Ok(0);
    }
    if state.netns != current_netns()? {
        let name = instance.name().clone();
        return Err(LeftoverError::Elsewhere { name }.into());
    }
    let timeout = timeout.unwrap_or(Duration::from_millis(state.drain_timeout_ms));
    end(&Carried::by(state)?, timeout)
}

/// The same for an instance of which nothing is written down.
fn end_orphan(orphan: &Orphan<'_>, timeout: Option<Duration>) -> anyhow::Result<usize> {
    let reset = match orphan.carried()? {
        Some(carried) => end(&carried, timeout.unwrap_or(DEFAULT_DRAIN_TIMEOUT))?,
        None => 0,
    };
    orphan.remove_filters()?;
    Ok(reset)
}

fn end(carried: &Carried, timeout: Duration) -> anyhow::Result<usize> {
    let drained = drain(carried, timeout, |pause| {
        sleep(pause);
        Ok(false)
    })?;
    match drained {
        Drained::Done { reset } => Ok(reset),
        Drained::Interrupted { .. } => unreachable!("nothing interrupts it"),
    }
}

/// Ends the daemon and waits until it has. If it is asked for another drain timeout than the daemon's own, the
/// daemon leaves the connections.
fn stop(instance: &Instance, timeout: Option<Duration>) -> anyhow::Result<u32> {
    let name = || instance.name().clone();
    let state = instance.state()?;
    let state = state.ok_or_else(|| DetachError::Busy(name()))?;
    if timeout.is_some() || !state.tcp_hits {
        // It is left to this process what the daemon has pinned.
        leftovers::are_pinned(instance, &state, leftovers::PURPOSE)?;
    }
    let pid = state.pid;
    // Whoever has that pid now: whether it is the daemon shows by the lock.
    let process = ProcessId::current(pid);
    let daemon = process.map(ProcessId::watch).transpose()?.flatten();
    let (process, daemon) = match (process, daemon) {
        (Some(process), Some(daemon)) if instance.is_run_by(pid)? => (process, daemon),
        // It has ended by itself, or somebody else holds the lock.
        _ if !instance.is_running()? => return Ok(pid),
        _ => return Err(DetachError::Busy(name()).into()),
    };
    let terminate = || match signal(daemon.as_fd(), Signal::SIGTERM) {
        Ok(_) => Ok(()),
        Err(source) => Err(DetachError::Signal {
            name: name(),
            pid,
            source,
        }),
    };
    terminate()?;
    let mut patience = PATIENCE;
    // A second signal has the daemon leave everything to this process, which then has to know its maps.
    let mut is_due = state.tcp_hits && timeout.is_some() && state.layout == LAYOUT;
    if state.tcp_hits {
        let most = Duration::from_millis(state.drain_timeout_ms);
        if !is_due {
            patience += most;
        }
        if let Some(left) = carried(&state).filter(|left| *left > 0 && !is_due) {
            let left = counted(left, "connection");
            info!(
                "waits for {left} that the daemon carries, for {} at most",
                Span(most)
            );
        }
    }
    let deadline = Instant::now() + patience;
    while !has_ended(daemon.as_fd())? {
        // Until the daemon has taken the first, the kernel makes one of both.
        if is_due && !process.has_pending(Signal::SIGTERM) {
            is_due = false;
            terminate()?;
        }
        if Instant::now() >= deadline {
            return Err(DetachError::Stuck { name: name(), pid }.into());
        }
    }
    Ok(pid)
}

/// Waits a little for the end of a process; whether it has ended.
fn has_ended(process: BorrowedFd<'_>) -> io::Result<bool> {
    let mut fds = [PollFd::new(process, PollFlags::POLLIN)];
    match poll(&mut fds, LOOK_MS) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
