//! Waiting until prestack is as it stays: its cache begins small, and grows by doublings while it fills; and where
//! too little of much hits, it stands aside.

use std::time::{Duration, Instant};

use anyhow::Result;
use prestack_testbed::Prestack;

use crate::output;

/// For how long a load is offered between two looks: prestack looks every tenth of a second whether the cache
/// is to grow.
pub(crate) const LOOK: Duration = Duration::from_millis(300);
/// After its start prestack caches nothing for the settle time, 1 s at most here.
const SHORTEST: Duration = Duration::from_millis(1_300);
/// The longest time that it is waited.
const LIMIT: Duration = Duration::from_secs(60);
/// After the cache has grown it may be so long until it grows again. Few evictions are enough for that, such as
/// those of keys of one place and tag, and half of the keys are then missing.
const PATIENCE: Duration = Duration::from_secs(6);
/// Where fewer hit than this, and more is asked for in a second, it may come to stand aside.
const FEW_HITS: f64 = 0.125;
const MUCH: f64 = 20_000.0;
/// So long after the start it does, or will not: it looks for some seconds whether it pays to follow what comes.
const DECISION: Duration = Duration::from_secs(12);
/// Hit rates that differ by less are alike.
const ALIKE: f64 = 0.01;

/// What is seen of the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Look {
    hits: u64,
    misses: u64,
    /// What passes and is no GET.
    others: u64,
    evictions: u64,
    memory: u64,
    is_aside: bool,
}

impl Look {
    fn at(prestack: &Prestack) -> Result<Self> {
        let stats = prestack.stats()?;
        Ok(Self {
            hits: stats.get("udp.hits")? + stats.get("tcp.hits")?,
            misses: stats.get("udp.misses")? + stats.get("tcp.misses")?,
            others: stats.get("udp.passed")? + stats.get("tcp.passed")?,
            evictions: stats.get("evictions")?,
            memory: stats.get("memory_in_use")?,
            is_aside: stats.get("aside.now")? == 1,
        })
    }

    fn since(self, before: Self) -> Spell {
        let (hits, misses) = (self.hits - before.hits, self.misses - before.misses);
        let gets = (hits + misses).max(1) as f64;
        Spell {
            hit_ratio: hits as f64 / gets,
            followed: hits + misses + self.others - before.others,
            evicts: self.evictions > before.evictions,
            has_grown: self.memory > before.memory,
        }
    }
}

/// What happened between two looks.
#[derive(Clone, Copy, Debug)]
struct Spell {
    hit_ratio: f64,
    /// Requests, as far as they come in a packet each.
    followed: u64,
    evicts: bool,
    has_grown: bool,
}

impl Spell {
    /// Whether the cache is as it stays, if this was so after that and it `may_grow`.
    fn is_settled(self, before: Self, may_grow: bool) -> bool {
        let changes = self.has_grown || before.has_grown || self.evicts && may_grow;
        !changes && (self.hit_ratio - before.hit_ratio).abs() < ALIKE
    }

    /// Whether it may come to stand aside, if the spell took so long.
    fn may_lose(self, time: Duration) -> bool {
        self.hit_ratio < FEW_HITS && self.followed as f64 > MUCH * time.as_secs_f64()
    }
}

/// Has the load offered, for a [`LOOK`] at least each time, until the cache of `prestack` no longer grows, and
/// the share of hits stays as it is, or until it stands aside. Says so on standard error if that is not so after a
/// minute. With `is_always_on` it never stands aside.
///
/// # Errors
/// When prestack cannot be asked, or `offer` fails.
pub(crate) fn until_settled(
    prestack: &Prestack,
    is_always_on: bool,
    mut offer: impl FnMut() -> Result<()>,
) -> Result<()> {
    let start = Instant::now();
    let mut grown = start;
    let mut look = Look::at(prestack)?;
    let mut before: Option<Spell> = None;
    loop {
        let since = Instant::now();
        while since.elapsed() < LOOK {
            offer()?;
        }
        let now = Look::at(prestack)?;
        let spell = now.since(look);
        look = now;
        let elapsed = start.elapsed();
        if spell.has_grown {
            grown = Instant::now();
        }
        if now.is_aside {
            return Ok(());
        }
        let may_grow = grown.elapsed() < PATIENCE;
        let may_lose = !is_always_on && elapsed < DECISION && spell.may_lose(since.elapsed());
        if !may_lose
            && elapsed >= SHORTEST
            && before.is_some_and(|before| spell.is_settled(before, may_grow))
        {
            return Ok(());
        }
        if elapsed >= LIMIT {
            output::note(format!(
                "after {} s prestack's cache still changes ({:.1} % hits, {} MiB of it in use): what follows \
                 is not what it comes to",
                LIMIT.as_secs(),
                100.0 * spell.hit_ratio,
                now.memory >> 20
            ));
            return Ok(());
        }
        before = Some(spell);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(hits: u64, misses: u64, evictions: u64, memory: u64) -> Look {
        Look {
            hits,
            misses,
            evictions,
            memory,
            ..Look::default()
        }
    }

    #[test]
    fn a_cache_that_fills_or_grows_has_not_settled() {
        let looks = [
            look(0, 1_000, 0, 64),
            look(500, 1_500, 100, 64),
            // More hits.
            look(1_400, 1_600, 200, 64),
            // It grows.
            look(2_330, 1_670, 250, 128),
            look(3_270, 1_730, 251, 128),
            // It still evicts.
            look(4_210, 1_790, 252, 128),
            look(5_150, 1_850, 252, 128),
        ];
        let spells: Vec<Spell> = looks.windows(2).map(|two| two[1].since(two[0])).collect();
        let settled: Vec<bool> = spells
            .windows(2)
            .map(|two| two[1].is_settled(two[0], true))
            .collect();
        assert_eq!(settled, [false, false, false, false, true]);
    }

    #[test]
    fn what_evicts_is_waited_for_while_there_is_hope() {
        let spell = look(960, 40, 40, 64).since(look(0, 0, 0, 64));
        assert!(!spell.is_settled(spell, true));
        assert!(spell.is_settled(spell, false));
    }

    #[test]
    fn what_has_no_use_for_a_cache_may_make_it_stand_aside() {
        let (start, second) = (look(0, 0, 0, 64), Duration::from_secs(1));
        let all = |hits, misses| look(hits, misses, 0, 64).since(start);
        assert!(all(1_000, 30_000).may_lose(second));
        assert!(!all(1_000, 30_000).may_lose(2 * second));
        assert!(!all(10_000, 30_000).may_lose(second));
        let writes = Look {
            others: 30_000,
            ..start
        };
        assert!(writes.since(start).may_lose(second));
    }

    #[test]
    fn a_cache_without_use_settles() {
        let nothing = look(0, 10, 0, 64).since(look(0, 5, 0, 64));
        assert!(nothing.is_settled(nothing, true));
    }
}
