//! The express way of plain segments with one whole reply from which nothing is to be learnt, and of
//! those without data.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_skb_load_bytes;
use aya_ebpf::programs::TcContext;
use prestack_abi::flow::{Flow, MAX_ASKED};
use prestack_proto::stream::{self, Ask};
use prestack_proto::swar;
use prestack_proto::verifier::opaque;
use prestack_proto::window::{Source, Window};

use super::super::plain::Plain;
use super::super::{is_before, tickets};
use super::leave::{acknowledged, count_answered, note_reply};
use crate::cache::fence;
use crate::hits::{self, element};
use crate::ledger::backend;
use crate::packet::Packet;
use crate::scratch::scratch;

/// `VALUE ` at the start of a reply.
const VALUE: u64 = u64::from_le_bytes(*b"VALUE \0\0");
/// The one-line answers to `set` and a missed `get`.
const STORED: u64 = u64::from_le_bytes(*b"STORED\r\n");
const END: u64 = u64::from_le_bytes(*b"END\r\n\0\0\0");
/// The end of a data block, and of the reply.
const CLOSING: u64 = u64::from_le_bytes(*b"\r\nEND\r\n\0");
const ENDING: u64 = 7;
/// The end of a line.
const CRLF: u64 = u16::from_le_bytes(*b"\r\n") as u64;
/// Bytes of a reply in which its first line is looked for (a power of two).
const HEAD: u64 = 64;
/// More digits than the number of bytes has: memcached's largest item has 1 GiB (`-I`).
const MAX_DIGITS: u64 = 10;

/// Follows the segment. Returns what is to be done with it then, as `hits` has it; [`OTHER`] if the other steps have
/// to, and nothing was done.
#[inline(always)]
pub fn follow(ctx: &TcContext) -> u64 {
    // SAFETY: a function of ours, called with the program's context.
    unsafe { prestack_tcp_reply_express(ctx.skb.skb) }
}

/// The other steps have to follow the segment.
pub const OTHER: u64 = u64::MAX;

/// A global function (by its unmangled name): the verifier checks it on its own.
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn prestack_tcp_reply_express(ctx: *mut __sk_buff) -> u64 {
    express(&TcContext::new(ctx)).unwrap_or(OTHER)
}

#[inline(always)]
fn express(ctx: &TcContext) -> Option<u64> {
    let config = backend::config()?;
    let packet = Packet::between(ctx.data(), ctx.data_end(), config);
    let plain = Plain::read(packet, config, u64::from(ctx.len()), true)?;
    let flow = plain.flow;
    // SAFETY: a map element. The kernel sends the segments of a connection one after the other.
    unsafe {
        let unusual = u64::from((*flow).sent ^ plain.sequence)
            | u64::from((*flow).is_reply_data)
            | u64::from((*flow).reply_carried)
            | (&raw const (*flow).owes).read_volatile()
            | (&raw const (*flow).is_crowding).read_volatile()
            | (*flow).flush_due;
        let acked = (*flow).acked;
        let next = (&raw const (*flow).next).read_volatile();
        let ack = plain.acknowledgement;
        if unusual != 0 || is_before(next, ack) {
            return None;
        }
        if plain.len != 0 {
            let number = (*flow).counted;
            let is_binary = (*flow).protocol == Flow::BINARY;
            if is_binary || number >= (&raw const (*flow).asked).read_volatile() {
                return None;
            }
            let ask = (&raw const (*flow).asks[number as usize & (MAX_ASKED - 1)]).read_volatile();
            // What quiet commands before it may be answered is none of these replies.
            let ask = stream::kind(ask);
            if !is_whole(ctx, &plain, ask)? {
                return None;
            }
            if ask == Ask::Get as u8 && tickets::has_any(flow, number) {
                return None;
            }
            if ask == Ask::Get as u8 {
                element::earn(config, plain.place);
            }
            (&raw mut (*flow).sent).write_volatile(plain.end());
            // See `hits::requests::owes_nothing`.
            fence();
            note_reply(flow);
            note_ack(&plain, acked, next);
            (&raw mut (*flow).counted).write_volatile(number + 1);
            // Doubt may have arisen meanwhile.
            if (&raw const (*flow).doubt).read_volatile() == 0 {
                count_answered(config, flow, number + 1);
            }
        } else {
            note_ack(&plain, acked, next);
        }
    }
    Some(hits::depart_plain(config, packet, &plain).unwrap_or(hits::NOT_OURS))
}

