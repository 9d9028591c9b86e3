//! Packets on their way to memcached.

pub mod allow;
mod answer;
pub mod checksum;
pub mod command;
mod commands;
mod datagram;
mod express;
mod get;
pub mod item;
pub mod keys;
pub mod link;
pub mod local;
mod odd;
mod rate;
pub mod reply;
pub mod room;
mod single;
mod udp;

use aya_ebpf::bindings::xdp_action::XDP_PASS;
use aya_ebpf::programs::XdpContext;
use prestack_abi::config::{Config, MAPPED_V4};
use prestack_proto::net::{ETHERNET_LEN, VLAN_LEN};
use prestack_proto::window::Source;

use crate::aside;
use crate::hits::{self, element};
use crate::inbound::Inbound;
use crate::ledger::backend::{self, Arrival};
use crate::ledger::requests;
use crate::packet::{Headers, Packet, Sort};
use crate::tcp::requests as segments;

/// Greatest position of an IP header: behind two VLAN tags.
const MAX_L3: u64 = (ETHERNET_LEN + 2 * VLAN_LEN) as u64;
/// Greatest position of a UDP or TCP header: behind IPv4 options.
const MAX_L4: u64 = MAX_L3 + 60;

/// Decides on a packet: the action for the kernel.
#[inline(always)]
pub fn packet(ctx: &XdpContext) -> u32 {
    match express::answer(ctx) {
        express::OTHER => {}
        get::MISS => {
            get::missed();
            requests::settle_doubted();
            return XDP_PASS;
        }
        express::ASIDE => {
            aside::arrives(ctx);
            return XDP_PASS;
        }
        segment @ (express::SEGMENT | express::BARE_SEGMENT) => {
            segments::hand_over_plain(ctx, segment == express::BARE_SEGMENT);
            return XDP_PASS;
        }
        action => return action,
    }
    let Some(config) = backend::config() else {
        return XDP_PASS;
    };
    let packet = ctx.packet(config);
    match ctx.locate(packet) {
        Sort::Foreign => {
            if element::is_on(config) {
                hits::hear(ctx);
            }
            XDP_PASS
        }
        Sort::Short => {
            // Of what cannot be read, anything may be a write.
            if !ctx.is_whole(packet.len()) {
                backend::forget_all();
            }
            XDP_PASS
        }
        Sort::Plain(headers) => {
            let Some((headers, door)) = arrival::<XdpContext>(config, packet, headers) else {
                return XDP_PASS;
            };
            if headers.udp {
                udp::datagram(ctx, packet, config, door, &headers)
            } else {
                segments::hand_over(ctx, packet, config, door, &headers);
                XDP_PASS
            }
        }
        Sort::Options(_) | Sort::Veiled(_) => {
            odd::heed(ctx);
            translate(ctx, config);
            XDP_PASS
        }
    }
}

/// It may be a segment of a connection on which requests are answered.
#[inline(always)]
fn translate(ctx: &XdpContext, config: &Config) {
    if element::is_on(config) {
        ctx.hand_over_hits();
    }
}

/// The packet of `ctx` once more, if it is a plain one for a backend: functions that the verifier
/// checks on their own are handed the context alone.
#[inline(always)]
pub fn again<C: Inbound>(ctx: &C) -> Option<(&'static Config, Packet, Headers, Arrival)> {
    let config = backend::config()?;
    let packet = ctx.packet(config);
    let Sort::Plain(headers) = ctx.locate(packet) else {
        return None;
    };
    let (headers, door) = arrival::<C>(config, packet, headers)?;
    Some((config, packet, headers, door))
}

/// The door at which a packet arrives, if it is for a backend, and its headers, all paths to
/// which meet here for the verifier.
#[inline(always)]
pub fn arrival<C: Inbound>(
    config: &Config,
    packet: Packet,
    headers: Headers,
) -> Option<(Headers, Arrival)> {
    let [a, b, c, _] = headers.addresses.destination;
    if headers.v6 && a == 0 && b == 0 && c == MAPPED_V4 {
        // The kernel drops what claims to be IPv4 in IPv6.
        return None;
    }
    let port = headers.destination_port();
    if !backend::is_port(config, port) {
        return None;
    }
    let mut door = backend::door(config, &headers.addresses.destination, port)?;
    if C::IS_LOCAL {
        door = door.locally();
    }
    let l3 = packet.forgotten(headers.l3);
    let l4 = packet.forgotten(headers.l4);
    let l4_len = packet.forgotten(headers.l4_len);
    if l3 > MAX_L3 || l4 > MAX_L4 || l4_len > C::MAX_L4_LEN {
        return None;
    }
    Some((
        Headers {
            l3,
            l4,
            l4_len,
            ..headers
        },
        door,
    ))
}
