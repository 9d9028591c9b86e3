//! What the code that is also compiled for BPF does for the kernel's verifier. On the host these
//! functions return their argument.

/// The same value, about which the compiler knows nothing: a pointer is checked and used as it is
/// here, not re-derived from its parts after the check.
#[inline(always)]
#[must_use]
pub fn opaque(value: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let mut value = value;
        // SAFETY: copies a register to itself. Not `pure`: two results of one value must not be
        // taken for one.
        unsafe {
            core::arch::asm!("{0} = {0}", inout(reg) value, options(nomem, nostack));
        }
        value
    }
    #[cfg(not(target_arch = "bpf"))]
    value
}

/// The same value, about which the verifier knows nothing, given a `zero` of which it does not know
/// that it is 0.
///
/// Every way out of a loop leaves the verifier with another idea of the numbers compared in it, and
/// follows each separately; where the numbers are forgotten the ways meet again.
#[inline(always)]
#[must_use]
pub fn forgotten(value: u64, zero: u64) -> u64 {
    opaque(opaque(value).wrapping_add(zero))
}
