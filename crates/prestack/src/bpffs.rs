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
        "cannot mount the BPF file system, which {option} needs, at {MOUNT_POINT}: {source} (by hand: \
         `mount -t bpf bpf {MOUNT_POINT}`)"
    )]
    Mount {
        option: &'static str,
        source: io::Error,
    },
    #[error(
        "{option} needs the host's BPF file system, which this process does not see: enter the network \
         namespace with `nsenter --net=…` instead of `ip netns exec`"
    )]
    Hidden { option: &'static str },
    #[error("cannot use {path} on the BPF file system: {source}")]
    Io { path: PathBuf, source: io::Error },
}

/// Makes a folder for what is pinned, which `option` needs, and mounts the file system if need be.
///
/// # Errors
/// It cannot be mounted or written to.
pub fn make_folder(folder: &Path, option: &'static str) -> Result<(), BpffsError> {
    let mounted = statfs(MOUNT_POINT).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC);
    if !mounted {
        // What is pinned in a mount namespace of this process's own would go with it.
        let namespace = |pid: Pid| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
        if namespace(Pid::this()) != namespace(Pid::parent()) {
            return Err(BpffsError::Hidden { option });
        }
        mount(
            Some("bpf"),
            MOUNT_POINT,
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )
        .map_err(|error| BpffsError::Mount {
            option,
            source: error.into(),
        })?;
    }
    fs::create_dir_all(folder).map_err(|source| BpffsError::Io {
        path: folder.into(),
        source,
    })
}

/// Names of what is pinned in a folder; none if there is no such folder.
///
/// # Errors
/// It cannot be read.
pub fn names(folder: &Path) -> Result<Vec<String>, BpffsError> {
    let failed = |source| BpffsError::Io {
        path: folder.into(),
        source,
    };
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect::<io::Result<_>>().map_err(failed)
}

/// Removes a pin, which may be gone already.
///
/// # Errors
/// It cannot be removed.
pub fn remove(path: &Path) -> Result<(), BpffsError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(BpffsError::Io {
            path: path.into(),
            source,
        }),
        _ => Ok(()),
    }
}

/// Whether what is pinned under this name is a map: links have names in small letters.
#[must_use]
pub fn is_map(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_uppercase())
}

/// Removes a folder of pinned links and maps: what the links attach is detached. Returns how many links there
/// were.
///
/// # Errors
/// Something cannot be removed.
pub fn remove_folder(folder: &Path) -> Result<usize, BpffsError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| BpffsError::Io { path, source }
    };
    if !folder.exists() {
        return Ok(0);
    }
    let (maps, links): (Vec<_>, Vec<_>) = names(folder)?.into_iter().partition(|name| is_map(name));
    for link in &links {
        let path = folder.join(link);
        // With a descriptor open, it is the descriptor's end that detaches, which the kernel does
        // at once.
        let link = PinnedLink::from_pin(&path).ok();
        fs::remove_file(&path).map_err(failed(&path))?;
        drop(link);
    }
    // Programs find one another by maps.
    for map in maps {
        remove(&folder.join(map))?;
    }
    fs::remove_dir(folder).map_err(failed(folder))?;
    Ok(links.len())
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
