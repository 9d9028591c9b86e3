//! Packets on their way from memcached: replies to GETs fill the cache, replies to writes end them.

pub mod learn;
mod shown;

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::programs::TcContext;
use prestack_abi::config::Door;
use prestack_proto::udp::Frame;
use prestack_proto::window::Source;

use crate::ledger::backend::{self, Arrival};
use crate::ledger::requests;
use crate::packet::{Headers, Packet, Sort, locate};
use crate::tcp::replies;

/// "No opinion": the next program or the stack goes on with the packet (`TCX_NEXT` has the same
/// value).
pub const NEXT: i32 = TC_ACT_UNSPEC;

/// A packet from memcached, the door it leaves by and its headers.
#[inline(always)]
pub fn reply(ctx: &TcContext) -> Option<(Packet, Headers, Arrival)> {
    let config = backend::config()?;
    let packet = Packet::between(ctx.data(), ctx.data_end(), config);
    let Sort::Plain(mut headers) = locate(packet) else {
        return None;
    };
    if !backend::is_port(config, headers.source_port()) {
        return None;
    }
    let door = backend::door(config, &headers.addresses.source, headers.source_port())?;
    // It may be from another host behind this one.
    if door.flags & Door::ANY_ADDRESS != 0 {
        return None;
    }
    headers.l4 = packet.forgotten(headers.l4);
    if headers.l4 > 0xff {
        return None;
    }
    Some((packet, headers, door))
}

/// Looks at a packet; it always goes on unchanged.
#[inline(always)]
pub fn packet(ctx: &TcContext) -> i32 {
    let (Some(config), Some((packet, headers, door))) = (backend::config(), reply(ctx)) else {
        return NEXT;
    };
    if !headers.udp {
        replies::hand_over(ctx);
        return NEXT;
    }
    let (Some(udp_len), Some(frame)) = (
        packet.read::<u16>(headers.l4 + 4),
        packet.read(headers.l4 + 8),
    ) else {
        return NEXT;
    };
    let frame = Frame(frame);
    let name = requests::name_of_reply(
        config,
        door.backend,
        &headers.addresses,
        headers.ports,
        frame.id(),
    );
    backend::has_answered_udp(door.backend);
    let udp_len = u64::from(u16::from_be(udp_len));
    // One step after the other, not one in the other: together their stacks would be too large.
    if learn::take_note(ctx, &headers, udp_len, frame, name) {
        learn::learn();
    }
    NEXT
}
