//! What clients have seen.

use hdrhistogram::Histogram;

/// What clients have seen.
pub(crate) struct Tally {
    /// Latencies in nanoseconds of the requests answered right.
    pub(crate) latencies: Histogram<u64>,
    /// Writes that asked for no answer.
    pub(crate) quiet: u64,
    /// Requests without an answer.
    pub(crate) timeouts: u64,
    /// Answers that were not, byte for byte, memcached's.
    pub(crate) wrong: u64,
    /// Answers to no outstanding request: second ones, or late ones.
    pub(crate) strays: u64,
    /// GETs of which memcached had nothing.
    pub(crate) missing: u64,
    /// Requests that memcached refused (out of memory).
    pub(crate) refused: u64,
}

impl Tally {
    pub(crate) fn new() -> Self {
        let latencies = Histogram::new_with_bounds(100, 10_000_000_000, 3);
        let latencies = latencies.expect("the bounds are valid");
        Self {
            latencies,
            quiet: 0,
            timeouts: 0,
            wrong: 0,
            strays: 0,
            missing: 0,
            refused: 0,
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.latencies
            .add(&other.latencies)
            .expect("all histograms have the same bounds");
        self.quiet += other.quiet;
        self.timeouts += other.timeouts;
        self.wrong += other.wrong;
        self.strays += other.strays;
        self.missing += other.missing;
        self.refused += other.refused;
    }
}
