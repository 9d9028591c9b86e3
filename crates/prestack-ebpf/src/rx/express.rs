//! The express way: `get <key>\r\n` over UDP and IPv4 without tags or options, through the first door,
//! link and network of the configuration, which on most hosts are those of nearly all traffic.
//!
//! It does what the other steps do for any request, with every header in registers: positions are
//! constants, so that one check covers all headers, and what was read once is not read again. Whatever
//! is not just so is left to the other steps, as it came and with nothing done.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_TX};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::generated::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail};
use aya_ebpf::programs::XdpContext;
use prestack_abi::cache::{EntryHeader, MAX_REPLY};
use prestack_abi::config::{Config, Door, Link, MAPPED_V4};
use prestack_abi::requests::{Kind, Request};
use prestack_proto::checksum::{add_word, fold};
use prestack_proto::hash::{backend_seed, finish, mix};
use prestack_proto::net::{
    ETHERNET_LEN, ETHERTYPE_IPV4, HOP_LIMIT, IPV4_DONT_FRAGMENT, IPV4_FRAGMENT, IPV4_LEN,
    PROTO_UDP, UDP_LEN,
};
use prestack_proto::text::reply::KEY_AT;
use prestack_proto::udp::{FRAME_LEN, Frame};
use prestack_proto::verifier::opaque;
use prestack_proto::window::Source;
use prestack_proto::{MAX_KEY, swar};

use super::allow::is_spoof_prone;
use super::get::{MISS, copy, note_request};
use super::reply::PAYLOAD_AT;
use crate::cache::find::{Found, Query, find_with};
use crate::clock;
use crate::inbound::Inbound;
use crate::ledger::backend;
use crate::maps::count;
use crate::packet::Packet;
use crate::scratch::{SAVED_WORDS, Scratch, scratch};

/// Position of the UDP header.
const L4: u64 = (ETHERNET_LEN + IPV4_LEN) as u64;
/// Position of the payload, `get `.
const PAYLOAD: u64 = L4 + PAYLOAD_AT;
/// Position of the key.
const KEY: u64 = PAYLOAD + 4;
/// `get ` and the line end.
const AROUND_KEY: u64 = 6;
/// Length of the shortest packet: a key of one byte.
const SHORTEST: u64 = PAYLOAD + AROUND_KEY + 1;
/// Words of the longest key.
const KEY_WORDS: u64 = (MAX_KEY / 8) as u64;
/// Words before the payload, and the first two bytes of `get `.
const HEADER_WORDS: usize = 7;
/// Where the key's words are saved, behind the headers, and the last one of a key that is not made of
/// whole words.
const SAVED_KEY: usize = HEADER_WORDS;
const SAVED_TAIL: usize = SAVED_WORDS - 1;

/// `get ` and the line end as they are read.
const GET: u32 = u32::from_le_bytes(*b"get ");
const CRLF: u16 = u16::from_le_bytes(*b"\r\n");

/// The request is left to the other steps.
pub const OTHER: u32 = 0x200;

const _: () = assert!(L4 == 34 && PAYLOAD == 50 && L4 == ETHERNET_LEN as u64 + 20);
const _: () = assert!(FRAME_LEN == 8 && UDP_LEN == 8);
const _: () = assert!(SAVED_KEY + KEY_WORDS as usize <= SAVED_TAIL);

/// The words of a packet before its payload, as they lie there.
#[derive(Clone, Copy)]
struct Head([u64; HEADER_WORDS]);

impl Head {
    #[inline(always)]
    fn read(packet: Packet) -> Self {
        // SAFETY: the caller has seen that the packet reaches further.
        Self(core::array::from_fn(|i| unsafe {
            packet.fixed::<u64>(8 * i as u64)
        }))
    }

