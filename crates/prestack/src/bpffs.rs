//! The BPF file system, where links are pinned so that they outlive the process.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::programs::links::PinnedLink;
use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
    unistd::Pid,
};

/// Where it is mounted by convention.
const MOUNT_POINT: &str = "/sys/fs/bpf";

/// Links cannot be pinned, or what is pinned cannot be removed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum BpffsError {
    #[error(
        "cannot mount the BPF file system, which --pin needs, at {MOUNT_POINT}: {0} (by hand: \
         `mount -t bpf bpf {MOUNT_POINT}`)"
    )]
    Mount(io::Error),
    #[error(
        "--pin needs the host's BPF file system, which this process does not see: enter the network \
         namespace with `nsenter --net=…` instead of `ip netns exec`"
    )]
    Hidden,
    #[error("cannot use {path} on the BPF file system: {source}")]
    Io { path: PathBuf, source: io::Error },
}

/// Makes a folder for pinned links, and mounts the file system if need be.
///
/// # Errors
/// It cannot be mounted or written to.
pub fn make_folder(folder: &Path) -> Result<(), BpffsError> {
    let mounted = statfs(MOUNT_POINT).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC);
    if !mounted {
        // What is pinned in a mount namespace of this process's own would go with it.
        let namespace = |pid: Pid| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
        if namespace(Pid::this()) != namespace(Pid::parent()) {
            return Err(BpffsError::Hidden);
        }
        mount(
            Some("bpf"),
            MOUNT_POINT,
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )
        .map_err(|error| BpffsError::Mount(error.into()))?;
    }
    fs::create_dir_all(folder).map_err(|source| BpffsError::Io {
        path: folder.into(),
        source,
    })
}

/// Removes a folder of pinned links: what they attach is detached. Returns how many there were.
///
/// # Errors
/// Something cannot be removed.
pub fn remove_folder(folder: &Path) -> Result<usize, BpffsError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| BpffsError::Io { path, source }
    };
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries.map_err(failed(folder))?,
    };
    let mut removed = 0;
    for entry in entries {
        let path = entry.map_err(failed(folder))?.path();
        // With a descriptor open, it is the descriptor's end that detaches, which the kernel does
        // at once.
        let link = PinnedLink::from_pin(&path).ok();
        fs::remove_file(&path).map_err(failed(&path))?;
        drop(link);
        removed += 1;
    }
    fs::remove_dir(folder).map_err(failed(folder))?;
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_not_there_holds_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let removed = remove_folder(&folder.path().join("none")).expect("nothing to do");
        assert_eq!(removed, 0);
    }
}
