//! Writes: from the moment one arrives until it ends, no ticket is given for its key.

use prestack_abi::cache::Place;
use prestack_abi::config::Config;
use prestack_abi::control::{Control, OUTSTANDING_KEYS, Outstanding, control_of, fingerprint};
use prestack_abi::time::{SETTLE_SHIFT, is_ahead};

use crate::cache::{fence, kill::kill};
use crate::ledger::backend;
use crate::lock::{lock, unlock};
use crate::maps::{self, CONTROL, FLOWS, count};
use crate::scratch::scratch;
use crate::{atomic, clock};

/// What ends a write.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Its reply over UDP, or time.
    Reply,
    /// Time alone.
    Settle,
    /// The reply to the command with this number on a TCP flow.
    Owed { flow: u16, number: u64 },
    /// The reply to any command from this number on, or time.
    Quiet { flow: u16, number: u64 },
}

/// What became of the mark of a write.
#[derive(Clone, Copy)]
pub struct Marked {
    /// What [`ended`] wants to know of a UDP write.
    pub generation: u32,
    /// Whether there was none left.
    pub is_crowded: bool,
}

/// A write to the key with this hash has arrived: marks it outstanding, raises the version and
/// kills the entry, in this order.
#[inline(always)]
pub fn arrived(hash: u64, end: End) -> Option<Marked> {
    count!(invalidations);
    arrived_again(hash, end)
}

/// [`arrived`] for a write that has been counted.
#[inline(always)]
pub fn arrived_again(hash: u64, end: End) -> Option<Marked> {
    let (writes, flow, number) = match end {
        End::Reply => (1, 0, 0),
        End::Settle => (Outstanding::SETTLES, 0, 0),
        End::Owed { flow, number } => (Outstanding::OWED, flow, number),
        End::Quiet { flow, number } => (Outstanding::QUIET, flow, number),
    };
    let made = prestack_write_arrived(hash, u64::from(writes), u64::from(flow), number);
    (made & MADE != 0).then_some(Marked {
        generation: made as u32,
        is_crowded: made & CROWDED != 0,
    })
}

/// Set in what [`prestack_write_arrived`] returns if the write was marked, or heeded without.
const MADE: u64 = 1 << 32;
/// Set if there was no mark left.
const CROWDED: u64 = 1 << 33;

/// A global function (by its unmangled name): the verifier checks it once, for all arguments, and its
/// stack is its own.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_write_arrived(hash: u64, writes: u64, flow: u64, number: u64) -> u64 {
    let Some(config) = backend::config() else {
        return 0;
    };
    let Some(control) = maps::control(config, hash) else {
        return 0;
    };
    let now = clock::now();
    // A reply over UDP may be late as long as its request is remembered.
    let is_udp_owed = writes as u16 == 1;
    let span = if is_udp_owed && config.remember_ns > config.settle_ns {
        config.remember_ns
    } else {
        config.settle_ns
    };
    let new = Outstanding {
        fingerprint: fingerprint(hash),
        writes: writes as u16,
        flow: flow as u16,
        number_high: (number >> 32) as u16,
        number: number as u32,
        until: settles_at(now + span),
    };
    let key = u64::from(fingerprint(hash));
    let over = prestack_look_at_marks(u64::from(control_of(hash, config.controls)), key, now);
    let Some(scratch) = scratch() else { return 0 };
    // SAFETY: this CPU's scratch.
    let seen = unsafe { &raw const (*scratch).marks };
    // SAFETY: `control` is a map element; all calls between the lock and its release are inlined.
    let marked = unsafe {
        lock(&raw mut (*control).lock);
        let marked = mark(control, &new, seen, over);
        fence();
        atomic::raise(&raw mut (*control).version);
        unlock(&raw mut (*control).lock);
        marked
    };
    kill(current_place(config, hash));
    MADE | marked
}

/// Where the entry of a key is, read anew: a fill that comes to know of more parts of the cache after this
/// also knows of the version that was raised before.
#[inline(always)]
fn current_place(config: &Config, hash: u64) -> Place {
    // SAFETY: a reference; user space writes it.
    let parts = unsafe { (&raw const config.parts).read_volatile() };
    Place::of(hash, config.base, parts)
}

/// A time in ns in the unit of `Outstanding::until`, rounded up.
#[inline(always)]
fn settles_at(time: u64) -> u32 {
    ((time >> SETTLE_SHIFT) + 1) as u32
}

/// The later of two times in that unit.
#[inline(always)]
fn later(a: u32, b: u32) -> u32 {
    if a.wrapping_sub(b) as i32 > 0 { a } else { b }
}

