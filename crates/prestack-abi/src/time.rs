//! The clock of the datapath: `CLOCK_MONOTONIC_COARSE`, which costs 1 to 2 ns to read.
//!
//! It advances once per jiffy (up to 10 ms), so user space subtracts its resolution from every
//! limit that must not be exceeded.

/// A point in time in units of [`TICK_NS`], modulo 2³².
pub type Ticks = u32;

/// log₂ of the length of a tick in nanoseconds.
pub const TICK_SHIFT: u32 = 20;

/// Length of a tick in nanoseconds (about 1.05 ms).
pub const TICK_NS: u64 = 1 << TICK_SHIFT;

/// The tick that contains `ns`.
#[inline(always)]
#[must_use]
pub const fn ticks(ns: u64) -> Ticks {
    (ns >> TICK_SHIFT) as Ticks
}

/// The number of ticks that lasts at least `ns`.
#[must_use]
pub const fn ticks_covering(ns: u64) -> Ticks {
    (ns.div_ceil(TICK_NS) + 1) as Ticks
}

/// Whether `until` lies after `now`, for points less than 2³¹ ticks (26 days) apart.
#[inline(always)]
#[must_use]
pub const fn is_before(now: Ticks, until: Ticks) -> bool {
    (until.wrapping_sub(now) as i32) > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparison_survives_the_wrap() {
        assert!(is_before(u32::MAX, 3));
        assert!(!is_before(3, u32::MAX));
        assert!(!is_before(7, 7));
    }

    #[test]
    fn covering_ticks_never_fall_short() {
        for ns in [0, 1, TICK_NS - 1, TICK_NS, TICK_NS + 1, 1_000_000_000] {
            assert!(u64::from(ticks_covering(ns)) * TICK_NS >= ns + TICK_NS - 1, "{ns}");
        }
    }
}
