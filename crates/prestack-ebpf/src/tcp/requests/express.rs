//! The express way of plain segments with one whole command: `get` of one key, or `set`; and of those
//! that lie inside a data block.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use prestack_abi::config::Attention;
use prestack_abi::flow::{Flow, MAX_ASKED, Mode};
use prestack_proto::hash::{backend_seed, finish, mix};
use prestack_proto::stream::{Ask, QUIET_TEXT};
use prestack_proto::text::number::leading;
use prestack_proto::window::Source;
use prestack_proto::{MAX_KEY, swar};

use super::super::plain::{Data, Plain};
use super::super::{doubt, is_before, take_back, tickets};
use super::commands::crowd;
use super::{CHUNK, seen};
use crate::atomic;
use crate::inbound::Inbound;
use crate::ledger::backend;
use crate::ledger::writes::{self, End};
use crate::maps::count;
use crate::packet::{MAX_POSITION, Packet};
use crate::scratch::scratch;

/// `get ` and `set `.
const GET: u32 = u32::from_le_bytes(*b"get ");
const SET: u32 = u32::from_le_bytes(*b"set ");
/// The end of a line, and of a data block.
const CRLF: u16 = u16::from_le_bytes(*b"\r\n");
/// What says that no reply is wanted.
const NOREPLY: u64 = u64::from_le_bytes(*b" noreply");
/// Words in which the end of a key is found: the longest may end with the last byte of one.
const KEY_WORDS: u64 = MAX_KEY.div_ceil(8) as u64;

/// A command that is all of its segment.
struct Only {
    /// Length of the data block of a `set`, line end included; 0 of a `get`.
    data: u64,
    is_quiet: bool,
}

/// Follows the segment; false if the other steps have to, and nothing was done.
#[inline(always)]
pub fn follow(ctx: &XdpContext) -> bool {
    // SAFETY: a function of ours, called with the program's context.
    unsafe { prestack_tcp_express(ctx.ctx) != 0 }
}

/// A global function (by its unmangled name): the verifier checks it on its own.
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn prestack_tcp_express(ctx: *mut xdp_md) -> u64 {
    u64::from(express(&XdpContext::new(ctx)).is_some())
}

#[inline(always)]
fn express(ctx: &XdpContext) -> Option<()> {
    let config = backend::config()?;
    let packet = ctx.packet(config);
    let plain = Plain::read(packet, config, ctx.whole_len(), false)?;
    if plain.len == 0 {
        return None;
    }
    let flow = plain.flow;
    // SAFETY: a map element.
    unsafe {
        if !is_next(&plain) {
            return None;
        }
        if (*flow).mode == Mode::Data as u32 {
            // The line end behind a block is looked at by the other steps.
            let behind_data = if (*flow).protocol == Flow::BINARY {
                0
            } else {
                2
            };
            let last = (*flow).data_until.wrapping_sub(behind_data);
            if !is_before(plain.end(), last) || atomic::swap(&raw mut (*flow).busy, 1) != 0 {
                return None;
            }
            if is_next(&plain) {
                take_back::note(flow, plain.sequence);
                go_on(&plain);
            } else {
                (&raw mut (*flow).busy).write_volatile(0);
                return None;
            }
            return Some(());
        }
    }
    command(packet, config.seed, &plain)
}

/// Whether the segment comes next on its flow, of whose requests all before is understood.
#[inline(always)]
unsafe fn is_next(plain: &Plain) -> bool {
    let flow = plain.flow;
    // SAFETY: the caller's: a map element.
    unsafe {
        let sent = (&raw const (*flow).sent).read_volatile();
        let edge = (&raw const (*flow).edge).read_volatile();
        let acked = (&raw const (*flow).acked).read_volatile();
        let unusual = u64::from((&raw const (*flow).next).read_volatile() ^ plain.sequence)
            | u64::from((&raw const (*flow).carried).read_volatile())
            | u64::from((*flow).has_hole)
            | u64::from((&raw const (*flow).state).read_volatile() ^ Flow::OPEN)
            | u64::from((&raw const (*flow).doubt).read_volatile())
            | u64::from((*flow).is_repeat);
        unusual == 0
            && !is_before(sent, plain.acknowledgement)
            && !is_before(edge, plain.sequence)
            && !is_before(plain.sequence, acked)
            && (*flow).mode != Mode::Keys as u32
    }
}

