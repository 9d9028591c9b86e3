//! Spin locks in map elements.

use aya_ebpf::helpers;
use prestack_abi::control::bpf_spin_lock;

/// Takes a lock.
///
/// # Safety
///
/// `lock` is in a map element, and no other lock is held; until [`unlock`] nothing is called.
#[inline(always)]
pub unsafe fn lock(lock: *mut bpf_spin_lock) {
    // SAFETY: the caller's.
    unsafe { helpers::bpf_spin_lock(lock.cast()) };
}

/// Opens a lock.
///
/// # Safety
///
/// The lock is held.
#[inline(always)]
pub unsafe fn unlock(lock: *mut bpf_spin_lock) {
    // SAFETY: the caller's.
    unsafe { helpers::bpf_spin_unlock(lock.cast()) };
}
