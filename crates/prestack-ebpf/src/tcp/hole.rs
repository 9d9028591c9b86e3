//! Segments that come while one before them is missing.
//!
//! They are kept until it comes, and parsed behind it, as the kernel hands them on. What cannot be kept is
//! remembered: nothing of it reaches memcached before what is missing has come by here. If it then turns out to be
//! data, as most of a long pipeline is, nothing was missed; else the flow is in doubt.

use prestack_abi::config::Config;
use prestack_abi::flow::{
    Flow, HOLE_BYTES, HOLE_REACH, HOLES as COUNT, Hole, Mode, STRETCHES, Stretch,
};
use prestack_proto::net::TCP_FIN;
use prestack_proto::verifier::opaque;
use prestack_proto::window::{Source, Window};

use super::requests::CHUNK;
use super::segment::Segment;
use super::{copies, doubt, flow, is_before, later, take_back};
use crate::atomic;
use crate::inbound::Inbound;
use crate::ledger::backend;
use crate::maps::{FLOWS, HOLES, count};
use crate::scratch::scratch;

/// Most bytes of a segment, or of what has joined, that can be kept (a power of two).
const REACH: u64 = HOLE_REACH as u64;

/// What becomes of a segment: it is to be kept, at the place that the segment tells; it may be a copy of what is kept
/// there.
pub const KEEP: u64 = 1;
pub const KNOWN: u64 = 2;

/// Where the bytes of the flow at this place would wait.
#[inline(always)]
pub fn of(place: u32) -> Option<*mut Hole> {
    // Few ways of a set are in use: neighbours must not all share an element.
    const SHIFT: u32 = 32 - (COUNT as u32).ilog2();
    HOLES.get_ptr_mut(place.wrapping_mul(0x9e37_79b1) >> SHIFT)
}

/// The element where the bytes of the segment's flow wait; `None` if another flow has it.
#[inline(always)]
unsafe fn occupy(flow: *mut Flow, segment: &Segment) -> Option<*mut Hole> {
    let hole = of(segment.flow)?;
    // SAFETY: map elements.
    unsafe {
        let owner = (&raw const (*hole).owner).read_volatile();
        let is_mine = is_of(owner, segment.flow);
        if (*flow).has_hole & Flow::KEPT != 0 {
            return is_mine.then_some(hole);
        }
        if owner != 0 && !is_mine {
            let other = FLOWS.get_ptr_mut((owner as u32).wrapping_sub(1))?;
            if (*other).has_hole & Flow::KEPT != 0 && (*other).state != Flow::CLOSED {
                return None;
            }
        }
        // Another value each time: who has found that a flow does not need its element any more, must not take it away
        // when it needs it again.
        let me = u64::from((*flow).next) << 32 | (u64::from(segment.flow) + 1);
        if !atomic::replace(&raw mut (*hole).owner, owner, me) {
            return None;
        }
        for i in 0..STRETCHES {
            (&raw mut (*hole).stretches[i].is_kept).write_volatile(0);
        }
        (*flow).kept_until = (*flow).next;
        (*flow).has_hole |= Flow::KEPT;
        Some(hole)
    }
}

/// Whether the owner of an element is the flow at this place.
#[inline(always)]
fn is_of(owner: u64, place: u32) -> bool {
    owner as u32 == place.wrapping_add(1)
}

/// Finds a place for the segment in the scratch, some bytes before which are missing: [`KEEP`], [`KNOWN`] or 0, for
/// nothing.
///
/// A global function (by its unmangled name): the verifier checks it on its own.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn prestack_tcp_claim() -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    // SAFETY: this CPU's scratch.
    let (segment, window) = unsafe { (&mut (*scratch).segment, &(*scratch).window) };
    let Some(flow) = flow::at(segment.flow) else {
        return 0;
    };
    // SAFETY: a map element.
    unsafe {
        let reach = segment.end().wrapping_sub((*flow).next);
        if u64::from(reach) < REACH
            && let Some(hole) = occupy(flow, segment)
            && let Some(claim) = find_place(window, hole, segment)
        {
            (*flow).kept_until = later((*flow).kept_until, segment.end());
            return claim;
        }
        let (from, until) = (segment.sequence, segment.end());
        if (*flow).has_hole & Flow::NOT_KEPT == 0 {
            (*flow).not_kept_from = from;
            (*flow).not_kept_until = until;
        } else {
            if is_before(from, (*flow).not_kept_from) {
                (*flow).not_kept_from = from;
            }
            (*flow).not_kept_until = later((*flow).not_kept_until, until);
        }
        (*flow).has_hole |= Flow::NOT_KEPT;
    }
    0
}

