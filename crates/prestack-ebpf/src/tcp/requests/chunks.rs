//! The bytes of a segment of requests, piece by piece in the window.

use prestack_abi::flow::{Flow, MAX_CARRY, Mode};
use prestack_proto::hash::{finish, mix};
use prestack_proto::swar;
use prestack_proto::verifier::opaque;
use prestack_proto::window::{Source, WINDOW};

use crate::inbound::Inbound;
use crate::ledger::backend;
use crate::scratch::scratch;
use crate::tcp::segment::Segment;
use crate::tcp::{flow, hole};

/// Bytes of a segment that are looked at together, behind what is carried.
pub const CHUNK: u64 = 1024;
const _: () = assert!(CHUNK as usize + MAX_CARRY <= WINDOW);

/// The turn of what is carried while an earlier segment is parsed again.
const PARSED_AGAIN: u32 = 2;

/// Hash of `len` bytes of the window from `at` on. A global function (by its unmangled name), which the verifier
/// checks once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_tcp_hash(at: u64, len: u64) -> u64 {
    let (Some(scratch), Some(config)) = (scratch(), backend::config()) else {
        return 0;
    };
    // SAFETY: this CPU's scratch.
    let window = unsafe { &(*scratch).window };
    let mut hash = config.seed;
    let mut done = 0;
    for i in 0..MAX_CARRY as u64 / 8 {
        if 8 * i + 8 > len {
            break;
        }
        hash = window.forgotten(mix(hash, window.word(at + 8 * i)));
        done = 8 * i + 8;
    }
    let done = window.forgotten(done);
    let rest = swar::keep(window.word(at + done), len & 7);
    finish(mix(hash, rest), len)
}

/// Where the bytes of a turn are carried.
#[inline(always)]
unsafe fn turn_of(flow: *mut Flow, turn: u32) -> *mut u64 {
    // SAFETY: the caller's: an element of `FLOWS`.
    unsafe {
        if turn == PARSED_AGAIN {
            (&raw mut (*flow).carry[PARSED_AGAIN as usize]).cast()
        } else {
            (&raw mut (*flow).carry[turn as usize & 1]).cast()
        }
    }
}

/// Loads the next chunk of the segment's data, behind what is carried, into the window, where the walk
/// is to start; 0 if there is none. With `is_kept` the data was kept before.
#[inline(always)]
pub fn load<C: Inbound>(ctx: &C, is_kept: u64) -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    // SAFETY: this CPU's scratch.
    let segment = unsafe { &mut (*scratch).segment };
    let Some(flow) = flow::at(segment.flow) else {
        return 0;
    };
    // SAFETY: a map element; the loads stay in the window, which is WINDOW bytes long.
    unsafe {
        let walk = &raw mut (*scratch).walk;
        if (&raw const (*walk).odd).read_volatile() != 0 {
            return 0;
        }
        let window = &mut (*scratch).window;
        let mut at = window.forgotten(segment.at);
        let is_binary = (*flow).protocol == Flow::BINARY;
        let is_data = (*flow).mode == Mode::Data as u32;
        let sequence = segment.sequence.wrapping_add(at as u32);
        let mut closing = 0;
        if is_data {
            let left = u64::from((*flow).data_until.wrapping_sub(sequence));
            let keep = if is_binary { 0 } else { 2 };
            if left > keep {
                let skip = left - keep;
                let rest = segment.len.wrapping_sub(at);
                at += if skip < rest { skip } else { rest };
                closing = keep;
            } else {
                closing = left;
            }
            at = window.forgotten(at);
        }
        let rest = segment.len.wrapping_sub(at);
        segment.at = at;
        if rest == 0 || rest > Segment::MAX_LEN {
            return 0;
        }
        let size = window.forgotten(if rest < CHUNK { rest } else { CHUNK });
        let carried = window.forgotten(u64::from((*flow).carried));
        if carried > MAX_CARRY as u64 || size > CHUNK {
            return 0;
        }
        let carry = turn_of(flow, (*flow).carry_turn);
        for i in 0..MAX_CARRY / 8 {
            if 8 * i as u64 >= carried {
                break;
            }
            let word = carry.add(i).read_volatile();
            window.set_word(8 * i as u64, word);
        }
        let to = window.start().add((opaque(carried) & 1023) as usize);
        let from = segment.data.wrapping_add(at) as u32;
        let size_arg = ((opaque(size.wrapping_sub(1)) & 1023) + 1) as u32;
        let size = u64::from(size_arg);
        let is_loaded = if is_kept != 0 {
            hole::copy(at, carried, size)
        } else {
            ctx.load(from, to.cast(), size_arg)
        };
        if !is_loaded {
            // The packet is shorter than it says: the kernel drops it.
            return 0;
        }
        segment.window_sequence = u64::from(
            segment
                .sequence
                .wrapping_add(at as u32)
                .wrapping_sub(carried as u32),
        );
        segment.at = at + size;
        (*flow).carried = 0;
        (&raw mut (*walk).at).write_volatile(0);
        (&raw mut (*walk).end).write_volatile(carried + size);
        (&raw mut (*walk).start).write_volatile(0);
        (&raw mut (*walk).out).write_volatile(0);
        if is_data {
            // The data block is to end in `\r\n`, of which the first may have come before.
            let first_is_right = closing < 2 || window.byte(0) == b'\r';
            let last_is_right = closing == 0 || closing > size || window.byte(closing - 1) == b'\n';
            if !first_is_right || !last_is_right {
                (&raw mut (*walk).odd).write_volatile(1);
            }
            let done = if closing < size { closing } else { size };
            (&raw mut (*walk).at).write_volatile(done);
            if closing <= size {
                (*flow).mode = Mode::Command as u32;
            }
        }
    }
    1
}

/// The commands of a chunk have been gone over: keeps what is left of it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn prestack_tcp_carry() -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    // SAFETY: this CPU's scratch.
    let (window, walk, segment) = unsafe {
        (
            &(*scratch).window,
            &mut (*scratch).walk,
            &(*scratch).segment,
        )
    };
    let Some(flow) = flow::at(segment.flow) else {
        return 0;
    };
    let at = window.forgotten(walk.at);
    let left = window.forgotten(walk.end.wrapping_sub(at));
    if left == 0 || walk.odd != 0 {
        return 0;
    }
    // SAFETY: a map element, and the indices are in bounds.
    unsafe {
        if (*flow).mode != Mode::Command as u32 || left > WINDOW as u64 {
            walk.odd = 1;
            return 0;
        }
        if left > MAX_CARRY as u64 {
            let first = window.word(at);
            let is_get = swar::keep(first, 4) == u64::from_le_bytes(*b"get \0\0\0\0")
                || swar::keep(first, 5) == u64::from_le_bytes(*b"gets \0\0\0");
            if is_get {
                (*flow).mode = Mode::Keys as u32;
            } else {
                walk.odd = 1;
            }
            return 0;
        }
        let carries = (*flow).carries.wrapping_add(1);
        let is_earlier = (*flow).is_repeat == Flow::EARLIER;
        let turn = if is_earlier {
            PARSED_AGAIN
        } else {
            carries & 1
        };
        let carry = turn_of(flow, turn);
        for i in 0..MAX_CARRY / 8 {
            if 8 * i as u64 >= left {
                break;
            }
            let word = window.word(at + 8 * i as u64);
            carry.add(i).write_volatile(word);
        }
        if !is_earlier {
            (*flow).carries = carries;
        }
        (*flow).carry_turn = turn;
        (*flow).carry_hash = prestack_tcp_hash(at, left);
        (*flow).carried = left as u32;
    }
    0
}
