//! The datapath's maps, as user space uses them.

use std::{
    io,
    mem::offset_of,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use aya::{
    Pod,
    maps::{Array, MapData, MapError, PerCpuArray},
};
use prestack_abi::{
    backend::{Backend, MAX_BACKENDS},
    cache::{Block, Index},
    config::{Attention, Config, Door},
    control::Control,
    flow::{FLOW_WAYS, Finding, Flow, FlowKey, FlowSet},
    names,
    stats::Stats,
};
use prestack_translate::Policy;
use serde::{Deserialize, Serialize};

use crate::{clock, grace::await_programs, mapping::Mapping};

/// `BPF_F_LOCK` (include/uapi/linux/bpf.h): take the element's spin lock while copying it.
pub(crate) const LOCKED: u64 = 4;

/// A map cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("map {name}: {source}")]
pub struct MapsError {
    /// Name of the map.
    pub name: &'static str,
    /// What is wrong with it.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

pub(crate) fn fails<E: std::error::Error + Send + Sync + 'static>(
    name: &'static str,
) -> impl FnOnce(E) -> MapsError {
    move |source| MapsError {
        name,
        source: Box::new(source),
    }
}

/// The kernel's numbers of an instance's maps: any process can get at the maps by them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize, Serialize)]
#[allow(missing_docs, reason = "each is a map of that name")]
pub struct MapIds {
    pub config: u32,
    pub backends: u32,
    pub index: u32,
    pub blocks: u32,
    pub control: u32,
    pub flows: u32,
    pub stats: u32,
    #[serde(default)]
    pub sockets: u32,
    #[serde(default)]
    pub flow_sets: u32,
    #[serde(default)]
    pub translations: u32,
}

/// Opens a map by its number.
pub(crate) fn open(name: &'static str, id: u32) -> Result<MapData, MapsError> {
    MapData::from_id(id).map_err(fails::<MapError>(name))
}

fn map<T: crate::mapping::Plain>(
    name: &'static str,
    id: u32,
    elements: u32,
) -> Result<Mapping<T>, MapsError> {
    let data = open(name, id)?;
    Mapping::new(data.fd(), elements).map_err(fails::<io::Error>(name))
}

/// The maps through which the datapath is steered.
#[derive(Debug)]
pub struct Controls {
    config: Mapping<Config>,
    backends: Mapping<Backend>,
}

impl Controls {
    /// Maps `CONFIG` and `BACKENDS`.
    ///
    /// # Errors
    /// They are gone, or this process may not use them.
    pub fn open(ids: &MapIds) -> Result<Self, MapsError> {
        Ok(Self {
            config: map(names::CONFIG, ids.config, 1)?,
            backends: map(names::BACKENDS, ids.backends, MAX_BACKENDS)?,
        })
    }

    /// Whether requests are answered over TCP, or were, so that connections may be translated.
    #[must_use]
    pub fn has_tcp_hits(&self) -> bool {
        self.config().policy.room != 0
    }

    /// Whether connections are only translated from now on.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.config().policy.is_serving == 0
    }

    /// Has connections only translated from now on: none becomes a translated one any more when this returns.
    pub fn stop_tcp_hits(&self) {
        let at = offset_of!(Config, policy) + offset_of!(Policy, is_serving);
        self.config.atomic_u64(0, at).store(0, Ordering::SeqCst);
        await_programs();
    }

    /// A copy of the configuration.
    #[must_use]
    pub fn config(&self) -> Config {
        self.config.read(0)
    }

    /// Writes the configuration before the programs are attached.
    pub fn init(&self, config: &Config) {
        self.config.write(0, *config);
    }

    /// Replaces the doors, the ports and the allow list while packets flow.
    ///
    /// The datapath may see a mixture of old and new: serving stops before, and every cache has to
    /// be emptied afterwards, before the next [heartbeat](Self::serve_until).
    pub fn replace(&self, change: impl FnOnce(&mut Config)) {
        self.pause_serving();
        let mut config = self.config.read(0);
        change(&mut config);
        self.config.write(0, config);
    }

    /// Lets the datapath serve until this coarse monotonic time, in ns.
    pub fn serve_until(&self, until: u64) {
        self.config
            .atomic_u64(0, offset_of!(Config, serve_until))
            .store(until, Ordering::SeqCst);
    }

    /// Tells what time it is: `flush_all` can ask for one.
    pub fn set_wall_clock(&self) {
        self.config
            .atomic_u64(0, offset_of!(Config, wall_offset_ns))
            .store(clock::wall_offset_ns(), Ordering::SeqCst);
    }

    /// Says that data may be taken with a SYN from now on. It is never taken back: listeners that were made while the
    /// host allowed that go on to.
    pub fn set_fast_open(&self) {
        self.config
            .atomic_u32(0, offset_of!(Config, has_fast_open))
            .store(1, Ordering::SeqCst);
    }

    /// Whether data may be taken with a SYN.
    #[must_use]
    pub fn has_fast_open(&self) -> bool {
        self.config().has_fast_open != 0
    }

    /// Says whether segments are answered only if their checksums are whole (`Config::whole_sums`).
    pub fn want_whole_sums(&self, are_wanted: bool) {
        self.config
            .atomic_u64(0, offset_of!(Config, whole_sums))
            .store(are_wanted.into(), Ordering::SeqCst);
    }

    /// Says what becomes of requests. Not for beginning or ending to stand aside: see
    /// [`stand_aside`](Self::stand_aside) and [`attend`](Self::attend).
    pub fn set_attention(&self, attention: Attention) {
        self.config
            .atomic_u32(0, offset_of!(Config, attention))
            .store(attention as u32, Ordering::SeqCst);
    }

    /// Whether the datapath stands aside.
    #[must_use]
    pub fn is_aside(&self) -> bool {
        self.config().attention == Attention::Aside as u32
    }

    /// Stops serving until the next [heartbeat](Self::serve_until). When this returns nothing is answered any more,
    /// and no connection becomes a translated one.
    pub fn pause_serving(&self) {
        self.stop_serving();
        await_programs();
    }

    /// Has the datapath stand aside. Serving has to be [paused](Self::pause_serving), for what is served was read
    /// while writes were seen, and there must be no heartbeat before [`attend`](Self::attend). Nothing is followed
    /// any more when this returns.
    pub fn stand_aside(&self) {
        self.set_attention(Attention::Aside);
        await_programs();
    }

    /// Has the datapath attend to requests again. Every cache has to be emptied afterwards, before the next
    /// heartbeat: writes that went by unseen may still be under way.
    pub fn attend(&self) {
        self.set_attention(Attention::Learning);
        // Whoever has not seen that has also given no ticket that is still good, once they are emptied.
        await_programs();
    }

    /// Says how many parts of the cache are in use: a power of two, and never fewer than before.
    pub fn use_parts(&self, parts: u32) {
        self.config
            .atomic_u32(0, offset_of!(Config, parts))
            .store(parts, Ordering::SeqCst);
        self.config
            .atomic_u64(0, offset_of!(Config, grown_ns))
            .store(clock::now_ns(), Ordering::SeqCst);
    }

    /// Stops serving.
    pub fn stop_serving(&self) {
        self.config
            .atomic_u64(0, offset_of!(Config, serve_until))
            .store(0, Ordering::SeqCst);
    }

    /// Whether the heartbeat has not run out.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.config().serve_until > clock::now_ns()
    }

    /// Whether the datapath serves nothing since it was told so, or as it was not told to yet: not because the
    /// heartbeat has run out.
    #[must_use]
    pub fn has_stopped_serving(&self) -> bool {
        self.config().serve_until == 0
    }

    /// Sets the longest IP packet that is sent, in bytes.
    pub fn set_mtu(&self, mtu: u32) {
        self.config
            .atomic_u32(0, offset_of!(Config, mtu))
            .store(mtu, Ordering::SeqCst);
    }

    /// Sets the flags of a door.
    pub fn set_door_flags(&self, door: usize, flags: u8) {
        let offset = offset_of!(Config, doors) + door * size_of::<Door>() + offset_of!(Door, flags);
        self.config
            .atomic_u8(0, offset)
            .store(flags, Ordering::SeqCst);
    }

    fn epoch(&self, backend: u8) -> &AtomicU64 {
        self.backends
            .atomic_u64(backend.into(), offset_of!(Backend, epoch))
    }

    /// The epoch of a backend.
    #[must_use]
    pub fn epoch_of(&self, backend: u8) -> u64 {
        self.epoch(backend).load(Ordering::SeqCst)
    }

    /// Empties a backend's cache.
    pub fn empty(&self, backend: u8) {
        self.epoch(backend).fetch_add(1, Ordering::SeqCst);
    }

    /// Until when nothing of a backend is stored, as coarse monotonic time in ns.
    #[must_use]
    pub fn quiet_until(&self, backend: u8) -> u64 {
        self.backends
            .atomic_u64(backend.into(), offset_of!(Backend, quiet_until))
            .load(Ordering::SeqCst)
    }

    /// A backend has to be seen answering over UDP, anew, before it is served there.
    pub fn doubt_udp(&self, backend: u8) {
        self.backends
            .atomic_u64(backend.into(), offset_of!(Backend, answers_udp))
            .store(0, Ordering::SeqCst);
    }

    /// Empties a backend's cache, and keeps it empty for `settle` from now: writes that were not
    /// seen may be under way. That it answers over UDP has to be seen anew.
    pub fn empty_and_settle(&self, backend: u8, settle: Duration) {
        self.doubt_udp(backend);
        let until = clock::now_ns() + covering_ns(settle);
        self.backends
            .atomic_u64(backend.into(), offset_of!(Backend, quiet_until))
            .fetch_max(until, Ordering::SeqCst);
        // A ticket that has the new epoch was given by someone who has seen the quiet time.
        self.empty(backend);
    }
}

