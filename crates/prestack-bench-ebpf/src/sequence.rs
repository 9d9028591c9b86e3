//! The sequence of requests: random keys, and ids that repeat as late as can be. User space knows
//! it too (crates/prestack-bench/src/kernel/sequence.rs).

/// The odd number next to 2^64 divided by the golden ratio.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// What the state differs by from one key of a request to the next.
const KEY_STEP: u64 = 0xd1b5_4a32_d192_ed03;

/// The request's id, as stored: all 65,536 occur before one recurs.
#[inline(always)]
pub fn id(state: u64) -> u16 {
    state as u16
}

/// SplitMix64 for a key of a request. The upper bits choose the key.
#[inline(always)]
pub fn random(state: u64, key: u64) -> u64 {
    let n = state.wrapping_add(KEY_STEP.wrapping_mul(key));
    let n = n.wrapping_add(STEP);
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

/// The state after so many requests.
#[inline(always)]
pub fn state(requests: u64) -> u64 {
    requests.wrapping_mul(STEP)
}

/// Goes on to the next state.
///
/// # Safety
///
/// `state` is valid and aligned.
#[inline(always)]
pub unsafe fn advance(state: *mut u64) {
    // SAFETY: the caller's.
    unsafe { add(state, STEP) };
}

/// Adds to a number in one step that nobody else's comes between. What was stored before is in the cache
/// then.
///
/// # Safety
///
/// `number` is valid and aligned.
#[inline(always)]
pub unsafe fn add(number: *mut u64, addend: u64) {
    // SAFETY: the caller's.
    #[cfg(target_arch = "bpf")]
    unsafe {
        core::arch::asm!(
            "lock *(u64 *)({number} + 0) += {addend}",
            number = in(reg) number,
            addend = in(reg) addend,
        );
    }
    // SAFETY: the caller's.
    #[cfg(not(target_arch = "bpf"))]
    unsafe {
        core::sync::atomic::AtomicU64::from_ptr(number)
            .fetch_add(addend, core::sync::atomic::Ordering::SeqCst);
    }
}
