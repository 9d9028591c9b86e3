//! How much of the cache is in use: few buckets for few keys, so that they lie close together.
//!
//! The cache is divided into parts of the same number of buckets. One is in use at first, and twice as
//! many whenever so much is evicted, or would have to be, that hits must be lost, until all are.

use crate::stats::Stats;

/// Fewest buckets in a part, unless there are fewer in all.
const LEAST: u32 = 64;
/// Evictions that are counted before anything follows from them.
const ENOUGH: u64 = 64;
/// Looks for which it is waited, after the parts in use have become more, for keys that are fetched anew.
const PATIENCE: u32 = 50;
/// There are too few parts if more than one in so many fills evicts, or is deferred for it would.
const FEW: u64 = 16;
/// But not if that is so for fewer than one in so many GETs: each costs a hit at most, and for a time after the
/// parts in use have doubled, half of all GETs miss.
const RARE: u64 = 256;

/// The parts of a cache, and those in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// Buckets in a part.
    pub base: u32,
    /// Parts in use.
    pub parts: u32,
    /// Parts in all, a power of two as well.
    pub most: u32,
    /// Fills and evictions that have been judged, those deferred among both.
    fills: u64,
    evictions: u64,
    /// GETs that were seen by then.
    reads: u64,
    /// Fills after which it is judged again, and looks after which it is even if there are fewer.
    rests_until: u64,
    rests: u32,
}

impl Extent {
    /// A cache of at most `buckets` (1 or more), in its first part.
    #[must_use]
    pub const fn new(buckets: u32) -> Self {
        let mut doublings = 0;
        while buckets >> (doublings + 1) >= LEAST {
            doublings += 1;
        }
        Self {
            base: buckets >> doublings,
            parts: 1,
            most: 1 << doublings,
            fills: 0,
            evictions: 0,
            reads: 0,
            rests_until: 0,
            rests: 0,
        }
    }

    /// The same cache with so many parts in use, and totals that say nothing of what comes.
    #[must_use]
    pub const fn resumed(self, parts: u32, totals: &Stats) -> Self {
        let fills = totals.fills + totals.fills_deferred;
        Self {
            parts,
            fills,
            evictions: totals.evictions + totals.fills_deferred,
            reads: reads(totals),
            rests_until: fills,
            ..self
        }
    }

    /// All buckets: up to one in 64 fewer than there could be.
    #[must_use]
    pub const fn buckets(&self) -> u32 {
        self.base * self.most
    }

    /// All buckets that are in use.
    #[must_use]
    pub const fn in_use(&self) -> u32 {
        self.base * self.parts
    }

    /// Whether these totals say that too few parts are in use: then [`grow`](Self::grow).
    ///
    /// What is evicted is also what nobody asks for any more, or what is too old to be served: then
    /// nothing is gained but nothing lost either.
    pub const fn is_full(&mut self, totals: &Stats) -> bool {
        let fills = totals.fills + totals.fills_deferred;
        let evictions = totals.evictions + totals.fills_deferred;
        let reads = reads(totals);
        if self.parts == self.most {
            return false;
        }
        if fills < self.rests_until && self.rests > 0 {
            self.rests -= 1;
            self.fills = fills;
            self.evictions = evictions;
            self.reads = reads;
            return false;
        }
        let evicted = evictions.saturating_sub(self.evictions);
        if evicted <= ENOUGH {
            return false;
        }
        let is_full = evicted.saturating_mul(FEW) > fills.saturating_sub(self.fills)
            && evicted.saturating_mul(RARE) > reads.saturating_sub(self.reads);
        self.fills = fills;
        self.evictions = evictions;
        self.reads = reads;
        is_full
    }

    /// Doubles the parts in use. There are so many `entries`, half of which will be asked for elsewhere, and
    /// fetched anew: what that evicts says nothing.
    pub const fn grow(&mut self, entries: u64) {
        self.parts *= 2;
        self.rests_until = self.fills + entries / 2;
        self.rests = PATIENCE;
    }
}

