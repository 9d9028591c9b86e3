//! The memory of requests that memcached has not answered.

use aya_ebpf::helpers::{bpf_spin_lock, bpf_spin_unlock};
use prestack_abi::config::Config;
use prestack_abi::requests::{
    Kind, LOST_SHIFT, LOST_STAMPS, REQUEST_SETS, Request, SEEN_SHIFT, SET_WAYS,
};
use prestack_proto::hash;
use prestack_proto::verifier::forgotten;

use super::backend;
use super::writes::{self, End};
use crate::maps::{REQUESTS, count};
use crate::packet::Addresses;
use crate::scratch::{Scratch, scratch};

/// The name of a request: flow and id. The server is named by its backend, for memcached may reply
/// from another of the host's addresses than it was asked at. Ports are in network byte order.
#[inline(always)]
fn name(config: &Config, client: &[u32; 4], backend: u8, ports: [u16; 2], id: u16) -> u64 {
    let word = |a: u32, b: u32| u64::from(a) << 32 | u64::from(b);
    let mut name = hash::mix(config.seed, word(client[0], client[1]));
    name = hash::mix(name, word(client[2], client[3]));
    name = hash::mix(name, u64::from(backend));
    let tail = u64::from(ports[0]) << 32 | u64::from(ports[1]) << 16 | u64::from(id);
    hash::finish(name, tail) | 1
}

/// The name of a request to a backend.
#[inline(always)]
pub fn name_of_request(
    config: &Config,
    backend: u8,
    addresses: &Addresses,
    ports: u32,
    id: u16,
) -> u64 {
    name_of(config, &addresses.source, backend, ports, id)
}

/// The name of a request of this client to a backend.
#[inline(always)]
pub fn name_of(config: &Config, client: &[u32; 4], backend: u8, ports: u32, id: u16) -> u64 {
    let ports = [ports as u16, (ports >> 16) as u16];
    name(config, client, backend, ports, id)
}

/// The name of the request to which a packet of a backend replies.
#[inline(always)]
pub fn name_of_reply(
    config: &Config,
    backend: u8,
    addresses: &Addresses,
    ports: u32,
    id: u16,
) -> u64 {
    let ports = [(ports >> 16) as u16, ports as u16];
    name(config, &addresses.destination, backend, ports, id)
}

/// The age, in the unit of `Request::seen`, of a request that is to be remembered for about a second
/// more than `span_ns`.
#[inline(always)]
pub fn age_to_remember_for(config: &Config, span_ns: u64) -> u32 {
    const MARGIN_NS: u64 = 1_000_000_000;
    (config.remember_ns.saturating_sub(span_ns + MARGIN_NS) >> SEEN_SHIFT) as u32
}

#[inline(always)]
fn set_of(name: u64) -> u32 {
    (name >> 32) as u32 & (REQUEST_SETS as u32 - 1)
}

/// The time between two times in the unit of `Request::seen`. 0 if the first is later, by some seconds at most:
/// another CPU may have read the clock after this one, and come first nevertheless. What seems to be later by more was
/// weeks ago.
#[inline(always)]
fn age(seen: u32, now: u32) -> u64 {
    const AHEAD: u32 = 1 << 12;
    let age = now.wrapping_sub(seen);
    if age <= u32::MAX - AHEAD {
        u64::from(age)
    } else {
        0
    }
}

/// Whether a stamp for a forgotten request is more than `horizon` units old. One that is ahead of this
/// CPU's clock is not.
#[inline(always)]
fn is_old(stamp: u8, now: u8, horizon: u8) -> bool {
    let age = now.wrapping_sub(stamp);
    age > horizon && age != u8::MAX
}

/// [`Stamps`](prestack_abi::requests::Stamps) as a word, without those that are old.
#[inline(always)]
fn young_ones(all: u32, now: u8, horizon: u8) -> u32 {
    let mut young = 0;
    for i in 0..3 {
        let stamp = (all >> (8 * i)) as u8;
        if stamp != 0 && !is_old(stamp, now, horizon) {
            young |= u32::from(stamp) << (8 * i);
        }
    }
    young
}

