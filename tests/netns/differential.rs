//! One random stream of commands to memcached with prestack before it and to a bare memcached: not
//! one byte of any answer may differ.
//!
//! `PRESTACK_SEED` makes a stream come again; `PRESTACK_DIFFERENTIAL` is the number of commands of
//! each test, which otherwise go by time.
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
//! - Over TCP, `incr` and `decr` behind a GET in one pipeline: while the answer with the item has not
//!   been sent, a number is not changed in place, and so not filled up with blanks.

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
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use run::{Limit, Run};

/// How long each test takes, unless it goes by commands.
const TIME: Duration = Duration::from_secs(25);
/// The same for the one that only shows that two memcacheds agree.
const BARE_TIME: Duration = Duration::from_secs(5);

/// Sends one stream, and checks that the cache has answered its share if there is one.
fn compare(prestack: Option<&[&str]>, time: Duration, stretch: usize) -> Result<()> {
    let seed = match env::var("PRESTACK_SEED") {
        Ok(seed) => seed.parse().context("PRESTACK_SEED is no number")?,
        Err(_) => SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros() as u64,
    };
    println!("PRESTACK_SEED={seed}");
    let limit = match env::var("PRESTACK_DIFFERENTIAL") {
        Ok(count) => Limit::Commands(
            count
                .parse()
                .context("PRESTACK_DIFFERENTIAL is no number")?,
        ),
        Err(_) => Limit::Time(time),
    };
    let mut run = Run::new(prestack, seed)?;
    let result = run.go(limit, stretch);
    let tally = run.tally()?;
    result.with_context(|| format!("PRESTACK_SEED={seed}"))?;
    if prestack.is_some() {
        tally.check();
    }
    Ok(())
}

#[test]
fn answers_are_memcacheds_by_default() -> Result<()> {
    // What is not understood empties the cache for a second.
    compare(Some(&["--memory", "32MiB"]), TIME, 40_000)
}

#[test]
fn answers_are_memcacheds_with_a_long_max_age() -> Result<()> {
    let args = ["--memory", "32MiB", "--max-age", "60s", "--settle", "20ms"];
    compare(Some(&args), TIME, 4_000)
}

#[test]
fn two_memcacheds_agree() -> Result<()> {
    compare(None, BARE_TIME, 2_000)
}
