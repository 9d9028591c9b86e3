//! Turning a packet into an answer: the one that it asks for, or the last one, which was lost.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_TX};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::generated::bpf_xdp_store_bytes;
use aya_ebpf::programs::XdpContext;
use prestack_proto::checksum::{fold, window_sum_from};
use prestack_proto::net::{PROTO_TCP, TCP_ACK, TCP_LEN, TCP_PSH};
use prestack_proto::window::Window;

use super::element::{self, locked};
use super::numbered::{Numbered, TIMESTAMPS_LEN, USUAL_OPTIONS};
use super::requests::owes_nothing;
use super::{growth, kept};
use crate::clock;
use crate::inbound::Inbound as _;
use crate::ledger::backend;
use crate::maps::count;
use crate::packet::{Headers, Packet};
use crate::rx::checksum::pseudo_header;
use crate::rx::reply::write_network;
use crate::rx::room::{self, Room};
use crate::scratch::scratch;
use crate::tcp::flow;

/// Turns the packet into what is sent in its place ([`AGAIN`] and the following), whose answer is in the scratch. A new
/// one is given if it may be. The action for the kernel, or 0, and the packet is as it was.
///
/// A global function (by its unmangled name), as those that follow: the verifier checks it once.
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn prestack_hits_turn(ctx: *mut xdp_md, kind: u64) -> u64 {
    turn(&XdpContext::new(ctx), kind).map_or(0, u64::from)
}

/// What is sent: the last answer, or an acknowledgement; a new answer; one whose sum is in the scratch.
pub const AGAIN: u64 = 0;
pub const NEW: u64 = 1;
pub const SUMMED: u64 = 2;

#[inline(always)]
fn turn(ctx: &XdpContext, kind: u64) -> Option<u32> {
    let is_new = kind != AGAIN;
    let (scratch, config) = (scratch()?, backend::config()?);
    // SAFETY: this CPU's scratch.
    let (numbered, headers) = unsafe { (&(*scratch).numbered, &(*scratch).located.headers) };
    let options = if numbered.has_timestamps != 0 {
        TIMESTAMPS_LEN
    } else {
        0
    };
    let header_len = TCP_LEN as u64 + options;
    let at = headers.l4 + header_len;
    let len = numbered.answer;
    let packet = ctx.packet(config);
    if is_new && at - headers.l3 + len > u64::from(config.mtu) {
        count!(tcp_misses);
        return None;
    }
    let Some(room) = Room::make(ctx, config, packet, None, at, at + len) else {
        if is_new {
            growth::refuse(ctx, scratch, (at + len).wrapping_sub(packet.len()));
            count!(tcp_misses);
        }
        return None;
    };
    if is_new && prestack_hits_commit() == 0 {
        room.undo_growth(ctx);
        return None;
    }
    let moved = room.move_headers(headers.l4);
    let stored = if len == 0 {
        0
    } else {
        // SAFETY: the program's context; the window of this CPU's scratch is longer than an answer.
        unsafe {
            let from = (*scratch).answer.start().cast();
            bpf_xdp_store_bytes(ctx.ctx, at as u32, from, Window::size(len))
        }
    };
    let packet = ctx.packet(config);
    let sum = if kind == SUMMED {
        numbered.sum
    } else {
        prestack_hits_sum_answer(len)
    };
    let written = write_network(packet, headers, header_len + len, PROTO_TCP)
        .and_then(|()| write_header(packet, headers, numbered, options, len, sum));
    if moved.is_none() || stored != 0 || written.is_none() {
        // There is room, so this cannot be; the request is no longer whole, so it cannot pass. The client sends
        // it again, and then gets the answer.
        return Some(XDP_DROP);
    }
    room::cut_to_frame(ctx, packet, at + len);
    if is_new {
        count!(tcp_hits);
    } else {
        count!(tcp_resent);
    }
    Some(XDP_TX)
}

/// Writes the TCP header.
#[inline(always)]
fn write_header(
    packet: Packet,
    headers: &Headers,
    numbered: &Numbered,
    options: u64,
    len: u64,
    sum_of_answer: u64,
) -> Option<()> {
    let reply = &numbered.reply;
    let header_len = TCP_LEN as u64 + options;
    let flags = if len == 0 { TCP_ACK } else { TCP_ACK | TCP_PSH };
    let window = u32::from((reply.window as u16).to_be());
    let fields = [
        headers.ports.rotate_left(16),
        reply.sequence.to_be(),
        reply.acknowledgement.to_be(),
        (header_len as u32 / 4) << 4 | u32::from(flags) << 8 | window << 16,
    ];
    // It does not matter which address is the source's.
    let mut sum = pseudo_header(&headers.addresses, (header_len + len) as u16, PROTO_TCP);
    for field in fields {
        sum += u64::from(field);
    }
    sum += sum_of_answer;
    if options != 0 {
        let words = packet.at::<[u32; 3]>(headers.l4 + TCP_LEN as u64)?;
        let new = [USUAL_OPTIONS, reply.timestamp.to_be(), reply.echo.to_be()];
        for field in new {
            sum += u64::from(field);
        }
        // SAFETY: `at` checked the length.
        unsafe { *words = new };
    }
    let tcp = packet.at::<[u32; 5]>(headers.l4)?;
    // SAFETY: as above.
    unsafe {
        *tcp = [
            fields[0],
            fields[1],
            fields[2],
            fields[3],
            u32::from(!fold(sum)),
        ]
    };
    Some(())
}

/// The one's-complement sum of the first `len` bytes of the answer.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_hits_sum_answer(len: u64) -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    // SAFETY: this CPU's scratch.
    u64::from(window_sum_from(unsafe { &(*scratch).answer }, 0, len))
}

/// Gives the answer in the scratch to the requests of the segment: 0 if that may not be. Its header is then in the
/// scratch, and it counts as sent.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_hits_commit() -> u64 {
    let (Some(scratch), Some(config)) = (scratch(), backend::config()) else {
        return 0;
    };
    let now = clock::now();
    // SAFETY: this CPU's scratch.
    let (numbered, answer) = unsafe { (&mut (*scratch).numbered, &(*scratch).answer) };
    let place = numbered.place;
    let (Some(element), Some(flow), Some(rest)) = (
        element::at(place),
        flow::at(place),
        kept::rest(config, place),
    ) else {
        return 0;
    };
    let (segment, policy) = (numbered.segment, config.policy);
    let len = numbered.answer as u32;
    let was_active = locked(element, |element, ends, translation| {
        if !translation.may_serve(ends, &policy, &segment, now) || !owes_nothing(flow, ends) {
            return REFUSED;
        }
        let was_active = translation.is_active;
        let Some(reply) = translation.serve(ends, &policy, &segment, len, now) else {
            return REFUSED;
        };
        numbered.reply = reply;
        kept::keep(element, rest, answer, len.into());
        // SAFETY: a map element that is locked.
        unsafe { (*element).answers += 1 };
        was_active
    });
    if was_active == REFUSED {
        return 0;
    }
    if was_active == 0 {
        count!(flows_translated);
    }
    1
}

/// It may not be given.
const REFUSED: u32 = u32::MAX;
