//! The express way: GETs over UDP and IPv4 without tags or options, through the first door, link and
//! network of the configuration, which on most hosts are those of nearly all traffic.
//!
//! It does what the other steps do for any request, with every header in registers: positions are
//! constants, so that one check covers all headers, and what was read once is not read again. The reply
//! is written over the request. Whatever is not just so is left to the other steps, as it came and with
//! nothing done.
//!
//! TCP segments through that door are only told from each other: which of the other programs they are for.

mod get;
mod head;
mod in_place;
mod item;
mod keys;
mod line;
mod part;

use aya_ebpf::bindings::xdp_action::XDP_PASS;
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use prestack_abi::config::{Config, Door, Link, MAPPED_V4};
use prestack_proto::net::{
    ETHERNET_LEN, IPV4_LEN, PROTO_TCP, PROTO_UDP, TCP_FIN, TCP_LEN, TCP_RST, UDP_LEN,
};
use prestack_proto::udp::FRAME_LEN;

use self::head::Head;
use super::allow::is_spoof_prone;
use super::reply::PAYLOAD_AT;
use crate::aside;
use crate::hits::element;
use crate::inbound::Inbound;
use crate::ledger::backend;
use crate::maps::count;

/// Position of the UDP header.
const L4: u64 = (ETHERNET_LEN + IPV4_LEN) as u64;
/// Position of the payload.
const PAYLOAD: u64 = L4 + PAYLOAD_AT;
/// Length of the shortest packet that is looked at: `get `, a key of one byte and the line end.
const SHORTEST: u64 = PAYLOAD + get::AROUND_KEY + 1;
/// Words before the payload, and its first six bytes.
const HEADER_WORDS: usize = 7;

/// `get `, `mg ` and the line end as they are read.
const GET: u32 = u32::from_le_bytes(*b"get ");
const META_GET: u32 = u32::from_le_bytes(*b"mg \0");
const CRLF: u16 = u16::from_le_bytes(*b"\r\n");

/// The request is left to the other steps.
pub const OTHER: u32 = 0x200;
/// The datapath stands aside.
pub const ASIDE: u32 = 0x203;
/// It is a TCP segment for memcached, without data, or with some, or one that ends its flow: see
/// [`hand_over`](crate::tcp::requests::hand_over).
pub const BARE_SEGMENT: u32 = 0x204;
pub const SEGMENT: u32 = 0x205;
/// The headers are all right, and what follows is no plain GET: it may be a binary GET or an `mg`, or else
/// a `gets` or a `get` of several keys.
const ITEM: u32 = 0x201;
const KEYS: u32 = 0x202;

const _: () = assert!(L4 == 34 && PAYLOAD == 50 && L4 == ETHERNET_LEN as u64 + 20);
const _: () = assert!(FRAME_LEN == 8 && UDP_LEN == 8);

/// Answers the packet, or lets it through: the action for the kernel,
/// [`MISS`](super::get::MISS), [`OTHER`] or one of the other numbers here.
#[inline(always)]
pub fn answer(ctx: &XdpContext) -> u32 {
    // SAFETY: functions of ours, called with the program's context.
    unsafe {
        let found = match prestack_express(ctx.ctx) as u32 {
            ITEM => prestack_express_item(ctx.ctx),
            KEYS => prestack_express_keys(ctx.ctx),
            action => return action,
        };
        if found == 0 { OTHER } else { serve(ctx, found) }
    }
}

/// The form of a GET, in the upper half of what the looking up returns; in the lower is the length of the
/// reply. 0 in all if it is left to the other steps.
const BINARY: u64 = 1;
const META: u64 = 2;
const TEXT: u64 = 3;

