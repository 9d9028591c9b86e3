//! The plain GET, `get <key>\r\n`.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_TX};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::generated::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail};
use aya_ebpf::programs::XdpContext;
use prestack_abi::cache::{EntryHeader, MAX_REPLY};
use prestack_abi::config::{Config, MAPPED_V4};
use prestack_abi::requests::{Kind, Request};
use prestack_proto::binary::REQUEST;
use prestack_proto::checksum::add_word;
use prestack_proto::hash::{backend_seed, finish, mix};
use prestack_proto::net::IPV4_LEN;
use prestack_proto::text::reply::KEY_AT;
use prestack_proto::udp::Frame;
use prestack_proto::verifier::opaque;
use prestack_proto::window::Source;
use prestack_proto::{MAX_KEY, swar};

use super::head::Head;
use super::{CRLF, GET, HEADER_WORDS, ITEM, KEYS, META_GET, PAYLOAD};
use crate::cache::find::{Found, Query, find_with};
use crate::clock;
use crate::inbound::Inbound;
use crate::ledger::backend;
use crate::maps::count;
use crate::packet::Packet;
use crate::rx::get::{MISS, copy, note_request};
use crate::rx::reply::PAYLOAD_AT;
use crate::scratch::{SAVED_WORDS, Scratch, scratch};

/// Position of the key.
const KEY: u64 = PAYLOAD + 4;
/// `get ` and the line end.
pub const AROUND_KEY: u64 = 6;
/// Words of the longest key.
const KEY_WORDS: u64 = (MAX_KEY / 8) as u64;
/// Where the key's words are saved, behind the headers, and the last one of a key that is not made of
/// whole words.
const SAVED_KEY: usize = HEADER_WORDS;
const SAVED_TAIL: usize = SAVED_WORDS - 1;

const _: () = assert!(SAVED_KEY + KEY_WORDS as usize <= SAVED_TAIL);

/// Answers the GET if it is one, whose headers have been checked: see [`express`](super::express).
#[inline(always)]
pub fn answer(
    ctx: &XdpContext,
    config: &'static Config,
    packet: Packet,
    head: &Head,
    number: u8,
) -> Option<u32> {
    let key_len = head.udp_len().wrapping_sub(PAYLOAD_AT + AROUND_KEY);
    let verb = head.verb();
    if verb & 0xff == u32::from(REQUEST) || verb & 0xff_ffff == META_GET {
        return Some(ITEM);
    }
    if verb != GET || key_len > MAX_KEY as u64 {
        return Some(KEYS);
    }
    if key_len == 0 {
        return None;
    }
    let scratch = scratch()?;
    let seed = backend_seed(config.seed, number);
    let Some(key) = read_key(packet, key_len, seed, scratch) else {
        return Some(KEYS);
    };
    let state = backend::backend(number)?;
    let now = clock::now();
    let epoch = backend::epoch(state, now);
    let query = Query {
        config,
        backend: number,
        epoch,
        now,
        hash: key.hash,
    };
    let found = find_with(query, key_len, |entry| {
        for i in 0..KEY_WORDS {
            if 8 * i + 8 > key_len {
                break;
            }
            if !packet.reaches(KEY + 8 * i + 8) {
                return false;
            }
            // SAFETY: checked above.
            let word = unsafe { packet.fixed::<u64>(KEY + 8 * i) };
            if entry.word(KEY_AT + 8 * i) != Some(word) {
                return false;
            }
        }
        let rest = key_len & 7;
        rest == 0
            || entry
                .word(KEY_AT + key_len - 8)
                .is_some_and(|word| word >> (64 - 8 * rest) == key.tail)
    });
    let mut may_fill = 1;
    if let Some(found) = found {
        let reply_len = found.reply_len;
        if found.is_ageing
            || !found.knows(EntryHeader::FLAGS)
            || now >= config.serve_until
            || !backend::answers_udp(state)
            || reply_len > MAX_REPLY as u64
            || IPV4_LEN as u64 + PAYLOAD_AT + reply_len > u64::from(config.mtu)
            || !head.checksums_hold(key.sum + u64::from(GET))
        {
            return None;
        }
        let action = serve(ctx, config, packet, head, &found, scratch, key_len)?;
        if action != NO_ROOM {
            return Some(action);
        }
        // What is there need not be fetched.
        may_fill = 0;
    }
    // One path for both, for the verifier.
    pass(&query, scratch, head, packet.forgotten(may_fill) as u8);
    Some(MISS)
}

/// Notes the GET, which is to be let through, to fetch its entry if it `may_fill` (1, else 0).
#[inline(always)]
fn pass(query: &Query, scratch: *mut Scratch, head: &Head, may_fill: u8) {
    let request = Request {
        key: query.hash,
        time: query.now,
        version: 0,
        epoch: query.epoch,
        seen: 0,
        kind: Kind::Get as u8,
        unanswered: 1,
        tickets: may_fill,
        backend: query.backend,
    };
    note_request(scratch, &request, name(query.config, head, query.backend));
    count!(udp_misses);
}

/// By so much a packet may grow at its head, in bytes: `XDP_PACKET_HEADROOM` (include/uapi/linux/bpf.h) less what the
/// kernel keeps there of a frame that is sent.
const HEADROOM: u64 = 256 - 40;

/// The packet cannot grow as long as the reply is, and is as it was.
const NO_ROOM: u32 = 0x300;

/// The key of a request.
struct Key {
    hash: u64,
    /// One's-complement sum of the key and the line end, not folded.
    sum: u64,
    /// Its last bytes if it is not made of whole words.
    tail: u64,
}

