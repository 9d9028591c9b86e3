//! What clients have seen.

use std::time::Duration;

use hdrhistogram::Histogram;

/// Latencies above this count as this.
const LONGEST: Duration = Duration::from_secs(3_600);

/// What clients have seen.
pub(crate) struct Tally {
    /// Latencies in nanoseconds of the requests answered right. Those that were not, and what was never sent,
    /// are among them with the time for which they have waited in vain: it would have been more.
    pub(crate) latencies: Histogram<u64>,
    /// Requests answered right.
    pub(crate) answered: u64,
    /// Of them, those that were answered after the end.
    pub(crate) late: u64,
    /// Writes that asked for no answer.
    pub(crate) quiet: u64,
    /// Requests without an answer.
    pub(crate) timeouts: u64,
    /// Requests that were due in an open loop and found no room to be sent before its end.
    pub(crate) not_sent: u64,
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
        let latencies = Histogram::new_with_bounds(100, LONGEST.as_nanos() as u64, 3);
        let latencies = latencies.expect("the bounds are valid");
        Self {
            latencies,
            answered: 0,
            late: 0,
            quiet: 0,
            timeouts: 0,
            not_sent: 0,
            wrong: 0,
            strays: 0,
            missing: 0,
            refused: 0,
        }
    }

    /// A request was answered right.
    pub(crate) fn answered(&mut self, latency: Duration, is_late: bool) {
        self.answered += 1;
        self.late += u64::from(is_late);
        self.waited(latency);
    }

    /// A request has waited so long for an answer, and is given up.
    pub(crate) fn timed_out(&mut self, waited: Duration) {
        self.timeouts += 1;
        self.waited(waited);
    }

    /// A request has waited so long to be sent, and is given up.
    pub(crate) fn not_sent(&mut self, waited: Duration) {
        self.not_sent += 1;
        self.waited(waited);
    }

    fn waited(&mut self, time: Duration) {
        self.latencies.saturating_record(time.as_nanos() as u64);
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.latencies
            .add(&other.latencies)
            .expect("all histograms have the same bounds");
        self.answered += other.answered;
        self.late += other.late;
        self.quiet += other.quiet;
        self.timeouts += other.timeouts;
        self.not_sent += other.not_sent;
        self.wrong += other.wrong;
        self.strays += other.strays;
        self.missing += other.missing;
        self.refused += other.refused;
    }
}
