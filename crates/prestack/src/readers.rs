//! What becomes of TCP, depending on who reads over UDP.
//!
//! Only readers over UDP are answered. While there are none, what replies over TCP show is not worth
//! storing; and where TCP brings so much that following it costs something, it is ignored. That costs the
//! next readers a moment, in which connections are taken up anew: so whoever comes back is waited for.

use std::time::{Duration, Instant};

use prestack_abi::config::Tcp;
use prestack_abi::stats::Stats;

/// Nobody is taken to have gone before.
const SHORTEST: Duration = Duration::from_secs(1);
/// How long readers that have been there may pause until TCP is ignored.
const PAUSE: Duration = Duration::from_secs(10);
/// Segments are counted for as long.
const SPAN: Duration = Duration::from_secs(1);
/// As many segments in a second cost a hundredth of a CPU, at some hundred nanoseconds each: much.
const MANY: u64 = 20_000;
/// So few that TCP is followed again, whether anybody reads or not.
const FEW: u64 = 5_000;

/// When somebody has read last, and how much TCP brings.
#[derive(Debug)]
pub struct Readers {
    gets: u64,
    /// The last GET that was seen; without one, the start.
    seen: Instant,
    has_seen: bool,
    patience: Duration,
    /// TCP segments, when they were counted last, and how many came in the span before.
    segments: u64,
    counted: Instant,
    rate: u64,
    state: Tcp,
}

impl Readers {
    /// Somebody may just have read. What is stored serves for `max_age`.
    #[must_use]
    pub fn new(max_age: Duration, now: Instant) -> Self {
        Self {
            gets: 0,
            seen: now,
            has_seen: false,
            patience: max_age.max(SHORTEST),
            segments: 0,
            counted: now,
            rate: 0,
            state: Tcp::Learnt,
        }
    }

    /// What is to become of TCP from now on.
    pub fn look(&mut self, stats: &Stats, now: Instant) -> Tcp {
        let gets = stats.udp_hits + stats.udp_misses;
        if gets != self.gets {
            self.gets = gets;
            self.seen = now;
            self.has_seen = true;
        }
        let span = now.duration_since(self.counted);
        if span >= SPAN {
            let segments = stats.tcp_passed.saturating_sub(self.segments);
            self.rate = segments * 1_000 / span.as_millis().max(1) as u64;
            self.segments = stats.tcp_passed;
            self.counted = now;
        }
        let pause = now.duration_since(self.seen);
        let is_much = self.rate
            >= if self.state == Tcp::Ignored {
                FEW
            } else {
                MANY
            };
        self.state = if pause <= self.patience {
            // Nothing that is stored now would still be young enough for who comes later.
            Tcp::Learnt
        } else if is_much && (!self.has_seen || pause > PAUSE) {
            Tcp::Ignored
        } else {
            Tcp::Followed
        };
        self.state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A look every tenth of a second, until `until`.
    struct Looks {
        readers: Readers,
        stats: Stats,
        now: Instant,
    }

    impl Looks {
        fn new(max_age: u64) -> Self {
            let now = Instant::now();
            Self {
                readers: Readers::new(Duration::from_secs(max_age), now),
                stats: Stats::default(),
                now,
            }
        }

        /// What the state is after a time with so many segments and GETs in each second.
        fn after(&mut self, seconds: f64, segments: u64, gets: u64) -> Tcp {
            let mut state = Tcp::Learnt;
            for _ in 0..(seconds * 10.0) as u32 {
                self.now += Duration::from_millis(100);
                self.stats.tcp_passed += segments / 10;
                self.stats.udp_misses += gets / 10;
                state = self.readers.look(&self.stats, self.now);
            }
            state
        }
    }

    #[test]
    fn who_reads_is_there() {
        let mut looks = Looks::new(5);
        assert_eq!(looks.after(5.0, 1_000, 0), Tcp::Learnt);
        assert_eq!(looks.after(1.0, 1_000, 0), Tcp::Followed);
        assert_eq!(looks.after(0.1, 1_000, 10), Tcp::Learnt);
        assert_eq!(looks.after(4.0, 1_000, 0), Tcp::Learnt);
        looks.stats.udp_hits += 1;
        assert_eq!(looks.after(4.0, 1_000, 0), Tcp::Learnt);
        assert_eq!(looks.after(2.0, 1_000, 0), Tcp::Followed);
    }

    #[test]
    fn much_that_nobody_reads_is_ignored() {
        let mut looks = Looks::new(1);
        assert_eq!(looks.after(0.9, 100_000, 0), Tcp::Learnt);
        assert_eq!(looks.after(0.3, 100_000, 0), Tcp::Ignored);
        // Until it is little.
        assert_eq!(looks.after(2.0, 10_000, 0), Tcp::Ignored);
        assert_eq!(looks.after(2.0, 1_000, 0), Tcp::Followed);
        assert_eq!(looks.after(2.0, 10_000, 0), Tcp::Followed);
        assert_eq!(looks.after(2.0, 100_000, 0), Tcp::Ignored);
    }

    #[test]
    fn readers_that_pause_are_waited_for() {
        let mut looks = Looks::new(1);
        assert_eq!(looks.after(2.0, 100_000, 0), Tcp::Ignored);
        assert_eq!(looks.after(0.1, 100_000, 10), Tcp::Learnt);
        assert_eq!(looks.after(10.0, 100_000, 0), Tcp::Followed);
        assert_eq!(looks.after(1.0, 100_000, 0), Tcp::Ignored);
    }
}
