//! Clients that do as they like.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fastrand::Rng;

use super::field::Field;
use super::record::{self, Done};
use super::source::{Habits, Source};
use super::wire::{Wire, cut};

/// For a while, all sockets are used at once; then every key is read, and all that was seen is checked.
/// Returns the number of operations.
pub fn spell(field: &mut Field, span: Duration, habits: &[Habits]) -> Result<usize> {
    let mut all = field.prepare()?;
    let end = Instant::now() + span;
    let sources: Vec<Source> = habits
        .iter()
        .map(|&habits| {
            let mut source = Source::new(field.source.random.u64(..), habits, &field.source.values);
            source.cas.clone_from(&field.source.cas);
            source
        })
        .collect();
    let done: Vec<Result<Vec<Done>>> = thread::scope(|scope| {
        let threads: Vec<_> = field
            .wires
            .iter()
            .zip(sources)
            .map(|(wire, source)| scope.spawn(move || act(wire, source, end)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("no panic"))
            .collect()
    });
    for part in done {
        all.extend(part?);
    }
    let read = field.verify();
    if read.is_err() {
        record::check(&all)?;
    }
    all.extend(read?);
    record::check(&all)?;
    Ok(all.len())
}

/// Sends a few commands and waits for the answers, until the end.
fn act(wire: &Wire, mut source: Source, end: Instant) -> Result<Vec<Done>> {
    let mut done = Vec::new();
    let mut pace = Rng::with_seed(source.random.u64(..));
    while Instant::now() < end {
        let count = source.random.usize(1..5);
        let script = source.script(wire.way, count);
        let pieces = cut(&mut source.random, wire.way, script);
        done.extend(wire.exchange(pieces).context("running free")?);
        if pace.bool() {
            thread::sleep(Duration::from_micros(pace.u64(..1_000)));
        }
    }
    Ok(done)
}
