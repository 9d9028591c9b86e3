//! Taking a flow's requests back to where they were.
//!
//! What `rx` lets through may be dropped behind it, and what the client sends again in its place may be
//! something else: bytes that the kernel has not acknowledged are parsed again when they come again.

use prestack_abi::flow::{Flow, Mode, SNAPSHOTS, Snapshot};
use prestack_proto::verifier::opaque;

/// Notes the state at the first byte of a segment.
///
/// # Safety
///
/// `flow` is an element of `FLOWS`.
#[inline(always)]
pub unsafe fn note(flow: *mut Flow, sequence: u32) {
    // SAFETY: the caller's, and the index is in bounds.
    unsafe {
        let at = (*flow).snapshots_taken as usize & (SNAPSHOTS - 1);
        (*flow).snapshots_taken += 1;
        take(flow, sequence, &raw mut (*flow).snapshots[at]);
    }
}

#[inline(always)]
unsafe fn take(flow: *mut Flow, sequence: u32, snapshot: *mut Snapshot) {
    // SAFETY: the caller's: both are parts of an element of `FLOWS`.
    unsafe {
        (&raw mut (*snapshot).asked).write_volatile((*flow).asked);
        (&raw mut (*snapshot).sequence).write_volatile(sequence);
        (&raw mut (*snapshot).mode).write_volatile((*flow).mode);
        (&raw mut (*snapshot).data_from).write_volatile((*flow).data_from);
        (&raw mut (*snapshot).data_until).write_volatile((*flow).data_until);
        (&raw mut (*snapshot).carried).write_volatile((*flow).carried);
        (&raw mut (*snapshot).carries).write_volatile((*flow).carries);
        (&raw mut (*snapshot).protocol).write_volatile((*flow).protocol);
        (&raw mut (*snapshot).quiets).write_volatile((*flow).quiets);
    }
}

/// Whether the state at this byte, after what was parsed again, is what it was before: copies of the same
/// bytes that say something else leave in doubt which of them memcached gets.
///
/// # Safety
///
/// `flow` is an element of `FLOWS`.
#[inline(always)]
pub unsafe fn is_as_before(flow: *mut Flow, sequence: u32) -> bool {
    // SAFETY: the caller's.
    unsafe {
        let before = &raw const (*flow).before;
        (*before).sequence == sequence
            && (*before).asked == (*flow).asked
            && (*before).mode == (*flow).mode
            && (*before).carried == (*flow).carried
            && (*before).protocol == (*flow).protocol
            && (*before).quiets == (*flow).quiets
            && ((*flow).mode != Mode::Data as u32 || (*before).data_until == (*flow).data_until)
    }
}

/// Restores the state at this byte; false if it is not known.
///
/// # Safety
///
/// `flow` is an element of `FLOWS`.
#[inline(always)]
pub unsafe fn to(flow: *mut Flow, sequence: u32) -> bool {
    // SAFETY: the caller's, and the indices are in bounds.
    unsafe {
        let taken = (*flow).snapshots_taken;
        for i in 0..SNAPSHOTS as u32 {
            let i = opaque(u64::from(i)) as u32;
            if i >= taken {
                break;
            }
            let at = taken.wrapping_sub(1 + i) as usize & (SNAPSHOTS - 1);
            let snapshot = (&raw const (*flow).snapshots[at]).read_volatile();
            if snapshot.sequence != sequence {
                continue;
            }
            // Of what was carried the last two are kept.
            let is_kept = (*flow).carries.wrapping_sub(snapshot.carries) <= 1;
            take(flow, (*flow).next, &raw mut (*flow).before);
            if (snapshot.carried != 0 && !is_kept) || (*flow).counted > snapshot.asked {
                return false;
            }
            if snapshot.carried != 0 {
                (*flow).carries = snapshot.carries;
            }
            (*flow).snapshots_taken = taken - 1 - i;
            (*flow).asked = snapshot.asked;
            (*flow).mode = snapshot.mode;
            (*flow).data_from = snapshot.data_from;
            (*flow).data_until = snapshot.data_until;
            (*flow).carried = snapshot.carried;
            (*flow).protocol = snapshot.protocol;
            (*flow).quiets = snapshot.quiets;
            (*flow).next = sequence;
            (*flow).is_repeat = 1;
            return true;
        }
    }
    false
}
