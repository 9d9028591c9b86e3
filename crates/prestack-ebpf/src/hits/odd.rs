//! Segments of connections on which requests are answered, in packets that nothing else looks into: behind IP options
//! or extension headers, in fragments, or longer than an IP header can say. They are translated, fragments excepted,
//! and never answered.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use prestack_abi::translated::Translated;
use prestack_proto::net::{
    EXTENSION_DESTINATION, EXTENSION_FRAGMENT, EXTENSION_HOP_BY_HOP, EXTENSION_ROUTING,
    IPV4_FRAGMENT, IPV4_LEN, IPV6_LEN, PROTO_TCP, TCP_SYN,
};
use prestack_proto::window::Source as _;

use super::arrive::{NOTHING, UNUSUAL, USUAL, note};
use super::element::{self, locked};
use super::numbered;
use crate::clock;
use crate::inbound::Inbound as _;
use crate::ledger::backend::{self, Arrival};
use crate::packet::{self, Addresses, Headers, Ipv4, Ipv6, Packet, Sort, locate_long};
use crate::scratch::scratch;
use crate::tcp::flow::GREATEST_WINDOW;
use crate::tcp::segment::{Segment, name_of};
use crate::tcp::{later, table};

/// What [`prestack_hits_odd`] says beside what `prestack_hits_find` does: it is in a fragment, and must not come to
/// the kernel.
pub const FRAGMENT: u64 = 6;

/// No packet that is put together is longer, in bytes.
const WHOLE: u32 = 1 << 16;

/// Most extension headers before a TCP header.
const MAX_EXTENSIONS: usize = 4;
/// Greatest position of such a header.
const MAX_AT: u64 = 0xff;

/// Finds the segment, and its connection, in the packet: [`NOTHING`] if it is none of these, or nothing is answered on
/// its connection.
///
/// A global function (by its unmangled name), as that which follows: the verifier checks it once.
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn prestack_hits_odd(ctx: *mut xdp_md) -> u64 {
    odd(&XdpContext::new(ctx)).unwrap_or(NOTHING)
}

#[inline(always)]
fn odd(ctx: &XdpContext) -> Option<u64> {
    let (scratch, config) = (scratch()?, backend::config()?);
    let packet = ctx.packet(config);
    let (headers, is_fragment) = match packet::locate(packet) {
        Sort::Options(headers) => (headers, false),
        Sort::Veiled(addresses) => match locate_long(packet, ctx.whole_len()) {
            Some(headers) => (headers, false),
            None => behind(packet, addresses)?,
        },
        _ => return None,
    };
    if headers.udp || headers.l4_len > Segment::MAX_LEN {
        return None;
    }
    let key = numbered::key(&headers, false);
    let known = table::find(name_of(config, &key), clock::now())?;
    let element = element::at(known.place)?;
    if element::state(element) != Translated::READY {
        return None;
    }
    if is_fragment {
        let at = packet.forgotten(headers.l4) + 4;
        let sequence = u32::from_be(packet.read(at)?);
        return Some(locked(element, |_, ends, translation| {
            if translation.is_active != 0 {
                // What is left of it, if anything, is never put together.
                return FRAGMENT;
            }
            // How long it is is not known. The kernel may have it before what comes before it, if it lies in the window.
            let ahead = sequence.wrapping_sub(ends.acked.wrapping_sub(WHOLE));
            if ahead < WHOLE + GREATEST_WINDOW {
                ends.next = later(ends.next, sequence.wrapping_add(WHOLE));
            }
            NOTHING
        }));
    }
    // What is not all there the kernel drops.
    let l4 = packet.forgotten(headers.l4);
    let headers = Headers { l4, ..headers };
    let (segment, options, is_usual) = numbered::read(packet, &headers, true)?;
    if segment.has(TCP_SYN) {
        return None;
    }
    let door = Arrival {
        backend: 0,
        flags: 0,
    };
    note(scratch, &segment, options, headers, door, known.place);
    Some(if is_usual { USUAL } else { UNUSUAL })
}

/// The TCP header of a packet that nothing has looked into, and whether it is in a fragment. There is none in later
/// fragments.
#[inline(always)]
fn behind(packet: Packet, addresses: Addresses) -> Option<(Headers, bool)> {
    let (_, l3) = packet::network(packet)?;
    let version = packet.read::<u8>(l3)? >> 4;
    let (at, l4_len, is_fragment) = if version == 4 {
        let ip = packet.read::<Ipv4>(l3)?;
        let fragment = u16::from_be(ip.fragment);
        let header_len = u64::from(ip.version_and_length & 0x0f) * 4;
        let total = u64::from(u16::from_be(ip.total_length));
        if ip.protocol != PROTO_TCP || fragment & OFFSET != 0 || header_len < IPV4_LEN as u64 {
            return None;
        }
        let is_fragment = fragment & IPV4_FRAGMENT != 0;
        (l3 + header_len, total.wrapping_sub(header_len), is_fragment)
    } else {
        let ip = packet.read::<Ipv6>(l3)?;
        let (mut next, mut at) = (ip.next_header, l3 + IPV6_LEN as u64);
        let mut is_fragment = false;
        for _ in 0..MAX_EXTENSIONS {
            if next == PROTO_TCP {
                break;
            }
            let word = packet.read::<u64>(at)?;
            if next == EXTENSION_FRAGMENT {
                let place = u16::from_be((word >> 16) as u16);
                if place >> 3 != 0 {
                    return None;
                }
                is_fragment |= place & 1 != 0;
                at += 8;
            } else if next == EXTENSION_HOP_BY_HOP
                || next == EXTENSION_ROUTING
                || next == EXTENSION_DESTINATION
            {
                at += ((word >> 8 & 0xff) + 1) * 8;
            } else {
                return None;
            }
            next = word as u8;
            at = packet.forgotten(at);
            if at > MAX_AT {
                return None;
            }
        }
        if next != PROTO_TCP {
            return None;
        }
        let len = u64::from(u16::from_be(ip.payload_length)) + l3 + IPV6_LEN as u64;
        (at, len.wrapping_sub(at), is_fragment)
    };
    let headers = Headers {
        l3,
        l4: at,
        l4_len,
        v6: version != 4,
        udp: false,
        ports: packet.read(at)?,
        addresses,
    };
    Some((headers, is_fragment))
}

/// The offset in an IPv4 header's field.
const OFFSET: u16 = 0x1fff;

/// What is sent in the place of the segment has no such headers.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn prestack_hits_bare() -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    // SAFETY: this CPU's scratch.
    unsafe {
        let (numbered, located) = (&raw mut (*scratch).numbered, &raw mut (*scratch).located);
        let len = if (*numbered).v6 != 0 {
            IPV6_LEN
        } else {
            IPV4_LEN
        };
        (*numbered).l4 = (*numbered).l3 + len as u64;
        (*located).headers.l4 = (*numbered).l4;
    }
    0
}