/// The stamp of a request that was seen at this time (in the unit of `Request::seen`).
#[inline(always)]
fn stamp_of(seen: u32) -> u8 {
    match ((seen >> (LOST_SHIFT - SEEN_SHIFT)) as u8).wrapping_add(1) {
        0 => 1,
        stamp => stamp,
    }
}

/// The later of two stamps, which stands for both. One may be ahead of this CPU's clock, which says `now`.
#[inline(always)]
fn later_stamp(old: u8, new: u8, now: u8) -> u8 {
    let next = now.wrapping_add(1);
    if old == 0 || next.wrapping_sub(old) > next.wrapping_sub(new) {
        new
    } else {
        old
    }
}

/// How dear a request is when one has to be forgotten, as two bits for each [`Kind`]. Of an endless one
/// only its name is of use, which the stamp keeps as well; what may change every item has to be heeded when it
/// ends.
const DEAR: u64 = {
    let mut dear = 0;
    let mut kind = 0;
    while kind <= Kind::Odd as u32 {
        let how = match kind {
            k if k == Kind::Endless as u32 => 1,
            k if Kind::may_change_all(k as u8) => 3,
            _ => 2,
        };
        dear |= how << (2 * kind);
        kind += 1;
    }
    dear
};

/// The order in which requests are forgotten.
#[inline(always)]
fn rank(request: &Request) -> u64 {
    const TIME_BITS: u32 = 62;
    let dear = DEAR >> (2 * (u32::from(request.kind) & 15)) & 3;
    dear << TIME_BITS | request.time
}

/// Less than any [`rank`]: the place is free.
const FREE: u64 = 0;

/// Whether a request has been remembered for as long as it is to be, at the time `now` in the unit of
/// `Request::seen`.
///
/// # Safety
///
/// The request can be read.
#[inline(always)]
unsafe fn is_over(request: *const Request, now: u32, config: &Config) -> bool {
    // SAFETY: the caller's.
    age(unsafe { (*request).seen }, now) << SEEN_SHIFT > config.remember_ns
}

/// The [`rank`] of a request, or [`FREE`] if it [`is_over`].
///
/// # Safety
///
/// The request can be read.
#[inline(always)]
unsafe fn rank_or_free(request: *const Request, now: u32, config: &Config) -> u64 {
    // SAFETY: the caller's.
    unsafe {
        if is_over(request, now, config) {
            FREE
        } else {
            rank(&*request)
        }
    }
}

/// Place of a request in `REQUESTS`, also its index in `KEY_TICKETS`.
pub type Slot = u32;

/// Whose request it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Asker {
    /// Of a source that may be served.
    Client,
    /// Of one that may not, and shall not fill the memory of requests: of its requests only writes, and
    /// what was not understood, are remembered.
    Stranger,
}

/// Has what [`remember`] will look at brought from memory meanwhile: under the lock it would be waited for.
#[inline(always)]
pub fn expect(name: u64) {
    let Some(requests) = REQUESTS.get_ptr_mut(set_of(name)) else {
        return;
    };
    let stamp = (name >> 1) as usize & (LOST_STAMPS - 1);
    // SAFETY: a map element, and an index in bounds.
    unsafe {
        (&raw const (*requests).names[0]).read_volatile();
        (&raw const (*requests).requests[0].seen).read_volatile();
        (&raw const (*requests).stamps[stamp].lost).read_volatile();
    }
}

/// Remembers a request that is let through. Returns its place, and the serial number of its tickets,
/// if its name is free of doubt: only then may tickets stand.
#[inline(always)]
pub fn remember(name: u64, request: &Request, asker: Asker) -> Option<(Slot, u32)> {
    let scratch = scratch()?;
    // SAFETY: this CPU's scratch.
    unsafe { (&raw mut (*scratch).request).write_volatile(*request) };
    let place = prestack_remember(name, u64::from(asker == Asker::Stranger));
    (place & CERTAIN != 0).then_some((place as Slot & SLOTS, (place >> 32) as u32))
}

