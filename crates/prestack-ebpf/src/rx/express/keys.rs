//! `gets`, and `get` of several keys, with one space between them.
//!
//! The keys are looked for first, and the reply is written only when all were found.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use prestack_abi::cache::{EntryHeader, MAX_REPLY};
use prestack_proto::checksum::{add_word, fold, shifted, without};
use prestack_proto::hash::{backend_seed, finish, mix};
use prestack_proto::text::number::Digits;
use prestack_proto::text::reply::{END, END_LEN};
use prestack_proto::window::Source;
use prestack_proto::{MAX_KEY, swar};

use super::line::{sum_before, sum_of_block, sum_of_end};
use super::part::copy_part;
use super::{CRLF, GET, LOST, PAYLOAD, SHORTEST, TEXT, in_place};
use crate::cache::find::{Found, Kept, Query, find_in};
use crate::clock;
use crate::inbound::Inbound;
use crate::ledger::backend;
use crate::packet::Packet;
use crate::scratch::{KEPT, scratch};

/// `gets ` as it is read.
const GETS: u64 = u64::from_le_bytes(*b"gets \0\0\0");
/// Words of the longest key and what follows it.
const KEY_WORDS: usize = MAX_KEY / 8 + 1;

/// Set in the number of a key if the request wants CAS numbers.
const WITH_CAS: u64 = 1 << 8;
/// Set in what [`prestack_express_block`] returns, beside the sum (16 bits), if all went well.
const WRITTEN: u64 = 1 << 16;
/// In what [`prestack_express_key`] returns: the position behind the key and a space (16 bits), the length
/// of its block in the reply (16), and whether it is the last. 0 if it is not to be answered here.
const LAST: u64 = 1 << 32;

/// Looks up what is asked for by a request whose headers have been checked: the length of the reply, and in
/// the upper half its form. `None` if it is not to be answered here.
#[inline(always)]
pub fn look_up(ctx: &XdpContext) -> Option<u64> {
    let config = backend::config()?;
    let packet = ctx.packet(config);
    if !packet.reaches(SHORTEST + 1) {
        return None;
    }
    // SAFETY: just checked.
    let first = unsafe { packet.fixed::<u64>(PAYLOAD) };
    let (mut at, with_cas) = if first as u32 == GET {
        (PAYLOAD + 4, 0)
    } else if first & 0xff_ffff_ffff == GETS {
        (PAYLOAD + 5, WITH_CAS)
    } else {
        return None;
    };
    let scratch = scratch()?;
    let number = config.doors[0].backend;
    let state = backend::backend(number)?;
    let now = clock::now();
    if now >= config.serve_until || !backend::answers_udp(state) {
        return None;
    }
    // SAFETY: this CPU's scratch.
    unsafe {
        let walk = &raw mut (*scratch).walk;
        (&raw mut (*walk).now).write_volatile(now);
        (&raw mut (*walk).epoch).write_volatile(backend::epoch(state, now).into());
    }
    let mut reply_len = END_LEN;
    let mut keys = 0;
    for i in 0..KEPT as u64 {
        // SAFETY: a function of ours, called with the program's context.
        let key = unsafe { prestack_express_key(ctx.ctx, at, i | with_cas) };
        if key == 0 {
            return None;
        }
        reply_len += key >> 16 & 0xffff;
        at = key & 0xffff;
        if key & LAST != 0 {
            keys = i + 1;
            break;
        }
    }
    // SAFETY: as above.
    unsafe { (&raw mut (*scratch).in_place.words).write_volatile([keys, with_cas]) };
    (keys != 0).then_some(TEXT << 32 | reply_len & 0xffff)
}

/// Writes and sends the reply: the action for the kernel, or [`LOST`]. A global function (by its
/// unmangled name), as those that follow: the verifier checks each once.
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn prestack_express_blocks(ctx: *mut xdp_md, reply_len: u64) -> u64 {
    let Some(scratch) = scratch() else {
        return LOST;
    };
    // SAFETY: this CPU's scratch.
    let [keys, with_cas] = unsafe { (&raw const (*scratch).in_place.words).read_volatile() };
    let (mut out, mut sum) = (0, 0);
    for i in 0..KEPT as u64 {
        if i >= keys {
            break;
        }
        // SAFETY: the caller's.
        let block = unsafe { prestack_express_block(ctx, out, i | with_cas) };
        if block & WRITTEN == 0 {
            return LOST;
        }
        sum += block & 0xffff;
        out = block >> 32;
    }
    let sum = fold(sum + shifted(add_word(0, END), out));
    in_place::send(&XdpContext::new(ctx), reply_len, sum)
}

/// Looks for the key at a position of the packet and keeps what was found under its number. A global
/// function, like [`prestack_express_blocks`].
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn prestack_express_key(ctx: *mut xdp_md, at: u64, number: u64) -> u64 {
    find_key(&XdpContext::new(ctx), at, number).unwrap_or(0)
}

