use super::*;

/// What comes in a second.
#[derive(Clone, Copy, Default)]
struct Load {
    /// GETs over UDP, and how many of them hit if they are followed, and the cache is warm.
    gets: u64,
    hits: u64,
    /// How many are followed by a fill, and how many fills displace another entry.
    stored: u64,
    displaced: u64,
    sets: u64,
    segments: u64,
    tcp_gets: u64,
}

const MISSES: Load = Load {
    gets: 100_000,
    hits: 0,
    stored: 0,
    displaced: 0,
    sets: 0,
    segments: 0,
    tcp_gets: 0,
};
const SEGMENTS: Load = Load {
    gets: 0,
    segments: 100_000,
    ..MISSES
};

/// A look every tenth of a second, by a daemon that does what is wanted.
struct Looks {
    worth: Worth,
    stats: Stats,
    now: Instant,
    is_aside: bool,
    awake: Instant,
    /// How long a cache takes to become warm, after the settle time.
    warm_up: f64,
    settle: Duration,
    /// Whether GETs over TCP are counted as such.
    are_counted: bool,
    changes: usize,
    aside: Duration,
}

impl Looks {
    fn with(max_age: u64, settle: u64, has_tcp_hits: bool) -> Self {
        let now = Instant::now();
        let settle = Duration::from_secs(settle);
        let times = Times {
            has_tcp_hits,
            ..Times::usual(Duration::from_secs(max_age), settle)
        };
        Self {
            worth: Worth::with(times, now),
            stats: Stats::default(),
            now,
            is_aside: false,
            awake: now,
            warm_up: 0.0,
            settle,
            are_counted: true,
            changes: 0,
            aside: Duration::ZERO,
        }
    }

    fn new(max_age: u64) -> Self {
        Self::with(max_age, max_age, false)
    }

    /// Whether the datapath stands aside after this load.
    fn after(&mut self, seconds: f64, load: Load) -> bool {
        let step = Duration::from_millis(100);
        for _ in 0..(seconds * 10.0).round() as u32 {
            self.now += step;
            let stats = &mut self.stats;
            if self.is_aside {
                stats.aside_udp_gets += load.gets / 10;
                stats.aside_tcp_gets += load.tcp_gets / 10;
                stats.aside_others += (load.sets + load.segments) / 10;
                self.aside += step;
            } else {
                let time = self.now.duration_since(self.awake);
                let filled = time.saturating_sub(self.settle).as_secs_f64();
                let warmth = match self.warm_up {
                    0.0 => f64::from(filled > 0.0),
                    whole => (filled / whole).min(1.0),
                };
                let hits = (load.hits as f64 * warmth) as u64 / 10;
                stats.udp_hits += hits;
                stats.udp_misses += load.gets / 10 - hits;
                stats.fills += load.stored / 10;
                stats.evictions += load.displaced / 10;
                stats.udp_passed += load.sets / 10;
                stats.tcp_passed += (load.segments + load.tcp_gets) / 10;
                stats.tcp_misses += u64::from(self.are_counted) * load.tcp_gets / 10;
            }
            let wanted = self.worth.look(&self.stats, self.now);
            match wanted {
                Wanted::Aside(cause) if !self.is_aside => {
                    self.worth.stands_aside(cause, self.now);
                    self.changes += 1;
                    self.is_aside = true;
                }
                Wanted::Attention if self.is_aside => {
                    self.worth.attends(self.now);
                    self.changes += 1;
                    self.is_aside = false;
                    self.awake = self.now;
                }
                _ => {}
            }
        }
        self.is_aside
    }

    fn attending(&self) -> Attention {
        self.worth.attending(self.now)
    }
}

