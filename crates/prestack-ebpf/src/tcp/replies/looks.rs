//! The bytes of a segment of replies, piece by piece in the window, and what is learnt from them.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_skb_load_bytes;
use prestack_abi::flow::{Flow, MAX_REPLY_CARRY};
use prestack_abi::requests::{Kind, Request};
use prestack_proto::hash::{backend_seed, hash_key};
use prestack_proto::text::reply::KEY_AT;
use prestack_proto::text::scan::token_end;
use prestack_proto::verifier::opaque;
use prestack_proto::window::{Source, WINDOW, Window};
use prestack_proto::{MAX_KEY, binary};

use crate::ledger::backend;
use crate::scratch::{Scratch, scratch};
use crate::tcp::segment::Segment;
use crate::tcp::{flow, tickets};
use crate::tx::learn;

/// Loads the next bytes of the segment, behind what is carried, into the window; 0 if there are none.
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn prestack_tcp_look(ctx: *mut __sk_buff) -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    // SAFETY: this CPU's scratch.
    let (segment, walk, window) = unsafe {
        (
            &mut (*scratch).segment,
            &mut (*scratch).walk,
            &mut (*scratch).window,
        )
    };
    let Some(flow) = flow::at(segment.flow) else {
        return 0;
    };
    if walk.odd != 0 {
        return 0;
    }
    // SAFETY: a map element; the load stays in the window.
    unsafe {
        let mut at = window.forgotten(segment.at);
        if (*flow).is_reply_data != 0 {
            let sequence = segment.sequence.wrapping_add(at as u32);
            let left = u64::from((*flow).reply_until.wrapping_sub(sequence));
            let rest = segment.len.wrapping_sub(at);
            at += if left < rest { left } else { rest };
            if left <= rest {
                (*flow).is_reply_data = 0;
            }
            at = window.forgotten(at);
            segment.at = at;
        }
        let rest = segment.len.wrapping_sub(at);
        if rest == 0 || rest > Segment::MAX_LEN {
            return 0;
        }
        let carried = window.forgotten(u64::from((*flow).reply_carried));
        if carried > MAX_REPLY_CARRY as u64 {
            return 0;
        }
        for i in 0..MAX_REPLY_CARRY / 8 {
            if 8 * i as u64 >= carried {
                break;
            }
            let word = (&raw const (*flow).reply_carry[i]).read_volatile();
            window.set_word(8 * i as u64, word);
        }
        (*flow).reply_carried = 0;
        // Behind what is carried there is room for fewer bytes.
        let room = if carried == 0 {
            WINDOW as u64
        } else {
            (WINDOW - MAX_REPLY_CARRY) as u64
        };
        let size = window.forgotten(if rest < room { rest } else { room });
        let from = segment.data.wrapping_add(at) as u32;
        let loaded = if carried == 0 {
            let to = window.start();
            bpf_skb_load_bytes(ctx.cast(), from, to.cast(), Window::size(size))
        } else {
            let to = window.start().add((opaque(carried) & 511) as usize);
            let size = ((opaque(size.wrapping_sub(1)) & 1023) + 1) as u32;
            bpf_skb_load_bytes(ctx.cast(), from, to.cast(), size)
        };
        let size = if carried == 0 {
            u64::from(Window::size(size))
        } else {
            (opaque(size.wrapping_sub(1)) & 1023) + 1
        };
        if loaded != 0 {
            walk.odd = 1;
            return 0;
        }
        segment.window_sequence = u64::from(
            segment
                .sequence
                .wrapping_add(at as u32)
                .wrapping_sub(carried as u32),
        );
        segment.at = at + size;
        segment.learn = 0;
        walk.at = 0;
        walk.end = carried + size;
        walk.keys = 0;
        walk.out = carried;
    }
    1
}

/// The replies in the window have been gone over: what is left will be looked at again, or is carried.
/// Non-zero if there is something to learn.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn prestack_tcp_looked() -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    // SAFETY: this CPU's scratch.
    let (window, walk, segment) = unsafe {
        (
            &(*scratch).window,
            &mut (*scratch).walk,
            &mut (*scratch).segment,
        )
    };
    let Some(flow) = flow::at(segment.flow) else {
        return 0;
    };
    let at = window.forgotten(walk.at);
    let left = window.forgotten(walk.end.wrapping_sub(at));
    if walk.odd != 0 || left > WINDOW as u64 {
        return 0;
    }
    let carried = window.forgotten(walk.out);
    if left != 0 && segment.at == segment.len && left <= MAX_REPLY_CARRY as u64 && walk.keys == 0 {
        // SAFETY: a map element, and the index is in bounds.
        unsafe {
            for i in 0..MAX_REPLY_CARRY / 8 {
                if 8 * i as u64 >= left {
                    break;
                }
                let word = &raw mut (*flow).reply_carry[i];
                word.write_volatile(window.word(at + 8 * i as u64));
            }
            (*flow).reply_carried = left as u32;
        }
    } else if left != 0 {
        // Loaded again, from the start of the element; not what was carried.
        if at < carried || at == 0 {
            walk.odd = 1;
            return 0;
        }
        segment.at = segment.at.wrapping_sub(left);
    }
    if segment.learn == 0 {
        return 0;
    }
    // SAFETY: a map element, and this CPU's scratch.
    unsafe { prepare(scratch, flow, walk.misses, segment.learn) }
}

/// Prepares the learning from the first `len` bytes of the window, which answer the command with this
/// number.
#[inline(always)]
unsafe fn prepare(scratch: *mut Scratch, flow: *mut Flow, number: u64, len: u64) -> u64 {
    // SAFETY: the caller's.
    unsafe {
        let Some(config) = backend::config() else {
            return 0;
        };
        let window = &(*scratch).window;
        let is_text = window.byte(0) == b'V' && window.byte(2) == b'L';
        let seed = backend_seed(config.seed, (*flow).backend as u8);
        let (hash, kind) = if is_text {
            let end = token_end(window, KEY_AT, len, (MAX_KEY + 1).div_ceil(8) + 1);
            let key_len = end.wrapping_sub(KEY_AT);
            if key_len == 0 || key_len > MAX_KEY as u64 {
                return 0;
            }
            let Some(hash) = hash_key(window, KEY_AT, key_len, seed) else {
                return 0;
            };
            (hash, Kind::Get)
        } else if window.byte(0) == binary::RESPONSE {
            (0, Kind::Binary)
        } else {
            (0, Kind::Meta)
        };
        if !is_text {
            if (*flow).kept_number != number {
                return 0;
            }
            learn::keep_key(scratch, &raw const (*flow).kept);
        }
        let Some(ticket) = tickets::find_for(flow, number, hash) else {
            return 0;
        };
        (&raw mut (*scratch).request).write_volatile(Request {
            key: ticket.key,
            time: ticket.time,
            version: ticket.version,
            epoch: ticket.epoch,
            seen: 0,
            kind: kind as u8,
            unanswered: 1,
            tickets: 1,
            backend: (*flow).backend as u8,
        });
        learn::parse(len);
    }
    1
}
