//! Processes and the sockets they hold, from `/proc/<pid>`.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
    path::Path,
};

use nix::{libc, sys::signal::Signal};

/// A process, told apart from a later one that got the same pid.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ProcessId {
    /// Its pid.
    pub pid: u32,
    /// When it started, in clock ticks since boot.
    pub start: u64,
}

impl ProcessId {
    /// The process that has this pid now.
    #[must_use]
    pub fn current(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        parse_start(&stat).map(|start| Self { pid, start })
    }

    /// Whether the process is still there.
    #[must_use]
    pub fn is_alive(self) -> bool {
        Self::current(self.pid) == Some(self)
    }

    /// A file descriptor that becomes readable when the process ends; `None` if it already has.
    ///
    /// # Errors
    /// The kernel gave none for another reason.
    pub fn watch(self) -> io::Result<Option<OwnedFd>> {
        // SAFETY: pidfd_open takes two integers and touches no memory.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, self.pid, 0) };
        if fd < 0 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::ESRCH) => Ok(None),
                _ => Err(error),
            };
        }
        let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: the kernel has just given this descriptor to us, and nothing else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // Only now is it certain that the descriptor is not that of a successor.
        Ok(self.is_alive().then_some(fd))
    }

    /// Whether a signal was sent to the process that it has yet to take: another of its kind would be lost.
    #[must_use]
    pub fn has_pending(self, signal: Signal) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let bit = 1 << (signal as libc::c_int - 1);
        parse_pending(&status).is_some_and(|signals| signals & bit != 0)
    }

    /// What the process was started as: its arguments, the program's name first.
    #[must_use]
    pub fn arguments(self) -> Vec<String> {
        let bytes = fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        let bytes = bytes.strip_suffix(b"\0").unwrap_or(&bytes);
        bytes
            .split(|&byte| byte == 0)
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect()
    }

    /// Names by which the program goes: file name of the executable, of the first argument, and
    /// the name the kernel has.
    #[must_use]
    pub fn names(self) -> Vec<String> {
        let file_name = |path: &Path| Some(path.file_name()?.to_string_lossy().into_owned());
        let executable = fs::read_link(format!("/proc/{}/exe", self.pid)).ok();
        let first = self.arguments().into_iter().next();
        let kernel = fs::read_to_string(format!("/proc/{}/comm", self.pid)).ok();
        [
            executable.as_deref().and_then(file_name),
            first.as_deref().map(Path::new).and_then(file_name),
            kernel.map(|name| name.trim_end().to_owned()),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// The path of its cgroup (of version 2), from the root of the cgroup namespace that this process is in: above
    /// that it begins with `/..`. `None` if it has ended, or there is none.
    #[must_use]
    pub fn cgroup(self) -> Option<String> {
        let cgroups = fs::read_to_string(format!("/proc/{}/cgroup", self.pid)).ok()?;
        let mut cgroups = cgroups.lines();
        cgroups.find_map(|line| line.strip_prefix("0::").map(str::to_owned))
    }

    /// The descriptors of the sockets the process holds, by inode; none if it has ended.
    #[must_use]
    pub fn socket_descriptors(self) -> HashMap<u64, RawFd> {
        let Ok(descriptors) = fs::read_dir(format!("/proc/{}/fd", self.pid)) else {
            return HashMap::new();
        };
        descriptors
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let inode = socket_inode(&fs::read_link(entry.path()).ok()?)?;
                Some((inode, entry.file_name().to_str()?.parse().ok()?))
            })
            .collect()
    }

    /// Inodes of the sockets the process holds; none if it has ended.
    #[must_use]
    pub fn sockets(self) -> HashSet<u64> {
        self.socket_descriptors().into_keys().collect()
    }
}

