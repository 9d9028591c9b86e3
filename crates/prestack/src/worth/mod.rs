//! Whether it pays to follow what comes, by the datapath's counters.
//!
//! A hit spares the server 2 to 2.5 µs of CPU time; what passes costs 0.3 to 0.7 µs more than without prestack. So
//! where less than an eighth of much traffic hits, or nobody reads, the datapath is to stand aside. From there it is
//! not seen what could be answered. So after a rest it is tried again, with a cache that begins empty: for so much
//! shorter than the rest that trials cost next to nothing on average.

use std::time::{Duration, Instant};

use prestack_abi::{config::Attention, stats::Stats};

use crate::settings::Options;

/// Nobody is taken to have gone before.
const SHORTEST: Duration = Duration::from_secs(1);
/// How long readers that have been there may pause until they are taken to have gone.
const PAUSE: Duration = Duration::from_secs(10);
/// Packets are counted for as long.
const SPAN: Duration = Duration::from_secs(1);
/// As many packets in a second cost a hundredth of a CPU, at some hundred nanoseconds each: much.
const MUCH: u64 = 20_000;
/// It is no longer much when it is so many times less: then everything is followed, whether that pays or not.
const LESS: u64 = 4;
/// One of so many requests has to hit.
const SHARE: f64 = 8.0;
/// How long a cache that may be filled has to show that it is of use.
const WARM_UP: Duration = Duration::from_secs(2);
/// A cache may be growing warmer for `max_age`, after which it holds what it comes to hold, but no longer than this.
const LONGEST_WARM_UP: Duration = Duration::from_secs(30);
/// How many times longer than a trial a rest is. A trial adds a quarter to what requests cost at most, so that they
/// cost 1.5 % on average.
const REST: u32 = 15;

/// Why the datapath is to stand aside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// Nobody is there to be answered: until somebody is.
    NobodyReads,
    /// Too little could be answered: until the next trial.
    DoesNotPay,
}

/// What is to become of requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wanted {
    /// They are followed, and replies learnt from or not: see [`Worth::attending`].
    Attention,
    /// The datapath stands aside.
    Aside(Cause),
}

/// How long what takes, and how much is much.
#[derive(Clone, Copy, Debug)]
struct Times {
    /// Readers are not taken to have gone before.
    patience: Duration,
    /// After a start nothing is cached until then: for the settle time, and once more if connections were in doubt.
    fills: Duration,
    /// How long the cache may be growing warmer after that.
    warm_up: Duration,
    rest: Option<Duration>,
    much: u64,
    has_tcp_hits: bool,
}

impl Times {
    fn of(options: &Options) -> Self {
        Self {
            rest: options.rest,
            much: options.much.unwrap_or(MUCH),
            has_tcp_hits: options.tcp_hits,
            ..Self::usual(options.max_age, options.settle)
        }
    }

    fn usual(max_age: Duration, settle: Duration) -> Self {
        Self {
            patience: max_age.max(SHORTEST),
            fills: 2 * settle,
            warm_up: max_age.clamp(WARM_UP, LONGEST_WARM_UP),
            rest: None,
            much: MUCH,
            has_tcp_hits: false,
        }
    }

    /// How long it is looked at least whether it pays.
    fn trial(&self) -> Duration {
        self.fills + WARM_UP
    }
}

/// What matters of the counters.
#[derive(Clone, Copy, Default, Debug)]
struct Seen {
    /// GETs that could be answered, as far as the cache has them.
    reads: u64,
    /// Those that passed unseen.
    calls: u64,
    hits: u64,
    /// Entries that were stored and have displaced no other.
    stored: u64,
    /// Requests, as far as they come in a packet each.
    followed: u64,
    all: u64,
}