/// A duration in ns that the datapath's clock, which lags behind, does not cut short.
#[must_use]
pub fn covering_ns(span: Duration) -> u64 {
    clock::nanoseconds(span) + clock::resolution_ns()
}

/// The maps that make up the cache.
#[derive(Debug)]
pub struct CacheMaps {
    /// The index of each bucket.
    pub index: Mapping<Index>,
    /// The entries of each bucket.
    pub blocks: Mapping<Block>,
}

impl CacheMaps {
    /// Maps `INDEX` and `BLOCKS`.
    ///
    /// # Errors
    /// They are gone, or this process may not use them.
    pub fn open(ids: &MapIds, buckets: u32) -> Result<Self, MapsError> {
        Ok(Self {
            index: map(names::INDEX, ids.index, buckets)?,
            blocks: map(names::BLOCKS, ids.blocks, buckets)?,
        })
    }
}

/// How many entries there are in the first `buckets`, dead ones included.
///
/// # Errors
/// The map is gone, or this process may not use it.
pub fn entries(ids: &MapIds, buckets: u32) -> Result<u64, MapsError> {
    let index: Mapping<Index> = map(names::INDEX, ids.index, buckets)?;
    Ok((0..buckets).map(|bucket| index.read(bucket).used()).sum())
}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Counted(Stats);