/// [`remember`]s the request in the scratch, under the name in its `slot`.
#[inline(always)]
pub fn remember_noted(asker: Asker) {
    let Some(scratch) = scratch() else { return };
    // SAFETY: this CPU's scratch.
    let name = unsafe { (&raw const (*scratch).slot).read_volatile() };
    prestack_remember(name, u64::from(asker == Asker::Stranger));
}

/// Set in what [`prestack_remember`] returns if the name is free of doubt.
const CERTAIN: u64 = 1 << 31;
/// The bits of a [`Slot`].
const SLOTS: Slot = (REQUEST_SETS * SET_WAYS) as Slot - 1;

/// Remembers the request in the scratch: returns its place, [`CERTAIN`], and in the upper half the serial number
/// of its tickets. A global function (by its unmangled name): the verifier checks it once, for all arguments,
/// and its stack is its own.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_remember(name: u64, is_strange: u64) -> u64 {
    let (Some(scratch), Some(config)) = (scratch(), backend::config()) else {
        return 0;
    };
    match remember_of(config, scratch, name, is_strange != 0) {
        Some((slot, serial)) => u64::from(serial) << 32 | CERTAIN | u64::from(slot),
        None => 0,
    }
}

#[inline(always)]
fn remember_of(
    config: &Config,
    scratch: *mut Scratch,
    name: u64,
    is_strange: bool,
) -> Option<(Slot, u32)> {
    // Read where it is needed, to take no stack.
    // SAFETY: this CPU's scratch, in which nothing else is changed here but `doubted`.
    let (request, doubted) = unsafe {
        (
            &(*scratch).request,
            (&raw mut (*scratch).doubted).cast::<[u64; 2]>(),
        )
    };
    let set = set_of(name);
    let requests = REQUESTS.get_ptr_mut(set)?;
    let now = request.time;
    let seen = (now >> SEEN_SHIFT) as u32;
    let stamp = stamp_of(seen);
    // A request of which little is to be expected counts as older than it is.
    let own_seen = seen.wrapping_sub(request.seen);
    let horizon = (config.remember_ns >> LOST_SHIFT) as u8 + 2;
    let own_stamp = (name >> 1) as usize & (LOST_STAMPS - 1);
    let mut way = SET_WAYS;
    let mut is_known = false;
    let mut has_lost = false;
    let may_change_all = Kind::may_change_all(request.kind);
    let is_kept = !is_strange || request.kind == Kind::Write as u8 || may_change_all;
    let is_certain;
    let serial;
    let place;
    // SAFETY: `config` is a reference. Volatile: the compiler must not conclude anything.
    let zero = unsafe { (&raw const config.zero).read_volatile() };
    // SAFETY: `requests` is a map element, and indices are in bounds; nothing is called under its lock.
    unsafe {
        bpf_spin_lock((&raw mut (*requests).lock).cast());
        serial = (*requests).serial.wrapping_add(1);
        (*requests).serial = serial;
        let mut cheapest = u64::MAX;
        for i in 0..SET_WAYS {
            let held = (&raw const (*requests).names[i]).read_volatile();
            // The name itself is found even when its time is over: it is then taken anew.
            if held == name {
                way = i;
                is_known = !is_over(&raw const (*requests).requests[i], seen, config);
                has_lost = false;
                break;
            }
            // Nothing is cheaper than a place that is free.
            if cheapest == FREE {
                continue;
            }
            let rank = if held == 0 {
                FREE
            } else {
                rank_or_free(&raw const (*requests).requests[i], seen, config)
            };
            if rank < cheapest {
                cheapest = rank;
                way = i;
                has_lost = rank != FREE;
            }
        }
        // All ways to have found it are one for the verifier.
        place = forgotten(way as u64, zero) & (SET_WAYS as u64 - 1);
        is_known = forgotten(u64::from(is_known), zero) != 0;
        has_lost = forgotten(u64::from(has_lost), zero) != 0;
        let held_name = (&raw mut (*requests).names)
            .cast::<u64>()
            .add(place as usize);
        let held = (&raw mut (*requests).requests)
            .cast::<Request>()
            .add(place as usize);
        if is_known {
            // Replies under this name can no longer be told apart. The first GET's ticket
            // stands: nothing has been written since, or its version tells. What ends the
            // answer to one key is no end among several, so only GETs of one kind are counted.
            let gets = request.kind <= Kind::MultiGet as u8 && (*held).kind == request.kind;
            if gets && (*held).unanswered < u8::MAX {
                (*held).unanswered += 1;
            } else {
                if (*held).kind == Kind::Write as u8 {
                    doubted.write_volatile([(*held).key, u64::from((*held).version)]);
                }
                // It is not heeded for longer because others come.
                let may_have_changed_all = Kind::may_change_all((*held).kind)
                    && age((*held).version, seen) << SEEN_SHIFT <= config.remember_ns;
                if !may_have_changed_all {
                    (*held).key = 0;
                }
                // The delay of a flush counts from the first on.
                if (*held).key == 0 {
                    (*held).time = now;
                }
                (*held).kind = Kind::Endless as u8;
                if may_have_changed_all {
                    (*held).kind = Kind::Odd as u8;
                }
                if may_change_all {
                    (*held).kind = Kind::Odd as u8;
                    (*held).version = seen;
                    if request.key != 0 {
                        (*held).key = request.key;
                    }
                }
                (*held).tickets = 0;
            }
            if (own_seen.wrapping_sub((*held).seen) as i32) > 0 {
                (*held).seen = own_seen;
            }
        } else if is_kept {
            if has_lost {
                let lost = (held_name.read_volatile() >> 1) as usize & (LOST_STAMPS - 1);
                let lost = &raw mut (*requests).stamps[lost].lost;
                *lost = later_stamp(*lost, stamp_of((*held).seen), stamp);
            }
            held_name.write_volatile(name);
            // By words: a copy of the whole becomes a call.
            let (from, to) = ((&raw const *request).cast::<u64>(), held.cast::<u64>());
            for i in 0..size_of::<Request>() / 8 {
                to.add(i).write_volatile(from.add(i).read_volatile());
            }
            (*held).seen = own_seen;
            if request.kind == Kind::MultiGet as u8 {
                (*held).version = serial;
            }
            if may_change_all {
                (*held).version = seen;
            }
        }
        let stamps = &raw mut (*requests).stamps[own_stamp];
        let mut all = stamps.cast::<u32>().read_volatile();
        if all != 0 {
            // Cleared, or it would seem young when the time has wrapped around.
            all = young_ones(all, stamp, horizon);
            stamps.cast::<u32>().write_volatile(all);
        }
        if !is_kept {
            is_certain = false;
            (*stamps).strange = stamp;
        } else {
            let [lost, unsure, strange, _] = all.to_le_bytes();
            let may_follow_lost = lost != 0;
            let may_follow_strange = is_strange && strange != 0;
            is_certain = !is_known && lost | unsure == 0 && !may_follow_strange;
            if may_follow_lost && !is_known {
                (*stamps).unsure = later_stamp(unsure, stamp_of(own_seen), stamp);
            }
            if may_follow_strange && !is_known {
                (*stamps).strange = stamp;
            }
            if !is_certain && !is_known {
                (*held).tickets = 0;
                // A reply whose owner is in doubt ends no write, and no flush. It frees the name, as that of a GET:
                // while the own one may still be under way, there is a stamp that says so.
                if (*held).kind == Kind::Write as u8 {
                    (*held).kind = Kind::Other as u8;
                }
                if (*held).kind == Kind::Flush as u8 {
                    (*held).kind = Kind::Odd as u8;
                }
            }
        }
        bpf_spin_unlock((&raw mut (*requests).lock).cast());
    }
    if has_lost && is_kept {
        count!(requests_lost);
    }
    if !is_certain && request.kind == Kind::Write as u8 {
        // SAFETY: this CPU's scratch, which has two.
        unsafe {
            let own = doubted.add(1);
            own.write_volatile([request.key, u64::from(request.version)]);
        }
    }
    is_certain.then_some((set * SET_WAYS as u32 + place as u32, serial))
}

