//! Whether answers over TCP arrive. What XDP returns may be lost on its way, as over a veth pair whose other end
//! has no XDP program: then connections would hang.

use std::time::{Duration, Instant};

use prestack_abi::stats::Stats;

/// How long it may take until a first answer is acknowledged: clients ask again after 200 ms
/// (`TCP_RTO_MIN` in include/net/tcp.h).
const PATIENCE: Duration = Duration::from_secs(1);

/// What is known of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Receipts {
    /// When answers were seen first of which none was acknowledged.
    since: Option<Instant>,
}

impl Receipts {
    /// Whether answers are lost, by these counters: some were sent, and sent again, and none was ever
    /// acknowledged.
    pub fn are_missing(&mut self, stats: &Stats, now: Instant) -> bool {
        if stats.tcp_hits == 0 || stats.tcp_received != 0 {
            self.since = None;
            return false;
        }
        let since = *self.since.get_or_insert(now);
        stats.tcp_resent != 0 && now.duration_since(since) >= PATIENCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_arrives_is_enough() {
        let mut receipts = Receipts::default();
        let start = Instant::now();
        let stats = |tcp_hits, tcp_resent, tcp_received| Stats {
            tcp_hits,
            tcp_resent,
            tcp_received,
            ..Stats::default()
        };
        let later = start + PATIENCE;
        assert!(!receipts.are_missing(&stats(0, 0, 0), start));
        assert!(!receipts.are_missing(&stats(1, 0, 0), start));
        assert!(!receipts.are_missing(&stats(1, 2, 0), start + PATIENCE / 2));
        assert!(!receipts.are_missing(&stats(1, 0, 0), later));
        assert!(receipts.are_missing(&stats(1, 1, 0), later));
        assert!(!receipts.are_missing(&stats(9, 9, 1), later));
    }
}