// SAFETY: made of integers.
unsafe impl Pod for Counted {}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Controlled(Control);

// SAFETY: made of integers.
unsafe impl Pod for Controlled {}

/// The datapath's counters, added up over the CPUs.
///
/// # Errors
/// The map is gone, or this process may not use it.
pub fn counters(ids: &MapIds) -> Result<Stats, MapsError> {
    let fails = || fails::<MapError>(names::STATS);
    let map = aya::maps::Map::PerCpuArray(open(names::STATS, ids.stats)?);
    let map = PerCpuArray::<_, Counted>::try_from(map).map_err(fails())?;
    let mut sum = Stats::default();
    for Counted(stats) in map.get(&0, 0).map_err(fails())?.iter() {
        sum.add(stats);
    }
    Ok(sum)
}

/// The outstanding writes of a control, copied under its lock.
///
/// # Errors
/// The map is gone, or this process may not use it.
pub fn control(ids: &MapIds, number: u32) -> Result<Control, MapsError> {
    let fails = || fails::<MapError>(names::CONTROL);
    let map = aya::maps::Map::Array(open(names::CONTROL, ids.control)?);
    let map = Array::<_, Controlled>::try_from(map).map_err(fails())?;
    map.get(&number, LOCKED)
        .map(|Controlled(control)| control)
        .map_err(fails())
}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Followed(Flow);

// SAFETY: made of integers.
unsafe impl Pod for Followed {}

/// What is known of the TCP flow at a place.
///
/// # Errors
/// The map is gone, or this process may not use it.
pub fn flow(ids: &MapIds, place: u32) -> Result<Flow, MapsError> {
    let fails = || fails::<MapError>(names::FLOWS);
    let map = aya::maps::Map::Array(open(names::FLOWS, ids.flows)?);
    let map = Array::<_, Followed>::try_from(map).map_err(fails())?;
    map.get(&place, 0)
        .map(|Followed(flow)| flow)
        .map_err(fails())
}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Set(FlowSet);