#[test]
fn who_reads_is_there() {
    let mut looks = Looks::new(5);
    let few = Load {
        segments: 1_000,
        ..Load::default()
    };
    looks.after(5.0, few);
    assert_eq!(looks.attending(), Attention::Learning);
    looks.after(1.0, few);
    assert_eq!(looks.attending(), Attention::Following);
    looks.after(0.1, Load { gets: 10, ..few });
    assert_eq!(looks.attending(), Attention::Learning);
    looks.after(4.0, few);
    assert_eq!(looks.attending(), Attention::Learning);
    looks.stats.udp_hits += 1;
    looks.after(4.0, few);
    assert_eq!(looks.attending(), Attention::Learning);
    looks.after(2.0, few);
    assert_eq!(looks.attending(), Attention::Following);
    assert_eq!(looks.changes, 0);
}

#[test]
fn much_that_nobody_reads_is_let_by_until_it_is_little() {
    let mut looks = Looks::new(1);
    let segments = |segments| Load {
        segments,
        ..Load::default()
    };
    assert!(!looks.after(0.9, SEGMENTS));
    assert!(looks.after(0.3, SEGMENTS));
    assert_eq!(looks.worth.trial(), None);
    assert!(looks.after(2.0, segments(10_000)));
    assert!(!looks.after(2.0, segments(1_000)));
    assert!(!looks.after(2.0, segments(10_000)));
    assert!(looks.after(2.0, SEGMENTS));
}

#[test]
fn who_comes_back_is_noticed_at_once_and_waited_for() {
    let mut looks = Looks::new(1);
    assert!(looks.after(2.0, SEGMENTS));
    let read = Load {
        gets: 10_000,
        hits: 10_000,
        ..Load::default()
    };
    let both = Load {
        segments: 50_000,
        ..read
    };
    assert!(!looks.after(0.1, both));
    // Hits are a fifth of it.
    assert!(!looks.after(
        20.0,
        Load {
            segments: 40_000,
            ..read
        }
    ));
    looks.after(
        1.0,
        Load {
            segments: 1_000,
            ..Load::default()
        },
    );
    assert!(looks.after(6.0, SEGMENTS));
    assert_eq!(looks.worth.trial(), None);
}

#[test]
fn who_reads_now_and_then_is_not_waited_for_for_ever() {
    let mut looks = Looks::new(1);
    assert!(looks.after(2.0, SEGMENTS));
    looks.changes = 0;
    for _ in 0..60 {
        looks.after(
            0.1,
            Load {
                gets: 10,
                ..SEGMENTS
            },
        );
        looks.after(9.9, SEGMENTS);
    }
    // One trial that the first of them starts, and one after each rest.
    assert!((10..=20).contains(&looks.changes), "{}", looks.changes);
}

#[test]
fn misses_alone_do_not_pay() {
    let mut looks = Looks::new(1);
    assert!(!looks.after(3.9, MISSES));
    assert!(looks.after(1.2, MISSES));
    let (share, until) = looks.worth.trial().expect("it does not pay");
    assert_eq!(share, 0.0);
    assert!(until > looks.now + Duration::from_secs(50));
    // Trials are seldom and short.
    looks.aside = Duration::ZERO;
    looks.changes = 0;
    looks.after(1_000.0, MISSES);
    assert!((26..=34).contains(&looks.changes), "{}", looks.changes);
    assert!(looks.aside > Duration::from_secs(930), "{:?}", looks.aside);
}

#[test]
fn writes_alone_do_not_pay() {
    let sets = Load {
        sets: 100_000,
        ..Load::default()
    };
    let mut looks = Looks::new(1);
    assert!(looks.after(2.0, sets));
    // Somebody reads now and then.
    let mut looks = Looks::new(1);
    let sets = Load {
        gets: 10,
        hits: 10,
        ..sets
    };
    assert!(looks.after(6.0, sets));
    assert!(looks.after(50.0, sets));
}

#[test]
fn hits_pay() {
    for share in [20, 50, 100] {
        let mut looks = Looks::new(1);
        let load = Load {
            hits: 1_000 * share,
            ..MISSES
        };
        assert!(!looks.after(1_000.0, load), "{share}");
        assert_eq!(looks.changes, 0, "{share}");
    }
}

