//! The stream of a flow's replies.

mod elements;
pub mod express;
mod leave;
mod looks;
mod open;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use prestack_proto::net::{TCP_ACK, TCP_FIN, TCP_LEN, TCP_RST, TCP_SYN};

use elements::prestack_tcp_go_over;
use leave::{prestack_tcp_leave, prestack_tcp_left, prestack_tcp_postpone, prestack_tcp_read};
use looks::{prestack_tcp_look, prestack_tcp_looked};
use open::{prestack_tcp_open, prestack_tcp_options};

use super::segment::Segment;
use super::{flow, table};
use crate::clock;
use crate::ledger::backend;
use crate::maps::TX_STEPS;
use crate::scratch::scratch;
use crate::tx::{self, learn};

/// Most looks at one packet: offloads make packets of 64 KiB of several.
const MAX_LOOKS: usize = 192;

/// Hands a segment from memcached over to the program that follows flows.
#[inline(always)]
pub fn hand_over(ctx: &TcContext) {
    // SAFETY: the program takes over; nothing is held here. If there is none because user space has let
    // it go, then `rx` has none either.
    unsafe { TX_STEPS.tail_call(ctx, 0) };
}

/// What is to be done with a segment.
const NOTHING: u64 = 0;
const OPEN: u64 = 1;
const FOLLOW: u64 = 2;

/// Looks at a segment from memcached; it always goes on unchanged.
#[inline(always)]
pub fn segment(ctx: &TcContext) -> i32 {
    // SAFETY: functions of ours, called with the program's context. They are side by side, not one in
    // the other: together their stacks would be too large.
    unsafe {
        let skb = ctx.skb.skb;
        let what = prestack_tcp_depart(skb);
        if what == OPEN {
            prestack_tcp_open(prestack_tcp_options(skb));
        }
        if what != FOLLOW {
            return tx::NEXT;
        }
        let read = prestack_tcp_read(skb);
        if prestack_tcp_leave(read) == 0 {
            prestack_tcp_postpone();
            return tx::NEXT;
        }
        for _ in 0..MAX_LOOKS {
            if prestack_tcp_look(skb) == 0 {
                break;
            }
            prestack_tcp_go_over();
            if prestack_tcp_looked() != 0 {
                learn::learn();
            }
        }
        prestack_tcp_left(read);
        prestack_tcp_postpone();
    }
    tx::NEXT
}

/// Puts the segment in the packet into the scratch's `segment`, and says what is to be done with it. A
/// global function (by its unmangled name), as those that follow: the verifier checks it once.
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn prestack_tcp_depart(ctx: *mut __sk_buff) -> u64 {
    let (Some(scratch), Some(config)) = (scratch(), backend::config()) else {
        return NOTHING;
    };
    let Some((packet, headers, door)) = tx::reply(&TcContext::new(ctx)) else {
        return NOTHING;
    };
    let Some(mut segment) = Segment::read(packet, &headers, door.backend, true) else {
        return NOTHING;
    };
    let mut what = FOLLOW;
    if segment.has(TCP_SYN) {
        if !segment.has(TCP_ACK) {
            return NOTHING;
        }
        segment.at = headers.l4 + TCP_LEN as u64;
        what = OPEN;
    } else {
        let name = segment.name(config);
        let Some(known) = table::find(name, clock::now()) else {
            return NOTHING;
        };
        if known.is_half_open
            && !(shows_client(known.place, &segment) && flow::establish(name, known.place))
        {
            return NOTHING;
        }
        segment.flow = known.place;
    }
    // SAFETY: this CPU's scratch.
    unsafe { (&raw mut (*scratch).segment).write_volatile(segment) };
    what
}

/// Whether a segment that leaves shows that the client of a half-open flow has got the SYN-ACK. Others may be
/// the host's answer to somebody who has not: a reset, or the repeated acknowledgement of the SYN.
#[inline(always)]
fn shows_client(place: u32, segment: &Segment) -> bool {
    let Some(flow) = flow::at(place) else {
        return false;
    };
    // SAFETY: a map element. If it is another flow's by now, it will not be established.
    let acked = unsafe { (&raw const (*flow).acked).read_volatile() };
    !segment.has(TCP_RST)
        && (segment.len != 0 || segment.has(TCP_FIN) || segment.acknowledgement != acked)
}