#[inline(always)]
fn find_key(ctx: &XdpContext, at: u64, number: u64) -> Option<u64> {
    let config = backend::config()?;
    let packet = ctx.packet(config);
    let scratch = scratch()?;
    let backend = config.doors[0].backend;
    let key = Key::read(packet, at, backend_seed(config.seed, backend))?;
    // SAFETY: this CPU's scratch.
    let (now, epoch) = unsafe {
        let walk = &raw const (*scratch).walk;
        (
            (&raw const (*walk).now).read_volatile(),
            (&raw const (*walk).epoch).read_volatile() as u32,
        )
    };
    let query = Query {
        config,
        backend,
        epoch,
        now,
        hash: key.hash,
    };
    // Asked for once: the cache may grow meanwhile.
    let place = config.place(key.hash);
    let found = find_in(query, place, key.len, |entry| {
        entry.has_key(&packet, at, key.len)
    })?;
    let wants_cas = number & WITH_CAS != 0;
    let i = number & (KEPT as u64 - 1);
    let wanted = EntryHeader::FLAGS | if wants_cas { EntryHeader::CAS } else { 0 };
    // A reply to several keys does not name those that memcached has lost, so it cannot refresh.
    let is_refresher = found.is_ageing && i == 0 && key.is_last;
    if !found.knows(wanted) || is_refresher || found.reply_len > MAX_REPLY as u64 {
        return None;
    }
    let cas_len = if wants_cas {
        1 + Digits::of(found.cas)?.len
    } else {
        0
    };
    // SAFETY: this CPU's scratch, and in bounds.
    unsafe {
        let kept = (&raw mut (*scratch).in_place.kept).cast::<Kept>();
        Kept::keep(kept.add(i as usize), place, &found, key.len, key.sum);
    }
    let block_len = found.reply_len - END_LEN + cas_len;
    let last = if key.is_last { LAST } else { 0 };
    Some((at + key.len + 1) | block_len << 16 | last)
}

/// A key of a request.
struct Key {
    hash: u64,
    /// One's-complement sum, not folded.
    sum: u64,
    /// 1 to 250.
    len: u64,
    /// Whether the line and the packet end behind it.
    is_last: bool,
}

impl Key {
    /// Reads the key at `at`, behind which there is a space or the end of the packet.
    #[inline(always)]
    fn read(packet: Packet, at: u64, seed: u64) -> Option<Self> {
        let end = packet.len();
        let (mut hash, mut sum) = (seed, 0);
        let mut done = 0;
        let mut rest = 8;
        for _ in 0..KEY_WORDS {
            // A word that would end behind the packet is read backwards from there.
            let missing = (at + done + 8).saturating_sub(end);
            if missing >= 8 {
                return None;
            }
            let word = packet.read::<u64>(at + done - missing)? >> (8 * missing);
            let others = swar::below(word, 0x21);
            if others != 0 {
                rest = swar::first(others);
                if rest != 0 {
                    let tail = swar::keep(word, rest);
                    hash = mix(hash, tail);
                    sum = add_word(sum, tail);
                }
                break;
            }
            hash = mix(hash, word);
            sum = add_word(sum, word);
            done = packet.forgotten(done + 8);
        }
        let len = packet.forgotten(done + rest);
        if len == 0 {
            return None;
        }
        if len > MAX_KEY as u64 {
            return None;
        }
        let behind: u16 = packet.read(at + len)?;
        let is_last = behind == CRLF && at + len + 2 == end;
        if !is_last && behind as u8 != b' ' {
            return None;
        }
        Some(Self {
            hash: finish(hash, len),
            sum,
            len,
            is_last,
        })
    }
}

/// Writes the block of the key of this number at a position of the reply, and `END` behind it. Returns
/// [`WRITTEN`], its sum, and in the upper half where it ends. A global function, like
/// [`prestack_express_blocks`].
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn prestack_express_block(ctx: *mut xdp_md, out: u64, number: u64) -> u64 {
    write_block(&XdpContext::new(ctx), out, number).unwrap_or(0)
}

#[inline(always)]
fn write_block(ctx: &XdpContext, out: u64, number: u64) -> Option<u64> {
    let config = backend::config()?;
    let packet = ctx.packet(config);
    let scratch = scratch()?;
    let i = number & (KEPT as u64 - 1);
    // SAFETY: this CPU's scratch, and in bounds.
    let kept = unsafe {
        &*(&raw const (*scratch).in_place.kept)
            .cast::<Kept>()
            .add(i as usize)
    };
    let found = kept.found()?;
    let at = PAYLOAD + out;
    let mut end = out + found.reply_len - END_LEN;
    let sum = if number & WITH_CAS == 0 {
        copy_part(packet, at, found.entry, 0, found.reply_len)?;
        without(found.sum.into(), sum_of_end(&found))
    } else {
        let cas = Digits::of(found.cas)?;
        end += 1 + cas.len;
        write_with_cas(packet, at, kept, &found, cas)?
    };
    if !found.is_unchanged() {
        return None;
    }
    let sum = fold(shifted(sum, out));
    Some(end << 32 | WRITTEN | u64::from(sum))
}

/// Writes a block with a CAS number, and `END`; returns the sum of the block, the first byte the first of a
/// word.
#[inline(always)]
fn write_with_cas(packet: Packet, at: u64, kept: &Kept, found: &Found, cas: Digits) -> Option<u64> {
    let entry = found.entry;
    let line_end = found.data - 2;
    let behind = line_end + 1 + cas.len;
    // From the end to the front: before the number there are zeros.
    copy_part(
        packet,
        at + behind,
        entry,
        line_end,
        found.reply_len - line_end,
    )?;
    packet.write(at + behind - 8, cas.words[1])?;
    let digits = if cas.len > 8 {
        packet.write(at + behind - 16, cas.words[0])?;
        let first = cas.words[0] >> (8 * (16 - cas.len));
        add_word(0, first) + shifted(add_word(0, cas.words[1]), cas.len)
    } else {
        add_word(0, cas.words[1] >> (8 * (8 - cas.len)))
    };
    copy_part(packet, at, entry, 0, line_end)?;
    packet.write(at + line_end, b' ')?;
    let digits = shifted(digits, line_end + 1) + shifted(b' '.into(), line_end);
    let line = sum_before(entry, kept.key_len, kept.key_sum, line_end)?;
    let block = sum_of_block(found, kept.key_len, kept.key_sum, behind)?;
    Some(fold(line + digits + block).into())
}
