//! Whether anybody reads over UDP.
//!
//! Only such readers are answered. While there are none, what replies over TCP show is not worth storing:
//! the datapath spares itself that as long as nothing that it could store would still be young enough.

use std::time::{Duration, Instant};

use prestack_abi::stats::Stats;

/// Nobody is taken to have gone before.
const SHORTEST: Duration = Duration::from_secs(1);

/// When somebody has read last.
#[derive(Debug)]
pub struct Readers {
    gets: u64,
    seen: Instant,
    patience: Duration,
}

impl Readers {
    /// Somebody may just have read. What is stored serves for `max_age`.
    #[must_use]
    pub fn new(max_age: Duration) -> Self {
        Self {
            gets: 0,
            seen: Instant::now(),
            patience: max_age.max(SHORTEST),
        }
    }

    /// Whether nobody has read for so long that nothing stored then would still serve.
    pub fn are_gone(&mut self, stats: &Stats, now: Instant) -> bool {
        let gets = stats.udp_hits + stats.udp_misses;
        if gets != self.gets {
            self.gets = gets;
            self.seen = now;
        }
        now.duration_since(self.seen) > self.patience
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_reads_is_there() {
        let max_age = Duration::from_secs(5);
        let mut readers = Readers::new(max_age);
        let start = readers.seen;
        let mut stats = Stats::default();
        assert!(!readers.are_gone(&stats, start + max_age));
        assert!(readers.are_gone(&stats, start + 2 * max_age));
        stats.udp_misses = 1;
        assert!(!readers.are_gone(&stats, start + 2 * max_age));
        stats.tcp_passed = 1;
        assert!(!readers.are_gone(&stats, start + 3 * max_age));
        assert!(readers.are_gone(&stats, start + 4 * max_age));
        stats.udp_hits = 1;
        assert!(!readers.are_gone(&stats, start + 4 * max_age));
    }
}