/// The place of a segment among what is kept; `None` if there is none, or it overlaps with what is there.
#[inline(always)]
unsafe fn find_place(window: &Window, hole: *mut Hole, segment: &mut Segment) -> Option<u64> {
    let (from, until) = (segment.sequence, segment.end());
    let mut free = STRETCHES as u64;
    let mut before = STRETCHES as u64;
    let mut overlaps = 0u64;
    let mut used = 0u64;
    // SAFETY: the caller's: a map element, and the indices are in bounds.
    unsafe {
        for i in 0..STRETCHES {
            let stretch = &raw const (*hole).stretches[i];
            let relation = opaque(relation(stretch, from, until));
            if relation == SAME {
                let first = (&raw const (*stretch).sequence).read_volatile();
                segment.copy_of = copies::HOLE;
                segment.kept = place_of(first) + u64::from(from.wrapping_sub(first));
                return Some(if segment.len == 0 { 0 } else { KNOWN });
            }
            if relation == FREE {
                free = i as u64;
            }
            if relation == JOINS {
                before = i as u64;
            }
            overlaps += u64::from(relation == OVERLAPS);
            used += u64::from(relation != FREE);
            free = window.forgotten(free);
            before = window.forgotten(before);
            overlaps = window.forgotten(overlaps);
            used = window.forgotten(used);
        }
        if overlaps != 0 {
            return None;
        }
        // What has joined is parsed as one: then its parts are not told apart when they come again.
        if before < STRETCHES as u64 && used >= APART {
            let stretch = stretch(hole, before);
            let len = u64::from((*stretch).len);
            if len + segment.len >= REACH {
                return None;
            }
            segment.kept = place_of((*stretch).sequence) + len;
            (*stretch).len = (len + segment.len) as u32;
            (*stretch).flags |= segment.flags;
        } else if free < STRETCHES as u64 {
            let stretch = stretch(hole, free);
            segment.kept = place_of(from);
            (*stretch).sequence = from;
            (*stretch).len = segment.len as u32;
            (*stretch).flags = segment.flags;
            (*stretch).is_kept = 1;
        } else {
            return None;
        }
    }
    Some(if segment.len == 0 { 0 } else { KEEP })
}

/// What a place is to a segment: it is free; what is there ends where the segment begins; has all of it; has a part of
/// it; is elsewhere.
const FREE: u64 = 0;
const JOINS: u64 = 1;
const SAME: u64 = 2;
const OVERLAPS: u64 = 3;
const ELSEWHERE: u64 = 4;

#[inline(always)]
unsafe fn relation(stretch: *const Stretch, from: u32, until: u32) -> u64 {
    // SAFETY: the caller's: part of a map element.
    let (is_kept, first, len) = unsafe {
        (
            (&raw const (*stretch).is_kept).read_volatile(),
            (&raw const (*stretch).sequence).read_volatile(),
            (&raw const (*stretch).len).read_volatile(),
        )
    };
    let end = first.wrapping_add(len);
    if is_kept == 0 {
        FREE
    } else if end == from {
        JOINS
    } else if !is_before(from, first) && !is_before(end, until) {
        SAME
    } else if is_before(from, end) && is_before(first, until) {
        OVERLAPS
    } else {
        ELSEWHERE
    }
}

/// Segments that are kept apart even if there is nothing between them.
const APART: u64 = STRETCHES as u64 / 2;

#[inline(always)]
unsafe fn stretch(hole: *mut Hole, at: u64) -> *mut Stretch {
    // SAFETY: the caller's, and the index is in bounds.
    unsafe { &raw mut (*hole).stretches[opaque(at) as usize & (STRETCHES - 1)] }
}

const _: () = assert!(STRETCHES.is_power_of_two() && HOLE_REACH.is_power_of_two());

/// Position of a stretch that starts with this sequence number.
#[inline(always)]
fn place_of(sequence: u32) -> u64 {
    u64::from(sequence) & (REACH - 1)
}

/// Keeps the data of the segment in the scratch, which has a place.
#[inline(always)]
pub fn keep<C: Inbound>(ctx: &C) -> u64 {
    let (Some(scratch), Some(config)) = (scratch(), backend::config()) else {
        return 0;
    };
    // SAFETY: this CPU's scratch.
    let segment = unsafe { (&raw const (*scratch).segment).read_volatile() };
    let (Some(hole), Some(flow)) = (of(segment.flow), flow::at(segment.flow)) else {
        return 0;
    };
    // SAFETY: map elements; the load stays in the hole: the place is below two thirds of it.
    unsafe {
        let at = opaque(segment.kept) & (2 * REACH - 1);
        let size = (opaque(segment.len.wrapping_sub(1)) & (REACH - 1)) + 1;
        let to = (&raw mut (*hole).bytes).cast::<u8>().add(at as usize);
        if !ctx.load(segment.data as u32, to.cast(), size as u32) {
            // The packet is shorter than it says: the kernel drops it, and it counts as kept.
            doubt::requests(config, flow);
        }
        (&raw mut (*flow).busy).write_volatile(0);
    }
    0
}

/// The flow keeps nothing any more.
///
/// # Safety
///
/// `flow` is the element of `FLOWS` at `place`.
#[inline(always)]
unsafe fn release(flow: *mut Flow, place: u32) {
    // SAFETY: the caller's.
    unsafe {
        if (*flow).has_hole & Flow::KEPT == 0 {
            return;
        }
        (*flow).has_hole &= !Flow::KEPT;
        if let Some(hole) = of(place) {
            let owner = (&raw const (*hole).owner).read_volatile();
            if is_of(owner, place) {
                atomic::replace(&raw mut (*hole).owner, owner, 0);
            }
        }
    }
}

