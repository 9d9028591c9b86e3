//! The BPF file system, where links are pinned so that they outlive the process.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
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
         `mount -t bpf -o mode=700 bpf {MOUNT_POINT}`)"
    )]
    Mount {
        option: &'static str,
        source: io::Error,
    },
    #[error(
        "{option} needs the host's BPF file system, which this process does not see: enter the network \
         namespace with `nsenter --net=…` instead of `ip netns exec`; in another mount namespace of its own (container, \
         systemd sandboxing) it has to be shown {MOUNT_POINT} of the host, where it is mounted"
    )]
    Hidden { option: &'static str },
    #[error(
        "others than root may change what is in {path}, as it is user {owner}'s, with mode {mode:o}, and could put \
         programs of theirs in the place of prestack's: look who made it, then remove it (`rm -r {path}`), or make \
         it root's alone (`chown root {path}; chmod 700 {path}`)"
    )]
    NotOwn {
        path: PathBuf,
        owner: u32,
        mode: u32,
    },
    #[error("cannot use {path} on the BPF file system: {source}")]
    Io { path: PathBuf, source: io::Error },
}

/// Makes a folder for what is pinned, which `option` needs, and mounts the file system if need be.
///
/// # Errors
/// It cannot be mounted or written to, or it is there, and others than root may write to it.
pub fn make_folder(folder: &Path, option: &'static str) -> Result<(), BpffsError> {
    mounted(option)?;
    let failed = |source| BpffsError::Io {
        path: folder.into(),
        source,
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(failed)?;
    // Somebody else may have made it where everybody may write to the file system, or the one that it is in.
    for folder in folder.parent().into_iter().chain([folder]) {
        is_roots_alone(folder)?;
    }
    Ok(())
}

/// Makes sure that the file system, which `option` needs, is there: mounts it if need be.
///
/// # Errors
/// It cannot be mounted, or this process does not see what is mounted on the host.
pub fn mounted(option: &'static str) -> Result<(), BpffsError> {
    if statfs(MOUNT_POINT).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC) {
        return Ok(());
    }
    // What is pinned in a mount namespace of this process's own would go with it.
    if has_own_mounts() {
        return Err(BpffsError::Hidden { option });
    }
    mount(
        Some("bpf"),
        MOUNT_POINT,
        Some("bpf"),
        MsFlags::empty(),
        // Everybody may write to it otherwise.
        Some("mode=0700"),
    )
    .map_err(|error| BpffsError::Mount {
        option,
        source: error.into(),
    })
}

/// Whether this process is in another mount namespace than one of those that it descends from, as far as these can be
/// seen. There may be a shell, `sudo` or `timeout` between.
fn has_own_mounts() -> bool {
    let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let own = namespace(Pid::this().as_raw());
    if Pid::parent().as_raw() == 0 {
        // The first process of a container, or one that came in from outside.
        return true;
    }
    let ancestors = std::iter::successors(Some(Pid::parent().as_raw()), |pid| parent(*pid));
    ancestors
        .map_while(namespace)
        .any(|theirs| Some(theirs) != own)
}

/// The process that has made a process, or taken it over; `None` if there is none.
fn parent(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    parent.trim().parse().ok().filter(|pid| *pid > 0)
}

/// Checks that root alone may write to a folder.
fn is_roots_alone(folder: &Path) -> Result<(), BpffsError> {
    const WRITABLE_BY_OTHERS: u32 = 0o022;
    let found = fs::symlink_metadata(folder).map_err(|source| BpffsError::Io {
        path: folder.into(),
        source,
    })?;
    let (owner, mode) = (found.uid(), found.mode() & 0o7777);
    if owner == 0 && mode & WRITABLE_BY_OTHERS == 0 && found.is_dir() {
        return Ok(());
    }
    Err(BpffsError::NotOwn {
        path: folder.into(),
        owner,
        mode,
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
    use std::os::unix::fs::{PermissionsExt as _, chown};

    use super::*;

    /// As root: a folder of anybody else's is not root's.
    #[test]
    fn a_folder_of_others_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path();
        let is_root = nix::unistd::geteuid().is_root();
        for (mode, is_fine) in [
            (0o700, true),
            (0o755, true),
            (0o775, false),
            (0o1777, false),
        ] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("changed");
            let found = is_roots_alone(path);
            assert_eq!(found.is_ok(), is_fine && is_root, "{mode:o}: {found:?}");
        }
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).expect("changed");
        if is_root {
            chown(path, Some(65534), None).expect("changed");
        }
        let refused = is_roots_alone(path).unwrap_err().to_string();
        assert!(refused.contains("chown root"), "{refused}");
    }

    #[test]
    fn a_folder_that_is_not_there_holds_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let removed = remove_folder(&folder.path().join("none")).expect("nothing to do");
        assert_eq!(removed, 0);
    }
}
