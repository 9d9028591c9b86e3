//! What a running instance has in `/run` for other commands to find: a state file and a lock.

mod before;
mod error;
mod summary;

use std::{
    fmt, fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    doors::DoorSpec,
    lock::{self, Lock},
    maps::MapIds,
    units::InstanceName,
};

pub use before::Before;
pub use error::StateError;

/// Where the state of all instances is.
pub const RUN_FOLDER: &str = "/run/prestack";
/// Where pinned instances hold on to their programs.
pub const PIN_FOLDER: &str = "/sys/fs/bpf/prestack";

/// Room that a state is sure to have, in bytes: several backends with a dozen of doors each take less.
const STATE_ROOM: usize = 16 << 10;

/// What is known about an instance, kept up to date while it runs.
#[derive(Clone, PartialEq, Debug, Deserialize, Serialize)]
pub struct State {
    /// Layout of the maps, see `prestack_abi::LAYOUT`.
    pub layout: u32,
    /// Version of prestack that runs it.
    pub version: String,
    /// Pid of the daemon.
    pub pid: u32,
    /// When it started, in seconds since 1970.
    pub started: u64,
    /// Inode of the network namespace it is in.
    pub netns: u64,
    /// Where it is attached.
    pub interfaces: Vec<AttachedState>,
    /// Names of those of them at which nothing is answered, since answers do not arrive.
    #[serde(default)]
    pub unserved: Vec<String>,
    /// Names of those of them that are not in use, so that nothing arrives.
    #[serde(default)]
    pub down: Vec<String>,
    /// Where it watches the host's own packets: the loopback interface.
    #[serde(default)]
    pub lo: Option<AttachedState>,
    /// Names of the interfaces that it was to attach to, and of those of the runs from which it has taken over.
    #[serde(default)]
    pub given: Option<Vec<String>>,
    /// The run that it takes over from, until it has.
    #[serde(default)]
    pub before: Option<Before>,
    /// Kernel's numbers of its programs.
    pub programs: Vec<u32>,
    /// Its maps.
    pub maps: MapIds,
    /// Memory of the cache in bytes.
    pub memory: u64,
    /// Buckets of the cache.
    pub buckets: u32,
    /// TCP connections that are followed at most.
    #[serde(default)]
    pub max_flows: u32,
    /// Whether requests are answered over TCP: then connections may be translated by the pinned programs.
    #[serde(default)]
    pub tcp_hits: bool,
    /// How long stopping waits for them, in ms.
    #[serde(default)]
    pub drain_timeout_ms: u64,
    /// Greatest age of an entry in ms.
    pub max_age_ms: u64,
    /// Ports that are served.
    pub ports: Vec<u16>,
    /// Whether the programs outlive the daemon.
    pub pinned: bool,
    /// Who may be served.
    pub allow: Vec<IpNet>,
    /// The backends by number, past ones included.
    pub backends: Vec<BackendState>,
    /// Why something on a chosen port is not served.
    pub problems: Vec<String>,
    /// The loopback interface if it is not seen, and addresses of others that are not attached, through
    /// which memcached can be reached.
    pub unseen: Vec<String>,
    /// While the datapath stands aside: why.
    #[serde(default)]
    pub aside: Option<AsideState>,
}

/// Why the datapath stands aside.
#[derive(Clone, Copy, PartialEq, Debug, Deserialize, Serialize)]
pub struct AsideState {
    /// The share of requests that could be answered, which was too small; `None` if nobody reads.
    pub hit_share: Option<f64>,
    /// When it is tried again, in seconds since 1970; `None` if it waits for somebody who reads.
    pub next_trial: Option<u64>,
}

/// An interface of an instance.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize)]
pub struct AttachedState {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// `native` or `generic`, once attached; neither where packets are only watched.
    pub mode: String,
    /// `tcx` or `clsact`, once attached.
    pub egress: String,
    /// Whether the clsact qdisc was added for this.
    pub added_clsact: bool,
}

/// A backend of an instance.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize)]
pub struct BackendState {
    /// Its number.
    pub number: u8,
    /// Pid of the memcached.
    pub pid: u32,
    /// When it started, in clock ticks since boot.
    #[serde(default)]
    pub start: u64,
    /// Whether that memcached runs.
    pub alive: bool,
    /// Whether others have come in its place since it is gone, so that it is not missed.
    #[serde(default)]
    pub superseded: bool,
    /// Where it listens.
    pub doors: Vec<DoorSpec>,
    /// Unix sockets it listens on, which are not seen.
    pub unix_sockets: Vec<String>,
}

/// A file as it was written: others may have put another one in its place since, or changed it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Written {
    device: u64,
    inode: u64,
    len: u64,
    /// When, in seconds and nanoseconds since 1970.
    at: (i64, i64),
}

