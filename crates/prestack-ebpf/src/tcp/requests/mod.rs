//! The stream of a flow's requests.

mod chunks;
mod commands;
pub mod express;
mod plan;
mod shown;
mod steps;

use prestack_abi::config::Config;
use prestack_abi::flow::Flow;
use prestack_proto::net::{TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN};

pub use chunks::CHUNK;
use chunks::prestack_tcp_carry;
use commands::prestack_tcp_walk;
use plan::{AGAIN, COMPARE, EARLY, PARSE, STRAY, prestack_tcp_begin};
pub use steps::Steps;

use super::flow::{self, Beginning};
use super::segment::Segment;
use super::socket::{self, Taker};
use super::{doubt, hole, is_before, later, table, take_back};
use crate::atomic;
use crate::cache::fence;
use crate::clock;
use crate::hits::element;
use crate::inbound::Inbound;
use crate::ledger::backend::{self, Arrival};
use crate::maps::count;
use crate::packet::{Headers, Packet};
use crate::rx::again;
use crate::scratch::scratch;

/// Most chunks of a segment ([`Segment::MAX_LEN`]), and of what was kept behind it.
const MAX_CHUNKS: usize = 544;

/// Hands a segment over to the program that follows flows, if it has data or ends its flow.
#[inline(always)]
pub fn hand_over<C: Inbound>(
    ctx: &C,
    packet: Packet,
    config: &Config,
    door: Arrival,
    headers: &Headers,
) {
    let Some(segment) = Segment::read(packet, headers, door.backend, false) else {
        // What has no whole header the kernel drops.
        if !ctx.is_whole(packet.len()) {
            backend::forget(config, door.backend);
        }
        return;
    };
    hand_over_plain(ctx, segment.len == 0 && !segment.has(TCP_FIN | TCP_RST));
}

/// [`hand_over`] of a segment whose headers have been read; `is_bare` if it neither has data nor ends its flow.
#[inline(always)]
pub fn hand_over_plain<C: Inbound>(ctx: &C, is_bare: bool) {
    if backend::config().is_some_and(element::is_on) {
        ctx.hand_over_hits();
    }
    // Most segments without data are acknowledgements.
    if !is_bare {
        ctx.hand_over();
        // There is none, because user space has let it go.
        backend::forget_all();
    }
}

/// Follows a flow by a segment that has data, or that ends it; the segment passes in any case.
#[inline(always)]
pub fn segment<C: Steps>(ctx: &C) {
    // The steps are side by side, not one in the other: together their stacks would be too large.
    match ctx.arrive() {
        KNOWN => {}
        UNKNOWN if ctx.adopt() != 0 => {}
        _ => return,
    }
    let mut plan = prestack_tcp_begin();
    if plan == AGAIN && ctx.trim() != 0 {
        plan = prestack_tcp_begin();
    }
    match plan {
        PARSE => {}
        EARLY => {
            return match hole::prestack_tcp_claim() {
                hole::KEEP => ctx.keep(),
                hole::KNOWN => ctx.compare(),
                _ => {
                    prestack_tcp_finish();
                }
            };
        }
        COMPARE => return ctx.compare(),
        STRAY => return ctx.stray(),
        _ => return,
    }
    let mut is_kept = 0;
    for _ in 0..MAX_CHUNKS {
        if ctx.load_chunk(is_kept) == 0 {
            prestack_tcp_end();
            // What has come before may go on here.
            if hole::prestack_tcp_resume() == 0 {
                break;
            }
            is_kept = 1;
            continue;
        }
        prestack_tcp_walk();
        prestack_tcp_carry();
    }
    prestack_tcp_finish();
}

/// Finds the flow of the segment in the packet, which is then in the scratch's `segment`. Returns [`KNOWN`]
/// or [`UNKNOWN`]; 0 if there is nothing more to do.
#[inline(always)]
fn arrive<C: Inbound>(ctx: &C) -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    let Some((config, packet, headers, door)) = again(ctx) else {
        return 0;
    };
    let Some(mut segment) = Segment::read(packet, &headers, door.backend, false) else {
        return 0;
    };
    // A connection attempt; with data the kernel drops it, unless Fast Open is on for all.
    if segment.has(TCP_SYN) {
        if segment.len != 0 && config.has_fast_open != 0 {
            backend::forget(config, door.backend);
        }
        return 0;
    }
    if segment.len != 0 {
        count!(tcp_passed);
    }
    let name = segment.name(config);
    let mut is_known = false;
    if let Some(known) = table::find(name, clock::now()) {
        is_known = !known.is_half_open
            || (has_got_syn_ack(known.place, &segment) && flow::establish(name, known.place));
        segment.flow = known.place;
    }
    // SAFETY: this CPU's scratch.
    unsafe { (&raw mut (*scratch).segment).write_volatile(segment) };
    if is_known && !door.has_tcp(headers.v6) {
        // What leaves there is not followed any more (its address is no door of its own), so nothing is certain.
        backend::forget(config, door.backend);
        0
    } else if is_known {
        KNOWN
    } else if segment.len == 0 || segment.has(TCP_RST) {
        // A reset or the end of what is not known is no loss.
        0
    } else {
        UNKNOWN
    }
}

