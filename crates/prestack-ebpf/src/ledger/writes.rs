//! Writes: from the moment one arrives until it ends, no ticket is given for its key.

use aya_ebpf::helpers::{bpf_spin_lock, bpf_spin_unlock};
use prestack_abi::cache::Place;
use prestack_abi::config::Config;
use prestack_abi::control::{Control, OUTSTANDING_KEYS, Outstanding, fingerprint};

use crate::cache::{fence, kill::kill};
use crate::clock;
use crate::maps::{CONTROL, INDEX, count};

/// What ends a write.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Its reply, or time.
    Reply,
    /// Time alone.
    Settle,
}

/// The lock of a bucket.
///
/// # Safety
///
/// `control` is an element of `CONTROL`; until [`unlock`] nothing is called.
#[inline(always)]
pub unsafe fn lock(control: *mut Control) {
    // SAFETY: the caller's.
    unsafe { bpf_spin_lock((&raw mut (*control).lock).cast()) };
}

/// Opens the lock of a bucket.
///
/// # Safety
///
/// The lock is held.
#[inline(always)]
pub unsafe fn unlock(control: *mut Control) {
    // SAFETY: the caller's.
    unsafe { bpf_spin_unlock((&raw mut (*control).lock).cast()) };
}

/// A write to the key with this hash has arrived: marks it outstanding, raises the version and
/// kills the entry, in this order. Returns what [`ended`] wants to know.
#[inline(always)]
pub fn arrived(config: &Config, hash: u64, end: End) -> Option<u32> {
    let place = Place::of(hash, config.buckets);
    let control = CONTROL.get_ptr_mut(place.bucket)?;
    let index = INDEX.get_ptr_mut(place.bucket)?;
    let now = clock::now();
    let until = now + config.settle_ns;
    // SAFETY: `control` and `index` are map elements of the same bucket; all calls between the lock
    // and its release are inlined.
    let generation = unsafe {
        lock(control);
        let generation = mark(control, fingerprint(hash), now, until, end);
        fence();
        let version = (*control).version.wrapping_add(1);
        (&raw mut (*control).version).write_volatile(version);
        kill(index, place);
        unlock(control);
        generation
    };
    count!(invalidations);
    Some(generation)
}

/// Marks a write of a key outstanding and returns the generation of the mark.
///
/// # Safety
///
/// The bucket's lock is held.
#[inline(always)]
unsafe fn mark(control: *mut Control, key: u16, now: u64, until: u64, end: End) -> u32 {
    let mut free = OUTSTANDING_KEYS;
    // SAFETY: the caller's: nobody else writes. Readers without the lock see the new version only
    // after all of this.
    unsafe {
        for i in 0..OUTSTANDING_KEYS {
            let mark = &raw mut (*control).outstanding[i];
            let is_active = (*mark).writes != 0 && (*mark).until > now;
            if is_active && (*mark).fingerprint == key {
                let writes = (*mark).writes;
                if end == End::Settle || writes >= Outstanding::SETTLES - 1 {
                    (*mark).writes = Outstanding::SETTLES;
                } else {
                    (*mark).writes = writes + 1;
                }
                (*mark).until = until;
                return (*mark).generation;
            }
            if !is_active && free == OUTSTANDING_KEYS {
                free = i;
            }
        }
        for i in 0..OUTSTANDING_KEYS {
            if i == free {
                let mark = &raw mut (*control).outstanding[i];
                (*mark).fingerprint = key;
                (*mark).writes = if end == End::Settle {
                    Outstanding::SETTLES
                } else {
                    1
                };
                (*mark).generation = (*control).version;
                (*mark).until = until;
                return (*mark).generation;
            }
        }
        (*control).crowded_until = until;
    }
    0
}

/// The reply to a write has left. If the write was taken for settled before, what was fetched since
/// may be older than it, and is killed.
#[inline(always)]
pub fn ended(config: &Config, hash: u64, generation: u32) {
    let place = Place::of(hash, config.buckets);
    let (Some(control), Some(index)) = (
        CONTROL.get_ptr_mut(place.bucket),
        INDEX.get_ptr_mut(place.bucket),
    ) else {
        return;
    };
    let key = fingerprint(hash);
    let now = clock::now();
    // SAFETY: as in `arrived`.
    unsafe {
        lock(control);
        let mut is_outstanding = (*control).crowded_until > now;
        for i in 0..OUTSTANDING_KEYS {
            let mark = &raw mut (*control).outstanding[i];
            let writes = (*mark).writes;
            if (*mark).fingerprint == key
                && (*mark).generation == generation
                && writes != 0
                && (*mark).until > now
            {
                if writes != Outstanding::SETTLES {
                    (*mark).writes = writes - 1;
                }
                is_outstanding = true;
                break;
            }
        }
        if !is_outstanding {
            let version = (*control).version.wrapping_add(1);
            (&raw mut (*control).version).write_volatile(version);
            kill(index, place);
        }
        unlock(control);
    }
}

/// Whether a write to the key is outstanding. Takes no lock: see [`version`](super::tickets).
///
/// # Safety
///
/// `control` is an element of `CONTROL`.
#[inline(always)]
pub unsafe fn is_outstanding(control: *const Control, key: u16, now: u64) -> bool {
    // SAFETY: the caller's.
    unsafe {
        if (&raw const (*control).crowded_until).read_volatile() > now {
            return true;
        }
        for i in 0..OUTSTANDING_KEYS {
            let mark = &raw const (*control).outstanding[i];
            if (&raw const (*mark).fingerprint).read_volatile() == key
                && (&raw const (*mark).writes).read_volatile() != 0
                && (&raw const (*mark).until).read_volatile() > now
            {
                return true;
            }
        }
    }
    false
}
