//! Sockets on which memcached listens: when one is released, its process ends, or another is about to
//! take the port.
//!
//! The kernel runs this before it gives up the port (`inet_release` in net/ipv4/af_inet.c), so that the
//! cache is empty before anybody else can answer there. User space, which knows the sockets, need not run.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::bpf_get_socket_cookie;
use aya_ebpf::programs::SockContext;

use crate::ledger::backend;
use crate::maps::SOCKETS;

/// A socket is released.
#[inline(always)]
pub fn released(ctx: &SockContext) {
    // SAFETY: the program's context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    // SAFETY: nobody changes an element; user space inserts and removes them.
    let Some(&number) = (unsafe { SOCKETS.get(cookie) }) else {
        return;
    };
    if let Some(config) = backend::config() {
        backend::has_ended(config, number as u8);
    }
}