/// GETs that were looked up.
const fn reads(totals: &Stats) -> u64 {
    totals.udp_hits + totals.udp_misses + totals.tcp_hits + totals.tcp_misses
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(fills: u64, evictions: u64) -> Stats {
        Stats {
            fills,
            evictions,
            ..Stats::default()
        }
    }

    #[test]
    fn little_is_left_over() {
        for buckets in 1..10_000 {
            let extent = Extent::new(buckets);
            assert!(extent.base < 2 * LEAST && extent.parts == 1);
            assert!(extent.buckets() <= buckets && extent.most.is_power_of_two());
            assert!(buckets - extent.buckets() <= buckets / 64);
            assert_eq!(Extent::new(extent.buckets()), extent);
        }
        assert_eq!(Extent::new(u32::MAX).most, 1 << 25);
    }

    #[test]
    fn it_is_full_when_much_is_evicted() {
        let mut extent = Extent::new(256);
        assert_eq!((extent.base, extent.most, extent.in_use()), (64, 4, 64));
        assert!(!extent.is_full(&totals(5_000, 0)), "nothing is evicted");
        assert!(!extent.is_full(&totals(5_064, 64)), "too few to say");
        assert!(
            !extent.is_full(&totals(6_100, 65)),
            "few of the fills evict"
        );
        assert!(!extent.is_full(&totals(6_140, 105)), "too few since then");
        assert!(extent.is_full(&totals(6_200, 165)), "half of them do");
    }

    #[test]
    fn few_lost_hits_are_not_worth_it() {
        let read = |hits, fills, evictions| Stats {
            udp_hits: hits,
            udp_misses: fills,
            ..totals(fills, evictions)
        };
        let mut extent = Extent::new(256);
        assert!(!extent.is_full(&read(100_000, 100, 100)), "one in 1,000");
        assert!(extent.is_full(&read(125_000, 200, 200)), "one in 250");
    }

    #[test]
    fn what_is_deferred_would_evict() {
        let deferred = |fills, fills_deferred| Stats {
            fills_deferred,
            ..totals(fills, 0)
        };
        let mut extent = Extent::new(256);
        assert!(!extent.is_full(&deferred(5_000, 64)), "too few to say");
        assert!(!extent.is_full(&deferred(5_000, 330)), "few of the fills");
        assert!(extent.is_full(&deferred(5_000, 395)), "all of the fills");
        extent.grow(2_000);
        assert!(!extent.is_full(&deferred(5_500, 850)), "it rests");
        assert!(!extent.is_full(&deferred(5_500, 900)), "too few since");
        assert!(extent.is_full(&deferred(5_500, 1_000)));
    }

    #[test]
    fn it_goes_on_where_it_was() {
        let mut extent = Extent::new(256).resumed(2, &totals(1_000_000, 900_000));
        assert_eq!((extent.in_use(), extent.buckets()), (128, 256));
        assert!(
            !extent.is_full(&totals(1_000_000, 900_000)),
            "nothing has happened since"
        );
        assert!(extent.is_full(&totals(1_000_100, 900_065)));
    }

    #[test]
    fn it_rests_after_it_has_grown() {
        let mut extent = Extent::new(256);
        assert!(extent.is_full(&totals(5_000, 2_000)));
        extent.grow(2_000);
        assert_eq!(extent.in_use(), 128);
        assert!(
            !extent.is_full(&totals(5_999, 2_900)),
            "what was left is evicted"
        );
        assert!(!extent.is_full(&totals(6_000, 2_964)), "too few since then");
        assert!(extent.is_full(&totals(6_100, 3_064)));
        extent.grow(0);
        assert!(!extent.is_full(&totals(9_000, 5_000)), "there are no more");
    }

    #[test]
    fn it_rests_no_longer_than_that() {
        let mut extent = Extent::new(256);
        assert!(extent.is_full(&totals(5_000, 2_000)));
        extent.grow(1_000_000);
        for look in 0..u64::from(PATIENCE) {
            assert!(!extent.is_full(&totals(5_000 + look, 2_000 + look)));
        }
        assert!(
            !extent.is_full(&totals(5_100, 2_100)),
            "too few since the last look"
        );
        assert!(extent.is_full(&totals(5_200, 2_200)));
    }
}
