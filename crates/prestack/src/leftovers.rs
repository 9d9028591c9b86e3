//! What an instance that no longer runs has left behind: pinned links, filters, its state file.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::{Duration, Instant},
};

use crate::{
    attach::{pins, tc::remove_filters},
    bpffs::{self, BpffsError},
    forgotten, netlink,
    state::{self, Instance, State, StateError},
    units::{InstanceName, counted},
};

/// How long the kernel is given to take down a link whose pin was removed, or whose process was killed.
const DETACH_TIME: Duration = Duration::from_secs(5);
/// What the BPF file system is needed for here.
pub const PURPOSE: &str = "removing what is pinned";

/// Something cannot be removed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum LeftoverError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Bpffs(#[from] BpffsError),
    #[error(
        "the TC filter that an earlier run left on {interface} is in another network namespace: run \
         `prestack detach` there (nsenter --net=…)"
    )]
    OtherNamespace { interface: String },
    #[error("cannot remove the TC filter that an earlier run left on {interface}: {source}")]
    Filter {
        interface: String,
        source: io::Error,
    },
    #[error("cannot look at what an earlier run left: {0}")]
    Io(#[from] io::Error),
    #[error(
        "instance {name} may be attached, and carry connections, in another network namespace: run \
         `prestack detach --instance {name}` there (nsenter --net=…)"
    )]
    Elsewhere { name: InstanceName },
    #[error(
        "what an earlier run of instance {name} left at XDP is still there after {} s: run `prestack detach \
         --instance {name}` again", DETACH_TIME.as_secs()
    )]
    Attached { name: InstanceName },
}

/// Whether programs of the instance, which has written down `state`, are pinned: without them nothing is carried.
///
/// # Errors
/// Nothing is pinned, as far as this process sees, and yet the instance is attached, or may be: it is pinned where the
/// BPF file system is the host's, which `purpose` needs.
pub fn are_pinned(
    instance: &Instance,
    state: &State,
    purpose: &'static str,
) -> Result<bool, LeftoverError> {
    let names = bpffs::names(&instance.pin_folder())?;
    if !names.is_empty() {
        // Maps come first: a run that was killed as it pinned them has served nothing.
        return Ok(names.iter().any(|name| pins::is_rx(name)));
    }
    if !state.pinned {
        return Ok(false);
    }
    if state.netns == state::current_netns()? {
        return match await_detached(state)? {
            true => Ok(false),
            false => Err(BpffsError::Hidden { option: purpose }.into()),
        };
    }
    match namespace_exists(state.netns) {
        true => Err(LeftoverError::Elsewhere {
            name: instance.name().clone(),
        }),
        false => Ok(false),
    }
}

/// Removes what the instance, which must not be running, has left. Returns what was removed, in
/// words.
///
/// # Errors
/// Something cannot be removed: what is written down about it stays.
pub fn remove(instance: &Instance) -> Result<Vec<String>, LeftoverError> {
    let mut removed = Vec::new();
    let state = instance.state()?;
    if let Some(state) = &state {
        are_pinned(instance, state, PURPOSE)?;
    }
    let pins = bpffs::remove_folder(&instance.pin_folder())?;
    if pins > 0 {
        removed.push(counted(pins, "pinned link"));
    }
    let patience = if pins > 0 {
        DETACH_TIME
    } else {
        Duration::ZERO
    };
    let Some(state) = state else {
        removed.extend(forgotten(instance, patience)?);
        return Ok(removed);
    };
    let here = state::current_netns()?;
    // Nothing is asked any more before what watches replies goes.
    if state.netns == here && !await_detached(&state)? {
        return Err(LeftoverError::Attached {
            name: instance.name().clone(),
        });
    }
    for interface in state.filters() {
        let failed = |source| LeftoverError::Filter {
            interface: interface.name.clone(),
            source,
        };
        if state.netns != here {
            if !namespace_exists(state.netns) {
                continue;
            }
            return Err(LeftoverError::OtherNamespace {
                interface: interface.name.clone(),
            });
        }
        // An interface that is gone has taken its filters along. One with another name has not.
        let found = netlink::interface_at(interface.index).map_err(failed)?;
        if found.is_none() {
            continue;
        }
        let filters = remove_filters(interface.index, &state.programs, interface.added_clsact)
            .map_err(failed)?;
        if filters > 0 {
            removed.push(format!("the TC filter of {}", interface.name));
        }
    }
    instance.clear()?;
    removed.push("its state file".into());
    removed.extend(forgotten(instance, Duration::ZERO)?);
    Ok(removed)
}

/// Removes filters of runs that nothing is written down of, whichever instance they were of. Returns what was removed,
/// in words.
fn forgotten(instance: &Instance, patience: Duration) -> io::Result<Vec<String>> {
    let interfaces = forgotten::remove(instance, patience)?;
    let words = |interface| format!("a TC filter of {interface} that no state file names");
    Ok(interfaces.into_iter().map(words).collect())
}

/// Whether a network namespace still has a name or a process.
pub(crate) fn namespace_exists(inode: u64) -> bool {
    let is_it = |path: &Path| fs::metadata(path).is_ok_and(|file| file.ino() == inode);
    let any = |folder: &str, suffix: &str| {
        let entries = fs::read_dir(folder)
            .into_iter()
            .flatten()
            .filter_map(Result::ok);
        entries
            .map(|entry| entry.path().join(suffix))
            .any(|path| is_it(&path))
    };
    any("/run/netns", "") || any("/proc", "ns/net")
}

/// Waits until the kernel, which takes its time, has detached the XDP programs. Whether it has.
fn await_detached(state: &State) -> io::Result<bool> {
    let deadline = Instant::now() + DETACH_TIME;
    while is_attached(state)? {
        if Instant::now() >= deadline {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(true)
}

/// Whether programs of that run, or of one that it was to take over from, are at their interfaces, which are in this
/// network namespace.
fn is_attached(state: &State) -> io::Result<bool> {
    for interface in state.egresses() {
        let found = netlink::interface_at(interface.index)?;
        if found.is_some_and(|found| found.xdp.iter().any(|id| state.programs.contains(id))) {
            return Ok(true);
        }
    }
    Ok(false)
}