impl Written {
    fn at(path: &Path) -> io::Result<Self> {
        let file = fs::metadata(path)?;
        Ok(Self {
            device: file.dev(),
            inode: file.ino(),
            len: file.len(),
            at: (file.mtime(), file.mtime_nsec()),
        })
    }
}

/// The files of an instance.
#[derive(Clone, Debug)]
pub struct Instance {
    name: InstanceName,
    folder: PathBuf,
}

impl Instance {
    /// The instance of this name, running or not.
    #[must_use]
    pub fn new(name: InstanceName) -> Self {
        Self::in_folder(name, Path::new(RUN_FOLDER))
    }

    fn in_folder(name: InstanceName, folder: &Path) -> Self {
        Self {
            name,
            folder: folder.into(),
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &InstanceName {
        &self.name
    }

    fn state_path(&self) -> PathBuf {
        self.folder.join(format!("{}.json", self.name))
    }

    /// Where a state is written before it takes the place of the last one.
    fn new_path(&self) -> PathBuf {
        self.state_path().with_extension("json.new")
    }

    fn lock_path(&self) -> PathBuf {
        self.folder.join(format!("{}.lock", self.name))
    }

    /// Where it pins its links.
    #[must_use]
    pub fn pin_folder(&self) -> PathBuf {
        Path::new(PIN_FOLDER).join(self.name.as_str())
    }

    /// Makes sure that no other process runs this instance, as long as the lock is kept.
    ///
    /// # Errors
    /// One does, or the lock file cannot be made.
    pub fn lock(&self) -> Result<Lock, StateError> {
        let path = self.lock_path();
        let lock = fs::create_dir_all(&self.folder).and_then(|()| Lock::take(&path));
        match lock {
            Ok(Some(lock)) => Ok(lock),
            Ok(None) => Err(StateError::Running {
                name: self.name.clone(),
            }),
            Err(source) => Err(StateError::Io { path, source }),
        }
    }

    /// Whether a process runs this instance.
    ///
    /// # Errors
    /// The lock file cannot be read.
    pub fn is_running(&self) -> Result<bool, StateError> {
        let path = self.lock_path();
        Lock::is_held(&path).map_err(|source| StateError::Io { path, source })
    }

    /// Whether it is this process that runs the instance.
    ///
    /// # Errors
    /// The lock file, or the process, cannot be looked at.
    pub fn is_run_by(&self, pid: u32) -> Result<bool, StateError> {
        let path = self.lock_path();
        lock::is_held_by(&path, pid).map_err(|source| StateError::Io { path, source })
    }

    /// The state last written; `None` if there is none.
    ///
    /// # Errors
    /// It cannot be read, or another version wrote it.
    pub fn state(&self) -> Result<Option<State>, StateError> {
        let path = self.state_path();
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StateError::Io { path, source }),
        };
        match serde_json::from_slice(&text) {
            Ok(state) => Ok(Some(state)),
            Err(source) if source.is_eof() => Err(StateError::CutOff {
                path,
                name: self.name.clone(),
                source,
            }),
            Err(source) => Err(StateError::Malformed { path, source }),
        }
    }

    /// Replaces the state: whoever reads it sees the old or the new one. Returns which file that is.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, state: &State) -> Result<Written, StateError> {
        let (path, new) = (self.state_path(), self.new_path());
        let text = serde_json::to_vec_pretty(state).map_err(io::Error::other);
        text.and_then(|text| fs::write(&new, text))
            .and_then(|()| Written::at(&new))
            .and_then(|written| fs::rename(&new, &path).map(|()| written))
            .map_err(|source| {
                // A part of it may be there. Nobody reads that.
                let _ = fs::remove_file(&new);
                StateError::Io { path, source }
            })
    }

    /// Whether the state is there as it was written, as far as can be seen.
    #[must_use]
    pub fn has(&self, written: &Written) -> bool {
        match Written::at(&self.state_path()) {
            Ok(there) => there == *written,
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }

    /// Makes sure that there is room for the state before anything is done that it has to tell of.
    ///
    /// # Errors
    /// There is not.
    pub fn check_room(&self) -> Result<(), StateError> {
        let path = self.new_path();
        let written = fs::write(&path, [b' '; STATE_ROOM]);
        written
            .and_then(|()| fs::remove_file(&path))
            .map_err(|source| {
                let _ = fs::remove_file(&path);
                StateError::Io { path, source }
            })
    }

    /// Forgets the state.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn clear(&self) -> Result<(), StateError> {
        let path = self.state_path();
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StateError::Io {
                path,
                source: error,
            }),
            _ => Ok(()),
        }
    }

    /// The other instances in words: which there are, and whether a daemon runs them.
    #[must_use]
    pub fn describe_others(&self) -> Vec<String> {
        let others = self.others().into_iter();
        let describe = |name: InstanceName| {
            let other = Self::in_folder(name.clone(), &self.folder);
            match other.is_running() {
                Ok(false) => format!("{name}, whose daemon has ended"),
                _ => name.to_string(),
            }
        };
        others.map(describe).collect()
    }

    /// The other instances that have written down a state.
    #[must_use]
    pub fn others(&self) -> Vec<InstanceName> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten();
        let name = |path: &Path| path.file_stem()?.to_str()?.parse().ok();
        let mut names: Vec<_> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                path.extension()
                    .is_some_and(|extension| extension == "json")
            })
            .filter_map(|path| name(&path))
            .filter(|name| *name != self.name)
            .collect();
        names.sort_unstable();
        names
    }

    /// The instance, other than this one, that has the program of this number.
    #[must_use]
    pub fn other_with_program(&self, program: u32) -> Option<InstanceName> {
        self.others().into_iter().find(|name| {
            let other = Self::in_folder(name.clone(), &self.folder);
            matches!(other.state(), Ok(Some(state)) if state.programs.contains(&program))
        })
    }
}

