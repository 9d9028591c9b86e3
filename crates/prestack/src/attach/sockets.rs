//! The hook at the end of sockets: a program at the root of the cgroups, which is run for every socket of
//! the host that is released. It knows memcached's by their cookies.

use std::{
    collections::{BTreeMap, HashSet},
    ffi::CStr,
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    path::Path,
};

use aya::{
    maps::{HashMap, Map, MapData, MapError},
    pin::PinError,
    programs::{
        CgroupAttachMode,
        links::{FdLink, PinnedLink},
    },
};
use nix::libc;
use prestack_abi::names;

use super::{Datapath, pins, reason};
use crate::discovery::Memcached;

/// The hook, and which sockets it knows.
#[derive(Debug)]
pub struct Attached {
    sockets: HashMap<MapData, u64, u64>,
    /// Inodes and cookies of the sockets of each backend.
    known: BTreeMap<u8, Vec<(u64, u64)>>,
    link: Option<FdLink>,
    pinned: Option<PinnedLink>,
}

/// Why the end of sockets cannot be noticed.
#[derive(Debug, Default, thiserror::Error)]
#[error(
    "cannot watch memcached's sockets ({0}): that memcached ends is noticed by its process alone, and a \
     moment later"
)]
pub struct Unwatched(String);

impl Attached {
    /// Pins the link.
    ///
    /// # Errors
    /// The BPF file system refused.
    pub fn pin(&mut self, path: &Path) -> Result<(), PinError> {
        if let Some(link) = self.link.take() {
            self.pinned = Some(link.pin(path)?);
        }
        Ok(())
    }

    /// Watches the sockets of a backend; `process` is its descriptor. Those that are closed meanwhile are left out.
    ///
    /// # Errors
    /// One of them cannot be had, and is not watched; the others are, or stay so. Or they are, but their end is not
    /// seen from this cgroup namespace.
    pub fn watch(
        &mut self,
        number: u8,
        memcached: &Memcached,
        process: BorrowedFd<'_>,
    ) -> Result<(), Unwatched> {
        self.watch_all(number, memcached, process)?;
        // The program is attached to the root of this namespace.
        if memcached
            .process
            .cgroup()
            .is_some_and(|path| is_outside(&path))
        {
            let pid = memcached.process.pid;
            return Err(Unwatched(format!(
                "memcached (pid {pid}) is not in prestack's cgroup namespace: run prestack in that of the host, \
                 in a container with --cgroupns=host"
            )));
        }
        Ok(())
    }