/// Copies the marks of a control to the scratch's `marks`, and returns one bit for each that is known to be
/// over: those with this fingerprint, and the first of the others that are, which is all that a new mark
/// needs. Done before the lock is taken, under which no flow can be looked up.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_look_at_marks(number: u64, key: u64, now: u64) -> u64 {
    let (Some(scratch), Some(control)) = (scratch(), CONTROL.get_ptr_mut(number as u32)) else {
        return 0;
    };
    let mut over = 0;
    for i in 0..OUTSTANDING_KEYS {
        // SAFETY: a map element, and this CPU's scratch. What is read while it is written is not what is
        // found later.
        let mark = unsafe {
            let mark = (&raw const (*control).outstanding[i]).read_volatile();
            (&raw mut (*scratch).marks[i]).write_volatile(mark);
            mark
        };
        if over == 0 || u64::from(mark.fingerprint) == key {
            over |= u64::from(is_over(&mark, now)) << i;
        }
    }
    over
}

/// Whether the writes of a mark have ended.
#[inline(always)]
fn is_over(mark: &Outstanding, now: u64) -> bool {
    let is_due = !is_ahead(mark.until, now);
    match mark.writes {
        0 => true,
        Outstanding::OWED => prestack_flow_has_ended(mark.flow.into(), mark.command(), now, 0) != 0,
        Outstanding::QUIET => {
            let until = if is_due { mark.until } else { 0 };
            prestack_flow_has_ended(mark.flow.into(), mark.command(), now, until.into()) != 0
        }
        _ => is_due,
    }
}

/// Whether the command with this number on a flow has ended. One that is quiet has also if it was
/// acknowledged by the time from which it was to settle at `until` (see `Outstanding::until`; 0 if that
/// has not come), and the settle time is over since memcached has answered what precedes it, to the end:
/// before that it may wait for its client to take in a reply. If it is in doubt what has been answered, since
/// memcached has sent anything. A global function (by its unmangled name): the verifier checks it once, for all
/// arguments.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_flow_has_ended(flow: u64, number: u64, now: u64, until: u64) -> u64 {
    let (Some(flow), Some(config)) = (FLOWS.get_ptr_mut(flow as u32), backend::config()) else {
        return 0;
    };
    // SAFETY: a map element.
    let (answered, doubt, over_at, acked_before) = unsafe {
        (
            (&raw const (*flow).answered).read_volatile(),
            (&raw const (*flow).doubt).read_volatile(),
            (&raw const (*flow).over_at).read_volatile(),
            (&raw const (*flow).acked_before).read_volatile(),
        )
    };
    fence();
    // SAFETY: as above.
    let (is_within_reply, replied_at) = unsafe {
        (
            (&raw const (*flow).is_reply_data).read_volatile() != 0,
            (&raw const (*flow).replied_at).read_volatile(),
        )
    };
    // It arrived before this.
    let arrival = (until << SETTLE_SHIFT).wrapping_sub(config.settle_ns);
    let is_settled = until != 0
        && arrival < acked_before
        && (answered >= number && !is_within_reply || doubt != 0)
        && now >= replied_at + config.settle_ns;
    u64::from(answered > number || (over_at != 0 && now >= over_at) || is_settled)
}

/// Whether two marks are the same.
///
/// # Safety
///
/// Both can be read.
#[inline(always)]
unsafe fn is_same(a: *const Outstanding, b: *const Outstanding) -> bool {
    let (a, b) = (a.cast::<u64>(), b.cast::<u64>());
    // SAFETY: the caller's: 16 bytes each.
    unsafe {
        a.read_volatile() == b.read_volatile()
            && a.add(1).read_volatile() == b.add(1).read_volatile()
    }
}

/// Marks a write outstanding. Returns its generation, or [`CROWDED`].
///
/// # Safety
///
/// The control's lock is held.
#[inline(always)]
unsafe fn mark(
    control: *mut Control,
    new: &Outstanding,
    seen: *const [Outstanding; OUTSTANDING_KEYS],
    over: u64,
) -> u64 {
    let mut free = OUTSTANDING_KEYS;
    let is_flow = new.writes == Outstanding::OWED || new.writes == Outstanding::QUIET;
    // SAFETY: the caller's: nobody else writes. Readers without the lock see the new version only
    // after all of this.
    unsafe {
        for i in 0..OUTSTANDING_KEYS {
            let place = &raw mut (*control).outstanding[i];
            let old = place.read_volatile();
            let is_over =
                old.writes == 0 || (over >> i & 1 != 0 && is_same(&raw const (*seen)[i], place));
            if is_over {
                if free == OUTSTANDING_KEYS {
                    free = i;
                }
                continue;
            }
            if old.fingerprint != new.fingerprint {
                continue;
            }
            let is_old_flow = old.writes == Outstanding::OWED || old.writes == Outstanding::QUIET;
            let mut joined = *new;
            joined.until = later(old.until, new.until);
            if is_flow {
                // An owed reply ends later than what is quiet before it. What is parsed again is older than what
                // has been seen since.
                let joins = (old.writes == new.writes || old.writes == Outstanding::QUIET)
                    && old.command() <= new.command();
                if !is_old_flow || !joins || old.flow != new.flow {
                    continue;
                }
            } else {
                // What settles does so sooner than what may be owed an answer that was lost.
                let settles = new.writes == Outstanding::SETTLES;
                if is_old_flow || (old.writes == Outstanding::SETTLES) != settles {
                    continue;
                }
                if !settles {
                    // Above that the last ones end by time.
                    joined.writes = old.writes + u16::from(old.writes < Outstanding::MAX_COUNT);
                }
                joined.number = old.number;
            }
            place.write_volatile(joined);
            return u64::from(joined.number);
        }
        for i in 0..OUTSTANDING_KEYS {
            if i == free {
                let mut first = *new;
                if !is_flow {
                    first.number = (*control).version;
                }
                (&raw mut (*control).outstanding[i]).write_volatile(first);
                return u64::from(first.number);
            }
        }
        if !is_flow {
            (*control).crowded_until = later((*control).crowded_until, new.until);
        }
    }
    CROWDED
}

