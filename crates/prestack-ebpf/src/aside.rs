//! While the datapath stands aside, since what comes is not worth following: nothing is served, nothing is noted
//! but how much comes, and who reads.
//!
//! What writes change is of no consequence, for the cache is emptied before anything is served again. Only a
//! `flush_all` with a delay reaches beyond that. It is heeded where it starts a datagram or a segment.

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use aya_ebpf::programs::{TcContext, XdpContext};
use prestack_abi::config::{Attention, Config};
use prestack_proto::binary;
use prestack_proto::binary::opcode::{FLUSH, FLUSHQ, GET, GETK, GETKQ, GETQ};
use prestack_proto::command::Effect;
use prestack_proto::net::{ETHERNET_LEN, ETHERTYPE_IPV4, IPV4_LEN, PROTO_TCP, PROTO_UDP, TCP_LEN};
use prestack_proto::verifier::opaque;

use crate::inbound::Inbound;
use crate::ledger::{backend, flushes};
use crate::maps::count;
use crate::packet::Packet;
use crate::rx::reply::PAYLOAD_AT;
use crate::rx::{again, command};
use crate::scratch::scratch;
use crate::tcp::segment::Segment;

/// `flush_al`, as every text command begins that flushes.
const TEXT_FLUSH: u64 = u64::from_le_bytes(*b"flush_al");
/// How GETs begin.
const TEXT_GET: u32 = u32::from_le_bytes(*b"get ");
const TEXT_GETS: u32 = u32::from_le_bytes(*b"gets");
const META_GET: u32 = u32::from_le_bytes(*b"mg \0");
/// Position of the UDP or TCP header in an IPv4 packet without tags or options.
const L4: u64 = (ETHERNET_LEN + IPV4_LEN) as u64;
/// Bytes of the shortest packet that is looked at in place: with a TCP header, or a memcached frame and some more.
const SHORTEST: u64 = L4 + TCP_LEN as u64;
/// Most bytes of a command that flushes.
const LONGEST: u64 = 64;

/// A packet on its way to memcached, of which the start may be loaded.
pub trait Passing: Inbound {
    /// Loads the start of what the packet has for a backend into the window: see [`load`].
    fn load_start(&self) -> u64;
}

impl Passing for XdpContext {
    #[inline(always)]
    fn load_start(&self) -> u64 {
        // SAFETY: the program's context.
        unsafe { prestack_aside_load(self.ctx) }
    }
}

impl Passing for TcContext {
    #[inline(always)]
    fn load_start(&self) -> u64 {
        // SAFETY: the program's context.
        unsafe { prestack_lo_aside_load(self.skb.skb) }
    }
}

/// Whether the datapath stands aside.
#[inline(always)]
pub fn is_on() -> bool {
    backend::config().is_some_and(is_set)
}

/// Whether this configuration says that the datapath stands aside.
#[inline(always)]
pub fn is_set(config: &Config) -> bool {
    // SAFETY: a reference. Volatile: user space changes it.
    unsafe { (&raw const config.attention).read_volatile() == Attention::Aside as u32 }
}

/// A packet arrives while the datapath stands aside: it passes as it is. Hands it over if there may be something in
/// it to be [heeded](heed), and returns otherwise.
#[inline(always)]
pub fn arrives<C: Passing>(ctx: &C) {
    if !is_dull(ctx) {
        ctx.hand_over();
    }
}

/// Whether there is nothing to be heeded in a packet, which is then counted. Of others than plain ones in IPv4
/// without tags or options that is left open.
#[inline(always)]
fn is_dull<C: Inbound>(ctx: &C) -> bool {
    const IPV4: u64 = (ETHERTYPE_IPV4.to_be() as u64) | 0x45 << 16;
    let Some(config) = backend::config() else {
        return true;
    };
    let packet = ctx.packet(config);
    if !packet.reaches(SHORTEST) {
        return false;
    }
    // SAFETY: just checked.
    let (types, lengths, port, offset) = unsafe {
        (
            packet.fixed::<u64>(8) >> 32 & 0x00ff_ffff,
            packet.fixed::<u64>(16),
            packet.fixed::<u16>(L4 + 2),
            packet.fixed::<u8>(L4 + 12),
        )
    };
    let (total, protocol) = ((lengths as u16).swap_bytes(), (lengths >> 56) as u8);
    // Without a length it is one that offloads have put together.
    if types != IPV4 || total == 0 {
        return false;
    }
    let is_udp = protocol == PROTO_UDP;
    if !is_udp && protocol != PROTO_TCP || !backend::is_port(config, port) {
        return true;
    }
    let header_len = if is_udp {
        PAYLOAD_AT
    } else {
        u64::from(offset >> 4) * 4
    };
    let len = u64::from(total).wrapping_sub(IPV4_LEN as u64 + header_len);
    if len == 0 || len > u64::from(u16::MAX) {
        return true;
    }
    let start = match first_bytes(ctx, packet, L4 + header_len, len) {
        Some(start) if !start.flushes() => start,
        _ => return false,
    };
    start.count(is_udp);
    true
}