/// Takes note of what the segment acknowledges, and of the window.
#[inline(always)]
unsafe fn note_ack(plain: &Plain, acked: u32, next: u32) {
    let flow = plain.flow;
    let ack = plain.acknowledgement;
    // SAFETY: the caller's: a map element.
    unsafe {
        if is_before(acked, ack) {
            (&raw mut (*flow).acked).write_volatile(ack);
            if let Some(config) = backend::config() {
                acknowledged(config, flow, ack, next, plain.now);
            }
        }
        let edge = ack.wrapping_add(plain.window << ((*flow).window_scale & 15));
        if is_before((*flow).edge, edge) {
            (&raw mut (*flow).edge).write_volatile(edge);
        }
    }
}

/// Whether the segment's data is the whole reply to a command with this ask.
#[inline(always)]
fn is_whole(ctx: &TcContext, plain: &Plain, ask: u8) -> Option<bool> {
    let scratch = scratch()?;
    let len = plain.len;
    if len < 5 {
        return None;
    }
    // SAFETY: this CPU's scratch.
    let window = unsafe { &mut (*scratch).window };
    let start = window.start();
    let load = |from: u64, at: usize, size: u32| {
        // SAFETY: the program's context; the window is longer.
        let loaded = unsafe {
            bpf_skb_load_bytes(ctx.skb.skb.cast(), from as u32, start.add(at).cast(), size)
        };
        (loaded == 0).then_some(())
    };
    // Of a longer reply the end is looked at as well: it lies behind the head.
    let size = if len < HEAD { len } else { HEAD };
    load(plain.data, 0, (opaque(size - 1) & (HEAD - 1)) as u32 + 1)?;
    let window = &*window;
    let first = window.word(0);
    if len == 8 && first == STORED {
        return Some(ask == Ask::Line as u8);
    }
    if ask != Ask::Get as u8 {
        return None;
    }
    if len == 5 && swar::keep(first, 5) == END {
        return Some(true);
    }
    if len < 8 || swar::keep(first, 6) != VALUE {
        return None;
    }
    load(plain.data + len - 8, HEAD as usize, 8)?;
    if window.word(HEAD) >> 8 != CLOSING {
        return None;
    }
    Some(item_len(window, size)? == len)
}

/// The length of a reply of one item, by its first line, which is to be in the first `size` bytes of the
/// window.
#[inline(always)]
fn item_len(window: &Window, size: u64) -> Option<u64> {
    let mut blanks = 0;
    let mut end = size;
    for i in 0..HEAD / 8 {
        let word = window.word(8 * i);
        let control = swar::below(word, b' ');
        let mut here = swar::equal_all(word, b' ');
        if control != 0 {
            let at = swar::first(control);
            end = 8 * i + at;
            here = swar::keep(here, at);
            blanks += swar::count(here);
            break;
        }
        blanks += swar::count(here);
    }
    // Behind the number of bytes there may be the CAS number, and then it is not the last.
    if blanks != 3 || end + 2 > size {
        return None;
    }
    let end = window.forgotten(end);
    if window.word(end) & 0xffff != CRLF {
        return None;
    }
    let (mut bytes, mut unit) = (0, 1);
    let mut before = 0;
    for i in 1..=MAX_DIGITS {
        before = window.byte(end - i);
        let digit = u64::from(before).wrapping_sub(u64::from(b'0'));
        if digit > 9 {
            break;
        }
        bytes += digit * unit;
        unit *= 10;
    }
    // A number behind a blank, and nothing else.
    if before != b' ' || unit == 1 {
        return None;
    }
    Some(end + 2 + bytes + ENDING)
}