/// Every key of the control of this one counts as written from now on, while flows crowd the backend.
#[inline(always)]
pub fn crowd(config: &Config, hash: u64) {
    if let Some(control) = maps::control(config, hash) {
        let now = (clock::now() >> SETTLE_SHIFT) as u32;
        // SAFETY: `control` is a map element; of two times that are written at once either will do.
        unsafe { (&raw mut (*control).crowded_at).write_volatile(now | u32::from(now == 0)) };
    }
}

/// The reply to a write over UDP has left. If the write was taken for settled before, what was fetched
/// since may be older than it, and is killed.
#[inline(always)]
pub fn ended(config: &Config, hash: u64, generation: u32) {
    let Some(control) = maps::control(config, hash) else {
        return;
    };
    let key = fingerprint(hash);
    let now = clock::now();
    // SAFETY: as in `arrived`.
    let is_outstanding = unsafe {
        lock(&raw mut (*control).lock);
        let mut is_outstanding = is_ahead((*control).crowded_until, now);
        for i in 0..OUTSTANDING_KEYS {
            let mark = &raw mut (*control).outstanding[i];
            let writes = (*mark).writes;
            let is_udp = writes != Outstanding::OWED && writes != Outstanding::QUIET;
            if (*mark).fingerprint == key
                && (*mark).number == generation
                && writes != 0
                && is_udp
                && is_ahead((*mark).until, now)
            {
                if writes != Outstanding::SETTLES {
                    (*mark).writes = writes - 1;
                }
                is_outstanding = true;
                break;
            }
        }
        if !is_outstanding {
            atomic::raise(&raw mut (*control).version);
        }
        unlock(&raw mut (*control).lock);
        is_outstanding
    };
    if !is_outstanding {
        kill(current_place(config, hash));
    }
}

/// Whether a write to the key with this hash, which has this control, may be outstanding. Takes no lock: see
/// [`version`](super::tickets).
#[inline(always)]
pub fn is_outstanding(
    control: *const Control,
    config: &Config,
    backend: u8,
    hash: u64,
    now: u64,
) -> bool {
    let key = fingerprint(hash);
    // Most keys have no mark, and most controls were never crowded: one condition tells.
    // SAFETY: the caller's: a map element.
    let is_suspect = unsafe {
        let until = (&raw const (*control).crowded_until).read_volatile();
        let at = (&raw const (*control).crowded_at).read_volatile();
        let mut is_suspect = until | at != 0;
        for i in 0..OUTSTANDING_KEYS {
            // Fingerprint and count.
            let mark = (&raw const (*control).outstanding[i])
                .cast::<u32>()
                .read_volatile();
            is_suspect |= mark as u16 == key && mark >> 16 != 0;
        }
        is_suspect
    };
    let number = control_of(hash, config.controls);
    is_suspect && prestack_is_outstanding(number.into(), backend.into(), key.into(), now) != 0
}

/// A global function, like [`prestack_write_arrived`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_is_outstanding(control: u64, backend: u64, key: u64, now: u64) -> u64 {
    let (Some(control), Some(backend)) = (
        CONTROL.get_ptr_mut(control as u32),
        backend::backend(backend as u8),
    ) else {
        return 1;
    };
    // SAFETY: map elements.
    unsafe {
        if is_ahead((&raw const (*control).crowded_until).read_volatile(), now) {
            return 1;
        }
        if (&raw const (*backend).crowding).read_volatile() != 0 {
            let crowded_at = (&raw const (*control).crowded_at).read_volatile();
            let calm_at = (&raw const (*backend).calm_at).read_volatile() >> SETTLE_SHIFT;
            if crowded_at != 0 && crowded_at.wrapping_sub(calm_at as u32) as i32 >= 0 {
                return 1;
            }
        }
        for i in 0..OUTSTANDING_KEYS {
            let mark = (&raw const (*control).outstanding[i]).read_volatile();
            if u64::from(mark.fingerprint) == key && !is_over(&mark, now) {
                return 1;
            }
        }
    }
    0
}
