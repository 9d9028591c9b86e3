//! What an instance has pinned, and connections that it is made to carry.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use aya::maps::MapInfo;
use aya::programs::links::{FdLink, PinnedLink};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use prestack_testbed::{Instance, Prestack, TcpClient, pace};

/// A link: its number, and that of the program it runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Link {
    /// Its number.
    pub id: u32,
    /// Its program's.
    pub program: u32,
}

/// What is pinned, by name.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Pinned {
    /// Links.
    pub links: BTreeMap<String, Link>,
    /// Numbers of the maps with which every program goes on.
    pub maps: BTreeMap<String, u32>,
    /// Numbers of the maps that belong to the programs.
    pub own: BTreeMap<String, u32>,
}

impl Pinned {
    /// Looks at what the instance has pinned.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn by(instance: &Instance) -> Result<Self> {
        let mut pinned = Self::default();
        for path in files(instance)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let name = name.into_owned();
            if name.starts_with(|first: char| first.is_ascii_lowercase()) {
                let info = FdLink::from(PinnedLink::from_pin(&path)?).info()?;
                let (id, program) = (info.id(), info.program_id());
                pinned.links.insert(name, Link { id, program });
                continue;
            }
            let id = MapInfo::from_pin(&path)?.id();
            match name.contains('-') {
                true => pinned.own.insert(name, id),
                false => pinned.maps.insert(name, id),
            };
        }
        Ok(pinned)
    }

    /// Numbers of the links.
    #[must_use]
    pub fn link_ids(&self) -> Vec<u32> {
        self.links.values().map(|link| link.id).collect()
    }

    /// Numbers of the programs that they run.
    #[must_use]
    pub fn programs(&self) -> Vec<u32> {
        self.links.values().map(|link| link.program).collect()
    }
}

/// Has the command see no BPF file system, as `ip netns exec` does.
pub fn hide_pins(command: &mut Command) {
    let hide = || {
        let none = None::<&str>;
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        // It may not be mounted at all.
        let _ = umount2("/sys/fs/bpf", MntFlags::MNT_DETACH);
        Ok(())
    };
    // SAFETY: between fork and exec the closure only makes system calls.
    unsafe { command.pre_exec(hide) };
}

/// Fails when something is pinned, or the instance has files.
///
/// # Errors
/// Then, and when it cannot be looked at.
pub fn nothing_left(instance: &Instance) -> Result<()> {
    let pins = files(instance)?;
    ensure!(pins.is_empty(), "still pinned: {pins:?}");
    let folder = instance.pins();
    ensure!(!folder.exists(), "{} is still there", folder.display());
    let files = instance.files()?;
    ensure!(files.is_empty(), "still there: {files:?}");
    Ok(())
}

fn files(instance: &Instance) -> Result<Vec<PathBuf>> {
    let folder = instance.pins();
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let entries = std::fs::read_dir(&folder)?;
    let paths = entries.map(|entry| Ok(entry?.path()));
    paths.collect()
}

/// Has prestack answer a GET of `key`, which is stored, on the client's connection, and so carry it.
///
/// # Errors
/// When it does not come to that, or a command fails.
pub fn carry(prestack: &Prestack, client: &mut TcpClient) -> Result<()> {
    let carried = || prestack.stats()?.get("flows_translated");
    let before = carried()?;
    pace::wait_for("a hit over TCP", Duration::from_secs(10), || {
        client.get(b"key")?;
        Ok((carried()? > before).then_some(()))
    })
}