/// Sends the reply to a GET that is no plain one, and whose keys were found; [`OTHER`] if it is left to the
/// other steps.
#[inline(always)]
fn serve(ctx: &XdpContext, found: u64) -> u32 {
    let (form, reply_len) = (found >> 32, found & 0xffff);
    // SAFETY: functions of ours, called with the program's context.
    unsafe {
        let room = in_place::prestack_express_room(ctx.ctx, reply_len);
        if room == 0 {
            return OTHER;
        }
        let action = if form == BINARY {
            item::prestack_express_binary(ctx.ctx, reply_len)
        } else if form == META {
            item::prestack_express_meta(ctx.ctx, reply_len)
        } else {
            keys::prestack_express_blocks(ctx.ctx, reply_len)
        };
        if action == LOST {
            count!(races);
            in_place::prestack_express_put_back(ctx.ctx, room);
            return OTHER;
        }
        action as u32
    }
}

/// What the writing of a reply returns if a writer has come between, else an action for the kernel.
const LOST: u64 = 0x300;

/// A global function (by its unmangled name), as those that follow: the verifier checks each on its own.
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn prestack_express(ctx: *mut xdp_md) -> u64 {
    u64::from(express(&XdpContext::new(ctx)).unwrap_or(OTHER))
}

/// Looks up what a binary GET or an `mg` asks for, whose headers have been checked.
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn prestack_express_item(ctx: *mut xdp_md) -> u64 {
    item::look_up(&XdpContext::new(ctx)).unwrap_or(0)
}

/// The same for a `gets`, and a `get` of several keys.
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn prestack_express_keys(ctx: *mut xdp_md) -> u64 {
    keys::look_up(&XdpContext::new(ctx)).unwrap_or(0)
}

#[inline(always)]
fn express(ctx: &XdpContext) -> Option<u32> {
    let config = backend::config()?;
    if aside::is_set(config) {
        return Some(ASIDE);
    }
    let packet = ctx.packet(config);
    if !packet.reaches(SHORTEST) {
        return None;
    }
    // SAFETY: just checked.
    let head = unsafe { Head::read(packet) };
    if !head.is_ipv4() {
        return None;
    }
    let door = &config.doors[0];
    let port = (head.ports() >> 16) as u16;
    if port != door.port {
        return is_dull(config, &head, port).then_some(XDP_PASS);
    }
    let at_door = u64::from(door.address[3] ^ head.destination())
        | u64::from(door.address[2] ^ MAPPED_V4)
        | u64::from(door.flags & Door::ANY_ADDRESS)
        | u64::from(door.address[0] | door.address[1]);
    if head.protocol() == PROTO_TCP {
        if at_door != 0 || config.doors_len == 0 {
            return None;
        }
        return segment(config, &head);
    }
    let udp_len = head.udp_len();
    if !head.is_request()
        || packet.len() != L4 + udp_len
        || head.total_len() != udp_len + IPV4_LEN as u64
    {
        return None;
    }
    if at_door | u64::from((door.flags ^ Door::SERVED) & Door::SERVED_MASK) != 0
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
    get::answer(ctx, config, packet, &head, door.backend)
}

/// What is to become of a TCP segment for memcached.
#[inline(always)]
fn segment(config: &Config, head: &Head) -> Option<u32> {
    let header_len = head.tcp_header_len();
    if header_len < TCP_LEN as u64 || IPV4_LEN as u64 + header_len > head.total_len() {
        return None;
    }
    let is_bare = head.total_len() == IPV4_LEN as u64 + header_len
        && head.tcp_flags() & (TCP_FIN | TCP_RST) == 0;
    Some(match (is_bare, element::is_on(config)) {
        (false, _) => SEGMENT,
        (true, true) => BARE_SEGMENT,
        // Most segments without data are acknowledgements.
        (true, false) => XDP_PASS,
    })
}

/// Whether a packet to this port is nobody's business here.
#[inline(always)]
fn is_dull(config: &Config, head: &Head, port: u16) -> bool {
    let protocol = head.protocol();
    // Without a length it is one that offloads have put together, of which the general steps decide.
    (protocol == PROTO_UDP || protocol == PROTO_TCP)
        && head.total_len() != 0
        && !backend::is_port(config, port)
}
