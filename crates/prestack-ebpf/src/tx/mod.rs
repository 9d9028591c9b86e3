//! Packets on their way from memcached: replies to GETs fill the cache, replies to writes end them.

pub mod learn;
mod shown;

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::programs::TcContext;
use prestack_proto::net::UDP_LEN;
use prestack_proto::udp::Frame;
use prestack_proto::window::Source;

use crate::aside;
use crate::hits;
use crate::inbound::Inbound as _;
use crate::ledger::backend::{self, Arrival};
use crate::ledger::requests;
use crate::packet::{Headers, Packet, Sort};
use crate::tcp::replies;

/// "No opinion": the next program or the stack goes on with the packet (`TCX_NEXT` has the same
/// value).
pub const NEXT: i32 = TC_ACT_UNSPEC;

/// A packet from memcached, the door it leaves by and its headers.
#[inline(always)]
pub fn reply(ctx: &TcContext) -> Option<(Packet, Headers, Arrival)> {
    let config = backend::config()?;
    let packet = ctx.packet(config);
    let Sort::Plain(mut headers) = ctx.locate(packet) else {
        return None;
    };
    if !backend::is_port(config, headers.source_port()) {
        return None;
    }
    let door = backend::door(config, &headers.addresses.source, headers.source_port())?;
    headers.l4 = packet.forgotten(headers.l4);
    if headers.l4 > 0xff {
        return None;
    }
    Some((packet, headers, door))
}

/// Looks at a packet; it always goes on unchanged.
#[inline(always)]
pub fn packet(ctx: &TcContext) -> i32 {
    if aside::is_on() {
        return NEXT;
    }
    match replies::express::follow(ctx) {
        replies::express::OTHER => {}
        what => return hits::leave(ctx, what),
    }
    let Some((packet, headers, door)) = reply(ctx) else {
        return NEXT;
    };
    if !headers.udp {
        if door.has_tcp(headers.v6) {
            replies::hand_over(ctx);
        } else {
            // It may be another host's, or another process's: nothing is learnt. A connection that is translated is
            // all the same, although its address is no door of its own any more.
            hits::hand_over(ctx);
        }
        return NEXT;
    }
    if !door.has_udp() {
        return NEXT;
    }
    if packet.at::<u64>(headers.l4 + UDP_LEN as u64).is_some() {
        backend::has_answered_udp(door.backend);
    }
    // One step after the other, not one in the other: together their stacks would be too large.
    if datagram(ctx, packet, &headers, door) {
        learn::learn();
    }
    NEXT
}

/// Takes note of a datagram from memcached. True if there is something to be learnt from it.
#[inline(always)]
pub fn datagram(ctx: &TcContext, packet: Packet, headers: &Headers, door: Arrival) -> bool {
    let Some(config) = backend::config() else {
        return false;
    };
    let (Some(udp_len), Some(frame)) = (
        packet.read::<u16>(headers.l4 + 4),
        packet.read(headers.l4 + UDP_LEN as u64),
    ) else {
        return false;
    };
    let frame = Frame(frame);
    let name = requests::name_of_reply(
        config,
        door.backend,
        &headers.addresses,
        headers.ports,
        frame.id(),
    );
    let udp_len = u64::from(u16::from_be(udp_len));
    learn::take_note(ctx, headers, udp_len, frame, name)
}