/// What [`arrive`] returns: the segment's flow is in the table, or it may be a connection's that is not.
const KNOWN: u64 = 1;
const UNKNOWN: u64 = 2;

/// Whether a segment of a half-open flow shows that its client has got the SYN-ACK: it acknowledges exactly
/// that, and lies in the window.
#[inline(always)]
fn has_got_syn_ack(place: u32, segment: &Segment) -> bool {
    let Some(flow) = flow::at(place) else {
        return false;
    };
    // SAFETY: a map element. If it is another flow's by now, it will not be established.
    let (sent, edge) = unsafe {
        (
            (&raw const (*flow).sent).read_volatile(),
            (&raw const (*flow).edge).read_volatile(),
        )
    };
    segment.has(TCP_ACK)
        && !segment.has(TCP_RST)
        && segment.acknowledgement == sent
        && !is_before(edge, segment.sequence)
}

/// Takes up the flow of the segment in the packet and in the scratch, if the host has a connection for it. 0
/// if there is nothing more to do.
#[inline(always)]
fn adopt<C: Inbound>(ctx: &C) -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    let Some((config, packet, headers, door)) = again(ctx) else {
        return 0;
    };
    // SAFETY: this CPU's scratch.
    let segment = unsafe { &mut (*scratch).segment };
    let beginning = match socket::taker(ctx, packet, &headers, segment) {
        Taker::Nobody => {
            count!(strays);
            return 0;
        }
        Taker::Fresh { next, sent } => Beginning::Fresh { next, sent },
        Taker::Midway => Beginning::Midway,
        Taker::Part => Beginning::Part,
    };
    let place = if door.has_tcp(headers.v6) {
        take_up(config, segment, beginning)
    } else {
        None
    };
    let Some(place) = place else {
        backend::forget(config, door.backend);
        return 0;
    };
    segment.flow = place;
    1
}

/// The place of a flow that is taken up.
#[inline(always)]
fn take_up(config: &Config, segment: &Segment, beginning: Beginning) -> Option<u32> {
    let place = flow::begin(config, segment, beginning)?;
    let name = segment.name(config);
    // It may have been there as half-open, with a window that has become wider since.
    if let Some(known) = table::find(name, clock::now())
        && known.is_half_open
        && flow::establish(name, place)
        && let Some(flow) = flow::at(place)
    {
        // SAFETY: a map element.
        unsafe {
            let edge = (*flow).next.wrapping_add(flow::GREATEST_WINDOW);
            (&raw mut (*flow).edge).write_volatile(edge);
            if matches!(beginning, Beginning::Part) {
                (*flow).doubt |= Flow::PART;
            }
            let has_other_numbers = match beginning {
                Beginning::Fresh { next, sent } => next != (*flow).next || sent != (*flow).sent,
                _ => false,
            };
            if has_other_numbers {
                // It is the connection of another SYN of that name: with SYN cookies the host agrees to several.
                (&raw mut (*flow).is_seen).write_volatile(0);
                (*flow).next = segment.sequence;
            }
            if has_other_numbers || matches!(beginning, Beginning::Midway | Beginning::Part) {
                doubt::requests(config, flow);
            }
        }
    }
    Some(place)
}