/// Lets the writes settle of which [`remember`] has found that their replies cannot be told from others.
#[inline(always)]
pub fn settle_doubted() {
    let Some(scratch) = scratch() else { return };
    // SAFETY: this CPU's scratch.
    let keys = unsafe {
        let doubted = &raw const (*scratch).doubted;
        (&raw const (*doubted)[0][0]).read_volatile()
            | (&raw const (*doubted)[1][0]).read_volatile()
    };
    if keys != 0 {
        prestack_settle_doubted();
    }
}

/// A global function (by its unmangled name): the verifier checks it once, for all arguments.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_settle_doubted() -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    for i in 0..2 {
        // SAFETY: this CPU's scratch.
        let [key, generation] = unsafe {
            let doubted = &raw mut (*scratch).doubted[i];
            let write = doubted.read_volatile();
            doubted.write_volatile([0; 2]);
            write
        };
        if key != 0 {
            // The key stays marked throughout.
            writes::arrived_again(key, End::Settle);
            prestack_ended(key, generation);
        }
    }
    0
}

/// A global function, like [`prestack_settle_doubted`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_ended(key: u64, generation: u64) -> u64 {
    if let Some(config) = backend::config() {
        writes::ended(config, key, generation as u32);
    }
    0
}

/// What a reply shows of its end.
#[derive(Clone, Copy)]
pub struct Reply {
    /// It is the last datagram of the answer if one key was asked for.
    pub ends_one: bool,
    /// It is the last datagram of the answer if several keys were asked for.
    pub ends_many: bool,
    /// It is the last datagram of its message.
    pub ends_message: bool,
    /// It is one datagram of several.
    pub is_split: bool,
    /// It is a datagram without payload: memcached's way of saying nothing to a quiet command, or of
    /// a first key that is missing among several.
    pub is_empty: bool,
}

