//! When requests are sent.

use std::time::{Duration, Instant};

use crate::dataset::mix;

/// When a client sends its requests.
#[derive(Clone, Debug)]
pub(crate) enum Pace {
    /// As soon as there is room for one more (a closed loop).
    Closed,
    /// At times that are drawn beforehand, whether answers have come or not (an open loop).
    Open(Arrivals),
}

/// A Poisson process.
#[derive(Clone, Debug)]
pub(crate) struct Arrivals {
    next: Instant,
    /// Mean time between two, in nanoseconds.
    mean: f64,
    state: u64,
}

impl Pace {
    /// An open loop of `rate` requests a second from `start` on; `seed` tells one from another.
    pub(crate) fn open(rate: f64, start: Instant, seed: u64) -> Self {
        let mut arrivals = Arrivals {
            next: start,
            mean: 1e9 / rate,
            state: mix(seed ^ 0x0dd5),
        };
        arrivals.advance();
        Self::Open(arrivals)
    }

    /// If a request is due, the time from which its latency counts: the time at which it was to be sent,
    /// even if nobody could send it then.
    pub(crate) fn next(&mut self, now: Instant) -> Option<Instant> {
        match self {
            Self::Closed => Some(now),
            Self::Open(arrivals) => arrivals.next(now),
        }
    }

    /// Whether requests are sent at times of their own.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self, Self::Open(_))
    }

    /// Whether a request is due.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        match self {
            Self::Closed => true,
            Self::Open(arrivals) => arrivals.next <= now,
        }
    }

    /// How long it is until a request is due, at most `limit`.
    pub(crate) fn wait(&self, now: Instant, limit: Duration) -> Duration {
        match self {
            Self::Closed => limit,
            Self::Open(arrivals) => arrivals.next.saturating_duration_since(now).min(limit),
        }
    }
}

impl Arrivals {
    /// The time of the next one, if that has come.
    pub(crate) fn next(&mut self, now: Instant) -> Option<Instant> {
        let due = self.next;
        (due <= now).then(|| {
            self.advance();
            due
        })
    }

    fn advance(&mut self) {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        // Uniform in (0, 1].
        let uniform = ((mix(self.state) >> 11) + 1) as f64 / (1u64 << 53) as f64;
        self.next += Duration::from_nanos((-uniform.ln() * self.mean) as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_keep_their_rate_whatever_the_delay() {
        let start = Instant::now();
        let mut pace = Pace::open(1e6, start, 7);
        assert_eq!(pace.next(start), None);
        // Nobody has looked for a tenth of a second.
        let late = start + Duration::from_millis(100);
        let mut due = Vec::new();
        while let Some(since) = pace.next(late) {
            due.push(since);
        }
        assert!((98_000..102_000).contains(&due.len()), "{}", due.len());
        assert!(due.is_sorted() && due[due.len() / 2] < start + Duration::from_millis(60));
        assert!(pace.wait(late, TICK) > Duration::ZERO);
    }

    const TICK: Duration = Duration::from_millis(50);

    #[test]
    fn a_closed_loop_is_always_ready() {
        let now = Instant::now();
        assert_eq!(Pace::Closed.next(now), Some(now));
        assert_eq!(Pace::Closed.wait(now, TICK), TICK);
    }
}