#[test]
fn a_cache_that_warms_up_is_waited_for() {
    for (max_age, settle, warm_up, share) in [
        (1, 1, 1.0, 20),
        (60, 0, 20.0, 60),
        (60, 0, 28.0, 20),
        (60, 60, 20.0, 60),
    ] {
        let mut looks = Looks::with(max_age, settle, false);
        looks.warm_up = warm_up;
        let load = Load {
            hits: 1_000 * share,
            ..MISSES
        };
        assert!(!looks.after(300.0, load), "{max_age} {warm_up}");
        assert_eq!(looks.changes, 0, "{max_age} {warm_up}");
    }
    // Not for ever.
    let mut looks = Looks::with(60, 0, false);
    let load = Load {
        hits: 5_000,
        ..MISSES
    };
    assert!(!looks.after(10.0, load));
    assert!(looks.after(5.0, load));
}

#[test]
fn a_cache_in_which_much_is_stored_is_waited_for() {
    let in_turn = Load {
        stored: 90_000,
        ..MISSES
    };
    let hits = Load {
        hits: 90_000,
        ..MISSES
    };
    let mut looks = Looks::with(60, 0, false);
    assert!(!looks.after(20.0, in_turn));
    assert!(!looks.after(10.0, hits));
    // Not for ever, nor if it is all thrown away again.
    let mut looks = Looks::with(60, 0, false);
    assert!(!looks.after(29.0, in_turn));
    assert!(looks.after(5.0, in_turn));
    let mut looks = Looks::with(60, 0, false);
    let in_vain = Load {
        displaced: 85_000,
        ..in_turn
    };
    assert!(looks.after(5.0, in_vain));
}

/// Such as after a restart of memcached.
#[test]
fn a_cache_that_was_emptied_is_waited_for() {
    let mut looks = Looks::new(1);
    let hits = Load {
        hits: 90_000,
        ..MISSES
    };
    looks.after(10.0, hits);
    assert!(!looks.after(2.5, MISSES));
    assert!(!looks.after(10.0, hits));
    assert_eq!(looks.changes, 0);
}

#[test]
fn another_load_is_noticed_after_the_rest() {
    let mut looks = Looks::new(1);
    assert!(looks.after(10.0, MISSES));
    let hits = Load {
        hits: 50_000,
        ..MISSES
    };
    assert!(looks.after(50.0, hits));
    assert!(!looks.after(10.0, hits));
    assert!(!looks.after(100.0, hits));
    assert_eq!(looks.changes, 2);
}

#[test]
fn little_is_always_followed() {
    let mut looks = Looks::new(1);
    let little = |gets| Load { gets, ..MISSES };
    assert!(!looks.after(100.0, little(15_000)));
    assert!(looks.after(10.0, little(30_000)));
    assert!(!looks.after(3.0, little(4_000)));
    assert!(!looks.after(10.0, little(4_000)));
    // What is known from before is still so.
    assert!(looks.after(2.5, little(30_000)));
    assert!(looks.after(10.0, little(10_000)));
}

#[test]
fn readers_over_tcp_count_where_they_are_answered() {
    let load = Load {
        tcp_gets: 50_000,
        ..Load::default()
    };
    let mut looks = Looks::new(1);
    assert!(looks.after(3.0, load));
    assert_eq!(looks.worth.trial(), None);
    let mut looks = Looks::with(1, 1, true);
    assert!(!looks.after(3.0, load));
    assert!(looks.after(3.0, load));
    assert!(looks.worth.trial().is_some());
    assert_eq!(looks.attending(), Attention::Learning);
}

/// GETs that are never answered, as of connections on which they may not be.
#[test]
fn a_call_that_nothing_came_of_is_not_heeded_again() {
    let mut looks = Looks::with(1, 1, true);
    assert!(looks.after(3.0, SEGMENTS));
    let gets = Load {
        tcp_gets: 50_000,
        ..Load::default()
    };
    looks.are_counted = false;
    assert!(!looks.after(0.2, gets));
    looks.changes = 0;
    assert!(looks.after(50.0, gets));
    assert_eq!(looks.changes, 1);
}
