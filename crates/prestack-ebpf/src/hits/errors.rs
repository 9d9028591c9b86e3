//! Errors about segments of carried connections, which routers and hosts send to where these came from (ICMP: RFC 792;
//! ICMPv6: RFC 4443).
//!
//! They quote the number that a segment has on the wire, and the kernel heeds them only if it is one of its own that
//! is on its way (`tcp_v4_err` in net/ipv4/tcp_ipv4.c): else it would not learn that the path takes no packets as long
//! as its segments.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use prestack_abi::config::MAPPED_V4;
use prestack_abi::flow::FlowKey;
use prestack_abi::translated::Translated;
use prestack_proto::net::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, ICMP_LEN, IPV4_FRAGMENT, IPV6_LEN, PROTO_ICMP, PROTO_ICMPV6,
    PROTO_TCP,
};
use prestack_proto::window::Source as _;
use prestack_translate::{apply, difference};

use super::element::{self, locked};
use crate::clock;
use crate::inbound::Inbound as _;
use crate::ledger::backend;
use crate::packet::{Ipv4, Ipv6, Packet, network};
use crate::scratch::scratch;
use crate::tcp::segment::name_of;
use crate::tcp::table;

/// Types of errors, a bit each: "destination unreachable" ("fragmentation needed" is one of its codes), "time exceeded",
/// "parameter problem".
const ERRORS4: u64 = 1 << 3 | 1 << 11 | 1 << 12;
/// The same over IPv6, and "packet too big".
const ERRORS6: u64 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4;

/// A packet arrives that is neither UDP nor TCP. If it is an error about a segment of a connection that is translated, it
/// is made to quote the kernel's number.
#[inline(always)]
pub fn hear(ctx: &XdpContext) {
    // SAFETY: functions of ours, called with the program's context.
    unsafe {
        let name = prestack_hits_error(ctx.ctx);
        if name != 0
            && let Some(known) = table::find(name, clock::now())
        {
            prestack_hits_quote(ctx.ctx, known.place.into());
        }
    }
}

/// The name of the flow of which an error quotes a segment, and in the scratch where the error and the segment are. 0 if
/// the packet is no such error.
///
/// A global function (by its unmangled name), as that which follows: the verifier checks it once.
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn prestack_hits_error(ctx: *mut xdp_md) -> u64 {
    find(&XdpContext::new(ctx)).unwrap_or(0)
}

#[inline(always)]
fn find(ctx: &XdpContext) -> Option<u64> {
    let (scratch, config) = (scratch()?, backend::config()?);
    let packet = ctx.packet(config);
    let (l4, v6) = error(packet)?;
    let (key, quoted) = quoted(packet, packet.forgotten(l4 + ICMP_LEN as u64), v6)?;
    // SAFETY: this CPU's scratch.
    unsafe {
        (&raw mut (*scratch).numbered.l4).write(l4);
        (&raw mut (*scratch).numbered.at).write(quoted);
    }
    Some(name_of(config, &key))
}

/// Has the error quote the kernel's number, if the connection of the flow at this place is translated.
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn prestack_hits_quote(ctx: *mut xdp_md, place: u64) -> u64 {
    u64::from(quote(&XdpContext::new(ctx), place as u32).is_some())
}

#[inline(always)]
fn quote(ctx: &XdpContext, place: u32) -> Option<()> {
    let (scratch, config) = (scratch()?, backend::config()?);
    // SAFETY: this CPU's scratch.
    let (l4, quoted) = unsafe { ((*scratch).numbered.l4, (*scratch).numbered.at) };
    let element = element::at(place)?;
    if element::state(element) != Translated::READY {
        return None;
    }
    let packet = ctx.packet(config);
    let checksum = packet.at::<u16>(l4 + CHECKSUM)?;
    let sequence = packet.at::<u32>(quoted + SEQUENCE)?;
    // SAFETY: `at` checked the length.
    let wire = u32::from_be(unsafe { *sequence });
    let kernel = locked(element, |_, _, translation| {
        if translation.is_active == 0 {
            wire
        } else {
            translation.kernel_number(wire)
        }
    });
    if kernel == wire {
        return None;
    }
    // SAFETY: as above. The checksum covers what is quoted, and changes as that does.
    unsafe {
        *sequence = kernel.to_be();
        *checksum = apply(*checksum, difference(wire, kernel));
    }
    Some(())
}

/// Position of the number in a TCP header, and of the checksum in that of an error.
const SEQUENCE: u64 = 4;
const CHECKSUM: u64 = 2;

/// Where the header of an error is, and whether it came over IPv6.
#[inline(always)]
fn error(packet: Packet) -> Option<(u64, bool)> {
    let (ethertype, l3) = network(packet)?;
    if ethertype == ETHERTYPE_IPV4.to_be() {
        // SAFETY: `at` checks the length.
        let ip = unsafe { &*packet.at::<Ipv4>(l3)? };
        let l4 = l3 + header_len(ip);
        let is_error = ip.protocol == PROTO_ICMP
            && ip.fragment & IPV4_FRAGMENT.to_be() == 0
            && is_among(ERRORS4, packet.read(l4)?);
        is_error.then_some((l4, false))
    } else if ethertype == ETHERTYPE_IPV6.to_be() {
        let l4 = l3 + IPV6_LEN as u64;
        // SAFETY: as above.
        let ip = unsafe { &*packet.at::<Ipv6>(l3)? };
        let is_error = ip.next_header == PROTO_ICMPV6 && is_among(ERRORS6, packet.read(l4)?);
        is_error.then_some((l4, true))
    } else {
        None
    }
}

#[inline(always)]
fn is_among(errors: u64, kind: u8) -> bool {
    kind < 64 && errors >> kind & 1 != 0
}

/// Bytes of an IPv4 header.
#[inline(always)]
fn header_len(ip: &Ipv4) -> u64 {
    u64::from(ip.version_and_length & 0x0f) * 4
}

/// The flow of the segment that an error quotes at `l3`, and where its TCP header is, of which there need not be more
/// than the number.
#[inline(always)]
fn quoted(packet: Packet, l3: u64, v6: bool) -> Option<(FlowKey, u64)> {
    let mut key = FlowKey::default();
    let (l4, protocol) = if v6 {
        // SAFETY: `at` checks the length.
        let ip = unsafe { &*packet.at::<Ipv6>(l3)? };
        (key.server, key.client) = (ip.source, ip.destination);
        (l3 + IPV6_LEN as u64, ip.next_header)
    } else {
        // SAFETY: as above.
        let ip = unsafe { &*packet.at::<Ipv4>(l3)? };
        // In a later fragment there is no TCP header.
        if ip.fragment & IPV4_FRAGMENT.to_be() != 0 {
            return None;
        }
        key.server = [0, 0, MAPPED_V4, ip.source];
        key.client = [0, 0, MAPPED_V4, ip.destination];
        (l3 + header_len(ip), ip.protocol)
    };
    if protocol != PROTO_TCP {
        return None;
    }
    let l4 = packet.forgotten(l4);
    let ports: u32 = packet.read(l4)?;
    (key.server_port, key.client_port) = (ports as u16, (ports >> 16) as u16);
    Some((key, l4))
}