/// A reply has left: takes the request it answers out of the memory if it is its last. Returns the
/// request as it was, and its place.
#[inline(always)]
pub fn answered(name: u64, reply: Reply) -> Option<(Request, Slot)> {
    let set = set_of(name);
    let requests = REQUESTS.get_ptr_mut(set)?;
    let mut request = Request::default();
    let mut way = SET_WAYS;
    // SAFETY: `requests` is a map element; nothing is called under its lock.
    unsafe {
        bpf_spin_lock((&raw mut (*requests).lock).cast());
        for i in 0..SET_WAYS {
            if (*requests).names[i] != name {
                continue;
            }
            way = i;
            let held = &raw mut (*requests).requests[i];
            request = *held;
            if reply.is_empty && request.kind != Kind::Binary as u8 {
                break;
            }
            if request.kind == Kind::MultiGet as u8 && reply.is_split {
                // Where this ends among the other items cannot be told.
                (*held).kind = Kind::Endless as u8;
                (*held).tickets = 0;
                break;
            }
            let is_last = match request.kind {
                k if k == Kind::Get as u8 => reply.ends_one,
                k if k == Kind::MultiGet as u8 => reply.ends_many,
                k if k == Kind::Other as u8 || k == Kind::Meta as u8 || k == Kind::Binary as u8 => {
                    reply.ends_message
                }
                // No answer to these takes several datagrams: such a one belongs to another.
                k => (k == Kind::Write as u8 || k == Kind::Flush as u8) && !reply.is_split,
            };
            if is_last {
                if request.unanswered <= 1 {
                    (*requests).names[i] = 0;
                } else {
                    (*held).unanswered = request.unanswered - 1;
                    (*held).tickets = 0;
                }
            }
            break;
        }
        bpf_spin_unlock((&raw mut (*requests).lock).cast());
    }
    (way < SET_WAYS).then_some((request, set * SET_WAYS as u32 + way as u32))
}