    /// Ethernet without tags, IPv4 without options or fragments, UDP, a memcached frame, `get `.
    #[inline(always)]
    fn is_plain(&self) -> bool {
        const TYPES: u64 = (ETHERTYPE_IPV4.to_be() as u64) | 0x45 << 16;
        const NO_FRAGMENT: u64 = (IPV4_FRAGMENT.to_be() as u64) << 32 | 0xff << 56;
        const UDP: u64 = (PROTO_UDP as u64) << 56;
        let unusual = (self.0[1] >> 32 & 0x00ff_ffff ^ TYPES)
            | (self.0[2] & NO_FRAGMENT ^ UDP)
            | (self.0[6] >> 16 & 0xffff_ffff ^ u64::from(GET));
        unusual == 0 && Frame(self.frame()).is_single()
    }

    #[inline(always)]
    fn frame(&self) -> u64 {
        self.0[5] >> 16 | self.0[6] << 48
    }

    #[inline(always)]
    fn total_len(&self) -> u64 {
        u64::from((self.0[2] as u16).swap_bytes())
    }

    #[inline(always)]
    fn udp_len(&self) -> u64 {
        u64::from(((self.0[4] >> 48) as u16).swap_bytes())
    }

    #[inline(always)]
    fn source(&self) -> u32 {
        (self.0[3] >> 16) as u32
    }

    #[inline(always)]
    fn destination(&self) -> u32 {
        (self.0[3] >> 48) as u32 | ((self.0[4] & 0xffff) as u32) << 16
    }

    /// Source port in the lower, destination port in the upper half.
    #[inline(always)]
    fn ports(&self) -> u32 {
        (self.0[4] >> 16) as u32
    }

    #[inline(always)]
    fn checksum(&self) -> u16 {
        self.0[5] as u16
    }

    #[inline(always)]
    fn addresses_sum(&self) -> u64 {
        u64::from(self.source()) + u64::from(self.destination())
    }

    /// Whether the checksums hold, given the sum of the payload: see [`checksum`](super::checksum).
    #[inline(always)]
    fn checksums_hold(&self, payload: u64) -> bool {
        let w = &self.0;
        let addresses = self.addresses_sum();
        let ip = (w[1] >> 48) + u64::from(w[3] as u16) + addresses;
        let pseudo = addresses + u64::from(u16::to_be(PROTO_UDP.into())) + (w[4] >> 48);
        let field = self.checksum();
        let udp = add_word(
            pseudo + u64::from(self.ports()) + (w[4] >> 48),
            self.frame(),
        );
        let udp = udp + u64::from(field) + payload;
        fold(add_word(ip, w[2])) == 0xffff
            && (field == 0 || fold(udp) == 0xffff || field == fold(pseudo))
    }

    /// The head of the reply of `reply_len` bytes with this `sum`.
    #[inline(always)]
    fn reply(&self, reply_len: u64, sum: u16) -> Self {
        let w = &self.0;
        let udp_len = PAYLOAD_AT + reply_len;
        let total_len = IPV4_LEN as u64 + udp_len;
        let be = |len: u64| u64::from((len as u16).swap_bytes());
        let (source, destination) = (u64::from(self.destination()), u64::from(self.source()));
        let second = be(total_len)
            | u64::from(IPV4_DONT_FRAGMENT.to_be()) << 32
            | u64::from(HOP_LIMIT) << 48
            | u64::from(PROTO_UDP) << 56;
        let addresses = source + destination;
        let ip = !fold(add_word(addresses + 0x45, second));
        let ports = u64::from(self.ports().rotate_left(16));
        let udp = if self.checksum() == 0 {
            0
        } else {
            let pseudo = addresses + u64::from(u16::to_be(PROTO_UDP.into())) + be(udp_len);
            let header = pseudo + ports + be(udp_len) + u64::from(sum);
            match !fold(add_word(header, self.frame())) {
                // RFC 768: zero says that there is none.
                0 => 0xffff,
                checksum => checksum,
            }
        };
        Self([
            w[0] >> 48 | (w[1] & 0xffff_ffff) << 16 | w[0] << 48,
            (w[0] >> 16 & 0xffff_ffff) | u64::from(ETHERTYPE_IPV4.to_be()) << 32 | 0x45 << 48,
            second,
            u64::from(ip) | source << 16 | destination << 48,
            destination >> 16 | ports << 16 | be(udp_len) << 48,
            u64::from(udp) | self.frame() << 16,
            self.frame() >> 48,
        ])
    }