/// Sends a signal to a process by a descriptor that [`ProcessId::watch`] gave, and so to no successor. False if it
/// has ended.
///
/// # Errors
/// The kernel refused.
pub fn signal(process: BorrowedFd<'_>, signal: Signal) -> io::Result<bool> {
    let (process, signal) = (process.as_raw_fd(), signal as libc::c_int);
    let no_details = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: pidfd_send_signal takes integers and a pointer, which may be null.
    let sent =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process, signal, no_details, 0) };
    if sent == 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ESRCH) => Ok(false),
        error => Err(error),
    }
}

/// Who holds the sockets with these inodes. Looks at every process of the host.
///
/// # Errors
/// `/proc` cannot be read.
pub fn holders(inodes: &HashSet<u64>) -> io::Result<HashMap<u64, Vec<ProcessId>>> {
    let mut holders: HashMap<u64, Vec<ProcessId>> = HashMap::new();
    for entry in fs::read_dir("/proc")? {
        let Some(process) = entry
            .ok()
            .and_then(|entry| entry.file_name().to_str()?.parse().ok())
            .and_then(ProcessId::current)
        else {
            continue;
        };
        for inode in process.sockets().intersection(inodes) {
            holders.entry(*inode).or_default().push(process);
        }
    }
    Ok(holders)
}

/// The inode in a link such as `socket:[12345]`.
fn socket_inode(link: &Path) -> Option<u64> {
    link.to_str()?
        .strip_prefix("socket:[")?
        .strip_suffix(']')?
        .parse()
        .ok()
}

/// The 22nd field of `/proc/<pid>/stat`. The second may hold anything, parentheses included.
fn parse_start(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Of `/proc/<pid>/status`, the signals that wait for any thread of the process: the first in the lowest bit.
fn parse_pending(status: &str) -> Option<u64> {
    let mut lines = status.lines();
    let signals = lines.find_map(|line| line.strip_prefix("ShdPnd:"))?;
    u64::from_str_radix(signals.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::{net::UdpSocket, os::fd::AsFd as _, process::Command};

    #[test]
    fn the_start_is_found_behind_any_name() {
        let tail = "S 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 9 9";
        assert_eq!(parse_start(&format!("17 (memcached) {tail}")), Some(4711));
        assert_eq!(parse_start(&format!("17 (a) b (c)) {tail}")), Some(4711));
        assert_eq!(parse_start("17 (memcached"), None);
    }

    #[test]
    fn signals_that_wait_are_found() {
        let status = "Name:\tprestack\nSigPnd:\t0000000000000001\nShdPnd:\t0000000000004002\n";
        assert_eq!(parse_pending(status), Some(0x4002));
        assert_eq!(parse_pending(""), None);
        let me = ProcessId::current(std::process::id()).expect("alive");
        assert!(!me.has_pending(Signal::SIGTERM));
    }

    #[test]
    fn sockets_are_found_by_their_inode() {
        assert_eq!(socket_inode(Path::new("socket:[42]")), Some(42));
        assert_eq!(socket_inode(Path::new("/dev/null")), None);

        let _socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let me = ProcessId::current(std::process::id()).expect("alive");
        let mine = me.sockets();
        assert!(!mine.is_empty());
        let holders = holders(&mine).expect("readable");
        assert!(holders.values().any(|processes| processes.contains(&me)));
    }

    #[test]
    fn an_exit_is_noticed() {
        let mut child = Command::new("sleep").arg("60").spawn().expect("started");
        let process = ProcessId::current(child.id()).expect("alive");
        let watch = process.watch().expect("supported").expect("alive");
        assert!(process.is_alive());
        assert!(signal(watch.as_fd(), Signal::SIGKILL).expect("allowed"));
        let mut fds = [PollFd::new(watch.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::from(5000u16)), Ok(1));
        child.wait().expect("ended");
        assert!(!process.is_alive());
        assert!(process.watch().expect("supported").is_none());
        assert!(!signal(watch.as_fd(), Signal::SIGKILL).expect("allowed"));
    }
}
