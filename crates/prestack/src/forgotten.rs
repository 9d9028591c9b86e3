//! Filters at egress that nothing tells of any more: the run that has left them was killed, and its state file is lost.
//! They hold on to the memory of its cache.

use std::{
    collections::BTreeSet,
    io,
    time::{Duration, Instant},
};

use aya::{
    maps::MapInfo,
    programs::{ProgramInfo, loaded_programs},
};
use prestack_abi::names;

use crate::{attach::tc::remove_filters, netlink, state::Instance};

/// Names of the programs at egress hooks.
const PROGRAMS: [&str; 2] = [names::TX, names::LO];
/// Maps that each of them has, and no program of others has all of.
const MAPS: [&str; 3] = [names::CONFIG, names::BACKENDS, names::FLOWS];

/// A program of some run.
#[derive(Clone, Debug)]
struct Program {
    number: u32,
    /// Number of its `CONFIG`, by which it is known which others are of the same run.
    config: u32,
}

/// Removes those of this network namespace. What a daemon or a state file stands for is left alone: a run whose
/// programs are still at XDP somewhere is no forgotten one, unless that is over within `patience`. Returns the
/// interfaces from which something was removed.
///
/// # Errors
/// The kernel refused.
pub fn remove(instance: &Instance, patience: Duration) -> io::Result<Vec<String>> {
    let deadline = Instant::now() + patience;
    loop {
        let unknown = unknown(instance)?;
        let living = at_xdp()?;
        let (held, forgotten): (Vec<_>, Vec<_>) = unknown
            .into_iter()
            .partition(|program| living.contains(&program.config));
        if held.is_empty() || Instant::now() >= deadline {
            return remove_all(&forgotten);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn remove_all(programs: &[Program]) -> io::Result<Vec<String>> {
    let mut from = Vec::new();
    if programs.is_empty() {
        return Ok(from);
    }
    let numbers: Vec<_> = programs.iter().map(|program| program.number).collect();
    for device in netlink::devices()? {
        // Whose the qdisc is nobody knows.
        if remove_filters(device.index, &numbers, false)? > 0 {
            from.push(device.name);
        }
    }
    Ok(from)
}

/// The programs of filters at egress that are prestack's, and that no state file names.
fn unknown(instance: &Instance) -> io::Result<Vec<Program>> {
    let mut at_egress = BTreeSet::new();
    for device in netlink::devices()? {
        // It may be gone by now.
        let Ok(filters) = netlink::egress_filters(device.index) else {
            continue;
        };
        at_egress.extend(filters.known.iter().filter_map(|filter| filter.program));
    }
    if at_egress.is_empty() {
        return Ok(Vec::new());
    }
    // Read after them: a run writes down its programs before it attaches one.
    let names = instance.others().into_iter();
    let names = names.chain([instance.name().clone()]);
    let states = names.filter_map(|name| Instance::new(name).state().ok().flatten());
    let known: BTreeSet<_> = states.flat_map(|state| state.programs).collect();
    let programs = loaded_programs().filter_map(Result::ok);
    let unknown = programs.filter(|program| {
        let number = program.id();
        let is_named = |name| PROGRAMS.contains(&name);
        at_egress.contains(&number)
            && !known.contains(&number)
            && program.name_as_str().is_some_and(is_named)
    });
    Ok(unknown.filter_map(|program| read(&program)).collect())
}

/// A program as one of prestack's; `None` if it is none.
fn read(program: &ProgramInfo) -> Option<Program> {
    let maps = program.map_ids().ok()??;
    let maps: Vec<_> = maps
        .into_iter()
        .filter_map(|number| MapInfo::from_id(number).ok())
        .collect();
    let map = |name: &str| maps.iter().find(|map| map.name_as_str() == Some(name));
    let is_own = MAPS.iter().all(|name| map(name).is_some());
    let config = map(names::CONFIG)?.id();
    is_own.then(|| Program {
        number: program.id(),
        config,
    })
}

/// Numbers of the maps of all programs at XDP in this network namespace.
fn at_xdp() -> io::Result<BTreeSet<u32>> {
    let mut numbers = BTreeSet::new();
    for device in netlink::devices()? {
        let interface = netlink::interface_at(device.index)?;
        numbers.extend(interface.into_iter().flat_map(|interface| interface.xdp));
    }
    let programs = loaded_programs().filter_map(Result::ok);
    let programs = programs.filter(|program| numbers.contains(&program.id()));
    let maps = programs.filter_map(|program| program.map_ids().ok().flatten());
    Ok(maps.flatten().collect())
}