impl Seen {
    fn of(stats: &Stats, has_tcp_hits: bool) -> Self {
        let hits = stats.udp_hits + stats.tcp_hits;
        let mut reads = stats.udp_hits + stats.udp_misses;
        let mut calls = stats.aside_udp_gets;
        if has_tcp_hits {
            reads += stats.tcp_hits + stats.tcp_misses;
            calls += stats.aside_tcp_gets;
        }
        let followed = hits + stats.udp_misses + stats.udp_passed + stats.tcp_passed;
        let aside = stats.aside_udp_gets + stats.aside_tcp_gets + stats.aside_others;
        Self {
            reads,
            calls,
            hits,
            stored: stats.fills.saturating_sub(stats.evictions),
            followed,
            all: followed + aside,
        }
    }
}

/// A time in which too little hits.
#[derive(Clone, Copy, Debug)]
struct Poor {
    since: Instant,
    hits: u64,
    followed: u64,
    /// The shares of hits, and of requests by which something came to the cache, in the last span, and how long the
    /// cache had been filled in the middle of that.
    last: f64,
    stored: f64,
    filled: Duration,
}

/// A time aside.
#[derive(Clone, Copy, Debug)]
struct Rest {
    cause: Cause,
    /// When the next trial is due, if that does not pay.
    until: Instant,
}

/// What has come of late, and what came of it.
#[derive(Debug)]
pub struct Worth {
    times: Times,
    seen: Seen,
    /// The last GET that was seen; without one, the start.
    read: Instant,
    has_read: bool,
    /// What there was at the beginning of the span, and how many packets came in a second of the one before.
    span: Instant,
    counted: Seen,
    rate: u64,
    /// Since when requests are followed.
    awake: Instant,
    /// They are because somebody seemed to read, and somebody did since.
    was_called: bool,
    was_right: bool,
    poor: Option<Poor>,
    rest: Option<Rest>,
    /// Until when nothing else is to be expected than at the last trial.
    known_until: Option<Instant>,
    /// The share of requests that could be answered, when it was seen last that they are too few.
    share: f64,
}

impl Worth {
    /// Somebody may just have read. What is stored serves for `max_age`.
    #[must_use]
    pub fn new(options: &Options, now: Instant) -> Self {
        Self::with(Times::of(options), now)
    }

    fn with(times: Times, now: Instant) -> Self {
        Self {
            times,
            seen: Seen::default(),
            read: now,
            has_read: false,
            span: now,
            counted: Seen::default(),
            rate: 0,
            awake: now,
            was_called: false,
            was_right: false,
            poor: None,
            rest: None,
            known_until: None,
            share: 0.0,
        }
    }

    /// What is to become of requests from now on.
    pub fn look(&mut self, stats: &Stats, now: Instant) -> Wanted {
        let seen = Seen::of(stats, self.times.has_tcp_hits);
        let is_read = seen.reads != self.seen.reads;
        let is_called = seen.calls != self.seen.calls;
        if is_read || is_called {
            self.read = now;
            self.has_read = true;
        }
        self.was_right |= is_read;
        self.was_called |= is_called;
        self.seen = seen;
        if now.duration_since(self.span) >= SPAN {
            self.end_span(now);
        }
        match self.rest {
            Some(rest) if !self.is_over(rest, now) => Wanted::Aside(rest.cause),
            Some(_) => Wanted::Attention,
            None if self.rate < self.times.much => Wanted::Attention,
            None if self.has_nobody(now) => Wanted::Aside(Cause::NobodyReads),
            None => self.lost(now).map_or(Wanted::Attention, Wanted::Aside),
        }
    }

    /// How requests are to be followed.
    #[must_use]
    pub fn attending(&self, now: Instant) -> Attention {
        if self.times.has_tcp_hits || now.duration_since(self.read) <= self.times.patience {
            Attention::Learning
        } else {
            // Nothing that is stored now would still be young enough for who comes later.
            Attention::Following
        }
    }

