//! Errors about segments of carried connections, which routers and hosts send to where these came from (ICMP: RFC 792;
//! ICMPv6: RFC 4443).
//!
//! They quote the number that a segment has on the wire, and the kernel heeds them only if it is one of its own that
//! is on its way (`tcp_v4_err` in net/ipv4/tcp_ipv4.c): else it would not learn that the path takes no packets as long
//! as its segments.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use prestack_abi::config::MAPPED_V4;
use prestack_abi::translated::Translated;
use prestack_proto::net::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, ICMP_LEN, IPV4_FRAGMENT, IPV6_LEN, PROTO_ICMP, PROTO_ICMPV6,
    PROTO_TCP,
};
use prestack_proto::window::Source as _;
use prestack_translate::{apply, difference};

use super::element::{self, locked};
use super::numbered;
use crate::clock;
use crate::inbound::Inbound as _;
use crate::ledger::backend;
use crate::packet::{Addresses, Headers, Ipv4, Ipv6, Packet, network};
use crate::tcp::segment::name_of;
use crate::tcp::table;

/// Types of errors, a bit each: "destination unreachable" ("fragmentation needed" is one of its codes), "time exceeded",
/// "parameter problem".
const ERRORS4: u64 = 1 << 3 | 1 << 11 | 1 << 12;
/// The same over IPv6, and "packet too big".
const ERRORS6: u64 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4;

/// If the packet is an error about a segment of a connection that is translated, it is made to quote the kernel's
/// number.
///
/// A global function (by its unmangled name): the verifier checks it once.
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn prestack_hits_error(ctx: *mut xdp_md) -> u64 {
    u64::from(translate(&XdpContext::new(ctx)).is_some())
}

#[inline(always)]
fn translate(ctx: &XdpContext) -> Option<()> {
    let config = backend::config()?;
    let packet = ctx.packet(config);
    let (l4, v6) = error(packet)?;
    let headers = quoted(packet, packet.forgotten(l4 + ICMP_LEN as u64), v6)?;
    let known = table::find(
        name_of(config, &numbered::key(&headers, true)),
        clock::now(),
    )?;
    let element = element::at(known.place)?;
    if element::state(element) != Translated::READY {
        return None;
    }
    let sequence = packet.at::<u32>(packet.forgotten(headers.l4) + SEQUENCE)?;
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
    let checksum = packet.at::<u16>(packet.forgotten(l4) + CHECKSUM)?;
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
        let ip = packet.read::<Ipv4>(l3)?;
        let l4 = l3 + header_len(&ip);
        let is_error = ip.protocol == PROTO_ICMP
            && ip.fragment & IPV4_FRAGMENT.to_be() == 0
            && is_among(ERRORS4, packet.read(l4)?);
        is_error.then_some((l4, false))
    } else if ethertype == ETHERTYPE_IPV6.to_be() {
        let l4 = l3 + IPV6_LEN as u64;
        let is_error = packet.read::<Ipv6>(l3)?.next_header == PROTO_ICMPV6
            && is_among(ERRORS6, packet.read(l4)?);
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

/// The headers of the segment that an error quotes at `l3`: as much of them as there has to be.
#[inline(always)]
fn quoted(packet: Packet, l3: u64, v6: bool) -> Option<Headers> {
    let (l4, protocol, addresses) = if v6 {
        let ip = packet.read::<Ipv6>(l3)?;
        let addresses = Addresses {
            source: ip.source,
            destination: ip.destination,
        };
        (l3 + IPV6_LEN as u64, ip.next_header, addresses)
    } else {
        let ip = packet.read::<Ipv4>(l3)?;
        let addresses = Addresses {
            source: [0, 0, MAPPED_V4, ip.source],
            destination: [0, 0, MAPPED_V4, ip.destination],
        };
        // Behind the offset of a later fragment there is no TCP header.
        if ip.fragment & IPV4_FRAGMENT.to_be() != 0 {
            return None;
        }
        (l3 + header_len(&ip), ip.protocol, addresses)
    };
    if protocol != PROTO_TCP {
        return None;
    }
    let l4 = packet.forgotten(l4);
    Some(Headers {
        l3,
        l4,
        l4_len: 0,
        v6,
        udp: false,
        ports: packet.read(l4)?,
        addresses,
    })
}
