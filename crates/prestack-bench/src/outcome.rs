//! What came of a load.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::tally::Tally;

/// Shares of requests whose latencies are told.
pub const SHARES: [f64; 14] = [
    0.01, 0.1, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9999,
];

/// So many requests in a row may be lost by chance.
const FEW: u64 = 3;

/// What came of a load.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Outcome {
    /// Requests answered right before the end, and writes without an answer, per second.
    pub rate: f64,
    /// Their number, with those answered later.
    pub answered: u64,
    /// Of them, GETs.
    pub gets: u64,
    /// Of them, SETs.
    pub sets: u64,
    /// Median latency in microseconds.
    pub p50_us: f64,
    /// 99th percentile of the latency in microseconds.
    pub p99_us: f64,
    /// 99.9th percentile of the latency in microseconds.
    pub p999_us: f64,
    /// The longest latency in microseconds.
    pub max_us: f64,
    /// Latencies in microseconds within which the [`SHARES`] of the requests were answered. Here and above those
    /// without an answer, and those not sent, count with the time for which they have waited.
    pub quantiles_us: Vec<f64>,
    /// The same of GETs alone, those that were sent, and of SETs: where there are both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apart: Option<Apart>,
    /// Requests without an answer.
    #[serde(rename = "unanswered")]
    pub timeouts: u64,
    /// Requests of an open loop that were due, and found no room to be sent before its end.
    pub not_sent: u64,
    /// Answers that were not, byte for byte, memcached's.
    pub wrong: u64,
    /// The first of them, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_wrong: Option<String>,
    /// Answers to no outstanding request.
    #[serde(rename = "answers_to_nothing")]
    pub strays: u64,
    /// GETs of which memcached had nothing.
    pub get_misses: u64,
    /// GETs that memcached refused.
    pub gets_refused: u64,
    /// SETs that memcached refused.
    pub sets_refused: u64,
    /// For how many seconds nothing was answered any more at the end, while requests were under way: of several, and
    /// one that was sent so much later than the last answer came.
    #[serde(skip_serializing_if = "is_zero")]
    pub silent_s: f64,
    /// CPU time in nanoseconds that the server spent on each request (see
    /// [`ServerCpu`](crate::server_cpu::ServerCpu)); 0 where that is not known.
    #[serde(skip_serializing_if = "is_zero")]
    pub server_cpu_ns: f64,
}

/// Latencies of GETs and of SETs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Apart {
    /// Of GETs.
    pub gets: Latencies,
    /// Of SETs.
    pub sets: Latencies,
}

/// Latencies in microseconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Latencies {
    /// Within which the [`SHARES`] were answered.
    pub quantiles_us: Vec<f64>,
    /// The longest.
    pub max_us: f64,
}

/// What came of all clients, and of those of each group.
#[derive(Clone, Debug)]
pub struct Outcomes {
    /// All of them.
    pub total: Outcome,
    /// Each group; of the server's CPU time each has its requests' share.
    pub groups: Vec<Outcome>,
    /// For how long the load was offered.
    pub elapsed: Duration,
}

fn is_zero(number: &f64) -> bool {
    *number == 0.0
}

impl Latencies {
    fn of(histogram: &Histogram<u64>) -> Self {
        let quantile = |q| histogram.value_at_quantile(q) as f64 / 1e3;
        Self {
            quantiles_us: SHARES.into_iter().map(quantile).collect(),
            max_us: histogram.max() as f64 / 1e3,
        }
    }

    fn median<'a>(all: impl Iterator<Item = &'a Self> + Clone) -> Self {
        Self {
            quantiles_us: (0..SHARES.len())
                .map(|i| median(all.clone().map(|one| one.quantiles_us[i])))
                .collect(),
            max_us: all.map(|one| one.max_us).fold(0.0, f64::max),
        }
    }
}

impl Outcome {
    pub(crate) fn new(tally: &Tally, elapsed: Duration, server_cpu: Duration) -> Self {
        let Tally { gets, sets, .. } = tally;
        let answered = tally.answered() + tally.quiet;
        let latencies = tally.latencies();
        let quantile = |q| latencies.value_at_quantile(q) as f64 / 1e3;
        let is_of_both = !gets.latencies.is_empty() && !sets.latencies.is_empty();
        let Latencies {
            quantiles_us,
            max_us,
        } = Latencies::of(&latencies);
        Self {
            rate: (answered - tally.late) as f64 / elapsed.as_secs_f64(),
            answered,
            gets: gets.answered,
            sets: sets.answered + tally.quiet,
            p50_us: quantile(0.5),
            p99_us: quantile(0.99),
            p999_us: quantile(0.999),
            max_us,
            quantiles_us,
            apart: is_of_both.then(|| Apart {
                gets: Latencies::of(&gets.latencies),
                sets: Latencies::of(&sets.latencies),
            }),
            timeouts: tally.timeouts(),
            not_sent: tally.not_sent.len(),
            wrong: tally.wrong,
            first_wrong: tally.first_wrong.clone(),
            strays: tally.strays,
            get_misses: tally.missing,
            gets_refused: gets.refused,
            sets_refused: sets.refused,
            silent_s: tally.silence(FEW).unwrap_or_default().as_secs_f64(),
            server_cpu_ns: server_cpu.as_nanos() as f64 / answered.max(1) as f64,
        }
    }

