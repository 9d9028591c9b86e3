//! What is pinned of an instance: links, so that programs stay attached, and maps, so that programs that are
//! loaded later go on with them.
//!
//! Links are named after their hook (`rx-3`, `tx-3`, `lo`, `sockets`), and maps as in the BPF object. The maps by
//! which programs find one another belong to the programs they were loaded with (`RX_STEPS-217`, where `rx` is
//! program 217): they go when other programs have taken over.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
};

use aya::{
    maps::{MapError, MapInfo},
    programs::{ProgramFd, links::PinnedLink},
};
use nix::libc;
use prestack_abi::names;

use super::{AttachError, Datapath};
use crate::bpffs::{self, BpffsError};

/// Where the link of a hook at an interface is pinned. (Names of interfaces may hold dots, which the BPF file
/// system refuses.)
pub(crate) fn of_interface(folder: &Path, hook: &str, index: u32) -> PathBuf {
    folder.join(format!("{hook}-{index}"))
}

/// Whether what is pinned under this name is a link by which requests arrive.
pub(crate) fn is_rx(name: &str) -> bool {
    name.starts_with("rx-")
}

/// Where the link of `lo` is pinned.
pub(super) fn of_loopback(folder: &Path) -> PathBuf {
    folder.join("lo")
}

/// Where the link of the program for sockets is pinned.
#[must_use]
pub fn of_sockets(folder: &Path) -> PathBuf {
    folder.join("sockets")
}

/// Whether a map belongs to the programs with which it is loaded.
fn is_own(map: &str) -> bool {
    names::OWN.contains(&map) || map.starts_with('.')
}

/// Pins the maps in `folder`, those that are there excepted.
///
/// # Errors
/// The BPF file system refused.
pub fn pin_maps(datapath: &Datapath, folder: &Path) -> Result<(), AttachError> {
    let there = bpffs::names(folder)?;
    for (map, data) in datapath.all_maps() {
        let name = match map {
            names::RX_STEPS | names::LO_STEPS | names::TX_STEPS => {
                format!("{map}-{}", datapath.rx_number())
            }
            map if is_own(map) => continue,
            map => map.to_owned(),
        };
        if there.contains(&name) {
            continue;
        }
        let path = folder.join(name);
        data.pin(&path).map_err(|source| AttachError::PinMap {
            path,
            source: Box::new(source),
        })?;
    }
    Ok(())
}

/// Removes the pins of maps that belonged to programs in whose place `datapath` has come, and of links that are
/// not among `kept`.
///
/// # Errors
/// The BPF file system refused.
pub fn remove_others(
    datapath: &Datapath,
    folder: &Path,
    kept: &[PathBuf],
) -> Result<(), BpffsError> {
    let own = format!("-{}", datapath.rx_number());
    for name in bpffs::names(folder)? {
        let path = folder.join(&name);
        let is_other = if bpffs::is_map(&name) {
            name.contains('-') && !name.ends_with(&own)
        } else {
            !kept.contains(&path)
        };
        if is_other {
            bpffs::remove(&path)?;
        }
    }
    Ok(())
}

/// A map that is pinned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Size {
    /// Bytes of a key.
    pub key: u32,
    /// Bytes of a value.
    pub value: u32,
    /// Elements.
    pub elements: u32,
}

/// The size of the map of this name in `folder`; `None` if there is none.
///
/// # Errors
/// The kernel refused.
pub fn size(folder: &Path, map: &str) -> Result<Option<Size>, MapError> {
    let path = folder.join(map);
    if is_own(map) || !path.exists() {
        return Ok(None);
    }
    let info = MapInfo::from_pin(path)?;
    Ok(Some(Size {
        key: info.key_size(),
        value: info.value_size(),
        elements: info.max_entries(),
    }))
}

/// Has the link that is pinned at `path` run another program from now on: no packet is missed. `None` if no link
/// is pinned there, or one of something that is gone: that pin is removed.
///
/// # Errors
/// The kernel refused.
pub(super) fn replace(path: &Path, program: &ProgramFd) -> io::Result<Option<PinnedLink>> {
    use std::os::fd::AsFd as _;
    if !path.exists() {
        return Ok(None);
    }
    let link = get(path)?;
    match update(&link, program.as_fd()) {
        // Another device may have come in the place of the one, under its number.
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {
            return fs::remove_file(path).map(|()| None);
        }
        updated => updated?,
    }
    PinnedLink::from_pin(path)
        .map(Some)
        .map_err(io::Error::other)
}

/// `BPF_OBJ_GET` and `BPF_LINK_UPDATE` (`enum bpf_cmd` in include/uapi/linux/bpf.h).
const OBJ_GET: libc::c_int = 7;
const LINK_UPDATE: libc::c_int = 29;

/// The head of `union bpf_attr` for `BPF_OBJ_GET`; the kernel takes the rest as zero.
#[repr(C)]
struct ObjGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// The head of `union bpf_attr` for `BPF_LINK_UPDATE`.
#[repr(C)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// What is pinned at `path`.
fn get(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attributes = ObjGet {
        pathname: path.as_ptr() as u64,
        bpf_fd: 0,
        file_flags: 0,
    };
    // SAFETY: the attributes of the command, with a string that outlives the call.
    let fd = unsafe { bpf(OBJ_GET, &attributes)? };
    // SAFETY: the kernel has just made the descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn update(link: &OwnedFd, program: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = LinkUpdate {
        link_fd: link.as_raw_fd().cast_unsigned(),
        new_prog_fd: program.as_raw_fd().cast_unsigned(),
        flags: 0,
        old_prog_fd: 0,
    };
    // SAFETY: the attributes of the command, with descriptors that are open.
    unsafe { bpf(LINK_UPDATE, &attributes) }.map(drop)
}

/// The bpf system call.
///
/// # Safety
/// `attributes` is the head of `union bpf_attr` for `command`, with valid pointers.
unsafe fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<i32> {
    // SAFETY: the caller's; the kernel reads as many bytes as it is told.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    };
    if returned < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(returned).map_err(io::Error::other)
}
