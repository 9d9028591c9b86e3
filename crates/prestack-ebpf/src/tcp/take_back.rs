//! Taking a flow's requests back to where they were.
//!
//! What `rx` lets through may be dropped behind it, and what the client sends again in its place may be
//! something else: bytes that the kernel has not acknowledged are parsed again when they come again. What is
//! then known must be what was known before: else it is in doubt which of the copies memcached gets.

use prestack_abi::flow::{Flow, Mode, SNAPSHOTS, Snapshot};
use prestack_proto::verifier::opaque;

use super::{flow, is_before};

/// Notes the state at the first byte of a segment. Within a data block nothing changes but the place: the first
/// segment of a block stands for all.
///
/// # Safety
///
/// `flow` is an element of `FLOWS`.
#[inline(always)]
pub unsafe fn note(flow: *mut Flow, sequence: u32) {
    // SAFETY: the caller's, and the indices are in bounds.
    unsafe {
        let taken = (*flow).snapshots_taken;
        if (*flow).mode == Mode::Data as u32 && taken != 0 {
            let last = taken.wrapping_sub(1) as usize & (SNAPSHOTS - 1);
            let last = &raw const (*flow).snapshots[last];
            if (*last).mode == Mode::Data as u32 && (*last).data_until == (*flow).data_until {
                return;
            }
        }
        let at = taken as usize & (SNAPSHOTS - 1);
        (*flow).snapshots_taken = taken + 1;
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
        (&raw mut (*snapshot).carry_hash).write_volatile((*flow).carry_hash);
    }
}

/// Copies a snapshot, by words: what the compiler makes of a whole one takes the stack.
#[inline(always)]
unsafe fn copy(from: *const Snapshot, to: *mut Snapshot) {
    for i in 0..size_of::<Snapshot>() / size_of::<u64>() {
        // SAFETY: the caller's: both are parts of an element of `FLOWS`.
        unsafe {
            let word = from.cast::<u64>().add(i).read_volatile();
            to.cast::<u64>().add(i).write_volatile(word);
        }
    }
}

/// Makes a snapshot the state of the flow, but for what is carried.
#[inline(always)]
unsafe fn set(flow: *mut Flow, snapshot: *const Snapshot) {
    // SAFETY: the caller's.
    unsafe {
        let snapshot = &*snapshot;
        (&raw mut (*flow).asked).write_volatile(snapshot.asked);
        (&raw mut (*flow).mode).write_volatile(snapshot.mode);
        (*flow).data_from = snapshot.data_from;
        (*flow).data_until = snapshot.data_until;
        (&raw mut (*flow).carried).write_volatile(snapshot.carried);
        (*flow).carry_hash = snapshot.carry_hash;
        (*flow).protocol = snapshot.protocol;
        (&raw mut (*flow).quiets).write_volatile(snapshot.quiets);
    }
}

/// Which snapshot of the flow at this place has the state at this byte: how many were taken up to it; 0 if none.
#[inline(always)]
fn find(place: u64, sequence: u64) -> u32 {
    prestack_tcp_find_snapshot(place, sequence) as u32
}

/// A global function (by its unmangled name), as those that follow: the verifier checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_tcp_find_snapshot(place: u64, sequence: u64) -> u64 {
    let Some(flow) = flow::at(place as u32) else {
        return 0;
    };
    let sequence = sequence as u32;
    // SAFETY: a map element, and the indices are in bounds.
    unsafe {
        let taken = (*flow).snapshots_taken;
        for i in 0..SNAPSHOTS as u32 {
            let i = opaque(u64::from(i)) as u32;
            if i >= taken {
                break;
            }
            let snapshot = at(flow, taken - i);
            let first = (*snapshot).sequence;
            let is_within = (*snapshot).mode == Mode::Data as u32
                && is_before(first, sequence)
                && is_before(sequence, (*snapshot).data_until);
            if first == sequence || is_within {
                return u64::from(taken - i);
            }
        }
    }
    0
}

/// The snapshot that was the last when so many had been taken.
#[inline(always)]
unsafe fn at(flow: *mut Flow, taken: u32) -> *mut Snapshot {
    let at = opaque(u64::from(taken.wrapping_sub(1))) as usize & (SNAPSHOTS - 1);
    // SAFETY: the caller's, and the index is in bounds.
    unsafe { &raw mut (*flow).snapshots[at] }
}

