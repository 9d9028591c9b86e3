//! What came of a load.

use std::time::Duration;

use serde::Serialize;

use crate::tally::Tally;

/// Shares of requests whose latencies are told.
pub const SHARES: [f64; 14] = [
    0.01, 0.1, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9999,
];

/// What came of a load.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Requests answered right before the end, and writes without an answer, per second.
    pub rate: f64,
    /// Their number, with those answered later.
    pub answered: u64,
    /// Median latency in microseconds.
    pub p50_us: f64,
    /// 99th percentile of the latency in microseconds.
    pub p99_us: f64,
    /// 99.9th percentile of the latency in microseconds.
    pub p999_us: f64,
    /// Latencies in microseconds within which the [`SHARES`] of the requests were answered. Here and above those
    /// without an answer, and those not sent, count with the time for which they have waited.
    pub quantiles_us: Vec<f64>,
    /// Requests without an answer.
    pub timeouts: u64,
    /// Requests of an open loop that were due, and found no room to be sent before its end.
    pub not_sent: u64,
    /// Answers that were not, byte for byte, memcached's.
    pub wrong: u64,
    /// Answers to no outstanding request.
    pub strays: u64,
    /// GETs of which memcached had nothing, and requests that it refused.
    pub missing: u64,
    /// CPU time in nanoseconds that the server spent on each request (see
    /// [`ServerCpu`](crate::server_cpu::ServerCpu)); 0 where that is not known.
    #[serde(skip_serializing_if = "is_zero")]
    pub server_cpu_ns: f64,
}

/// What came of all clients, and of those of each group.
#[derive(Clone, Debug)]
pub struct Outcomes {
    /// All of them.
    pub total: Outcome,
    /// Each group; of the server's CPU time each has its requests' share.
    pub groups: Vec<Outcome>,
}

fn is_zero(number: &f64) -> bool {
    *number == 0.0
}

impl Outcome {
    pub(crate) fn new(tally: &Tally, elapsed: Duration, server_cpu: Duration) -> Self {
        let answered = tally.answered + tally.quiet;
        let quantile = |q| tally.latencies.value_at_quantile(q) as f64 / 1e3;
        Self {
            rate: (answered - tally.late) as f64 / elapsed.as_secs_f64(),
            answered,
            p50_us: quantile(0.5),
            p99_us: quantile(0.99),
            p999_us: quantile(0.999),
            quantiles_us: SHARES.into_iter().map(quantile).collect(),
            timeouts: tally.timeouts,
            not_sent: tally.not_sent,
            wrong: tally.wrong,
            strays: tally.strays,
            missing: tally.missing + tally.refused,
            server_cpu_ns: server_cpu.as_nanos() as f64 / answered.max(1) as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_answered_after_the_end_is_not_in_the_rate() {
        let mut tally = Tally::new();
        for is_late in [false, false, true] {
            tally.answered(Duration::from_millis(1), is_late);
        }
        tally.quiet = 3;
        let outcome = Outcome::new(&tally, Duration::from_secs(1), Duration::from_nanos(60));
        assert_eq!((outcome.rate, outcome.answered), (5.0, 6));
        assert_eq!(outcome.server_cpu_ns, 10.0);
    }
}