/// Leaves out of the segment in the scratch, which was seen before, or some of it, what the kernel has got: of another copy
/// of that nothing becomes. 0 if nothing is left.
#[inline(always)]
fn trim<C: Inbound>(ctx: &C) -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    // SAFETY: this CPU's scratch.
    let segment = unsafe { &mut (*scratch).segment };
    segment.is_asked = 1;
    let (Some(flow), Some(got)) = (flow::at(segment.flow), socket::received(ctx, &segment.key))
    else {
        return 1;
    };
    // After that: it moves on before the kernel gets anything.
    fence();
    // SAFETY: a map element.
    let next = unsafe { (&raw const (*flow).next).read_volatile() };
    if is_before(next, got) {
        // The kernel has got what was not seen.
        return 1;
    }
    let end = segment.end();
    let is_all = !is_before(got, end);
    if is_all && !segment.has(TCP_FIN) {
        return 0;
    }
    let got = if is_all { end } else { got };
    // The rest of what was seen is looked at as a whole: there the state is known only where segments began.
    if got == next && is_before(segment.sequence, got) {
        let known = got.wrapping_sub(segment.sequence);
        segment.sequence = got;
        segment.data += u64::from(known);
        segment.len = segment.len.wrapping_sub(u64::from(known)) & Segment::MAX_LEN;
    }
    1
}

/// The segment in the packet and in the scratch lies outside of what was seen of its flow. If the host's connection
/// takes it all the same, replies have left where they are not seen, and nothing of it is certain any more.
#[inline(always)]
fn stray<C: Inbound>(ctx: &C) -> u64 {
    let (Some(scratch), Some(config)) = (scratch(), backend::config()) else {
        return 0;
    };
    // SAFETY: this CPU's scratch.
    let segment = unsafe { &(*scratch).segment };
    if segment.len == 0 || segment.has(TCP_RST) || !socket::takes(ctx, segment) {
        count!(strays);
        return 0;
    }
    let Some(flow) = flow::at(segment.flow) else {
        return 0;
    };
    // SAFETY: a map element.
    unsafe {
        if (*flow).state == Flow::CLOSED {
            // What has reset it was a filter's, in the socket's name.
            flow::reopen(config, flow, segment.flow);
        }
        (&raw mut (*flow).is_seen).write_volatile(0);
        doubt::all(config, flow, segment.end());
        (&raw mut (*flow).next).write_volatile(later((*flow).next, segment.end()));
    }
    0
}

/// The segment has been gone over.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_tcp_end() -> u64 {
    let (Some(scratch), Some(config)) = (scratch(), backend::config()) else {
        return 0;
    };
    // SAFETY: this CPU's scratch.
    let (segment, odd) = unsafe {
        (
            (&raw const (*scratch).segment).read_volatile(),
            (&raw const (*scratch).walk.odd).read_volatile(),
        )
    };
    let Some(flow) = flow::at(segment.flow) else {
        return 0;
    };
    // SAFETY: a map element.
    unsafe {
        let is_odd = odd != 0 || segment.at != segment.len;
        let is_repeat = (*flow).is_repeat;
        let differs = is_repeat != 0 && !take_back::end(flow, segment.end());
        if is_odd || differs {
            let until = later((*flow).next, segment.end());
            if is_before((*flow).doubted_until, until) || (*flow).doubted_until == 0 {
                (&raw mut (*flow).doubted_until).write_volatile(until);
            }
            doubt::requests(config, flow);
        }
        if is_repeat == Flow::EARLIER {
            return 0;
        }
        let fin = u32::from(segment.has(TCP_FIN));
        seen(flow, segment.end().wrapping_add(fin), clock::now());
    }
    0
}

/// What comes before `next` has come.
///
/// # Safety
///
/// `flow` is an element of `FLOWS`.
#[inline(always)]
unsafe fn seen(flow: *mut Flow, next: u32, now: u64) {
    // SAFETY: the caller's.
    unsafe {
        if (&raw const (*flow).acked).read_volatile() == (*flow).next {
            (&raw mut (*flow).unacked_since).write_volatile(now);
        }
        (&raw mut (*flow).next).write_volatile(next);
        fence();
        // An acknowledgement of all that was there before may be on its way at this moment.
        if (&raw const (*flow).quiet_at).read_volatile() != 0 {
            // Read when others see `next`.
            atomic::replace(&raw mut (*flow).acked_before, u64::MAX, now);
        } else if (&raw const (*flow).acked_before).read_volatile() == u64::MAX {
            (&raw mut (*flow).acked_before).write_volatile(now);
        }
    }
}

/// Nothing more is to be done to the requests of the segment's flow.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_tcp_finish() -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    // SAFETY: this CPU's scratch.
    let place = unsafe { (&raw const (*scratch).segment.flow).read_volatile() };
    if let Some(flow) = flow::at(place) {
        // SAFETY: a map element.
        unsafe { (&raw mut (*flow).busy).write_volatile(0) };
    }
    0
}