/// Reads the key, and the line end behind it. The words are saved, for the reply may be written over
/// them and then not be sent.
#[inline(always)]
fn read_key(packet: Packet, key_len: u64, seed: u64, scratch: *mut Scratch) -> Option<Key> {
    let mut hash = seed;
    let mut sum = 0;
    for i in 0..KEY_WORDS {
        if 8 * i + 8 > key_len {
            break;
        }
        if !packet.reaches(KEY + 8 * i + 8) {
            return None;
        }
        // SAFETY: checked above.
        let word = unsafe { packet.fixed::<u64>(KEY + 8 * i) };
        if swar::below(word, 0x21) != 0 {
            return None;
        }
        hash = mix(hash, word);
        sum = add_word(sum, word);
        // SAFETY: this CPU's scratch, and in bounds.
        unsafe { (&raw mut (*scratch).saved[SAVED_KEY + i as usize]).write_volatile(word) };
    }
    // The last bytes of the key and the line end, read backwards from there: both in one word, unless
    // the key ends with seven bytes.
    let rest = key_len & 7;
    let line_end: u16 = packet.read(KEY + key_len)?;
    if line_end != CRLF {
        return None;
    }
    let mut tail = 0;
    if rest != 0 {
        let word: u64 = packet.read(KEY + key_len - 8)?;
        // SAFETY: as above.
        unsafe { (&raw mut (*scratch).saved[SAVED_TAIL]).write_volatile(word) };
        tail = word >> (64 - 8 * rest);
        let padded = tail | swar::repeat(0x21) << (8 * rest);
        if swar::below(padded, 0x21) != 0 {
            return None;
        }
        hash = mix(hash, tail);
        sum = add_word(sum, tail);
    }
    sum += u64::from(if rest & 1 == 0 {
        CRLF
    } else {
        CRLF.swap_bytes()
    });
    Some(Key {
        hash: finish(hash, key_len),
        sum,
        tail,
    })
}

#[inline(always)]
fn name(config: &Config, head: &Head, backend: u8) -> u64 {
    crate::ledger::requests::name_of(
        config,
        &[0, 0, MAPPED_V4, head.source()],
        backend,
        head.ports(),
        Frame(head.frame()).id(),
    )
}

/// Turns the packet into the reply.
#[inline(always)]
fn serve(
    ctx: &XdpContext,
    config: &Config,
    packet: Packet,
    head: &Head,
    found: &Found,
    scratch: *mut Scratch,
    key_len: u64,
) -> Option<u32> {
    let reply_len = found.reply_len;
    let growth = (PAYLOAD + reply_len).wrapping_sub(packet.len());
    // The shortest reply is longer than its request.
    if growth == 0 || growth > MAX_REPLY as u64 {
        return None;
    }
    let mut shift = 0;
    // SAFETY: `ctx.ctx` is the program's context.
    unsafe {
        // At its head, if it is in one piece: the headers are written anew in any case, while what is added at the
        // tail is cleared by the kernel first, and veth adds nothing there.
        if growth <= HEADROOM
            && ctx.is_whole(packet.len())
            && bpf_xdp_adjust_head(ctx.ctx, -(growth as i32)) == 0
        {
            shift = growth;
        } else if bpf_xdp_adjust_tail(ctx.ctx, growth as i32) != 0 {
            return Some(NO_ROOM);
        }
    }
    let packet = ctx.packet(config);
    // A frame that goes on in memory that cannot be read in place has grown there.
    let is_whole = packet.len() == PAYLOAD + reply_len;
    let is_copied = is_whole && copy(packet, PAYLOAD, found.entry, reply_len).is_some();
    if !is_copied || !found.is_unchanged() {
        count!(races, u64::from(is_whole));
        for i in 0..HEADER_WORDS {
            // SAFETY: this CPU's scratch, and in bounds.
            unsafe { (&raw mut (*scratch).saved[i]).write_volatile(head.0[i]) };
        }
        // SAFETY: a function of ours, called with the program's context.
        unsafe { prestack_express_undo(ctx.ctx, key_len, growth, shift) };
        return None;
    }
    let sum = found.sum;
    if head.reply(reply_len, sum).write(packet).is_none() {
        // The packet reaches as far as was seen, so this cannot be; neither a request nor a reply any
        // more, it must not go anywhere.
        return Some(XDP_DROP);
    }
    count!(udp_hits);
    Some(XDP_TX)
}

/// Puts the request back that the scratch has. A global function, like [`prestack_express`](super::prestack_express).
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn prestack_express_undo(
    ctx: *mut xdp_md,
    key_len: u64,
    growth: u64,
    shift: u64,
) -> u64 {
    // SAFETY: the caller's context. What was added can be taken away.
    unsafe {
        if shift != 0 {
            bpf_xdp_adjust_head(ctx, growth as i32);
        } else {
            bpf_xdp_adjust_tail(ctx, -(growth as i32));
        }
    }
    let (Some(config), Some(scratch)) = (backend::config(), scratch()) else {
        return 0;
    };
    let packet = XdpContext::new(ctx).packet(config);
    let key_len = opaque(key_len) & 0xff;
    // SAFETY: this CPU's scratch, and in bounds.
    let saved = |i: usize| unsafe { (&raw const (*scratch).saved[i]).read_volatile() };
    // The key first: its last word may reach into the headers.
    if key_len & 7 != 0 {
        packet.write(KEY + key_len - 8, saved(SAVED_TAIL));
    }
    for i in 0..KEY_WORDS {
        if 8 * i + 8 > key_len {
            break;
        }
        packet.write(KEY + 8 * i, saved(SAVED_KEY + i as usize));
    }
    packet.write(KEY + key_len, CRLF);
    for i in 0..HEADER_WORDS {
        packet.write(8 * i as u64, saved(i));
    }
    0
}
