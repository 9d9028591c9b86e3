//! A bad wire: what comes in at one of two ports goes out at the other, but for a share of the frames.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::btf_maps::Array;
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_redirect};
use aya_ebpf::macros::{btf_map, classifier};
use aya_ebpf::programs::TcContext;

use crate::sequence;

/// What user space says (crates/prestack-bench/src/wire.rs): the numbers of the two ports, and of 2^32
/// frames how many are lost.
#[btf_map]
static WIRE: Array<u64, 3> = Array::new();

/// Frames that were lost.
#[btf_map]
static LOST: Array<u64, 1> = Array::new();

/// Sends a frame on its way, or loses it.
#[classifier]
pub fn wire(ctx: TcContext) -> i32 {
    let (Some(a), Some(b), Some(loss)) = (WIRE.get(0), WIRE.get(1), WIRE.get(2)) else {
        return TC_ACT_UNSPEC;
    };
    // SAFETY: helpers without preconditions; the context is the program's; an element of a map.
    unsafe {
        if u64::from(bpf_get_prandom_u32()) < *loss {
            if let Some(lost) = LOST.get_ptr_mut(0) {
                sequence::add(lost, 1);
            }
            return TC_ACT_SHOT;
        }
        let from = u64::from((*ctx.skb.skb).ifindex);
        let to = if from == *a { *b } else { *a };
        bpf_redirect(to as u32, 0) as i32
    }
}