/// A command that is all of the segment.
#[inline(always)]
fn command(packet: Packet, seed: u64, plain: &Plain) -> Option<()> {
    let scratch = scratch()?;
    let data = Data::of(packet, plain);
    let verb = data.word(0)? as u32;
    if verb != GET && verb != SET {
        return None;
    }
    // SAFETY: this CPU's scratch.
    let window = unsafe { &mut (*scratch).window };
    let mut hash = backend_seed(seed, plain.backend);
    let mut key_len = 0;
    let mut is_ended = false;
    for i in 0..KEY_WORDS {
        // The last bytes of the segment are no start of a word.
        let Some(word) = data.word(4 + 8 * i) else {
            break;
        };
        // For the ticket.
        window.set_word(8 * i, word);
        let end = swar::below(word, 0x21);
        if end != 0 {
            let rest = swar::first(end);
            if rest != 0 {
                hash = mix(hash, swar::keep(word, rest));
            }
            key_len = 8 * i + rest;
            is_ended = true;
            break;
        }
        hash = mix(hash, word);
        key_len = 8 * i + 8;
    }
    if !is_ended {
        // The rest of the key is shorter than a word: read backwards from the segment's end.
        let rest = (plain.len - 4).wrapping_sub(key_len + 2);
        if verb != GET || rest >= 8 {
            return None;
        }
        if rest != 0 {
            let word = packet.read::<u64>(plain.data + plain.len - 10)? >> (64 - 8 * rest);
            let padded = word | swar::repeat(0x21) << (8 * rest);
            if swar::below(padded, 0x21) != 0 {
                return None;
            }
            window.set_word(key_len, word);
            hash = mix(hash, word);
            key_len += rest;
        }
    }
    let key_len = packet.forgotten(key_len);
    if key_len == 0 || key_len > MAX_KEY as u64 {
        return None;
    }
    let hash = finish(hash, key_len);
    let only = if verb == GET {
        if plain.len != 4 + key_len + 2 || packet.read::<u16>(plain.data + 4 + key_len)? != CRLF {
            return None;
        }
        Only {
            data: 0,
            is_quiet: false,
        }
    } else {
        set(packet, plain, key_len)?
    };
    // SAFETY: a map element.
    unsafe { heed(plain, &only, hash, key_len) }
}

/// The `set` with a key of `key_len` bytes, if it is all of the segment.
#[inline(always)]
fn set(packet: Packet, plain: &Plain, key_len: u64) -> Option<Only> {
    let mut at = plain.data + 4 + key_len;
    let mut value = 0;
    // Flags, time and length: one space before each.
    for _ in 0..3 {
        let word: u64 = packet.read(at)?;
        if word & 0xff != u64::from(b' ') {
            return None;
        }
        // Of more digits than a word has left the other steps think.
        let (number, len) = leading(word >> 8 | u64::from(b' ') << 56)?;
        value = packet.forgotten(number);
        at = packet.forgotten(at + 1 + len);
    }
    let mut line_end: u64 = packet.read(at)?;
    let is_quiet = line_end == NOREPLY;
    if is_quiet {
        // ` noreply` fills a word.
        at += 8;
        line_end = packet.read::<u16>(at)?.into();
    }
    let end = at + 2 + value + 2;
    if line_end as u16 != CRLF || end != plain.data + plain.len {
        return None;
    }
    // Behind what can be read in place there may be more.
    if end > MAX_POSITION || packet.read::<u16>(end - 2)? != CRLF {
        return None;
    }
    Some(Only {
        data: value + 2,
        is_quiet,
    })
}

/// Heeds the command.
#[inline(always)]
unsafe fn heed(plain: &Plain, only: &Only, hash: u64, key_len: u64) -> Option<()> {
    let flow = plain.flow;
    let config = backend::config()?;
    // SAFETY: the caller's: a map element.
    unsafe {
        let number = (*flow).asked;
        let counted = (&raw const (*flow).counted).read_volatile();
        if (*flow).protocol == Flow::BINARY || number.wrapping_sub(counted) >= MAX_ASKED as u64 - 1
        {
            return None;
        }
        if atomic::swap(&raw mut (*flow).busy, 1) != 0 {
            return None;
        }
        if !is_next(plain) || (*flow).asked != number || (*flow).mode != Mode::Command as u32 {
            (&raw mut (*flow).busy).write_volatile(0);
            return None;
        }
        take_back::note(flow, plain.sequence);
        (*flow).protocol = Flow::TEXT;
        let is_quiet = only.is_quiet;
        let mut ask = Ask::Get;
        if only.data != 0 {
            ask = Ask::Line;
            let place = plain.place as u16;
            let end = if is_quiet {
                End::Quiet {
                    flow: place,
                    number,
                }
            } else {
                End::Owed {
                    flow: place,
                    number,
                }
            };
            match writes::arrived(hash, end) {
                Some(marked) if !marked.is_crowded => {}
                Some(_) => {
                    crowd(config, flow, hash, number, is_quiet);
                    writes::arrived_again(hash, end);
                }
                None => {
                    (&raw mut (*flow).doubted_until).write_volatile(plain.end());
                    doubt::requests(config, flow);
                    go_on(plain);
                    return Some(());
                }
            }
            if plain.len > CHUNK {
                // Then the other steps would have met the end of the block later than its line.
                (*flow).data_from = plain.end().wrapping_sub(only.data as u32);
                (*flow).data_until = plain.end();
            }
        }
        if is_quiet {
            (*flow).quiets |= u32::from(QUIET_TEXT);
            (*flow).quiet_at = plain.now;
        } else {
            let place = number as usize & (MAX_ASKED - 1);
            (&raw mut (*flow).asks[place]).write_volatile(ask as u8 | (*flow).quiets as u8);
            (*flow).quiets = 0;
            (&raw mut (*flow).asked).write_volatile(number + 1);
        }
        if only.data == 0 && config.attention == Attention::Learning as u32 {
            tickets::take(plain.place, number, hash, 0, key_len);
        }
        go_on(plain);
    }
    Some(())
}

/// The segment has been gone over.
#[inline(always)]
unsafe fn go_on(plain: &Plain) {
    count!(tcp_passed);
    let flow = plain.flow;
    // SAFETY: the caller's: a map element.
    unsafe {
        seen(flow, plain.end(), plain.now);
        (&raw mut (*flow).busy).write_volatile(0);
    }
}
