//! The sequence of requests: random keys, and ids that repeat as late as can be. User space knows
//! it too (crates/prestack-bench/src/kernel/sequence.rs).

/// The odd number next to 2^64 divided by the golden ratio.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// What follows from a state.
pub struct Item {
    /// Its upper bits choose the key.
    pub random: u64,
    /// The request's id, as stored: all 65,536 occur before one recurs.
    pub id: u16,
}

/// SplitMix64.
#[inline(always)]
pub fn item(state: u64) -> Item {
    let n = state.wrapping_add(STEP);
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    Item {
        random: n ^ (n >> 31),
        id: state as u16,
    }
}

/// Goes on to the next state, by an atomic addition.
///
/// # Safety
///
/// `state` is valid and aligned.
#[inline(always)]
pub unsafe fn advance(state: *mut u64) {
    // SAFETY: the caller's.
    #[cfg(target_arch = "bpf")]
    unsafe {
        core::arch::asm!(
            "lock *(u64 *)({state} + 0) += {step}",
            state = in(reg) state,
            step = in(reg) STEP,
        );
    }
    // SAFETY: the caller's.
    #[cfg(not(target_arch = "bpf"))]
    unsafe {
        core::sync::atomic::AtomicU64::from_ptr(state)
            .fetch_add(STEP, core::sync::atomic::Ordering::SeqCst);
    }
}
