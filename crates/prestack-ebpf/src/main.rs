//! prestack's BPF programs: `rx` answers GETs at XDP and invalidates what writes change, `tx` at TC
//! egress learns from memcached's replies, and `lo` watches what the host sends to itself.
//!
//! Data flows one way: a packet is [located](packet), its request parsed (`prestack_proto`), the
//! decision made on the [`cache`] and the [`ledger`], and the reply written.
#![no_std]
#![no_main]
#![expect(
    missing_docs,
    reason = "the program attributes generate functions without comments"
)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

mod aside;
mod atomic;
mod cache;
mod clock;
mod hits;
mod inbound;
mod ledger;
mod lo;
mod lock;
mod maps;
mod packet;
mod rx;
mod scratch;
mod sockets;
mod tcp;
mod tx;

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::macros::{cgroup_sock, classifier, xdp};
use aya_ebpf::programs::{SockContext, TcContext, XdpContext};

/// XDP: requests.
#[xdp(frags)]
pub fn rx(ctx: XdpContext) -> u32 {
    rx::packet(&ctx)
}

/// TC egress: replies.
#[classifier]
pub fn tx(ctx: TcContext) -> i32 {
    tx::packet(&ctx)
}

/// TC egress of `lo`: requests of this host's own processes, and the replies to them.
#[classifier]
pub fn lo(ctx: TcContext) -> i32 {
    lo::packet(&ctx)
}

/// TC egress of `lo`: TCP segments of requests, which `lo` hands over, and whatever is to be looked at while it stands
/// aside. It hands replies to `tx_tcp`.
#[classifier]
pub fn lo_tcp(ctx: TcContext) -> i32 {
    if aside::is_on() {
        aside::heed(&ctx);
    } else {
        tcp::requests::segment(&ctx);
    }
    tx::NEXT
}

/// XDP: TCP segments, which `rx` hands over, and whatever is to be looked at while it stands aside.
#[xdp(frags)]
pub fn rx_tcp(ctx: XdpContext) -> u32 {
    if aside::is_on() {
        aside::heed(&ctx);
    } else if !tcp::requests::express::follow(&ctx) {
        tcp::requests::segment(&ctx);
    }
    xdp_action::XDP_PASS
}

/// XDP: TCP segments of connections on which requests are answered, which `rx` hands over.
#[xdp(frags)]
pub fn rx_hits(ctx: XdpContext) -> u32 {
    hits::arrives(&ctx)
}

/// TC egress: TCP segments of connections on which requests are answered, which `tx` hands over.
#[classifier]
pub fn tx_hits(ctx: TcContext) -> i32 {
    hits::leaves(&ctx)
}

/// TC egress: TCP segments, which `tx` hands over.
#[classifier]
pub fn tx_tcp(ctx: TcContext) -> i32 {
    let action = tcp::replies::segment(&ctx);
    hits::hand_over(&ctx);
    action
}

/// Every socket of the host that is released: those of a memcached take its cache with them.
#[cgroup_sock(sock_release)]
pub fn released(ctx: SockContext) -> i32 {
    sockets::released(&ctx);
    1
}

/// Run by user space: closes a TCP flow that has no socket any more, or stops waiting for one that is idle.
#[classifier]
pub fn sweep(ctx: TcContext) -> i32 {
    tcp::sweep::end(&ctx)
}

/// XDP: lets every packet pass. A veth device sends what XDP returned at its peer only while it
/// has an XDP program itself.
#[xdp(frags)]
pub fn pass(_: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Read by the kernel at load time.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
