//! What an instance that no longer runs has left behind: pinned links, filters, its state file.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::{Duration, Instant},
};

use crate::{
    attach::tc::remove_filters,
    bpffs::{self, BpffsError},
    netlink,
    state::{self, Instance, State, StateError},
    units::counted,
};

/// How long the kernel is given to take down a link whose pin was removed.
const DETACH_TIME: Duration = Duration::from_secs(2);

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
}

/// Removes what the instance, which must not be running, has left. Returns what was removed, in
/// words.
///
/// # Errors
/// Something cannot be removed.
pub fn remove(instance: &Instance) -> Result<Vec<String>, LeftoverError> {
    let mut removed = Vec::new();
    let pins = bpffs::remove_folder(&instance.pin_folder())?;
    if pins > 0 {
        removed.push(counted(pins, "pinned link"));
    }
    let Some(state) = instance.state()? else {
        return Ok(removed);
    };
    let here = state::current_netns()?;
    for interface in state.egresses().filter(|i| i.egress != "tcx") {
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
        // An interface that is gone has taken its filters along.
        let found = netlink::interface(&interface.name).map_err(failed)?;
        if found.is_none_or(|found| found.index != interface.index) {
            continue;
        }
        let filters = remove_filters(interface.index, &state.programs, interface.added_clsact)
            .map_err(failed)?;
        if filters > 0 {
            removed.push(format!("the TC filter of {}", interface.name));
        }
    }
    if state.netns == here {
        await_detached(&state)?;
    }
    instance.clear()?;
    removed.push("its state file".into());
    Ok(removed)
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

/// Waits until the kernel, which takes its time, has detached the XDP programs.
fn await_detached(state: &State) -> io::Result<()> {
    let deadline = Instant::now() + DETACH_TIME;
    while Instant::now() < deadline {
        let mut attached = false;
        for interface in &state.interfaces {
            attached |= netlink::interface(&interface.name)?
                .is_some_and(|found| found.xdp.iter().any(|id| state.programs.contains(id)));
        }
        if !attached {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
