//! What an instance has pinned, and connections that it is made to carry.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use aya::Pod;
use aya::maps::{Array, Map, MapData, MapInfo};
use aya::programs::links::{FdLink, PinnedLink};
use prestack_abi::flow::Flow;
use prestack_abi::names;
use prestack_abi::translated::Translated;
use prestack_testbed::{Instance, TcpClient};

/// `BPF_F_LOCK` (include/uapi/linux/bpf.h).
const LOCKED: u64 = 4;

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

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Element<T>(T);

// SAFETY: made of integers.
unsafe impl Pod for Element<Flow> {}
// SAFETY: made of integers.
unsafe impl Pod for Element<Translated> {}

fn map<T>(folder: &Path, name: &str) -> Result<Array<MapData, Element<T>>>
where
    Element<T>: Pod,
{
    let data = MapData::from_pin(folder.join(name)).with_context(|| name.to_owned())?;
    Ok(Array::try_from(Map::Array(data))?)
}

/// Has the instance count the client's connection among those that are translated, though its numbers do not
/// differ.
///
/// # Errors
/// When the connection is not known, or the kernel refuses.
pub fn carry(instance: &Instance, client: &TcpClient) -> Result<()> {
    let port = client.local_port()?.to_be();
    let flows = map::<Flow>(&instance.pins(), names::FLOWS)?;
    let is_it = |flow: &Flow| flow.key.client_port == port && flow.state == Flow::OPEN;
    let places = 0..flows.len();
    let place = places
        .into_iter()
        .find(|place| matches!(flows.get(place, 0), Ok(Element(flow)) if is_it(&flow)))
        .context("the connection is not known")?;
    let mut translations = map::<Translated>(&instance.pins(), names::TRANSLATIONS)?;
    let Element(mut translated) = translations.get(&place, LOCKED)?;
    translated.translation.is_active = 1;
    translated.over_at = 0;
    translations.set(place, Element(translated), LOCKED)?;
    Ok(())
}
