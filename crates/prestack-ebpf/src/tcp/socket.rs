//! Whether the host has a connection for a segment of a flow that is not known.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::bpf_sock_tuple;
use aya_ebpf::helpers::generated::{bpf_sk_release, bpf_skc_lookup_tcp};
use prestack_abi::config::MAPPED_V4;
use prestack_abi::flow::FlowKey;

/// States of a socket (`enum` in include/net/tcp_states.h) to which data is of no avail.
const TIME_WAIT: u32 = 6;
const LISTEN: u32 = 10;
/// The network namespace of the device (`BPF_F_CURRENT_NETNS`).
const CURRENT_NETNS: u64 = u64::MAX;

/// Whether a socket of this host, other than a listener, may take data of this flow: one that is
/// established, or that is being so by this segment.
#[inline(always)]
pub fn takes_data<C: EbpfContext>(ctx: &C, key: &FlowKey) -> bool {
    // SAFETY: a union of integers, set in full.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    let [a, b, c, d] = key.client;
    let is_v4 = a == 0 && b == 0 && c == MAPPED_V4;
    let size = if is_v4 {
        tuple.__bindgen_anon_1.ipv4.saddr = d;
        tuple.__bindgen_anon_1.ipv4.daddr = key.server[3];
        tuple.__bindgen_anon_1.ipv4.sport = key.client_port;
        tuple.__bindgen_anon_1.ipv4.dport = key.server_port;
        12
    } else {
        tuple.__bindgen_anon_1.ipv6.saddr = key.client;
        tuple.__bindgen_anon_1.ipv6.daddr = key.server;
        tuple.__bindgen_anon_1.ipv6.sport = key.client_port;
        tuple.__bindgen_anon_1.ipv6.dport = key.server_port;
        36
    };
    // SAFETY: the program's context; the tuple is of the size given, and the socket is released.
    unsafe {
        let socket = bpf_skc_lookup_tcp(ctx.as_ptr(), &raw mut tuple, size, CURRENT_NETNS, 0);
        if socket.is_null() {
            return false;
        }
        let state = (&raw const (*socket).state).read_volatile();
        bpf_sk_release(socket.cast());
        state != LISTEN && state != TIME_WAIT
    }
}
