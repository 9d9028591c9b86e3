//! Atomic arithmetic, which Rust's BPF target does not offer.

/// Adds to a word that other CPUs and user space add to as well.
///
/// # Safety
///
/// `word` is valid, aligned, and only changed atomically.
#[inline(always)]
pub unsafe fn add(word: *mut u64, value: u64) {
    // SAFETY: the caller's.
    #[cfg(target_arch = "bpf")]
    unsafe {
        core::arch::asm!("lock *(u64 *)({word} + 0) += {value}", word = in(reg) word, value = in(reg) value);
    }
    // SAFETY: the caller's.
    #[cfg(not(target_arch = "bpf"))]
    unsafe {
        core::sync::atomic::AtomicU64::from_ptr(word)
            .fetch_add(value, core::sync::atomic::Ordering::Relaxed);
    }
}