    /// GETs of which memcached had nothing, and requests that it refused.
    #[must_use]
    pub fn missing(&self) -> u64 {
        self.get_misses + self.gets_refused + self.sets_refused
    }

    /// The first wrong answer, to go behind what is said of them.
    #[must_use]
    pub fn such_as(&self) -> String {
        let first = self.first_wrong.as_ref();
        first.map_or_else(String::new, |first| format!("; the first: {first}"))
    }

    /// What rounds of the same kind, of which there is one at least, give together: medians, and sums of what is
    /// counted.
    pub(crate) fn combine<'a>(rounds: impl Iterator<Item = &'a Self> + Clone) -> Self {
        let median = |field: fn(&Self) -> f64| median(rounds.clone().map(field));
        let sum = |field: fn(&Self) -> u64| rounds.clone().map(field).sum();
        let greatest = |field: fn(&Self) -> f64| rounds.clone().map(field).fold(0.0, f64::max);
        let apart: Option<Vec<&Apart>> = rounds.clone().map(|round| round.apart.as_ref()).collect();
        Self {
            rate: median(|round| round.rate),
            answered: sum(|round| round.answered),
            gets: sum(|round| round.gets),
            sets: sum(|round| round.sets),
            p50_us: median(|round| round.p50_us),
            p99_us: median(|round| round.p99_us),
            p999_us: median(|round| round.p999_us),
            max_us: greatest(|round| round.max_us),
            quantiles_us: (0..SHARES.len())
                .map(|i| self::median(rounds.clone().map(|round| round.quantiles_us[i])))
                .collect(),
            apart: apart.map(|apart| Apart {
                gets: Latencies::median(apart.iter().map(|apart| &apart.gets)),
                sets: Latencies::median(apart.iter().map(|apart| &apart.sets)),
            }),
            timeouts: sum(|round| round.timeouts),
            not_sent: sum(|round| round.not_sent),
            wrong: sum(|round| round.wrong),
            first_wrong: rounds.clone().find_map(|round| round.first_wrong.clone()),
            strays: sum(|round| round.strays),
            get_misses: sum(|round| round.get_misses),
            gets_refused: sum(|round| round.gets_refused),
            sets_refused: sum(|round| round.sets_refused),
            silent_s: greatest(|round| round.silent_s),
            server_cpu_ns: median(|round| round.server_cpu_ns),
        }
    }
}

/// The middle one of some values, of which there is one at least, or the mean of the two there.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let (low, high) = ((values.len() - 1) / 2, values.len() / 2);
    (values[low] + values[high]) / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operations::Operation;
    use std::time::Instant;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn what_is_answered_after_the_end_is_not_in_the_rate() {
        let mut tally = Tally::new();
        for is_late in [false, false, true] {
            let latency = Duration::from_millis(1);
            tally.answer(Operation::Get, latency, Instant::now(), is_late);
        }
        tally.quiet = 3;
        let outcome = Outcome::new(&tally, SECOND, Duration::from_nanos(60));
        assert_eq!((outcome.rate, outcome.answered), (5.0, 6));
        assert_eq!((outcome.gets, outcome.sets), (3, 3));
        assert_eq!(outcome.apart, None);
        assert_eq!(outcome.server_cpu_ns, 10.0);
    }

    #[test]
    fn gets_and_sets_are_told_apart() {
        let mut tally = Tally::new();
        let now = Instant::now();
        tally.answer(Operation::Get, Duration::from_micros(10), now, false);
        tally.answer(Operation::Set, Duration::from_micros(500), now, false);
        tally.missing = 1;
        tally.refused(Operation::Set);
        let outcome = Outcome::new(&tally, SECOND, Duration::ZERO);
        assert_eq!((outcome.gets, outcome.sets), (1, 1));
        let refused = (outcome.gets_refused, outcome.sets_refused);
        assert_eq!((outcome.get_misses, refused), (1, (0, 1)));
        let apart = outcome.apart.as_ref().expect("there are both");
        assert!((9.9..10.1).contains(&apart.gets.max_us), "{apart:?}");
        assert!((499.0..501.0).contains(&apart.sets.quantiles_us[0]));
        assert_eq!(outcome.max_us, apart.sets.max_us);
        let both = [outcome.clone(), outcome];
        assert_eq!(Outcome::combine(both.iter()).apart, both[0].apart);
    }
}
