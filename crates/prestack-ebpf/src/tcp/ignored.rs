//! While TCP is ignored: nobody reads over UDP, so that nothing is served, and what connections bring need
//! not be followed.
//!
//! What their commands change is of no consequence, for the cache is emptied before anything is served
//! again. Only a `flush_all` with a delay reaches beyond that. It is heeded where it starts a segment.

use aya_ebpf::programs::TcContext;
use prestack_abi::config::{Config, Tcp};
use prestack_proto::binary;
use prestack_proto::binary::opcode::{FLUSH as FLUSH_ALL, FLUSHQ as FLUSH_ALL_QUIETLY};
use prestack_proto::command::Effect;
use prestack_proto::net::{
    ETHERNET_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV4_LEN, PROTO_TCP, TCP_LEN,
};
use prestack_proto::verifier::opaque;

use super::requests::Steps;
use super::segment::Segment;
use crate::inbound::Inbound;
use crate::ledger::{backend, flushes};
use crate::maps::count;
use crate::packet::Packet;
use crate::rx::{again, command};
use crate::scratch::scratch;

/// `flush_al`, as every text command begins that flushes.
const FLUSH: u64 = u64::from_le_bytes(*b"flush_al");
/// Position of the TCP header in an IPv4 packet without tags or options.
const L4: u64 = (ETHERNET_LEN + IPV4_LEN) as u64;
/// Position behind a TCP header without options.
const SHORTEST: u64 = L4 + TCP_LEN as u64;
/// Most bytes of a command that flushes.
const LONGEST: u64 = 64;

/// Whether TCP is ignored.
#[inline(always)]
pub fn is_on() -> bool {
    backend::config().is_some_and(is_set)
}

/// Whether this configuration says that TCP is ignored.
#[inline(always)]
pub fn is_set(config: &Config) -> bool {
    // SAFETY: a reference. Volatile: user space changes it.
    unsafe { (&raw const config.tcp).read_volatile() == Tcp::Ignored as u32 }
}

/// Whether a packet that leaves is TCP, and TCP is ignored; of one with tags that is left open.
#[inline(always)]
pub fn is_on_for(ctx: &TcContext) -> bool {
    backend::config().is_some_and(|config| is_set(config) && is_tcp(ctx.packet(config)))
}

/// Whether a packet without tags is TCP.
#[inline(always)]
fn is_tcp(packet: Packet) -> bool {
    if !packet.reaches(SHORTEST) {
        return false;
    }
    // SAFETY: just checked.
    let (ethertype, protocol4, protocol6) = unsafe {
        (
            packet.fixed::<u16>(12),
            packet.fixed::<u8>(ETHERNET_LEN as u64 + 9),
            packet.fixed::<u8>(ETHERNET_LEN as u64 + 6),
        )
    };
    ethertype == ETHERTYPE_IPV4.to_be() && protocol4 == PROTO_TCP
        || ethertype == ETHERTYPE_IPV6.to_be() && protocol6 == PROTO_TCP
}

/// Whether a packet on its way to memcached is a TCP segment that does not begin with a `flush_all`: of those
/// in IPv4 without tags or options. Of others that is left open.
#[inline(always)]
pub fn is_dull(config: &Config, packet: Packet) -> bool {
    if !is_tcp(packet) {
        return false;
    }
    // SAFETY: `is_tcp` has checked that the packet is longer.
    let (version, total, port, offset) = unsafe {
        (
            packet.fixed::<u8>(ETHERNET_LEN as u64),
            packet.fixed::<u16>(ETHERNET_LEN as u64 + 2).swap_bytes(),
            packet.fixed::<u16>(L4 + 2),
            packet.fixed::<u8>(L4 + 12),
        )
    };
    if version != 0x45 {
        return false;
    }
    let header_len = u64::from(offset >> 4) * 4;
    if u64::from(total) <= IPV4_LEN as u64 + header_len || !backend::is_port(config, port) {
        return true;
    }
    let Some(word) = packet.read::<u64>(L4 + header_len) else {
        return false;
    };
    let is_binary = word as u8 == binary::REQUEST;
    let opcode = (word >> 8) as u8;
    if word == FLUSH || is_binary && (opcode == FLUSH_ALL || opcode == FLUSH_ALL_QUIETLY) {
        return false;
    }
    count!(tcp_passed);
    count!(tcp_ignored);
    true
}

/// Heeds the segment in a packet: a `flush_all` with a delay at its start.
#[inline(always)]
pub fn segment<C: Steps>(ctx: &C) {
    let loaded = ctx.load_ignored();
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

/// Loads the start of the segment in a packet into the window. Returns how many bytes, and the backend in
/// those above the lowest; 0 without data.
#[inline(always)]
pub fn load<C: Inbound>(ctx: &C) -> u64 {
    let (Some(scratch), Some((_, packet, headers, door))) = (scratch(), again(ctx)) else {
        return 0;
    };
    let Some(segment) = Segment::read(packet, &headers, door.backend, false) else {
        return 0;
    };
    if segment.len == 0 {
        return 0;
    }
    count!(tcp_passed);
    count!(tcp_ignored);
    let len = if segment.len < LONGEST {
        segment.len
    } else {
        LONGEST
    };
    let size = (opaque(len - 1) & (LONGEST - 1)) + 1;
    // SAFETY: this CPU's scratch, whose window is longer.
    let is_loaded = unsafe {
        let start = (*scratch).window.start().cast();
        ctx.load(segment.data as u32, start, size as u32)
    };
    if is_loaded {
        size | u64::from(door.backend) << 8
    } else {
        0
    }
}
