//! Which flows there are, and where: sets of places, each under a lock of its own.
//!
//! A flow is *half-open* from the SYN-ACK on until something shows that its client knows the host's numbers.
//! Whoever floods memcached with SYNs from everywhere makes many of these. So one of them gives way, the
//! oldest of its set, when there is no other place for a new flow; flows that are established never do. What
//! a half-open flow loses by that is found again in the kernel's socket table (`socket`). Programs that have
//! found a half-open flow must [`establish`] it before they touch it.

use aya_ebpf::helpers::{bpf_spin_lock, bpf_spin_unlock};
use prestack_abi::config::Config;
use prestack_abi::flow::{FLOW_WAYS, FlowSet};
use prestack_proto::verifier::forgotten;

use crate::clock;
use crate::ledger::backend;
use crate::maps::{FLOW_SETS, count};

/// In the place of a name: a flow is being set up there. (Names are odd.)
const RESERVED: u64 = 2;

/// The number of the set in which flows of this name are.
#[inline(always)]
fn number_of(config: &Config, name: u64) -> u64 {
    (name >> 32) & config.flow_sets.wrapping_sub(1)
}

/// The place of the first way of a set; places have 32 bits.
#[inline(always)]
const fn first_place(number: u64) -> u64 {
    (number * FLOW_WAYS as u64) & PLACE
}

/// The set that a place is in, and which of its ways it is.
#[inline(always)]
fn at(place: u32) -> Option<(*mut FlowSet, usize)> {
    let set = FLOW_SETS.get_ptr_mut(place / FLOW_WAYS as u32)?;
    Some((set, place as usize % FLOW_WAYS))
}

/// A flow that is known.
#[derive(Clone, Copy)]
pub struct Known {
    /// Its place in `FLOWS`.
    pub place: u32,
    /// Whether it may be displaced at any moment.
    pub is_half_open: bool,
}

/// The flow with this name.
#[inline(always)]
pub fn find(name: u64, now: u64) -> Option<Known> {
    let found = prestack_flow_find(name, now);
    (found & FOUND != 0).then_some(Known {
        place: found as u32,
        is_half_open: found & HALF_OPEN != 0,
    })
}

/// The bits of a place in what the functions below return.
const PLACE: u64 = u32::MAX as u64;

/// What [`prestack_flow_find`] says beside the place.
const FOUND: u64 = 1 << 32;
const HALF_OPEN: u64 = 1 << 33;

/// A global function (by its unmangled name), as those that follow: the verifier checks it once, for all
/// arguments.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_flow_find(name: u64, now: u64) -> u64 {
    let Some(config) = backend::config() else {
        return 0;
    };
    let number = number_of(config, name);
    let Some(set) = FLOW_SETS.get_ptr_mut(number as u32) else {
        return 0;
    };
    for i in 0..FLOW_WAYS {
        // SAFETY: a map element. What is being changed is another flow's, or this one's that opens or
        // closes just now.
        unsafe {
            if (&raw const (*set).names[i]).read_volatile() == name {
                let over_at = (&raw const (*set).over_at[i]).read_volatile();
                if over_at != 0 && over_at <= now {
                    return 0;
                }
                let since = (&raw const (*set).half_open_since[i]).read_volatile();
                let state = if since != 0 { HALF_OPEN } else { 0 };
                return first_place(number) | i as u64 | FOUND | state;
            }
        }
    }
    0
}

/// What [`reserve`] has found.
pub enum Reservation {
    /// A place whose flow nobody finds until [`publish`] is called.
    Place(u32),
    /// The place of the flow with the name, which is there already.
    Known(u32),
    /// No place: all flows of the set are established.
    Full,
}

/// A place for a flow with this name: a free one, or that of the half-open flow that is the oldest. One that
/// the name has already is used anew, but not if `is_adopted`.
#[inline(always)]
pub fn reserve(name: u64, now: u64, is_adopted: bool) -> Reservation {
    let found = prestack_flow_reserve(name, now, u64::from(is_adopted));
    let place = found as u32;
    if found & FULL != 0 {
        return Reservation::Full;
    }
    if found & DISPLACED != 0 {
        count!(flows_displaced);
    }
    if found & KNOWN != 0 {
        Reservation::Known(place)
    } else {
        Reservation::Place(place)
    }
}

/// What [`prestack_flow_reserve`] says beside the place.
const FULL: u64 = 1 << 32;
const DISPLACED: u64 = 1 << 33;
const KNOWN: u64 = 1 << 34;

