//! `flush_all`s with a delay: kept until they take effect.
//!
//! When memcached does what it was asked for is known to a few seconds. In that time nothing is served
//! and nothing fetched, and whoever first notices that it is over empties the cache.

use aya_ebpf::helpers::{bpf_spin_lock, bpf_spin_unlock};
use prestack_abi::backend::{
    Backend, FLUSH_EARLY_NS, FLUSH_LATE_NS, Flush, Flushes, PENDING_FLUSHES,
};
use prestack_proto::flush::{Delay, delay};

use super::backend;
use crate::atomic;
use crate::cache::fence;
use crate::clock;
use crate::maps::FLUSHES;
use crate::scratch::scratch;

/// Heeds the delay of the `flush_all` in the scratch's `command`. Returns the coarse monotonic time in
/// ns that it is asked for; 0 if it is to be at once, which is left to the caller.
#[inline(always)]
pub fn arrived(backend: u8) -> u64 {
    prestack_flush(u64::from(backend))
}

/// A global function (by its unmangled name): the verifier checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_flush(number: u64) -> u64 {
    let (Some(scratch), Some(config)) = (scratch(), backend::config()) else {
        return 0;
    };
    let now = clock::now();
    // SAFETY: this CPU's scratch.
    let delay = unsafe {
        let command = (&raw const (*scratch).command).read_volatile();
        delay(&(*scratch).window, &command)
    };
    const SECOND: u64 = 1_000_000_000;
    let due = match delay {
        Delay::None => 0,
        Delay::Span(seconds) => now + u64::from(seconds) * SECOND,
        Delay::Until(seconds) => {
            (u64::from(seconds) * SECOND).saturating_sub(config.wall_offset_ns)
        }
    };
    if due + FLUSH_LATE_NS <= now {
        return 0;
    }
    prestack_flush_later(number, due, due + FLUSH_LATE_NS + config.settle_ns);
    due
}

/// A `flush_all` for the time `due`, which arrived at `asked`, has been answered: if that took long, it
/// takes effect later.
#[inline(always)]
pub fn answered(backend: u8, due: u64, asked: u64) {
    prestack_flush_answered(u64::from(backend), due, asked);
}

/// A global function, like [`prestack_flush`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_flush_answered(number: u64, due: u64, asked: u64) -> u64 {
    let Some(config) = backend::config() else {
        return 0;
    };
    let took = clock::now().saturating_sub(asked);
    if took > config.settle_ns {
        prestack_flush_later(number, due, due + took + FLUSH_LATE_NS);
    }
    0
}

/// Whether a delayed `flush_all` may take effect now, or has done so unnoticed.
#[inline(always)]
pub fn is_due(backend: *const Backend, now: u64) -> bool {
    // SAFETY: `backend` is an element of `BACKENDS`.
    let from = unsafe { (&raw const (*backend).flush_from).read_volatile() };
    from.wrapping_sub(1) < now
}

/// Notes a flush that takes effect between a while before `due` and `until`. A global function, like
/// [`prestack_flush`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_flush_later(number: u64, due: u64, until: u64) -> u64 {
    let (Some(flushes), Some(backend), Some(config)) = (
        FLUSHES.get_ptr_mut(number as u32),
        backend::backend(number as u8),
        backend::config(),
    ) else {
        return 0;
    };
    let settle_ns = config.settle_ns;
    // 0 is for none.
    let from = due.saturating_sub(FLUSH_EARLY_NS) | 1;
    let now = clock::now();
    // SAFETY: map elements; nothing is called under the lock.
    unsafe {
        bpf_spin_lock((&raw mut (*flushes).lock).cast());
        let mut best = 0;
        let mut least = u64::MAX;
        // The clock is coarse: what comes later counts as later.
        let mut asked = now;
        for i in 0..PENDING_FLUSHES {
            let known = read(flushes, i);
            if known.until != 0 && known.asked >= asked {
                asked = known.asked + 1;
            }
            let rank = rank(known, from);
            if rank < least {
                least = rank;
                best = i;
            }
        }
        let mut may_be_over = 0;
        for i in 0..PENDING_FLUSHES {
            if i == best {
                let flush = &raw mut (*flushes).pending[i];
                let known = read(flushes, i);
                if known.until == 0 || known.from != from {
                    may_be_over = u64::from(known.until != 0 && known.from <= now);
                    (&raw mut (*flush).from).write_volatile(from);
                    (&raw mut (*flush).until).write_volatile(until);
                } else if until > known.until {
                    (&raw mut (*flush).until).write_volatile(until);
                }
                (&raw mut (*flush).asked).write_volatile(asked);
            }
        }
        if may_be_over != 0 {
            // What is forgotten may have taken effect already. What is under way from before it settles.
            let quiet_until = &raw mut (*backend).quiet_until;
            if now + settle_ns > quiet_until.read_volatile() {
                quiet_until.write_volatile(now + settle_ns);
            }
            fence();
            atomic::add(&raw mut (*backend).epoch, 1);
            fence();
        }
        publish(flushes, backend);
        bpf_spin_unlock((&raw mut (*flushes).lock).cast());
    }
    0
}

/// Which place a flush that takes effect from a time on is noted at, the least first: where the same one is, a free one,
/// that of the one that was asked for first.
#[inline(always)]
fn rank(flush: Flush, from: u64) -> u64 {
    if flush.until == 0 {
        1
    } else if flush.from == from {
        0
    } else {
        flush.asked
    }
}

#[inline(always)]
unsafe fn read(flushes: *const Flushes, i: usize) -> Flush {
    // SAFETY: the caller's: an element of `FLUSHES`, and an index in bounds.
    unsafe {
        Flush {
            from: (&raw const (*flushes).pending[i].from).read_volatile(),
            until: (&raw const (*flushes).pending[i].until).read_volatile(),
            asked: (&raw const (*flushes).pending[i].asked).read_volatile(),
        }
    }
}

/// Tells the backend when the first flush is due.
#[inline(always)]
unsafe fn publish(flushes: *const Flushes, backend: *mut Backend) {
    let mut first = u64::MAX;
    // SAFETY: the caller's: map elements, and the lock is held.
    unsafe {
        for i in 0..PENDING_FLUSHES {
            let flush = read(flushes, i);
            if flush.until != 0 && flush.from < first {
                first = flush.from;
            }
        }
        if first == u64::MAX {
            first = 0;
        }
        (&raw mut (*backend).flush_from).write_volatile(first);
    }
}

/// Empties the cache if a delayed flush has taken effect for sure.
#[inline(always)]
pub fn look(backend: u8) {
    prestack_flushes(u64::from(backend));
}

/// A global function, like [`prestack_flush`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_flushes(number: u64) -> u64 {
    let (Some(flushes), Some(backend)) = (
        FLUSHES.get_ptr_mut(number as u32),
        backend::backend(number as u8),
    ) else {
        return 0;
    };
    let now = clock::now();
    // SAFETY: map elements; nothing is called under the lock.
    unsafe {
        bpf_spin_lock((&raw mut (*flushes).lock).cast());
        let mut over = 0;
        for i in 0..PENDING_FLUSHES {
            let until = read(flushes, i).until;
            if until != 0 && until <= now {
                (&raw mut (*flushes).pending[i].until).write_volatile(0);
                over = 1;
            }
        }
        // Whoever finds that no flush is due also finds the new epoch.
        atomic::add(&raw mut (*backend).epoch, over);
        fence();
        publish(flushes, backend);
        bpf_spin_unlock((&raw mut (*flushes).lock).cast());
    }
    0
}
