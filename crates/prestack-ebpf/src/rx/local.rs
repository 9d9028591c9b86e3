//! UDP datagrams from this host to itself, over `lo`: their writes are heeded, and what is answered is
//! remembered, but nothing is learnt from the answers, for any process can send itself datagrams.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_skb_pull_data;
use aya_ebpf::programs::TcContext;
use prestack_abi::requests::{Kind, Request};
use prestack_proto::MAX_KEY;
use prestack_proto::text::scan::{skip_spaces, token_end};

use super::datagram::request_to;
use super::reply::PAYLOAD_AT;
use super::{command, commands, odd, udp};
use crate::inbound::Inbound as _;
use crate::ledger::requests;
use crate::maps::count;
use crate::packet::{Headers, Packet};
use crate::scratch::{Walk, scratch};

/// Decides on a datagram.
#[inline(always)]
pub fn datagram(ctx: &TcContext, packet: Packet, headers: &Headers) {
    let Some(scratch) = scratch() else { return };
    let skb = ctx.skb.skb;
    // SAFETY: the program's context, and this CPU's scratch.
    unsafe {
        let in_place = headers.l4 + PAYLOAD_AT;
        if packet.len() < in_place && in_place <= ctx.whole_len() {
            bpf_skb_pull_data(skb, in_place as u32);
        }
        // Several datagrams of one sender, to be taken apart later.
        let is_series = (*skb).gso_size != 0;
        let found = if is_series {
            udp::ODD
        } else {
            prestack_lo_load_datagram(skb)
        };
        match found {
            udp::LOADED => {}
            udp::ODD => {
                heed_odd(ctx);
                count!(udp_passed);
                return;
            }
            _ => {
                count!(udp_passed);
                return;
            }
        }
        let end = &raw mut (*scratch).walk.end;
        command::parse(0, end.read_volatile());
        udp::prestack_other_datagram();
        if end.read_volatile() != 0 {
            match (&raw const (*scratch).walk.over).read_volatile() {
                Walk::COMMANDS => {
                    commands::act_on_all();
                    udp::prestack_pass_commands();
                }
                Walk::WRITE => {
                    udp::prestack_write_datagram();
                    udp::prestack_pass_write();
                }
                _ => {
                    prestack_lo_pass_get();
                }
            }
        }
        requests::settle_doubted();
    }
}

/// Loads the datagram: see [`udp::load`]. A global function (by its unmangled name), as those that follow:
/// the verifier checks it once.
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn prestack_lo_load_datagram(ctx: *mut __sk_buff) -> u64 {
    udp::load(&TcContext::new(ctx))
}

/// Heeds a packet that is not looked into: see [`odd::heed`].
#[inline(always)]
pub fn heed_odd(ctx: &TcContext) {
    // SAFETY: a function of ours, called with the program's context.
    let is_noted = unsafe { prestack_lo_odd_datagram(ctx.skb.skb) };
    odd::remember(is_noted);
}

/// A global function, like [`prestack_lo_load_datagram`].
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn prestack_lo_odd_datagram(ctx: *mut __sk_buff) -> u64 {
    odd::note(&TcContext::new(ctx))
}

/// Lets a GET through, which is remembered without a ticket.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_lo_pass_get() -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    // SAFETY: this CPU's scratch.
    let (window, walk) = unsafe { (&(*scratch).window, &(*scratch).walk) };
    let kind = match walk.over {
        Walk::META => Kind::Meta,
        Walk::BINARY => Kind::Binary,
        _ => {
            let end = walk.end;
            let start = skip_spaces(window, walk.at, end);
            let stop = token_end(window, start, end, MAX_KEY.div_ceil(8) + 1);
            if skip_spaces(window, stop, end) >= end {
                Kind::Get
            } else {
                Kind::MultiGet
            }
        }
    };
    udp::with_datagram(|datagram| {
        datagram.remember(&Request {
            kind: kind as u8,
            ..request_to(datagram.door)
        });
        count!(udp_passed);
        0
    });
    0
}