    /// The datapath stands aside from now on.
    pub fn stands_aside(&mut self, cause: Cause, now: Instant) {
        let cause = if self.was_called && !self.was_right {
            // Nobody would come of it the next time either.
            Cause::DoesNotPay
        } else {
            cause
        };
        let trial = self.times.trial();
        let trial = self
            .poor
            .map_or(trial, |poor| trial.max(now.duration_since(poor.since)));
        let rest = self.times.rest.unwrap_or(trial * REST);
        let known_until = self.known_until.filter(|until| now < *until);
        let until = known_until.unwrap_or(now + rest);
        self.known_until = (cause == Cause::DoesNotPay).then_some(until);
        self.share = self
            .poor
            .map_or(0.0, |poor| share(poor.hits, poor.followed));
        self.rest = Some(Rest { cause, until });
        self.begin(now);
        self.was_called = false;
    }

    /// The datapath attends to requests from now on.
    pub fn attends(&mut self, now: Instant) {
        self.rest = None;
        self.awake = now;
        self.begin(now);
        self.was_right = false;
    }

    /// While the datapath stands aside because that does not pay: the share of requests that could be answered, and
    /// when it is tried again.
    #[must_use]
    pub fn trial(&self) -> Option<(f64, Instant)> {
        self.rest
            .filter(|rest| rest.cause == Cause::DoesNotPay)
            .map(|rest| (self.share, rest.until))
    }

    fn begin(&mut self, now: Instant) {
        self.poor = None;
        self.span = now;
        self.counted = self.seen;
    }

    fn end_span(&mut self, now: Instant) {
        let (before, seen) = (self.counted, self.seen);
        let since = std::mem::replace(&mut self.span, now);
        self.counted = seen;
        let packets = seen.all.saturating_sub(before.all);
        self.rate = packets * 1_000 / now.duration_since(since).as_millis() as u64;
        let hits = seen.hits.saturating_sub(before.hits);
        let followed = seen.followed.saturating_sub(before.followed);
        let last = share(hits, followed);
        if self.rate < self.times.much || last * SHARE >= 1.0 {
            self.poor = None;
            return;
        }
        let poor = self.poor.get_or_insert(Poor {
            since,
            hits: 0,
            followed: 0,
            last,
            stored: 0.0,
            filled: Duration::ZERO,
        });
        poor.hits += hits;
        poor.followed += followed;
        poor.last = last;
        poor.stored = share(seen.stored.saturating_sub(before.stored), followed);
        let middle = since + now.duration_since(since) / 2;
        let awake = middle.saturating_duration_since(self.awake);
        poor.filled = awake.saturating_sub(self.times.fills);
    }

    /// Whether there is nobody who reads.
    fn has_nobody(&self, now: Instant) -> bool {
        let pause = now.duration_since(self.read);
        pause > self.times.patience && (!self.has_read || pause > PAUSE)
    }

    /// Why it does not pay, if that was seen for long enough.
    fn lost(&self, now: Instant) -> Option<Cause> {
        let poor = self.poor?;
        let time = now.duration_since(poor.since);
        if self.known_until.is_some_and(|until| now < until) {
            return (time >= SPAN).then_some(Cause::DoesNotPay);
        }
        let cause = if self.read < poor.since {
            Cause::NobodyReads
        } else {
            Cause::DoesNotPay
        };
        (time >= self.times.trial() && !self.may_come_to_pay(poor)).then_some(cause)
    }

    /// Whether enough may hit once the cache is warm: if the share of hits went on to grow as it has so far, from
    /// nothing (it grows slower and slower, while the cache fills); or since much is stored, as where all keys are
    /// asked for in turn, and none hits before each was.
    fn may_come_to_pay(&self, poor: Poor) -> bool {
        let warm_up = self.times.warm_up;
        let filled = poor.filled.as_secs_f64();
        let grows = poor.last * warm_up.as_secs_f64() * SHARE >= filled;
        poor.filled < warm_up && (grows || poor.stored * SHARE >= 1.0)
    }

    fn is_over(&self, rest: Rest, now: Instant) -> bool {
        self.rate < self.times.much / LESS
            || match rest.cause {
                Cause::NobodyReads => self.was_called,
                Cause::DoesNotPay => now >= rest.until,
            }
    }
}

fn share(hits: u64, of: u64) -> f64 {
    hits as f64 / of.max(1) as f64
}

#[cfg(test)]
mod tests;
