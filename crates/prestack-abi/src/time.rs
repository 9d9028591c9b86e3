//! The clock of the datapath: `CLOCK_MONOTONIC_COARSE`, which costs 1 to 2 ns to read.
//!
//! It advances once per jiffy (up to 10 ms), so user space subtracts its resolution from every
//! limit that must not be exceeded.

/// log₂ of the unit in ns of the 16-bit times in claims (about 1.05 ms).
pub const CLAIM_SHIFT: u32 = 20;
/// For how long a ticket keeps others from one for the same key, in units of 2^[`CLAIM_SHIFT`] ns:
/// longer than memcached takes to answer, short enough that a lost request does no harm.
pub const CLAIM_UNITS: u16 = 20;
/// log₂ of the unit in ns of the 32-bit times at which writes settle (about 67 ms): they wrap around
/// after nine years.
pub const SETTLE_SHIFT: u32 = 26;

/// Whether a time in units of 2^[`SETTLE_SHIFT`] ns has not come at `now`, in ns.
#[inline(always)]
#[must_use]
pub const fn is_ahead(time: u32, now: u64) -> bool {
    (time.wrapping_sub((now >> SETTLE_SHIFT) as u32) as i32) > 0
}