// SAFETY: made of integers.
unsafe impl Pod for Set {}

/// A TCP flow whose end was not seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenFlow {
    /// Its 4-tuple.
    pub key: FlowKey,
    /// What the datapath is told to have it closed.
    pub found: Finding,
    /// Whether nothing is fetched until memcached has sent something on it.
    pub is_waited_for: bool,
}

/// The TCP flows whose end was not seen.
///
/// # Errors
/// The maps are gone, or this process may not use them.
pub fn open_flows(ids: &MapIds) -> Result<Vec<OpenFlow>, MapsError> {
    let mut open = Vec::new();
    each_open_flow(ids, |name, place, flow| {
        let found = Finding {
            name,
            asked: flow.asked,
            heard_at: flow.heard_at,
            place,
            next: flow.next,
            acked: flow.acked,
            sent: flow.sent,
            what: Finding::GONE,
            reserved: 0,
        };
        open.push(OpenFlow {
            key: flow.key,
            found,
            is_waited_for: is_waited_for(flow),
        });
    })?;
    Ok(open)
}

/// Whether the backend waits for a flow of which the host says what memcached has read: of a part of a connection it does
/// not, and of what waits in the kernel for something before it only that it is not acknowledged.
fn is_waited_for(flow: &Flow) -> bool {
    let is_seen = flow.doubt & Flow::REQUESTS != 0 || flow.acked == flow.next;
    flow.owes == Flow::OWES_ANY && flow.doubt & Flow::PART == 0 && is_seen
}

/// Whether some TCP flow has written without a reply since the coarse monotonic time `lately`, in ns, or is
/// owed more than one reply.
///
/// # Errors
/// The maps are gone, or this process may not use them.
pub fn has_restless_flow(ids: &MapIds, lately: u64) -> Result<bool, MapsError> {
    let mut is_restless = false;
    each_open_flow(ids, |_, _, flow| {
        is_restless |= flow.quiet_at > lately || flow.asked.saturating_sub(flow.counted) > 1;
    })?;
    Ok(is_restless)
}

/// The places of all flows, those included that are closed and have a place for a while.
///
/// # Errors
/// The map is gone, or this process may not use it.
pub fn flow_places(ids: &MapIds) -> Result<Vec<u32>, MapsError> {
    let mut places = Vec::new();
    each_flow(ids, |_, place, _| places.push(place))?;
    Ok(places)
}

/// Looks at the flows whose end was not seen: their names, places, and what is known of them.
fn each_open_flow(ids: &MapIds, mut look: impl FnMut(u64, u32, &Flow)) -> Result<(), MapsError> {
    let flows = aya::maps::Map::Array(open(names::FLOWS, ids.flows)?);
    let flows = Array::<_, Followed>::try_from(flows).map_err(fails::<MapError>(names::FLOWS))?;
    let mut open = Vec::new();
    each_flow(ids, |name, place, over_at| {
        if over_at == 0 {
            open.push((name, place));
        }
    })?;
    for (name, place) in open {
        let flow = flows.get(&place, 0);
        let Followed(flow) = flow.map_err(fails::<MapError>(names::FLOWS))?;
        look(name, place, &flow);
    }
    Ok(())
}

/// Goes through the flows: their names, places, and the times at which the places of closed ones are free.
fn each_flow(ids: &MapIds, mut look: impl FnMut(u64, u32, u64)) -> Result<(), MapsError> {
    let failed = || fails::<MapError>(names::FLOW_SETS);
    let sets = open(names::FLOW_SETS, ids.flow_sets)?;
    let count = sets.info().map_err(failed())?.max_entries();
    let sets = aya::maps::Map::Array(sets);
    let sets = Array::<_, Set>::try_from(sets).map_err(failed())?;
    for at in 0..count {
        let Set(set) = sets.get(&at, 0).map_err(failed())?;
        for (way, (&name, &over_at)) in (0..).zip(set.names.iter().zip(&set.over_at)) {
            if name & 1 != 0 {
                look(name, at * FLOW_WAYS as u32 + way, over_at);
            }
        }
    }
    Ok(())
}