impl State {
    /// Every interface with a program of this run at its egress.
    pub fn attached(&self) -> impl Iterator<Item = &AttachedState> {
        self.interfaces.iter().chain(&self.lo)
    }

    /// Every interface at which there may be a program, of this run or of one that it takes over from.
    pub fn egresses(&self) -> impl Iterator<Item = &AttachedState> {
        let before = self.before.iter().flat_map(Before::attached);
        self.attached().chain(before)
    }

    /// Where connections may be carried, and the ports: those of the run that has served last.
    #[must_use]
    pub fn served(&self) -> (&[AttachedState], &[u16]) {
        match &self.before {
            Some(before) => (&before.interfaces, &before.ports),
            None => (&self.interfaces, &self.ports),
        }
    }

    /// Every interface that may have a filter at its egress, which neither goes with a process nor with a pin.
    pub fn filters(&self) -> impl Iterator<Item = &AttachedState> {
        self.egresses()
            .filter(|interface| interface.egress != "tcx")
    }

    /// `vs,vt (native)`, or `vs (native), vt (generic)`.
    #[must_use]
    pub fn interface_list(&self) -> String {
        let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
        for interface in &self.interfaces {
            match groups.last_mut() {
                Some((mode, names)) if *mode == interface.mode => names.push(&interface.name),
                _ => groups.push((&interface.mode, vec![&interface.name])),
            }
        }
        let groups: Vec<_> = groups
            .into_iter()
            .map(|(mode, names)| format!("{} ({mode})", names.join(",")))
            .collect();
        groups.join(", ")
    }

    /// `11211,11212`.
    #[must_use]
    pub fn port_list(&self) -> String {
        let ports: Vec<_> = self.ports.iter().map(ToString::to_string).collect();
        ports.join(",")
    }
}

impl AttachedState {
    /// Whether both are of the same device, under the same name.
    #[must_use]
    pub fn is_same_place(&self, other: &Self) -> bool {
        (&self.name, self.index) == (&other.name, other.index)
    }
}

impl fmt::Display for AttachedState {
    /// `vs: native XDP, replies by tcx`, or `lo: tcx` where packets are only watched.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name, mode, egress, ..
        } = self;
        match mode.as_str() {
            "" => write!(out, "{name}: {egress}"),
            mode => write!(out, "{name}: {mode} XDP, replies by {egress}"),
        }
    }
}

impl BackendState {
    /// Whether hits may be served anywhere.
    #[must_use]
    pub fn is_served(&self) -> bool {
        let mut doors = self.doors.iter();
        doors.any(DoorSpec::is_served)
    }

    /// Where it is served and where its writes are watched, in words.
    #[must_use]
    pub fn describe_doors(&self) -> String {
        let list = |serve| {
            let doors = self.doors.iter().filter(|door| door.is_served() == serve);
            let names: Vec<_> = doors.map(ToString::to_string).collect();
            names.join(", ")
        };
        match (list(true), list(false)) {
            (served, watched) if served.is_empty() && watched.is_empty() => "served nowhere".into(),
            (served, watched) if watched.is_empty() => format!("served at {served}"),
            (served, watched) if served.is_empty() => format!("watched at {watched}"),
            (served, watched) => format!("served at {served}; watched at {watched}"),
        }
    }
}

/// Seconds since 1970.
#[must_use]
pub fn unix_time() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// Inode of the network namespace of the calling thread.
///
/// # Errors
/// `/proc` is not mounted.
pub fn current_netns() -> io::Result<u64> {
    fs::metadata("/proc/thread-self/ns/net").map(|namespace| namespace.ino())
}

#[cfg(test)]
mod tests;
