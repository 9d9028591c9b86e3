//! GETs over TCP that are answered here.

use aya_ebpf::bindings::xdp_action::XDP_PASS;
use aya_ebpf::programs::{TcContext, XdpContext};

use crate::inbound::Inbound as _;
use crate::tx::NEXT;

/// A segment arrives.
#[inline(always)]
pub fn arrives(ctx: &XdpContext) -> u32 {
    ctx.hand_over();
    XDP_PASS
}

/// A segment leaves.
#[inline(always)]
pub fn leaves(_ctx: &TcContext) -> i32 {
    NEXT
}