    /// Writes the head before the payload.
    #[inline(always)]
    fn write(&self, packet: Packet) -> Option<()> {
        if !packet.reaches(SHORTEST) {
            return None;
        }
        for i in 0..HEADER_WORDS - 1 {
            // SAFETY: the packet reaches further.
            unsafe { packet.set_fixed(8 * i as u64, self.0[i]) };
        }
        // SAFETY: as above.
        unsafe { packet.set_fixed(PAYLOAD - 2, self.0[HEADER_WORDS - 1] as u16) };
        Some(())
    }
}

/// Answers the packet, or lets it through: the action for the kernel, [`MISS`] or [`OTHER`].
#[inline(always)]
pub fn answer(ctx: &XdpContext) -> u32 {
    // SAFETY: a function of ours, called with the program's context.
    unsafe { prestack_express(ctx.ctx) as u32 }
}

/// A global function (by its unmangled name): the verifier checks it on its own.
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn prestack_express(ctx: *mut xdp_md) -> u64 {
    let ctx = XdpContext::new(ctx);
    u64::from(express(&ctx).unwrap_or(OTHER))
}

#[inline(always)]
fn express(ctx: &XdpContext) -> Option<u32> {
    let config = backend::config()?;
    let packet = ctx.packet(config);
    if !packet.reaches(SHORTEST) {
        return None;
    }
    let head = Head::read(packet);
    let udp_len = head.udp_len();
    let key_len = udp_len.wrapping_sub(PAYLOAD_AT + AROUND_KEY);
    if !head.is_plain() || key_len > MAX_KEY as u64 {
        return None;
    }
    if key_len == 0 || packet.len() != L4 + udp_len || head.total_len() != udp_len + IPV4_LEN as u64
    {
        return None;
    }
    let door = &config.doors[0];
    if (u64::from(door.port) ^ u64::from(head.ports() >> 16))
        | u64::from(door.address[3] ^ head.destination())
        | u64::from(door.address[2] ^ MAPPED_V4)
        | u64::from(door.flags ^ Door::SERVE_UDP)
        | u64::from(door.address[0] | door.address[1])
        != 0
        || config.doors_len == 0
        || config.rate_interval_ns != 0
    {
        return None;
    }
    let link = &config.links[0];
    if (head.0[0] & Link::MAC ^ link.mac) | (ctx.ingress_ifindex() as u64 ^ link.place) != 0
        || link.allow & 1 == 0
        || config.allow4_len == 0
        || !config.allow4[0].has_host(head.source())
        || is_spoof_prone(config, head.ports(), head.0[0])
    {
        return None;
    }
    let scratch = scratch()?;
    let number = door.backend;
    let key = read_key(packet, key_len, backend_seed(config.seed, number), scratch)?;
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
    let Some(found) = found else {
        let request = Request {
            key: key.hash,
            time: now,
            version: 0,
            epoch,
            seen: 0,
            kind: Kind::Get as u8,
            unanswered: 1,
            tickets: 1,
            backend: number,
        };
        note_request(scratch, &request, name(config, &head, number));
        count!(udp_misses);
        return Some(MISS);
    };
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
    serve(ctx, config, packet, &head, &found, scratch, key_len)
}

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
        if bpf_xdp_adjust_tail(ctx.ctx, growth as i32) != 0 {
            // It grows at its head: the headers are written anew in any case.
            if !ctx.is_whole(packet.len()) || bpf_xdp_adjust_head(ctx.ctx, -(growth as i32)) != 0 {
                return None;
            }
            shift = growth;
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

/// Puts the request back that the scratch has. A global function, like [`prestack_express`].
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
