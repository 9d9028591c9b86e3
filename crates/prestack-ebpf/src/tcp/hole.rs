//! Segments that come while one before them is missing.
//!
//! They are kept until it comes, and parsed behind it, as the kernel hands them on. One stretch of a flow
//! is kept; what lies elsewhere leaves the flow in doubt.

use prestack_abi::flow::{Flow, HOLE_BYTES, HOLES as COUNT, Hole};
use prestack_proto::verifier::opaque;
use prestack_proto::window::Source;

use super::requests::CHUNK;
use super::segment::Segment;
use super::{flow, is_before};
use crate::atomic;
use crate::inbound::Inbound;
use crate::maps::{FLOWS, HOLES, count};
use crate::scratch::scratch;

/// Most bytes of a segment that can be kept (a power of two).
const MAX_SEGMENT: u64 = HOLE_BYTES as u64 / 2;

/// Where the bytes of the flow at this place would wait.
#[inline(always)]
fn of(place: u32) -> Option<*mut Hole> {
    HOLES.get_ptr_mut(place & (COUNT as u32 - 1))
}

/// Whether the segment can be kept: it is the first of its flow that waits, or goes on where that ends.
///
/// # Safety
///
/// `flow` is the element of `FLOWS` that the segment is of.
#[inline(always)]
pub unsafe fn claim(flow: *mut Flow, segment: &Segment) -> bool {
    let Some(hole) = of(segment.flow) else {
        return false;
    };
    let me = u64::from(segment.flow) + 1;
    // SAFETY: map elements.
    unsafe {
        if segment.len > MAX_SEGMENT {
            return false;
        }
        let owner = (&raw const (*hole).owner).read_volatile();
        if (*flow).has_hole != 0 {
            let end = (*hole).sequence.wrapping_add((*hole).len);
            let fits = u64::from((*hole).len) + segment.len <= MAX_SEGMENT;
            return owner == me && end == segment.sequence && fits;
        }
        if owner != 0 && owner != me {
            let Some(other) = FLOWS.get_ptr_mut((owner - 1) as u32) else {
                return false;
            };
            if (*other).has_hole != 0 && (*other).state != Flow::CLOSED {
                return false;
            }
        }
        if !atomic::replace(&raw mut (*hole).owner, owner, me) {
            return false;
        }
        (*hole).sequence = segment.sequence;
        (*hole).len = 0;
        (*flow).has_hole = 1;
    }
    true
}

/// Keeps the data of the segment in the scratch, for which there is room.
#[inline(always)]
pub fn keep<C: Inbound>(ctx: &C) -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    // SAFETY: this CPU's scratch.
    let segment = unsafe { (&raw const (*scratch).segment).read_volatile() };
    let (Some(hole), Some(flow)) = (of(segment.flow), flow::at(segment.flow)) else {
        return 0;
    };
    // SAFETY: map elements; the load stays in the hole: both its parts are below half of it.
    unsafe {
        let at = opaque(u64::from((*hole).len)) & (MAX_SEGMENT - 1);
        let size = (opaque(segment.len.wrapping_sub(1)) & (MAX_SEGMENT - 1)) + 1;
        let to = (&raw mut (*hole).bytes).cast::<u8>().add(at as usize);
        let from = segment.data as u32;
        if segment.len != 0 && ctx.load(from, to.cast(), size as u32) {
            (*hole).len += size as u32;
        } else if (*hole).len == 0 {
            release(flow, segment.flow);
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
pub unsafe fn release(flow: *mut Flow, place: u32) {
    // SAFETY: the caller's.
    unsafe {
        if (*flow).has_hole == 0 {
            return;
        }
        (*flow).has_hole = 0;
        if let Some(hole) = of(place) {
            atomic::replace(&raw mut (*hole).owner, u64::from(place) + 1, 0);
        }
    }
}

/// What is kept of the flow, if it goes on at its next byte: how much of it has come already, and its end.
///
/// # Safety
///
/// `flow` is the element of `FLOWS` at `place`.
#[inline(always)]
unsafe fn goes_on(flow: *mut Flow, place: u32) -> Option<(*mut Hole, u64)> {
    let hole = of(place)?;
    // SAFETY: the caller's.
    unsafe {
        if (*hole).owner != u64::from(place) + 1 || is_before((*flow).next, (*hole).sequence) {
            return None;
        }
        let known = u64::from((*flow).next.wrapping_sub((*hole).sequence));
        Some((hole, known))
    }
}

/// What was missing has come: the scratch's `segment` then stands for what was kept. 0 if there is
/// nothing.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn prestack_tcp_resume() -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    // SAFETY: this CPU's scratch.
    let segment = unsafe { &mut (*scratch).segment };
    let Some(flow) = flow::at(segment.flow) else {
        return 0;
    };
    // SAFETY: a map element.
    unsafe {
        if (*flow).has_hole == 0 || (*flow).doubt & Flow::REQUESTS != 0 {
            release(flow, segment.flow);
            return 0;
        }
        let Some((hole, known)) = goes_on(flow, segment.flow) else {
            return 0;
        };
        let len = u64::from((*hole).len);
        if known >= len {
            release(flow, segment.flow);
            return 0;
        }
        segment.sequence = (*hole).sequence;
        segment.len = len;
        segment.at = known;
        segment.flags = 0;
    }
    count!(holes_closed);
    1
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
    let (window, place) = unsafe { (&mut (*scratch).window, (*scratch).segment.flow) };
    let Some(hole) = of(place) else { return 0 };
    for i in 0..CHUNK.div_ceil(8) {
        if 8 * i >= size {
            break;
        }
        let from = opaque(at + 8 * i) & (HOLE_BYTES as u64 - 1) & !7;
        let shift = 8 * (opaque(at) & 7);
        // SAFETY: a map element; both words are in bounds.
        let word = unsafe {
            let bytes = (&raw const (*hole).bytes).cast::<u8>();
            let first = bytes.add(from as usize).cast::<u64>().read_volatile();
            let next = (from + 8) & (HOLE_BYTES as u64 - 1);
            let second = bytes.add(next as usize).cast::<u64>().read_volatile();
            if shift == 0 {
                first
            } else {
                first >> shift | second << (64 - shift)
            }
        };
        window.set_word(carried + 8 * i, word);
        let _ = window.forgotten(0);
    }
    size
}

/// Copies a chunk, like [`prestack_tcp_copy`].
#[inline(always)]
pub fn copy(at: u64, carried: u64, size: u64) -> bool {
    prestack_tcp_copy(at, carried, size) == size
}
