//! Copies of bytes that were seen, and are still there: of the beginning of a command, or of what waits for
//! something missing. If they differ, it is in doubt which of them memcached gets.

use prestack_abi::flow::{HOLE_REACH, MAX_CARRY};
use prestack_proto::swar;
use prestack_proto::verifier::opaque;
use prestack_proto::window::{Source as _, WINDOW, Window};

use super::{doubt, flow, hole};
use crate::inbound::Inbound;
use crate::ledger::backend;
use crate::scratch::scratch;

/// Most bytes of a segment that are compared.
const MOST: u64 = WINDOW as u64;

/// What a segment is compared with: what waits in `HOLES`, at the place that the segment tells, or a turn of what is
/// carried.
pub const HOLE: u64 = 3;

/// Compares the segment in the scratch with what it may be a copy of.
#[inline(always)]
pub fn compare<C: Inbound>(ctx: &C) -> u64 {
    let (Some(scratch), Some(config)) = (scratch(), backend::config()) else {
        return 0;
    };
    // SAFETY: this CPU's scratch.
    let segment = unsafe { &(*scratch).segment };
    let Some(flow) = flow::at(segment.flow) else {
        return 0;
    };
    // SAFETY: a map element; the load stays in the window.
    unsafe {
        let size = Window::size(segment.len);
        let to = (*scratch).window.start().cast();
        let is_short = segment.len != 0 && segment.len <= MOST;
        // A packet that is shorter than it says the kernel drops.
        let is_loaded = is_short && ctx.load(segment.data as u32, to, size);
        if !is_short || is_loaded && prestack_tcp_differs() != 0 {
            doubt::all(config, flow, segment.end());
        }
        (&raw mut (*flow).busy).write_volatile(0);
    }
    0
}

/// Whether the window differs from what the segment in the scratch may be a copy of. A global function (by its
/// unmangled name): the verifier checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_tcp_differs() -> u64 {
    let Some(scratch) = scratch() else { return 1 };
    // SAFETY: this CPU's scratch.
    let (segment, window) = unsafe { (&(*scratch).segment, &(*scratch).window) };
    let (Some(flow), Some(hole)) = (flow::at(segment.flow), hole::of(segment.flow)) else {
        return 1;
    };
    if segment.copy_of == HOLE {
        let at = opaque(segment.kept) & (2 * HOLE_REACH as u64 - 1);
        // SAFETY: a map element, with more than a window's length behind the position.
        let seen = unsafe { (&raw const (*hole).bytes).cast::<u8>().add(at as usize) };
        return differ(window, segment.len, seen, (WINDOW as u64).div_ceil(8));
    }
    let turn = opaque(segment.copy_of) & 1;
    let at = opaque(segment.kept) & (MAX_CARRY as u64 - 1);
    // SAFETY: a map element, with as much as can be carried behind the position.
    let seen = unsafe {
        let carry = (&raw const (*flow).carry).cast::<u8>();
        carry.add(turn as usize * MAX_CARRY + at as usize)
    };
    differ(window, segment.len, seen, MAX_CARRY as u64 / 8)
}

/// Whether the first `len` bytes of the window differ from those at `seen`, or are more than as many words.
#[inline(always)]
fn differ(window: &Window, len: u64, seen: *const u8, words: u64) -> u64 {
    let mut different = 0;
    let mut last = 0;
    for i in 0..words {
        // SAFETY: the caller's. BPF reads words at any address.
        let there = unsafe { *seen.add(8 * i as usize).cast::<u64>() };
        let here = there ^ window.word(8 * i);
        if 8 * i + 8 > len {
            last = here;
            break;
        }
        different = window.forgotten(different | here);
    }
    let last = swar::keep(window.forgotten(last), len & 7);
    u64::from(different | last != 0 || len > 8 * words)
}

const _: () = assert!(2 * HOLE_REACH + WINDOW + 8 <= prestack_abi::flow::HOLE_BYTES);