/// What was not kept is reached, and memcached may get it: it was data, or the flow is in doubt.
#[inline(always)]
unsafe fn pass_over(config: &Config, flow: *mut Flow) {
    // SAFETY: the caller's: a map element.
    unsafe {
        let until = (*flow).not_kept_until;
        (*flow).has_hole &= !Flow::NOT_KEPT;
        let behind_data = if (*flow).protocol == Flow::BINARY {
            0
        } else {
            2
        };
        let last = (*flow).data_until.wrapping_sub(behind_data);
        if (*flow).mode == Mode::Data as u32 && !is_before(last, until) {
            let next = later((*flow).next, until);
            (&raw mut (*flow).next).write_volatile(next);
        } else {
            doubt::all(config, flow, until);
        }
    }
}

/// What was missing has come: the scratch's `segment` then stands for what was kept behind it. 0 if there is
/// nothing.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn prestack_tcp_resume() -> u64 {
    let (Some(scratch), Some(config)) = (scratch(), backend::config()) else {
        return 0;
    };
    // SAFETY: this CPU's scratch.
    let (segment, window) = unsafe { (&mut (*scratch).segment, &(*scratch).window) };
    let Some(flow) = flow::at(segment.flow) else {
        return 0;
    };
    // SAFETY: a map element.
    unsafe {
        let has_reached_all = !is_before((*flow).next, (*flow).not_kept_from);
        if (*flow).has_hole & Flow::NOT_KEPT != 0 && has_reached_all {
            pass_over(config, flow);
        }
        if (*flow).has_hole & Flow::KEPT == 0 {
            return 0;
        }
        if (*flow).doubt & Flow::REQUESTS != 0 {
            release(flow, segment.flow);
            return 0;
        }
        let Some(hole) = of(segment.flow) else {
            return 0;
        };
        if !is_of((&raw const (*hole).owner).read_volatile(), segment.flow) {
            // What was kept is lost, and memcached has it soon.
            (&raw mut (*flow).doubted_until).write_volatile((*flow).next);
            doubt::requests(config, flow);
            return 0;
        }
        let next = (*flow).next;
        let mut waits = 0u64;
        for i in 0..STRETCHES {
            let at = &raw mut (*hole).stretches[i];
            let is_kept = (&raw const (*at).is_kept).read_volatile() != 0;
            let first = (&raw const (*at).sequence).read_volatile();
            if is_kept && !is_before(next, first) {
                (&raw mut (*at).is_kept).write_volatile(0);
                if continue_with(segment, at, next) {
                    count!(holes_closed);
                    take_back::note(flow, next);
                    return 1;
                }
            }
            waits += u64::from(is_kept && is_before(next, first));
            waits = window.forgotten(waits);
        }
        if waits == 0 {
            release(flow, segment.flow);
        }
    }
    0
}

/// Makes the scratch's `segment` stand for a stretch of which something comes at `next`; false if nothing does.
#[inline(always)]
unsafe fn continue_with(segment: &mut Segment, stretch: *const Stretch, next: u32) -> bool {
    // SAFETY: the caller's: part of a map element.
    let (first, len, flags) = unsafe {
        (
            (&raw const (*stretch).sequence).read_volatile(),
            (&raw const (*stretch).len).read_volatile(),
            (&raw const (*stretch).flags).read_volatile(),
        )
    };
    let end = first.wrapping_add(len);
    let is_fin = flags & u32::from(TCP_FIN) != 0 && end == next;
    if !is_before(next, end) && !is_fin {
        return false;
    }
    segment.sequence = first;
    segment.len = u64::from(len);
    segment.at = u64::from(next.wrapping_sub(first));
    segment.kept = place_of(first);
    segment.flags = flags;
    true
}

/// Copies the next chunk of what was kept to the window, behind `carried` bytes. Returns its length.
///
/// # Safety
///
/// The scratch's `segment` stands for what was kept.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_tcp_copy(at: u64, carried: u64, size: u64) -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    // SAFETY: this CPU's scratch.
    let (window, segment) = unsafe { (&mut (*scratch).window, &(*scratch).segment) };
    let Some(hole) = of(segment.flow) else {
        return 0;
    };
    let at = at + segment.kept;
    for i in 0..CHUNK.div_ceil(8) {
        if 8 * i >= size {
            break;
        }
        let from = (opaque(at + 8 * i) & (2 * REACH - 1)) as usize;
        // SAFETY: a map element, and the position is below two thirds of its bytes. BPF reads words at any
        // address.
        let word = unsafe {
            *(&raw const (*hole).bytes)
                .cast::<u8>()
                .add(from)
                .cast::<u64>()
        };
        window.set_word(carried + 8 * i, word);
        let _ = window.forgotten(0);
    }
    size
}

const _: () = assert!(HOLE_BYTES == 3 * HOLE_REACH);

/// Copies a chunk, like [`prestack_tcp_copy`].
#[inline(always)]
pub fn copy(at: u64, carried: u64, size: u64) -> bool {
    prestack_tcp_copy(at, carried, size) == size
}
