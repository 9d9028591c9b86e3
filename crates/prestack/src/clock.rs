//! The datapath's clock, read from user space.

use std::time::Duration;

use nix::time::{ClockId, clock_getres, clock_gettime};

/// The clock that `bpf_ktime_get_coarse_ns` reads.
const COARSE: ClockId = ClockId::CLOCK_MONOTONIC_COARSE;

/// Coarse monotonic time in ns, as the datapath reads it.
#[must_use]
pub fn now_ns() -> u64 {
    clock_gettime(COARSE).map_or(0, |time| nanoseconds(Duration::from(time)))
}

/// By how many ns the wall clock is ahead of the monotonic one.
#[must_use]
pub fn wall_offset_ns() -> u64 {
    let wall = clock_gettime(ClockId::CLOCK_REALTIME_COARSE);
    let wall = wall.map_or(0, |time| nanoseconds(Duration::from(time)));
    wall.saturating_sub(now_ns())
}

/// How far the clock may lag behind, in ns: it advances once per jiffy.
#[must_use]
pub fn resolution_ns() -> u64 {
    // The coarsest jiffy there is stands in for an answer that the kernel always gives.
    clock_getres(COARSE).map_or(10_000_000, |time| nanoseconds(Duration::from(time)))
}

/// A duration in ns; what does not fit (584 years) saturates.
#[must_use]
pub fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_runs_and_has_a_resolution() {
        assert!(now_ns() > 0);
        assert!((1..=10_000_000).contains(&resolution_ns()));
    }
}
