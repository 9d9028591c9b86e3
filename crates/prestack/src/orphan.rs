//! What an instance has pinned whose state file is lost.

use std::path::{Path, PathBuf};

use aya::{
    maps::MapInfo,
    programs::{
        links::{FdLink, PinnedLink},
        loaded_programs,
    },
};
use prestack_abi::names;

use crate::{
    attach::{pins, tc::remove_filters},
    bpffs::{self, BpffsError},
    drain::Carried,
    host::LOOPBACK,
    maps::{Controls, MapIds},
    netlink::{self, Interface},
    object::OBJECT,
    translations::Translations,
    units::InstanceName,
};

/// Why this process cannot go on with it, or end it.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum OrphanError {
    #[error(
        "an earlier run of instance {0} has left programs that may carry connections, but its state file is \
         gone: end them first with `prestack detach --instance {0}`"
    )]
    Unknown(InstanceName),
    #[error(
        "{folder} has map {map} of another version of prestack, and no state file says which: `prestack detach` \
         of that version ends the connections that are carried"
    )]
    OtherVersion { folder: PathBuf, map: String },
    #[error(
        "the programs in {folder} may carry connections, and are at no interface of this network namespace: run \
         `prestack detach` in theirs (nsenter --net=…); if their interface is gone, remove that folder"
    )]
    Elsewhere { folder: PathBuf },
}

/// The pins of an instance that may carry connections.
#[derive(Debug)]
pub struct Orphan<'a> {
    folder: &'a Path,
    /// Names of what is pinned.
    pins: Vec<String>,
}

impl<'a> Orphan<'a> {
    /// What is pinned in `folder`; `None` if nothing is that may carry connections.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn find(folder: &'a Path) -> Result<Option<Self>, BpffsError> {
        let pins = bpffs::names(folder)?;
        let carries = pins.iter().any(|name| bpffs::is_map(name));
        Ok(carries.then_some(Self { folder, pins }))
    }

    /// The connections that are carried; `None` if nothing is attached any more that carries some.
    ///
    /// # Errors
    /// It is attached in another network namespace, or another version of prestack has pinned it.
    pub fn carried(&self) -> anyhow::Result<Option<Carried>> {
        let folder = || self.folder.to_owned();
        if !self.pins.iter().any(|name| pins::is_rx(name)) {
            return Ok(None);
        }
        if self.interfaces()?.is_empty() {
            return Err(OrphanError::Elsewhere { folder: folder() }.into());
        }
        if let Some(map) = self.unlike()? {
            return Err(OrphanError::OtherVersion {
                folder: folder(),
                map,
            }
            .into());
        }
        let id = |map: &str| MapInfo::from_pin(self.folder.join(map)).map(|info| info.id());
        let maps = MapIds {
            config: id(names::CONFIG)?,
            backends: id(names::BACKENDS)?,
            flows: id(names::FLOWS)?,
            flow_sets: id(names::FLOW_SETS)?,
            translations: id(names::TRANSLATIONS)?,
            ..MapIds::default()
        };
        let (controls, translations) = (Controls::open(&maps)?, Translations::open(&maps)?);
        Ok(Some(Carried::Translated(controls, translations)))
    }

    /// Removes what is no link, and so not pinned: the filters at egress of older kernels.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn remove_filters(&self) -> anyhow::Result<()> {
        let config = self.folder.join(names::CONFIG);
        if !config.exists() {
            return Ok(());
        }
        let config = MapInfo::from_pin(config)?.id();
        let has_it = |maps: Option<Vec<u32>>| maps.is_some_and(|maps| maps.contains(&config));
        let programs: Vec<_> = loaded_programs()
            .filter_map(Result::ok)
            .filter(|program| program.map_ids().is_ok_and(has_it))
            .map(|program| program.id())
            .collect();
        for name in self
            .interfaces()?
            .iter()
            .map(|at| &*at.name)
            .chain([LOOPBACK])
        {
            if let Some(interface) = netlink::interface(name)? {
                remove_filters(interface.index, &programs, false)?;
            }
        }
        Ok(())
    }

    /// The interfaces of this network namespace at which its programs are.
    fn interfaces(&self) -> anyhow::Result<Vec<Interface>> {
        let mut found = Vec::new();
        for device in netlink::devices()? {
            let path = pins::of_interface(self.folder, "rx", device.index);
            if !path.exists() {
                continue;
            }
            let link = FdLink::from(PinnedLink::from_pin(path)?);
            let program = link.info()?.program_id();
            let interface = netlink::interface(&device.name)?;
            found.extend(interface.filter(|interface| interface.xdp.contains(&program)));
        }
        Ok(found)
    }

    /// A map that is not like that of this version.
    fn unlike(&self) -> anyhow::Result<Option<String>> {
        let object = aya_obj::Object::parse(OBJECT)?;
        for (name, map) in &object.maps {
            let left = pins::size(self.folder, name)?;
            if left.is_some_and(|left| (left.key, left.value) != (map.key_size(), map.value_size()))
            {
                return Ok(Some(name.clone()));
            }
        }
        Ok(None)
    }
}
