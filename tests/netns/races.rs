//! Races of GETs and writes of every kind against stock memcached: none may end in a stale answer.
//!
//! In the rounds memcached is stopped (SIGSTOP), commands are queued on many sockets, cut and pipelined
//! at will, memcached goes on, and when all is answered every key must read as memcached itself says. In
//! the spells many clients do as they like. All that anybody saw is checked for linearizability per key.
//!
//! `PRESTACK_SEED` makes a run draw the same commands again, `PRESTACK_ROUNDS` is the number of rounds of
//! each of the tests that stop memcached, and `PRESTACK_MINUTES` the time for the spells. Each is shared
//! by memcached with one thread and with several.

mod binary;
mod command;
mod field;
mod keys;
mod record;
mod round;
mod source;
mod spell;
mod wire;

use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, bail, ensure};
use prestack_testbed::pace;
use prestack_tests::environment::{say, seed, setting};
use prestack_tests::stage::{store, until_hit};

use crate::mixed::HITS;
use field::Field;
use round::{Freeze, round};
use source::{Habits, Way};

/// Numbers of memcached's threads.
const THREADS: [u32; 2] = [1, 4];
/// Rounds of a test unless the environment says otherwise.
const ROUNDS: usize = 30;
/// Minutes of the spells, the same.
const MINUTES: f64 = 1.0 / 3.0;
/// How long a spell takes: its history is kept until it is over.
const SPELL: Duration = Duration::from_secs(5);
/// Stale rounds after which a test does not go on, and those that are shown in full.
const ENOUGH: usize = 50;
const SHOWN: usize = 2;

/// The sockets of a round.
const WAYS: [Way; 12] = [
    Way::Text,
    Way::Text,
    Way::Text,
    Way::Text,
    Way::Binary,
    Way::Binary,
    Way::Udp,
    Way::Udp,
    Way::Udp,
    Way::Udp,
    Way::Udp,
    Way::Udp,
];

/// The sockets of a spell.
const FREE_WAYS: [Way; 8] = [
    Way::Text,
    Way::Text,
    Way::Binary,
    Way::Udp,
    Way::Udp,
    Way::Udp,
    Way::Udp,
    Way::Udp,
];

/// Counts what went wrong.
#[derive(Default)]
struct Stale(usize);

impl Stale {
    /// Takes in a failure; hands back one that is not about something stale, and the last one.
    fn count(&mut self, error: Error) -> Result<()> {
        let words = format!("{error:#}");
        if !words.contains("stale: ") {
            return Err(error);
        }
        self.0 += 1;
        if self.0 <= SHOWN {
            say(&words);
        }
        ensure!(self.0 < ENOUGH, "{ENOUGH} times stale");
        Ok(())
    }
}

fn freeze(name: &str, freeze: &Freeze, args: &[&str]) -> Result<()> {
    let habits = Habits {
        writes: 0.4,
        quiet: if freeze.has_quiet { 0.25 } else { 0.0 },
        flushes: 0.01,
    };
    let rounds = setting("PRESTACK_ROUNDS", ROUNDS)?;
    for threads in THREADS {
        let mut field = Field::new(threads, args, seed()?, habits, &WAYS)?;
        let (mut operations, mut writes, mut void) = (0, 0, 0);
        let mut stale = Stale::default();
        for number in 0..rounds.div_ceil(THREADS.len()) {
            match round(&mut field, freeze) {
                Ok(tally) => {
                    operations += tally.operations;
                    writes += tally.writes;
                    void += usize::from(tally.is_void);
                }
                Err(error) => stale.count(error.context(format!("round {number}")))?,
            }
        }
        let stats = field.check_doubts(operations);
        say(&format!(
            "{name}, {threads} threads: {} rounds, {operations} operations, {writes} writes, {void} void \
             rounds, {} stale; {}",
            rounds.div_ceil(THREADS.len()),
            stale.0,
            stats.as_deref().unwrap_or_default()
        ));
        ensure!(stale.0 == 0, "{} stale rounds", stale.0);
        let hits = field.stage.hits()?;
        ensure!(hits as usize > rounds, "only {hits} hits");
        check_tcp_hits(&field, rounds / THREADS.len())?;
        ensure!(void * 4 <= rounds, "{void} void rounds");
        stats?;
    }
    Ok(())
}

