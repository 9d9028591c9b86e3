//! Hits on two CPUs at once: what they do not share they do twice as fast.

use std::sync::Barrier;

use anyhow::{Result, ensure};
use prestack_testbed::cpu;
use serde::Serialize;

use super::measure::{Filled, RUNS, STRAYS};
use super::source::Source;
use crate::comparison::median;
use crate::interrupt;
use crate::progress::Progress;
use crate::report::whole;
use crate::table::Table;

/// Numbers of keys: one that both CPUs want, and many.
pub(super) const KEYS: [u32; 3] = [1, 1_000, 100_000];

/// How hits go faster on two CPUs.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Scaling {
    keys: u32,
    /// Net ns of a hit while one CPU answers.
    alone_ns: f64,
    /// Net ns of a hit on each of two CPUs that both answer.
    together_ns: f64,
    /// Hits of two CPUs to those of one.
    ratio: f64,
}

impl Scaling {
    pub(super) fn keys(&self) -> u32 {
        self.keys
    }
}

/// Steps of [`measure`] for its progress.
pub(super) fn steps(rounds: u32) -> usize {
    rounds as usize
}

/// Measures hits in a filled cache: each of these CPUs in turn, then both at once, and the same with the
/// program that does nothing. Medians of rounds.
pub(super) fn measure(
    filled: &Filled,
    cpus: [usize; 2],
    rounds: u32,
    progress: &Progress,
) -> Result<Scaling> {
    let keys = filled.keys();
    let mut sources = [filled.hits()?, filled.hits()?];
    let (mut alone, mut together, mut ratio) = (Vec::new(), Vec::new(), Vec::new());
    // The first round finds caches cold.
    for round in 0..=rounds {
        if round > 0 {
            progress.step(&format!(
                "hits on two CPUs, {} keys: round {round}",
                whole(keys.into())
            ));
        }
        let echo = times(&mut sources, cpus)?;
        let before = filled.datapath().stats()?.udp_hits;
        for source in &mut sources {
            source.aim(Some(filled.datapath().rx()?))?;
        }
        let hits = times(&mut sources, cpus)?;
        let counted = filled.datapath().stats()?.udp_hits - before;
        for source in &mut sources {
            source.aim(None)?;
        }
        let [runs, packets] = RUNS;
        let requests = u64::from(4 * runs * packets);
        ensure!(
            requests - counted <= (STRAYS * requests as f64) as u64,
            "{counted} of {requests} GETs were hits on two CPUs"
        );
        if round > 0 {
            let net = |i: usize| std::array::from_fn(|cpu| hits[i][cpu] - echo[i][cpu]);
            let (one, two): ([f64; 2], [f64; 2]) = (net(0), net(1));
            let mean = |of: [f64; 2]| (of[0] + of[1]) / 2.0;
            alone.push(mean(one));
            together.push(mean(two));
            ratio.push(two.map(f64::recip).iter().sum::<f64>() / mean(one.map(f64::recip)));
        }
    }
    Ok(Scaling {
        keys,
        alone_ns: median(alone.into_iter()),
        together_ns: median(together.into_iter()),
        ratio: median(ratio.into_iter()),
    })
}

/// Nanoseconds of a packet from each of two sources on a CPU of its own: one after the other, and together.
fn times(sources: &mut [Source; 2], [a, b]: [usize; 2]) -> Result<[[f64; 2]; 2]> {
    let [first, second] = sources;
    let alone = [
        run(first, a, &Barrier::new(1))?,
        run(second, b, &Barrier::new(1))?,
    ];
    let start = Barrier::new(2);
    let together = std::thread::scope(|scope| {
        let other = scope.spawn(|| run(second, b, &start));
        let this = run(first, a, &start);
        let other = other.join().expect("measuring does not panic");
        anyhow::Ok([this?, other?])
    });
    Ok([alone, together?])
}

/// Nanoseconds of a packet on this CPU, from when all are ready.
fn run(source: &mut Source, cpu: usize, start: &Barrier) -> Result<f64> {
    let pinned = cpu::pin_thread(&[cpu]);
    start.wait();
    pinned?;
    let [runs, packets] = RUNS;
    let mut nanoseconds = 0;
    for _ in 0..runs {
        interrupt::check()?;
        nanoseconds += source.run(packets)?.as_nanos();
    }
    Ok(nanoseconds as f64 / f64::from(runs))
}

/// The rows as a table.
pub(super) fn table(rows: &[Scaling]) -> Table {
    let head = "keys,net ns on 1 CPU,net ns on each of 2,2 CPUs to 1";
    let mut table = Table::new(0, head.split(','));
    for row in rows {
        table.row([
            whole(row.keys.into()),
            format!("{:.0}", row.alone_ns),
            format!("{:.0}", row.together_ns),
            format!("{:.2}×", row.ratio),
        ]);
    }
    table
}
