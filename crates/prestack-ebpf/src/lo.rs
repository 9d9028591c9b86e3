//! Packets that this host sends to itself, over `lo`: requests of its own processes to memcached, and the
//! replies.
//!
//! Both pass the egress of `lo`, where a TCP connection's segments come one after the other in either
//! direction, as the kernel holds their socket; at its ingress several CPUs may be at work on one
//! connection. Nothing is answered and nothing changed here.

use aya_ebpf::programs::TcContext;

use crate::aside;
use crate::inbound::Inbound as _;
use crate::ledger::backend;
use crate::packet::Sort;
use crate::rx;
use crate::tcp::{replies, requests};
use crate::tx;

/// Looks at a packet; it always goes on unchanged.
#[inline(always)]
pub fn packet(ctx: &TcContext) -> i32 {
    let Some(config) = backend::config() else {
        return tx::NEXT;
    };
    if aside::is_set(config) {
        aside::arrives(ctx);
        return tx::NEXT;
    }
    let packet = ctx.packet(config);
    match ctx.locate(packet) {
        Sort::Foreign => {}
        Sort::Short => {
            // Of what cannot be read, anything may be a write.
            if !ctx.is_whole(packet.len()) {
                backend::forget_all();
            }
        }
        Sort::Plain(headers) => {
            // This is all that other traffic costs.
            if !backend::is_port(config, headers.destination_port())
                && !backend::is_port(config, headers.source_port())
            {
                return tx::NEXT;
            }
            match rx::arrival::<TcContext>(config, packet, headers) {
                Some((headers, _)) if headers.udp => rx::local::datagram(ctx, packet, &headers),
                Some((headers, door)) => {
                    requests::hand_over(ctx, packet, config, door, &headers);
                }
                None => reply(ctx),
            }
        }
        Sort::Options(_) | Sort::Veiled(_) => rx::local::heed_odd(ctx),
    }
    tx::NEXT
}

/// Heeds a packet that may be memcached's.
#[inline(always)]
fn reply(ctx: &TcContext) {
    let Some((packet, headers, door)) = tx::reply(ctx) else {
        return;
    };
    if headers.udp {
        // It ends a write, perhaps. GETs over `lo` have no tickets.
        tx::datagram(ctx, packet, &headers, door);
    } else if door.locally().has_tcp(headers.v6) {
        replies::hand_over(ctx);
    }
}
