//! The datapath's clock.

use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;

/// Coarse monotonic time in ns (see `prestack_abi::time`).
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_coarse_ns() }
}