/// The first eight bytes at this position, or four if there are not more.
#[inline(always)]
fn first_bytes<C: Inbound>(ctx: &C, packet: Packet, at: u64, len: u64) -> Option<Start> {
    if len < 8 {
        return Some(Start(packet.read::<u32>(at).unwrap_or(0).into()));
    }
    if let Some(word) = packet.read::<u64>(at) {
        return Some(Start(word));
    }
    let mut word = 0u64;
    // SAFETY: a value on the stack of that size.
    let is_loaded = unsafe { ctx.load(at as u32, (&raw mut word).cast(), 8) };
    is_loaded.then_some(Start(word))
}

/// How a datagram or a segment begins.
#[derive(Clone, Copy)]
struct Start(u64);

impl Start {
    #[inline(always)]
    fn opcode(self) -> Option<u8> {
        (self.0 as u8 == binary::REQUEST).then_some((self.0 >> 8) as u8)
    }

    /// Whether that is a `flush_all`.
    #[inline(always)]
    fn flushes(self) -> bool {
        self.0 == TEXT_FLUSH
            || self
                .opcode()
                .is_some_and(|opcode| opcode == FLUSH || opcode == FLUSHQ)
    }

    /// Whether that is a GET.
    #[inline(always)]
    fn reads(self) -> bool {
        const OPCODES: u64 = 1 << GET | 1 << GETQ | 1 << GETK | 1 << GETKQ;
        let verb = self.0 as u32;
        match self.opcode() {
            Some(opcode) => opcode < 64 && OPCODES >> (opcode & 63) & 1 != 0,
            None => verb == TEXT_GET || verb == TEXT_GETS || verb & 0xff_ffff == META_GET,
        }
    }

    /// Counts what begins so.
    #[inline(always)]
    fn count(self, is_udp: bool) {
        match (self.reads(), is_udp) {
            (true, true) => count!(aside_udp_gets),
            (true, false) => count!(aside_tcp_gets),
            _ => count!(aside_others),
        }
    }
}

/// Heeds what a packet has for a backend: a `flush_all` with a delay at its start.
#[inline(always)]
pub fn heed<C: Passing>(ctx: &C) {
    let loaded = ctx.load_start();
    let (len, backend) = (loaded & 0xff, (loaded >> 8) as u8);
    let Some(scratch) = scratch() else { return };
    if len == 0 {
        return;
    }
    command::parse_in_stream(0, len);
    // SAFETY: this CPU's scratch.
    let effect = unsafe { (&raw const (*scratch).command.effect).read_volatile() };
    if effect == Effect::Flush {
        flushes::arrived(backend);
    }
}

/// Loads the start of what the packet has for a backend into the window, and counts it. Returns how many bytes,
/// and the backend in those above the lowest; 0 if there is nothing.
#[inline(always)]
fn load<C: Inbound>(ctx: &C) -> u64 {
    let (Some(scratch), Some((_, packet, headers, door))) = (scratch(), again(ctx)) else {
        return 0;
    };
    let (data, len) = if headers.udp {
        (
            headers.l4 + PAYLOAD_AT,
            headers.l4_len.wrapping_sub(PAYLOAD_AT),
        )
    } else {
        match Segment::read(packet, &headers, door.backend, false) {
            Some(segment) => (segment.data, segment.len),
            None => return 0,
        }
    };
    if len == 0 || len > Segment::MAX_LEN {
        return 0;
    }
    let len = if len < LONGEST { len } else { LONGEST };
    let size = (opaque(len - 1) & (LONGEST - 1)) + 1;
    // SAFETY: this CPU's scratch, whose window is longer.
    let is_loaded = unsafe {
        let start = (*scratch).window.start().cast();
        ctx.load(data as u32, start, size as u32)
    };
    if !is_loaded {
        return 0;
    }
    // SAFETY: as above.
    let start = unsafe { (*scratch).window.word(0) };
    Start(start).count(headers.udp);
    size | u64::from(door.backend) << 8
}

/// A global function (by its unmangled name), as that which follows: the verifier checks it once.
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn prestack_aside_load(ctx: *mut xdp_md) -> u64 {
    load(&XdpContext::new(ctx))
}

/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn prestack_lo_aside_load(ctx: *mut __sk_buff) -> u64 {
    load(&TcContext::new(ctx))
}
