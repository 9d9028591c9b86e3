//! Tickets: the licence of a GET's reply to fill the cache.

use prestack_abi::config::Config;
use prestack_abi::control::{CLAIMS, Control, OUTSTANDING_KEYS, fingerprint};
use prestack_abi::time::{CLAIM_SHIFT, CLAIM_UNITS};

use super::writes::is_outstanding;
use super::{backend, flushes};
use crate::cache::fence;
use crate::maps;

/// A ticket for this key: the version that its control must still have when the reply comes. `None`
/// while a write to the key may be under way or another GET is fetching it.
#[inline(always)]
pub fn take(config: &Config, backend: u8, hash: u64, now: u64) -> Option<u32> {
    let control = maps::control(config, hash)?;
    // The claim comes last: who gets no ticket leaves the key to others.
    version(control, config, backend, hash, now).filter(|_| claim(control, hash, now))
}

/// Has what [`take`] will look at brought from memory meanwhile.
#[inline(always)]
pub fn expect(config: &Config, hash: u64) {
    if let Some(control) = maps::control(config, hash) {
        // SAFETY: a map element.
        unsafe {
            (&raw const (*control).version).read_volatile();
            (&raw const (*control).outstanding[OUTSTANDING_KEYS - 1])
                .cast::<u32>()
                .read_volatile();
        }
    }
}

/// Claims the key for one GET: false while another one is fetching it.
#[inline(always)]
fn claim(control: *mut Control, hash: u64, now: u64) -> bool {
    let key = fingerprint(hash);
    let time = (now >> CLAIM_SHIFT) as u16;
    let slot = usize::from(key >> 8) % CLAIMS;
    // SAFETY: `control` is a map element. Two CPUs may both claim a key: two tickets do no harm.
    unsafe {
        let claim = &raw mut (*control).claims[slot];
        let old = claim.read_volatile();
        if old != 0 && old >> 16 == u32::from(key) && time.wrapping_sub(old as u16) < CLAIM_UNITS {
            return false;
        }
        claim.write_volatile(u32::from(key) << 16 | u32::from(time));
    }
    true
}

/// Gives up the claim on a key: the next GET may fetch it.
#[inline(always)]
pub fn release(config: &Config, hash: u64) {
    let Some(control) = maps::control(config, hash) else {
        return;
    };
    let key = fingerprint(hash);
    let slot = usize::from(key >> 8) % CLAIMS;
    // SAFETY: as in `claim`.
    unsafe {
        let claim = &raw mut (*control).claims[slot];
        if claim.read_volatile() >> 16 == u32::from(key) {
            claim.write_volatile(0);
        }
    }
}

/// The version for a ticket for this key, or `None` if a write to it may be under way.
///
/// The version and the epoch (read by the caller before) are read before the marks of writes, and
/// writes are marked before they raise the version: if a mark was missed, the version is the old
/// one, and the ticket void.
#[inline(always)]
fn version(control: *mut Control, config: &Config, number: u8, hash: u64, now: u64) -> Option<u32> {
    let backend = backend::backend(number)?;
    if flushes::is_due(backend, now) {
        flushes::look(number);
        return None;
    }
    // SAFETY: both are map elements.
    let version = unsafe {
        let version = (&raw const (*control).version).read_volatile();
        fence();
        if (&raw const (*backend).waits).read_volatile() != 0 {
            return None;
        }
        version
    };
    if is_outstanding(control, config, number, hash, now) {
        return None;
    }
    // Last: who ends a wait, or the crowding of a flow, has what was waited for settle first.
    fence();
    // SAFETY: as above.
    let quiet_until = unsafe { (&raw const (*backend).quiet_until).read_volatile() };
    (quiet_until <= now).then_some(version)
}
