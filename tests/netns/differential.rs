//! One random stream of commands to memcached with prestack before it and to a bare memcached: not
//! one byte of any answer may differ.
//!
//! `PRESTACK_SEED` makes a stream come again; `PRESTACK_DIFFERENTIAL` is the number of commands of
//! each of the tests with prestack, which otherwise go by time.
//!
//! Left out is what is not a matter of the commands alone. By nature: `stats`, the flags `h`, `l` and
//! `t` of `mg`, the second around an expiry. And because of how memcached 1.6.18 works:
//!
//! - A binary frame over UDP with an unknown opcode and a key: its error comes out as the answer to
//!   the next datagram, whoever sends that.
//! - A storage command over UDP whose data does not end with its datagram, and one that is refused
//!   for its size: the datagrams that follow, frames and all, are taken for the data.
//! - `flush_all` with a delay while items emptied by an earlier one are still there: they come
//!   back, unless they have been reclaimed, which happens at no certain time.
//! - Over TCP, `incr` and `decr` behind a GET in one pipeline: a number that becomes shorter is
//!   filled up with blanks, unless the item is still held by an answer that has not been sent. A
//!   thread that orders items for eviction holds them, too: it is switched off.
//! - Over TCP, a `get` with an over-long key behind other commands in one pipeline: those of their
//!   answers that have not been sent are dropped.

mod binary;
mod command;
mod datagrams;
mod forms;
mod history;
mod meta;
mod odd;
mod run;
mod server;
mod source;
mod stream;
mod text;

use std::env;
use std::time::Duration;

use anyhow::{Context, Result};
use forms::{FORMS, Form};
use prestack_testbed::pace;
use prestack_tests::environment::seed;
use prestack_tests::stage::store;
use run::{Limit, Pace, Run};
use server::{Connections, Server};

/// How long each test takes, unless it goes by commands.
const TIME: Duration = Duration::from_secs(25);
/// The same for the one that only shows that two memcacheds agree.
const BARE_TIME: Duration = Duration::from_secs(5);

/// prestack as it is tested.
#[derive(Clone, Copy)]
struct Setting {
    /// Its arguments, and what comes on top of them.
    args: &'static [&'static str],
    more: &'static [&'static str],
    /// How the stream changes.
    pace: Pace,
    /// Least share of the items asked for in each of these forms that must come from the cache.
    served: (&'static [Form], f64),
}

/// With the defaults. What is not understood empties the cache for a second, in which the test sends
/// thousands of commands.
const DEFAULT: Setting = Setting {
    args: &["--always-on", "--memory", "32MiB"],
    more: &[],
    pace: Pace {
        round: 300_000,
        calm: 30_000,
    },
    // How much of the others is served in this time depends on the machine.
    served: (&[Form::Get], 0.002),
};

/// With entries that last until they are invalidated.
const LASTING: Setting = Setting {
    args: &[
        "--always-on",
        "--memory",
        "32MiB",
        "--max-age",
        "60s",
        "--settle",
        "20ms",
    ],
    more: &[],
    pace: Pace {
        round: 100_000,
        calm: 2_000,
    },
    served: (&FORMS, 0.03),
};

/// The same, and GETs answered over TCP: with the default settle time, connections that are in doubt would be out of
/// it about when prestack is restarted.
const HITS: Setting = Setting {
    more: &["--tcp-hits"],
    ..LASTING
};

/// Sends one stream, and checks that the cache has answered its share.
fn compare(setting: &Setting) -> Result<()> {
    let seed = seed()?;
    let limit = match env::var("PRESTACK_DIFFERENTIAL") {
        Ok(count) => Limit::Commands(
            count
                .parse()
                .context("PRESTACK_DIFFERENTIAL is no number")?,
        ),
        Err(_) => Limit::Time(TIME),
    };
    let args = [setting.args, setting.more].concat();
    let mut run = Run::new(Some(&args), seed)?;
    let result = run.go(limit, setting.pace);
    let tally = run.tally()?;
    result.with_context(|| format!("PRESTACK_SEED={seed}"))?;
    let (forms, least) = setting.served;
    tally.check(forms, least);
    run.check_tcp_hits(least)
}

#[test]
fn answers_are_memcacheds_by_default() -> Result<()> {
    compare(&DEFAULT)
}

#[test]
fn answers_are_memcacheds_with_tcp_hits() -> Result<()> {
    compare(&HITS)
}

#[test]
fn answers_are_memcacheds_with_a_long_max_age() -> Result<()> {
    compare(&LASTING)
}

#[test]
fn two_memcacheds_agree() -> Result<()> {
    Run::new(None, seed()?)?.go(Limit::Time(BARE_TIME), LASTING.pace)
}

#[test]
fn silence_is_a_difference_unless_both_are_silent() -> Result<()> {
    let servers = [Server::start(None)?, Server::start(None)?];
    let mut connections = Connections::open(&servers, false)?;
    let swallowed = [&b"set key 0 0 100\r\n"[..], b"mn\r\n"];
    let [with, without] = connections.exchange(&servers, &swallowed, b"MN\r\n")?;
    assert!(with.is_empty() && without.is_empty());
    // On new connections.
    let [with, without] = connections.exchange(&servers, &[b"mn\r\n"], b"MN\r\n")?;
    assert_eq!(with, b"MN\r\n");
    assert_eq!(without, b"MN\r\n");
    for (server, value) in servers.iter().zip(["a", "ab"]) {
        store(&mut server.behind()?, b"short", value.as_bytes())?;
    }
    let error = connections.exchange(&servers, &[b"get short\r\n"], b"ab\r\nEND\r\n");
    let error = format!("{:#}", error.expect_err("one did not say it"));
    assert!(error.contains("one says no more"), "{error}");
    Ok(())
}

#[test]
fn a_stale_answer_is_noticed() -> Result<()> {
    let mut run = Run::new(Some(LASTING.args), seed()?)?;
    // Shorter than the first part of a round, in which the cache comes to serve.
    run.go(Limit::Commands(pace::volume(10_000) as u64), LASTING.pace)?;
    run.write_unseen()?;
    let error = run.get_hot_keys().expect_err("the cache was stale");
    let error = format!("{error:#}");
    assert!(error.contains("without prestack: [[0/1 0]"), "{error}");
    Ok(())
}
