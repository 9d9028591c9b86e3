//! The rate limit of a source: a token bucket, kept as the time at which it would be full again
//! (the generic cell rate algorithm).

use prestack_abi::config::Config;

use crate::maps::RATES;

/// Whether the source may be given one more hit. Out of memory for its bucket it may: the limit is a
/// help, not a lock.
#[inline(always)]
pub fn admits(config: &Config, source: &[u32; 4], now: u64) -> bool {
    full_at(source, now) - now <= config.rate_burst_ns
}

/// Notes that the source has been given a hit.
#[inline(always)]
pub fn spend(config: &Config, source: &[u32; 4], now: u64) {
    if config.rate_interval_ns != 0 {
        let _ = RATES.insert(source, full_at(source, now) + config.rate_interval_ns, 0);
    }
}

/// When the source's bucket is full again, at the earliest now.
#[inline(always)]
fn full_at(source: &[u32; 4], now: u64) -> u64 {
    // SAFETY: of several CPUs that read and write at once one wins: the limit is then less exact.
    let full = unsafe { RATES.get(source) }.copied().unwrap_or(0);
    if full > now { full } else { now }
}
