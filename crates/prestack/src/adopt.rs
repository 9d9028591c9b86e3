//! Whether a run goes on with what an earlier one has left: programs that translate connections, which must not
//! end before these do.

use std::{collections::BTreeSet, path::Path};

use aya::maps::MapError;
use prestack_abi::LAYOUT;
use tracing::info;

use crate::{
    attach::{load::sizes, pins},
    drain::Carried,
    leftovers::{self, namespace_exists},
    netlink,
    object::OBJECT,
    orphan::{Orphan, OrphanError},
    settings::Options,
    state::{Instance, State, current_netns},
    units::InstanceName,
};

/// Connections are translated that this run cannot go on with.
#[derive(Debug, thiserror::Error)]
#[error(
    "{reason}: an earlier run of instance {name} has left connections that it carries, and ending it would \
     break them; {remedy}, or end them first with `prestack detach --instance {name}`"
)]
pub struct Refusal {
    name: InstanceName,
    reason: Reason,
    remedy: &'static str,
}

/// Why a run cannot go on with what is left.
#[derive(Debug, thiserror::Error)]
enum Reason {
    #[error("prestack {0} has laid out its maps differently")]
    Layout(String),
    #[error("it is in another network namespace")]
    Namespace,
    #[error("--tcp-hits is not given")]
    NotAsked,
    #[error("map {map} has {left}, and {wanted} with these settings")]
    Size {
        map: String,
        left: String,
        wanted: String,
    },
    #[error("interface {0} is not given")]
    Interface(String),
    #[error("port {0} is not given")]
    Port(u16),
}

impl Reason {
    const fn remedy(&self) -> &'static str {
        match self {
            Self::Layout(_) => "start that version",
            Self::Namespace => "start it there (nsenter --net=…)",
            Self::NotAsked => "start with --tcp-hits",
            Self::Size { .. } => {
                "start with the same --memory, --max-flows, --tcp-answer and --rate-limit"
            }
            Self::Interface(_) | Self::Port(_) => "start with it",
        }
    }
}

/// What an earlier run has left for this one to go on with; `None` if there is nothing, or nothing that would be
/// missed.
///
/// # Errors
/// There is something with which this run cannot go on.
pub fn find(options: &Options, instance: &Instance) -> anyhow::Result<Option<State>> {
    let folder = instance.pin_folder();
    let Some(state) = instance.state()? else {
        return match Orphan::find(&folder)? {
            Some(_) => Err(OrphanError::Unknown(instance.name().clone()).into()),
            None => Ok(None),
        };
    };
    if !state.tcp_hits || !leftovers::are_pinned(instance, &state, "--tcp-hits")? {
        return Ok(None);
    }
    let Some(reason) = obstacle(options, &state, &folder)? else {
        return Ok(Some(state));
    };
    if is_idle(&state) {
        info!("{reason}: starts anew, as no connection is carried");
        return Ok(None);
    }
    Err(Refusal {
        name: instance.name().clone(),
        remedy: reason.remedy(),
        reason,
    }
    .into())
}

/// Whether it is certain that no connection is translated, and that none will be.
fn is_idle(state: &State) -> bool {
    if !namespace_exists(state.netns) {
        return true;
    }
    let Ok(carried) = Carried::by(state) else {
        return false;
    };
    carried.stop();
    let is_here = current_netns().is_ok_and(|here| here == state.netns);
    match &carried {
        _ if is_here => carried.left().is_ok_and(|left| left.is_empty()),
        // Which of them there still are cannot be seen from here.
        Carried::Translated(_, translations) => {
            translations.keys().is_ok_and(|keys| keys.is_empty())
        }
        Carried::Unknown(_) => false,
    }
}

fn obstacle(options: &Options, state: &State, folder: &Path) -> anyhow::Result<Option<Reason>> {
    if state.layout != LAYOUT {
        return Ok(Some(Reason::Layout(state.version.clone())));
    }
    if state.netns != current_netns()? {
        return Ok(Some(Reason::Namespace));
    }
    if !options.tcp_hits {
        return Ok(Some(Reason::NotAsked));
    }
    let (interfaces, ports) = state.served();
    for interface in interfaces {
        let found = netlink::interface(&interface.name)?;
        let is_there = found.is_some_and(|found| found.index == interface.index);
        if is_there && !options.interfaces.contains(&interface.name) {
            return Ok(Some(Reason::Interface(interface.name.clone())));
        }
    }
    if let Some(port) = ports.iter().find(|port| !options.ports.contains(port)) {
        return Ok(Some(Reason::Port(*port)));
    }
    other_size(options, folder)
}

/// A map that is not as large as this run would make it.
fn other_size(options: &Options, folder: &Path) -> anyhow::Result<Option<Reason>> {
    let object = aya_obj::Object::parse(OBJECT)?;
    let sizes = sizes(options);
    let maps: BTreeSet<_> = object.maps.keys().collect();
    for name in maps {
        let map = &object.maps[name];
        let elements = sizes.iter().find(|(sized, _)| sized == name);
        let wanted = pins::Size {
            key: map.key_size(),
            value: map.value_size(),
            elements: elements.map_or(map.max_entries(), |(_, elements)| *elements),
        };
        let left = pins::size(folder, name).map_err(|error: MapError| anyhow::anyhow!(error))?;
        let Some(left) = left.filter(|left| *left != wanted) else {
            continue;
        };
        let unlike = (left.key, left.value) != (wanted.key, wanted.value);
        let text = |size: &pins::Size| match unlike {
            true => format!("elements of {} bytes", size.value),
            false => format!("{} elements", size.elements),
        };
        return Ok(Some(Reason::Size {
            map: name.clone(),
            left: text(&left),
            wanted: text(&wanted),
        }));
    }
    Ok(None)
}
