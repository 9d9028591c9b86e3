//! Atomic operations, which Rust's BPF target does not offer.

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

/// Raises a word by one. No load that follows is done before others see it.
///
/// # Safety
///
/// `word` is valid, aligned, and nobody else writes it.
#[inline(always)]
pub unsafe fn raise(word: *mut u32) {
    // SAFETY: the caller's.
    #[cfg(target_arch = "bpf")]
    unsafe {
        core::arch::asm!("lock *(u32 *)({word} + 0) += {one}", word = in(reg) word, one = in(reg) 1u64);
    }
    // SAFETY: the caller's.
    #[cfg(not(target_arch = "bpf"))]
    unsafe {
        core::sync::atomic::AtomicU32::from_ptr(word)
            .fetch_add(1, core::sync::atomic::Ordering::SeqCst);
    }
}

/// Puts a value in the place of another, which is returned.
///
/// # Safety
///
/// `word` is valid, aligned, and only changed atomically.
#[inline(always)]
pub unsafe fn swap(word: *mut u64, value: u64) -> u64 {
    // SAFETY: the caller's.
    #[cfg(target_arch = "bpf")]
    unsafe {
        let mut value = value;
        core::arch::asm!("{value} = xchg_64({word} + 0, {value})", word = in(reg) word, value = inout(reg) value);
        value
    }
    // SAFETY: the caller's.
    #[cfg(not(target_arch = "bpf"))]
    unsafe {
        core::sync::atomic::AtomicU64::from_ptr(word)
            .swap(value, core::sync::atomic::Ordering::AcqRel)
    }
}

/// Puts a value in the place of another if that is still there. Returns whether it was.
///
/// # Safety
///
/// `word` is valid, aligned, and only changed atomically.
#[inline(always)]
pub unsafe fn replace(word: *mut u64, old: u64, new: u64) -> bool {
    // SAFETY: the caller's.
    #[cfg(target_arch = "bpf")]
    unsafe {
        let mut found = old;
        core::arch::asm!(
            "r0 = cmpxchg_64({word} + 0, r0, {new})",
            word = in(reg) word,
            new = in(reg) new,
            inout("r0") found,
        );
        found == old
    }
    // SAFETY: the caller's.
    #[cfg(not(target_arch = "bpf"))]
    unsafe {
        core::sync::atomic::AtomicU64::from_ptr(word)
            .compare_exchange(
                old,
                new,
                core::sync::atomic::Ordering::AcqRel,
                core::sync::atomic::Ordering::Acquire,
            )
            .is_ok()
    }
}