/// A global function, like [`prestack_flow_find`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_flow_reserve(name: u64, now: u64, is_adopted: u64) -> u64 {
    let Some(config) = backend::config() else {
        return FULL;
    };
    let number = number_of(config, name);
    let Some(set) = FLOW_SETS.get_ptr_mut(number as u32) else {
        return FULL;
    };
    // SAFETY: a reference. Volatile: the compiler must not conclude anything.
    let zero = unsafe { (&raw const config.zero).read_volatile() };
    let mut found = FULL;
    // SAFETY: a map element; nothing is called under its lock.
    unsafe {
        bpf_spin_lock((&raw mut (*set).lock).cast());
        let mut oldest = u64::MAX;
        for i in 0..FLOW_WAYS {
            let held = (*set).names[i];
            let over_at = (*set).over_at[i];
            let since = (*set).half_open_since[i];
            let is_over = over_at != 0 && over_at <= now;
            if held == name {
                found = i as u64;
                if is_adopted != 0 && !is_over {
                    found |= KNOWN;
                }
                break;
            }
            let (rank, way) = if held == 0 || is_over {
                (0, i as u64)
            } else if since != 0 {
                (since, i as u64 | DISPLACED)
            } else {
                (u64::MAX, FULL)
            };
            if rank < oldest {
                oldest = rank;
                found = way;
            }
            // Paths that differ in what was found meet again for the verifier.
            oldest = forgotten(oldest, zero);
            found = forgotten(found, zero);
        }
        for i in 0..FLOW_WAYS {
            if found & !DISPLACED == i as u64 {
                (*set).names[i] = RESERVED;
                (*set).over_at[i] = 0;
                (*set).half_open_since[i] = 0;
            }
        }
        bpf_spin_unlock((&raw mut (*set).lock).cast());
    }
    first_place(number) | found
}

/// The flow at a reserved place is set up. Returns its place: another one if another CPU was quicker, and the
/// reserved one is free again then.
#[inline(always)]
pub fn publish(name: u64, place: u32, is_half_open: bool) -> u32 {
    // A time that is not 0, which means established.
    let since = if is_half_open { clock::now() | 1 } else { 0 };
    let way = prestack_flow_publish(name, u64::from(place), since) as u32 & (FLOW_WAYS as u32 - 1);
    // Both are in the set of the name.
    place - place % FLOW_WAYS as u32 + way
}

/// A global function, like [`prestack_flow_find`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_flow_publish(name: u64, place: u64, since: u64) -> u64 {
    let (Some((set, own)), Some(config)) = (at(place as u32), backend::config()) else {
        return 0;
    };
    // SAFETY: as in `prestack_flow_reserve`.
    let zero = unsafe { (&raw const config.zero).read_volatile() };
    let own = own as u64;
    let mut way = own;
    // SAFETY: as there.
    unsafe {
        bpf_spin_lock((&raw mut (*set).lock).cast());
        for i in 0..FLOW_WAYS {
            if (*set).names[i] == name && (*set).over_at[i] == 0 {
                way = i as u64;
            }
            way = forgotten(way, zero);
        }
        for i in 0..FLOW_WAYS {
            if i as u64 != own {
                continue;
            }
            if way == own {
                (*set).names[i] = name;
                (*set).half_open_since[i] = since;
            } else {
                (*set).names[i] = 0;
            }
        }
        bpf_spin_unlock((&raw mut (*set).lock).cast());
    }
    way
}

/// Half-open no more, so that it stays: false if the flow with this name has lost its place.
#[inline(always)]
pub fn establish(name: u64, place: u32) -> bool {
    prestack_flow_change(name, u64::from(place), ESTABLISH) != 0
}

/// What [`retire`] has found.
pub enum Retired {
    /// It was half-open, and is gone.
    Gone,
    /// It is established, and stays.
    Established,
    /// It is not there.
    Unknown,
}

/// Takes a flow out of the table if it is half-open.
#[inline(always)]
pub fn retire(name: u64, place: u32) -> Retired {
    match prestack_flow_change(name, u64::from(place), RETIRE) {
        0 => Retired::Unknown,
        STAYS => Retired::Established,
        _ => Retired::Gone,
    }
}

/// Sets the time from which an established flow is over. False if it is half-open, or is not there.
#[inline(always)]
pub fn end(name: u64, place: u32, over_at: u64) -> bool {
    prestack_flow_change(name, u64::from(place), over_at) != 0
}

/// What [`prestack_flow_change`] does, where it is not given a time.
const ESTABLISH: u64 = 0;
const RETIRE: u64 = u64::MAX;
/// It says that the flow is not half-open.
const STAYS: u64 = 2;

/// Changes the entry of the flow with this name, if that is at this place and not over: not 0 if
/// so. A global
/// function, like [`prestack_flow_find`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_flow_change(name: u64, place: u64, what: u64) -> u64 {
    let Some((set, own)) = at(place as u32) else {
        return 0;
    };
    let mut is_done = 0;
    // SAFETY: as in `prestack_flow_reserve`.
    unsafe {
        bpf_spin_lock((&raw mut (*set).lock).cast());
        for i in 0..FLOW_WAYS {
            if i != own || (*set).names[i] != name || (*set).over_at[i] != 0 {
                continue;
            }
            let is_half_open = (*set).half_open_since[i] != 0;
            if what == ESTABLISH {
                (*set).half_open_since[i] = 0;
                is_done = 1;
            } else if what == RETIRE {
                if is_half_open {
                    (*set).names[i] = 0;
                    (*set).half_open_since[i] = 0;
                    is_done = 1;
                } else {
                    is_done = STAYS;
                }
            } else if !is_half_open {
                (&raw mut (*set).over_at[i]).write_volatile(what);
                is_done = 1;
            }
        }
        bpf_spin_unlock((&raw mut (*set).lock).cast());
    }
    is_done
}

/// Sets the time from which the flow at a place, which is the caller's, is over; 0 if it is not.
#[inline(always)]
pub fn mark_over(place: u32, over_at: u64) {
    let Some((set, way)) = at(place) else {
        return;
    };
    // SAFETY: a map element. The place is the flow's own until it is over.
    unsafe { (&raw mut (*set).over_at[way]).write_volatile(over_at) };
}