/// Fails unless, where prestack answers over TCP, it has more often than this; on a slow machine, at all.
fn check_tcp_hits(field: &Field, least: usize) -> Result<()> {
    let prestack = &field.stage.prestack;
    if prestack.carries_connections() {
        let hits = prestack.stats()?.get("tcp.hits")?;
        say(&format!("{hits} hits over TCP"));
        let least = if pace::is_slow() { 0 } else { least };
        ensure!(hits as usize > least, "only {hits} hits over TCP");
    }
    Ok(())
}

const SHORT: Freeze = Freeze {
    millis: 20..200,
    has_quiet: true,
};

const LONG: Freeze = Freeze {
    millis: 550..800,
    has_quiet: false,
};

#[test]
fn short_freezes() -> Result<()> {
    freeze("short freezes", &SHORT, &[])
}

#[test]
fn short_freezes_with_tcp_hits() -> Result<()> {
    freeze("short freezes with TCP hits", &SHORT, HITS)
}

#[test]
fn long_freezes() -> Result<()> {
    freeze("long freezes", &LONG, &[])
}

#[test]
fn running_free() -> Result<()> {
    run_free(&[])
}

#[test]
fn running_free_with_tcp_hits() -> Result<()> {
    run_free(HITS)
}

fn run_free(args: &[&str]) -> Result<()> {
    let write = |writes, quiet, flushes| Habits {
        writes,
        quiet,
        flushes,
    };
    let habits = [
        write(0.3, 0.2, 0.0002),
        write(0.05, 0.0, 0.0),
        write(0.05, 0.2, 0.0002),
        write(0.05, 0.005, 0.0),
        write(0.02, 0.0, 0.0),
        write(0.0, 0.0, 0.0),
        write(0.0, 0.0, 0.0),
        write(0.0, 0.0, 0.0),
    ];
    let minutes = setting("PRESTACK_MINUTES", MINUTES)? / THREADS.len() as f64;
    for threads in THREADS {
        let mut field = Field::new(threads, args, seed()?, habits[0], &FREE_WAYS)?;
        let end = Instant::now() + Duration::from_secs_f64(60.0 * minutes);
        let (mut operations, mut spells) = (0, 0);
        let mut stale = Stale::default();
        while Instant::now() < end {
            spells += 1;
            // At times there is something to read between two writes.
            let calm = [1.0, 0.2, 0.03][spells % 3];
            let habits = habits.map(|mut habits| {
                habits.writes *= calm;
                habits
            });
            match spell::spell(&mut field, SPELL, &habits) {
                Ok(count) => operations += count,
                Err(error) => stale.count(error.context(format!("spell {spells}")))?,
            }
        }
        let stats = field.check_doubts(operations);
        say(&format!(
            "running free, {threads} threads: {spells} spells, {operations} operations, {} stale; {}",
            stale.0,
            stats.as_deref().unwrap_or_default()
        ));
        ensure!(stale.0 == 0, "{} stale spells", stale.0);
        let hits = field.stage.hits()?;
        ensure!(hits as usize > operations / 100, "only {hits} hits");
        check_tcp_hits(&field, operations / 100)?;
        stats?;
    }
    Ok(())
}

#[test]
fn a_stale_answer_is_noticed() -> Result<()> {
    let habits = Habits {
        writes: 0.0,
        quiet: 0.0,
        flushes: 0.0,
    };
    let mut field = Field::new(1, &[], seed()?, habits, &[])?;
    field.prepare()?;
    let (name, first) = (keys::name(0), field.oracle.get(&keys::name(0))?);
    let first = first.context("the key is not there")?;
    until_hit(
        &field.stage.prestack,
        &mut field.stage.udp()?,
        &name,
        &first,
    )?;
    store(&mut field.stage.behind()?, &name, &keys::value(999))?;
    match field.verify() {
        Ok(_) => bail!("the cache was not stale"),
        Err(error) => ensure!(
            format!("{error:#}").contains("stale: Register0"),
            "{error:#}"
        ),
    }
    // What is written where it is seen is not.
    store(&mut field.stage.tcp()?, &name, &keys::value(1_000))?;
    field.verify()?;
    Ok(())
}