/// Takes the flow at this place back to this byte, to parse what is before `end` again, which comes no later than
/// all that was seen; false if the state there was not noted.
#[inline(always)]
pub fn to(place: u32, sequence: u32, end: u32) -> bool {
    prestack_tcp_take_back(place.into(), sequence.into(), end.into()) != 0
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_tcp_take_back(place: u64, sequence: u64, end: u64) -> u64 {
    let (from, until) = (find(place, sequence), find(place, end));
    let Some(flow) = flow::at(place as u32) else {
        return 0;
    };
    // SAFETY: a map element.
    u64::from(unsafe { take_back(flow, [sequence as u32, end as u32], [from, until]) })
}

/// The state at both bytes is in these snapshots.
#[inline(always)]
unsafe fn take_back(flow: *mut Flow, [sequence, end]: [u32; 2], [from, until]: [u32; 2]) -> bool {
    // SAFETY: the caller's: a map element.
    unsafe {
        if from == 0 {
            return false;
        }
        let snapshot = at(flow, from);
        let carries = (*snapshot).carries;
        let has_carried = (*snapshot).carried != 0;
        // Of what was carried the last two are kept.
        let is_kept = (*flow).carries.wrapping_sub(carries) <= 1;
        let answered = (&raw const (*flow).counted).read_volatile();
        if (has_carried && !is_kept) || answered > (*snapshot).asked {
            return false;
        }
        if (*flow).kept_number >= (*snapshot).asked {
            // Another key may be asked for now: memcached has not seen the first copy if that was damaged.
            (&raw mut (*flow).kept.len).write_volatile(0);
        }
        let next = (*flow).next;
        take(flow, next, &raw mut (*flow).before);
        if end == next {
            take(flow, next, &raw mut (*flow).expected);
            (*flow).is_repeat = Flow::LAST;
            if has_carried {
                (*flow).carries = carries;
            }
            // It will be noted again.
            let is_within = (*snapshot).sequence != sequence;
            (*flow).snapshots_taken = from - u32::from(!is_within);
        } else {
            if until == 0 {
                return false;
            }
            copy(at(flow, until), &raw mut (*flow).expected);
            (*flow).expected.sequence = end;
            (*flow).is_repeat = Flow::EARLIER;
        }
        set(flow, snapshot);
        (*flow).carry_turn = carries & 1;
    }
    true
}

/// What was parsed again up to this byte is over. Whether the state is as it was then; if that was not the latest,
/// the flow goes on with the latest.
///
/// # Safety
///
/// `flow` is an element of `FLOWS`.
#[inline(always)]
pub unsafe fn end(flow: *mut Flow, sequence: u32) -> bool {
    // SAFETY: the caller's.
    unsafe {
        let expected = &raw const (*flow).expected;
        let is_same = (*expected).sequence == sequence
            && (*expected).asked == (*flow).asked
            && (*expected).mode == (*flow).mode
            && (*expected).carried == (*flow).carried
            && ((*expected).carried == 0 || (*expected).carry_hash == (*flow).carry_hash)
            && (*expected).protocol == (*flow).protocol
            && (*expected).quiets == (*flow).quiets
            && ((*flow).mode != Mode::Data as u32 || (*expected).data_until == (*flow).data_until);
        if (*flow).asked < (*expected).asked {
            // Numbers that were given are not given again: marks have them.
            (&raw mut (*flow).asked).write_volatile((*expected).asked);
        }
        if (*flow).is_repeat == Flow::EARLIER {
            set(flow, &raw const (*flow).before);
            (*flow).carry_turn = (*flow).carries & 1;
        }
        (*flow).is_repeat = 0;
        is_same
    }
}

/// Where in `carry` bytes of the flow at this place are that were the beginning of a command, and that were seen: the
/// turn, and the position. `None` if they are not all there.
#[inline(always)]
pub fn find_carried(place: u32, sequence: u32, end: u32) -> Option<(u64, u64)> {
    let found = prestack_tcp_find_carried(place.into(), sequence.into(), end.into());
    (found != NOWHERE).then_some((found >> 32, found & 0xffff_ffff))
}

const NOWHERE: u64 = u64::MAX;

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_tcp_find_carried(place: u64, sequence: u64, end: u64) -> u64 {
    let Some(flow) = flow::at(place as u32) else {
        return NOWHERE;
    };
    // SAFETY: a map element.
    unsafe { carried_at(flow, sequence as u32, end as u32) }
        .map_or(NOWHERE, |(turn, at)| u64::from(turn) << 32 | u64::from(at))
}

#[inline(always)]
unsafe fn carried_at(flow: *mut Flow, sequence: u32, end: u32) -> Option<(u32, u32)> {
    // SAFETY: the caller's.
    unsafe {
        let carries = (*flow).carries;
        let carried = (*flow).carried;
        let first = (*flow).next.wrapping_sub(carried);
        if carried != 0 && !is_before(sequence, first) {
            return Some((carries & 1, sequence.wrapping_sub(first)));
        }
        let taken = (*flow).snapshots_taken;
        for i in 0..SNAPSHOTS as u32 {
            let i = opaque(u64::from(i)) as u32;
            if i >= taken {
                break;
            }
            let snapshot = at(flow, taken - i);
            let until = (*snapshot).sequence;
            let first = until.wrapping_sub((*snapshot).carried);
            if (*snapshot).carried != 0
                && carries.wrapping_sub((*snapshot).carries) <= 1
                && !is_before(sequence, first)
                && !is_before(until, end)
            {
                return Some(((*snapshot).carries & 1, sequence.wrapping_sub(first)));
            }
        }
    }
    None
}
