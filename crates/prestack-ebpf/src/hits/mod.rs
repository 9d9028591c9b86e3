//! GETs over TCP that are answered here, and the translation of what else comes and goes on their connections:
//! the numbers are those of `prestack_translate`.
//!
//! A flow is followed (`tcp`) in the kernel's numbers. So a segment from the client is translated before, one from
//! the kernel after the flow was followed.

mod again;
mod answer;
mod arrive;
pub mod element;
mod errors;
mod express;
pub mod growth;
mod kept;
mod leave;
mod merged;
pub mod numbered;
mod odd;
mod pass;
mod requests;

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::programs::{TcContext, XdpContext};

use crate::inbound::Inbound as _;
use crate::ledger::backend;
use crate::maps::TX_STEPS;
use crate::scratch::scratch;
use again::prestack_hits_again;
use answer::{AGAIN, NEW, SUMMED, prestack_hits_turn};
use arrive::{ACKNOWLEDGE, FOLLOW, GO, NOTHING, ODD, PLAIN, RESEND, UNUSUAL};
use arrive::{prestack_hits_arrive, prestack_hits_find, prestack_hits_options};
pub use errors::hear;
use express::{ANSWER, LOOK, NO_ANSWER, OTHER, prestack_hits_find_plain, prestack_hits_get};
pub use leave::{NOT_OURS, depart_plain, leave, leaves};
use odd::{FRAGMENT, prestack_hits_bare, prestack_hits_odd};
use pass::{prestack_hits_pass, prestack_hits_rewrite};

/// A segment arrives: the action for the kernel.
#[inline(always)]
pub fn arrives(ctx: &XdpContext) -> u32 {
    let is_odd;
    // SAFETY: functions of ours, called with the program's context.
    unsafe {
        let mut found = prestack_hits_find_plain(ctx.ctx);
        let is_plain = found == PLAIN;
        if found == OTHER {
            found = prestack_hits_find(ctx.ctx);
        }
        is_odd = found == ODD;
        if is_odd {
            found = prestack_hits_odd(ctx.ctx);
        }
        match found {
            NOTHING => return XDP_PASS,
            FRAGMENT => return XDP_DROP,
            FOLLOW => {
                ctx.hand_over();
                backend::forget_all();
                return XDP_PASS;
            }
            UNUSUAL if prestack_hits_options(ctx.ctx) == 0 => return XDP_PASS,
            _ => {}
        }
        let arrived = prestack_hits_arrive();
        if is_odd && arrived != GO {
            prestack_hits_bare();
        }
        match arrived {
            RESEND if prestack_hits_again(ctx.ctx) != 0 => {
                let action = prestack_hits_turn(ctx.ctx, AGAIN) as u32;
                // There is room. What the packet held may be gone, and its sender will send it again.
                return if action == 0 { XDP_DROP } else { action };
            }
            ACKNOWLEDGE => {
                let action = prestack_hits_turn(ctx.ctx, AGAIN) as u32;
                if action != 0 {
                    return action;
                }
            }
            _ => {}
        }
        if is_odd && arrived != GO {
            // What follows would rewrite it as if it had no such headers. Its sender will send it again.
            return XDP_DROP;
        }
        let kind = match if is_plain {
            prestack_hits_get(ctx.ctx)
        } else if is_odd {
            NO_ANSWER
        } else {
            LOOK
        } {
            ANSWER => SUMMED,
            LOOK if requests::answer_all(ctx) => NEW,
            _ => AGAIN,
        };
        if kind != AGAIN {
            let action = prestack_hits_turn(ctx.ctx, kind) as u32;
            if action != 0 {
                return action;
            }
        }
        if prestack_hits_pass() != 0 && prestack_hits_rewrite(ctx.ctx) == 0 {
            // Its header was read, so this cannot be. In the client's numbers it would break the connection; as it is
            // lost, the client sends it again.
            return XDP_DROP;
        }
    }
    // What is not plain cannot be followed, and has emptied the cache.
    if !is_odd && is_followed() {
        ctx.hand_over();
        backend::forget_all();
    }
    XDP_PASS
}

/// Whether the segment is to be followed.
#[inline(always)]
fn is_followed() -> bool {
    let Some(scratch) = scratch() else {
        return true;
    };
    // SAFETY: this CPU's scratch.
    arrive::is_followed(unsafe { &(*scratch).numbered.segment })
}

/// Hands a segment that leaves, and was followed, over to the program that translates it, if its connection may
/// be translated.
#[inline(always)]
pub fn hand_over(ctx: &TcContext) {
    if backend::config().is_some_and(element::is_on) {
        // SAFETY: the program takes over; nothing is held here.
        unsafe { TX_STEPS.tail_call(ctx, 1) };
    }
}
