//! What clients have seen.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::operations::Operation;

/// Latencies above this count as this.
const LONGEST: Duration = Duration::from_secs(3_600);

/// What clients have seen.
pub(crate) struct Tally {
    /// Of GETs.
    pub(crate) gets: Share,
    /// Of SETs that asked for an answer.
    pub(crate) sets: Share,
    /// For how many nanoseconds what was due in an open loop, and found no room before its end, has waited to be sent.
    pub(crate) not_sent: Histogram<u64>,
    /// Requests that were answered right after the end.
    pub(crate) late: u64,
    /// Writes that asked for no answer.
    pub(crate) quiet: u64,
    /// Answers that were not, byte for byte, memcached's.
    pub(crate) wrong: u64,
    /// The first of them, in words.
    pub(crate) first_wrong: Option<String>,
    /// Answers to no outstanding request: second ones, or late ones.
    pub(crate) strays: u64,
    /// GETs of which memcached had nothing.
    pub(crate) missing: u64,
    silence: Silence,
}

/// What came of the requests of one kind.
pub(crate) struct Share {
    /// Latencies in nanoseconds of the requests answered right. Those that were not are among them with the time for
    /// which they have waited in vain: it would have been more.
    pub(crate) latencies: Histogram<u64>,
    /// Requests answered right.
    pub(crate) answered: u64,
    /// Requests without an answer.
    pub(crate) timeouts: u64,
    /// Requests that memcached refused (out of memory).
    pub(crate) refused: u64,
}

/// What is known of the time since the last answer.
#[derive(Clone, Copy, Debug, Default)]
struct Silence {
    /// When the last answer came.
    since: Option<Instant>,
    /// When the last of the requests that were given up was sent.
    asked: Option<Instant>,
    /// Requests that were given up since the last answer.
    given_up: u64,
}

impl Share {
    fn new() -> Self {
        Self {
            latencies: histogram(),
            answered: 0,
            timeouts: 0,
            refused: 0,
        }
    }

    fn add(&mut self, other: &Self) {
        join(&mut self.latencies, &other.latencies);
        self.answered += other.answered;
        self.timeouts += other.timeouts;
        self.refused += other.refused;
    }
}

impl Tally {
    pub(crate) fn new() -> Self {
        Self {
            gets: Share::new(),
            sets: Share::new(),
            not_sent: histogram(),
            late: 0,
            quiet: 0,
            wrong: 0,
            first_wrong: None,
            strays: 0,
            missing: 0,
            silence: Silence::default(),
        }
    }

    /// Requests answered right.
    pub(crate) fn answered(&self) -> u64 {
        self.gets.answered + self.sets.answered
    }

    /// Requests without an answer.
    pub(crate) fn timeouts(&self) -> u64 {
        self.gets.timeouts + self.sets.timeouts
    }

    /// Latencies of all requests, and for how long what was not sent has waited.
    pub(crate) fn latencies(&self) -> Histogram<u64> {
        let mut all = self.not_sent.clone();
        join(&mut all, &self.gets.latencies);
        join(&mut all, &self.sets.latencies);
        all
    }

    /// A request was answered right at `now`.
    pub(crate) fn answer(
        &mut self,
        operation: Operation,
        latency: Duration,
        now: Instant,
        is_late: bool,
    ) {
        self.late += u64::from(is_late);
        self.silence.since = Some(now);
        self.silence.given_up = 0;
        let share = self.of(operation);
        share.answered += 1;
        record(&mut share.latencies, latency);
    }

    /// memcached refused a request (out of memory); it counts as answered, too.
    pub(crate) fn refused(&mut self, operation: Operation) {
        self.of(operation).refused += 1;
    }

    /// A request that was sent at `sent` has waited so long for an answer, and is given up.
    pub(crate) fn timed_out(&mut self, operation: Operation, waited: Duration, sent: Instant) {
        self.silence.asked = self.silence.asked.max(Some(sent));
        self.silence.given_up += 1;
        let share = self.of(operation);
        share.timeouts += 1;
        record(&mut share.latencies, waited);
    }

    /// A request has waited so long to be sent, and is given up.
    pub(crate) fn not_sent(&mut self, waited: Duration) {
        record(&mut self.not_sent, waited);
    }

    /// An answer was wrong; `what` says how.
    pub(crate) fn wrong(&mut self, what: impl FnOnce() -> String) {
        self.wrong += 1;
        self.first_wrong.get_or_insert_with(what);
    }

    /// How long before its last request nothing was answered any more, if it was not for lack of requests: `few` at
    /// least were given up since.
    pub(crate) fn silence(&self, few: u64) -> Option<Duration> {
        let Silence {
            since,
            asked,
            given_up,
        } = self.silence;
        (given_up >= few).then_some(())?;
        Some(asked?.saturating_duration_since(since?))
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.gets.add(&other.gets);
        self.sets.add(&other.sets);
        join(&mut self.not_sent, &other.not_sent);
        self.late += other.late;
        self.quiet += other.quiet;
        self.wrong += other.wrong;
        if self.first_wrong.is_none() {
            self.first_wrong.clone_from(&other.first_wrong);
        }
        self.strays += other.strays;
        self.missing += other.missing;
        self.silence.since = self.silence.since.max(other.silence.since);
        self.silence.asked = self.silence.asked.max(other.silence.asked);
        self.silence.given_up += other.silence.given_up;
    }

    fn of(&mut self, operation: Operation) -> &mut Share {
        match operation {
            Operation::Get => &mut self.gets,
            Operation::Set => &mut self.sets,
        }
    }
}

fn histogram() -> Histogram<u64> {
    let latencies = Histogram::new_with_bounds(100, LONGEST.as_nanos() as u64, 3);
    latencies.expect("the bounds are valid")
}

fn record(to: &mut Histogram<u64>, time: Duration) {
    to.saturating_record(time.as_nanos() as u64);
}

fn join(to: &mut Histogram<u64>, other: &Histogram<u64>) {
    to.add(other).expect("all histograms have the same bounds");
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Clients that had an answer at these seconds, and gave up requests sent at those, in this order.
    fn silence(clients: &[(u32, &[u32])]) -> Option<Duration> {
        let start = Instant::now();
        let at = |seconds: u32| start + SECOND * seconds;
        let mut all = Tally::new();
        for (answered, given_up) in clients {
            let mut tally = Tally::new();
            tally.timed_out(Operation::Get, SECOND, start);
            tally.answer(Operation::Get, SECOND, at(*answered), false);
            for sent in *given_up {
                tally.timed_out(Operation::Set, SECOND, at(*sent));
            }
            all.add(&tally);
        }
        all.silence(3)
    }

    #[test]
    fn silence_is_of_all_clients_and_of_several_requests() {
        assert_eq!(silence(&[(1, &[1, 2, 3])]), Some(2 * SECOND));
        assert_eq!(silence(&[(1, &[4]), (2, &[2, 3])]), Some(2 * SECOND));
        assert_eq!(silence(&[(1, &[4, 5]), (9, &[9])]), Some(Duration::ZERO));
        assert_eq!(silence(&[(1, &[9]), (1, &[8])]), None);
        assert_eq!(silence(&[]), None);
    }
}
