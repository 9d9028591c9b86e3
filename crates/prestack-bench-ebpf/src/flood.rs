//! A flood of requests, made at the client's end: `flood` makes the packet a fresh request and sends it into
//! the client's device. The answers end in `sink`, on that device.

use aya_ebpf::Global;
use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS};
use aya_ebpf::btf_maps::Array;
use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_redirect};
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;

use crate::write;

/// The number of the client's device; user space sets it (crates/prestack-bench/src/kernel/flood.rs).
#[unsafe(no_mangle)]
static OUT: Global<u64> = Global::new(0);

/// Between two requests there are so many ns at least (user space says how many; 0: none), and the next one is
/// due at this time. Then how many were sent.
#[btf_map]
static PACE: Array<u64, 3> = Array::new();
/// Requests that were due while something else had the CPU are made up for if they are not older than this, in
/// ns: fewer than a veth ring holds.
const SLACK: u64 = 50_000;

/// Positions in a packet of IPv4.
const ETHERTYPE: usize = 12;
const DESTINATION: usize = 30;
/// Bytes up to the end of the addresses.
const HEADERS: usize = 34;
/// The client's address in a flood.
const CLIENT: u32 = u32::from_ne_bytes([10, 0, 0, 2]);

/// Sends the next request, if it is due.
#[xdp]
pub fn flood(ctx: XdpContext) -> u32 {
    let (Some(interval), Some(due), Some(sent)) =
        (PACE.get(0), PACE.get_ptr_mut(1), PACE.get_ptr_mut(2))
    else {
        return XDP_ABORTED;
    };
    // SAFETY: a helper without preconditions; elements of a map, which only this program writes.
    unsafe {
        if *interval != 0 {
            let now = bpf_ktime_get_ns();
            if now < *due {
                return XDP_DROP;
            }
            *due = (*due).max(now.saturating_sub(SLACK)) + *interval;
        }
        *sent += 1;
    }
    if write(&ctx).is_none() {
        return XDP_ABORTED;
    }
    // SAFETY: a helper without preconditions.
    unsafe { bpf_redirect(OUT.load() as u32, 0) as u32 }
}

/// Takes what answers a flood, and nothing else.
#[xdp]
pub fn sink(ctx: XdpContext) -> u32 {
    let packet = ctx.data() as *const u8;
    if ctx.data() + HEADERS > ctx.data_end() {
        return XDP_PASS;
    }
    // SAFETY: the headers are there. BPF reads words at any address.
    let (ethertype, destination) = unsafe {
        let ethertype = packet.add(ETHERTYPE).cast::<u16>().read_volatile();
        (
            ethertype,
            packet.add(DESTINATION).cast::<u32>().read_volatile(),
        )
    };
    // What asks for an address (ARP) is no answer.
    if ethertype != 0x0800_u16.to_be() || destination != CLIENT {
        return XDP_PASS;
    }
    XDP_DROP
}