    fn watch_all(
        &mut self,
        number: u8,
        memcached: &Memcached,
        process: BorrowedFd<'_>,
    ) -> Result<(), Unwatched> {
        let known = self.known.entry(number).or_default();
        let is_known = |inode| known.iter().any(|(i, _)| *i == inode);
        let sockets = memcached.sockets.iter().map(|socket| socket.inode);
        let missing: Vec<_> = sockets.filter(|inode| !is_known(*inode)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let is_there = |inode| memcached.sockets.iter().any(|s| s.inode == inode);
        let gone = known.extract_if(.., |(inode, _)| !is_there(*inode));
        for (_, cookie) in gone {
            // It is of no harm if it stays: cookies are not used again.
            let _ = self.sockets.remove(&cookie);
        }
        let unwatched = |error: io::Error| Unwatched(error.to_string());
        let failed = |error: MapError| Unwatched(error.to_string());
        let descriptors = memcached.process.socket_descriptors();
        let mut result = Ok(());
        for inode in missing {
            let Some(fd) = descriptors.get(&inode) else {
                continue;
            };
            let cookie = match cookie(process, *fd) {
                Err(error) if is_closed(&error) => continue,
                cookie => cookie.map_err(unwatched),
            };
            let watched = cookie.and_then(|cookie| {
                let inserted = self.sockets.insert(cookie, u64::from(number), 0);
                inserted.map(|()| cookie).map_err(failed)
            });
            match watched {
                Ok(cookie) => known.push((inode, cookie)),
                Err(error) => result = Err(error),
            }
        }
        result
    }

    /// Forgets all sockets but those that are watched: an earlier run has left others.
    pub fn forget_others(&mut self) {
        let cookies: Vec<_> = self.sockets.keys().filter_map(Result::ok).collect();
        let known: HashSet<_> = self.known.values().flatten().map(|(_, c)| *c).collect();
        for cookie in cookies {
            if !known.contains(&cookie) {
                // As above.
                let _ = self.sockets.remove(&cookie);
            }
        }
    }
}

/// Whether a descriptor of a process cannot be had because it, or the process, is gone, or it has become that of
/// something else.
fn is_closed(error: &io::Error) -> bool {
    let gone = [libc::ESRCH, libc::EBADF, libc::ENOTSOCK];
    error.raw_os_error().is_some_and(|e| gone.contains(&e))
}

/// Whether a path, as the kernel tells it to this process, is of a cgroup that the root of its namespace is not above.
fn is_outside(path: &str) -> bool {
    path == "/.." || path.starts_with("/../")
}

fn text(error: &dyn std::error::Error) -> Unwatched {
    Unwatched(error.to_string())
}

/// The map of the sockets that are watched.
fn sockets(datapath: &Datapath) -> Result<HashMap<MapData, u64, u64>, Unwatched> {
    let map = MapData::from_id(datapath.maps.sockets).map_err(|error| text(&error))?;
    HashMap::try_from(Map::HashMap(map)).map_err(|error| text(&error))
}

/// Puts the program in the place of that of another run, which has left its link at `path`. `None` if there is
/// no link.
pub(super) fn adopt(datapath: &mut Datapath, path: &Path) -> Result<Option<Attached>, Unwatched> {
    if !path.exists() {
        return Ok(None);
    }
    let sockets = sockets(datapath)?;
    let program = datapath.released().map_err(|error| text(&error))?;
    let replaced = program
        .load()
        .and_then(|()| program.fd())
        .map_err(|error| Unwatched(format!("{}: {}", names::RELEASED, reason(&error))))
        .and_then(|program| pins::replace(path, program).map_err(|error| text(&error)))?;
    Ok(replaced.map(|link| Attached {
        sockets,
        known: BTreeMap::new(),
        link: None,
        pinned: Some(link),
    }))
}

/// Attaches the program for every cgroup.
pub(super) fn attach(datapath: &mut Datapath) -> Result<Attached, Unwatched> {
    let sockets = sockets(datapath)?;
    let cgroups = cgroups().map_err(|error| Unwatched(format!("no cgroup2: {error}")))?;
    let program = datapath.released().map_err(|error| text(&error))?;
    let link = program
        .load()
        // A link takes no flags, and leaves room for others of itself.
        .and_then(|()| program.attach(cgroups, CgroupAttachMode::Single))
        .and_then(|id| program.take_link(id))
        .map_err(|error| Unwatched(format!("{}: {}", names::RELEASED, reason(&error))))?;
    let link = link
        .try_into()
        .map_err(|_| Unwatched("the kernel gave no BPF link".into()))?;
    Ok(Attached {
        sockets,
        known: BTreeMap::new(),
        link: Some(link),
        pinned: None,
    })
}

/// The root of the cgroups, wherever it is mounted, if at all.
fn cgroups() -> io::Result<OwnedFd> {
    /// `FSCONFIG_CMD_CREATE` (include/uapi/linux/mount.h).
    const CREATE: libc::c_uint = 6;
    const TYPE: &CStr = c"cgroup2";
    let null = std::ptr::null::<libc::c_char>();
    // SAFETY: system calls with the arguments they take: descriptors, integers, a string that outlives
    // the call, and no other memory.
    unsafe {
        let context = owned(libc::syscall(libc::SYS_fsopen, TYPE.as_ptr(), 0))?;
        let created = libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            CREATE,
            null,
            null,
            0,
        );
        if created != 0 {
            return Err(io::Error::last_os_error());
        }
        let mount = owned(libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), 0, 0))?;
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
        owned(libc::c_long::from(libc::openat(
            mount.as_raw_fd(),
            c".".as_ptr(),
            flags,
        )))
    }
}

/// What a system call has returned.
///
/// # Safety
///
/// It is an error, or a descriptor that nothing else owns.
unsafe fn owned(returned: libc::c_long) -> io::Result<OwnedFd> {
    if returned < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(returned).map_err(io::Error::other)?;
    // SAFETY: the caller's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The kernel's number of the socket that a process has under this descriptor.
fn cookie(process: BorrowedFd<'_>, fd: i32) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: pidfd_getfd takes integers; the option is written to `cookie`, which has room for it.
    let got = unsafe {
        let copy = owned(libc::syscall(
            libc::SYS_pidfd_getfd,
            process.as_raw_fd(),
            fd,
            0,
        ))?;
        libc::getsockopt(
            copy.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if got != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(cookie)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::process::ProcessId;
    use std::{net::UdpSocket, os::fd::AsFd as _, process::Command};

    #[test]
    fn cgroups_that_are_not_seen() {
        for path in ["/..", "/../..", "/../system.slice/memcached.service"] {
            assert!(is_outside(path), "{path}");
        }
        for path in ["/", "/system.slice", "/..slice", "/a/../b"] {
            assert!(!is_outside(path), "{path}");
        }
    }

    #[test]
    fn what_is_gone_is_told_from_what_is_refused() {
        let me = ProcessId::current(std::process::id()).expect("alive");
        let process = me.watch().expect("supported").expect("alive");
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        assert_ne!(
            cookie(process.as_fd(), socket.as_raw_fd()).expect("ours"),
            0
        );
        let file = std::fs::File::open("/dev/null").expect("there");
        for fd in [file.as_raw_fd(), 1_000_000] {
            assert!(is_closed(&cookie(process.as_fd(), fd).expect_err("none")));
        }
        assert!(!is_closed(&io::Error::from_raw_os_error(libc::EPERM)));

        let mut child = Command::new("sleep").arg("60").spawn().expect("started");
        let process = ProcessId::current(child.id()).expect("alive");
        let process = process.watch().expect("supported").expect("alive");
        child.kill().expect("killed");
        child.wait().expect("ended");
        assert!(is_closed(&cookie(process.as_fd(), 0).expect_err("gone")));
    }
}
