//! Hits on two CPUs at once: what they do not share they do twice as fast.

use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use prestack_testbed::cpu;
use serde::Serialize;

use super::measure::{Filled, RUNS, STRAYS};
use super::source::Source;
use crate::interrupt;
use crate::outcome::median;
use crate::output;
use crate::progress::Progress;
use crate::report::whole;
use crate::table::Table;

/// Least share of the time of two runs in which both are at work, without which they were not at once.
const AT_ONCE: f64 = 0.8;
/// How often a round is tried in which they were not.
const TRIES: u32 = 5;

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
    /// Share of the time, at least, in which both CPUs were answering.
    at_once: f64,
    /// Share of its time in which a CPU was at this work, and not at another's: that of the one that was less.
    had: f64,
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
/// program that does nothing. Medians of rounds; none if something else has the CPUs so much that the two were
/// never at work at once.
pub(super) fn measure(
    filled: &Filled,
    cpus: [usize; 2],
    rounds: u32,
    progress: &Progress,
) -> Result<Option<Scaling>> {
    let keys = whole(filled.keys().into());
    let mut sources = [filled.hits()?, filled.hits()?];
    let _namespaces = [sources[0].attach()?, sources[1].attach()?];
    let mut all = Vec::new();
    // The first round finds caches cold.
    round(filled, &mut sources, cpus)?;
    for n in 1..=rounds {
        progress.step(&format!("hits on two CPUs, {keys} keys: round {n}"));
        let mut best = round(filled, &mut sources, cpus)?;
        for _ in 1..TRIES {
            if best.at_once >= AT_ONCE {
                break;
            }
            let again = round(filled, &mut sources, cpus)?;
            if again.at_once > best.at_once {
                best = again;
            }
        }
        all.push(best);
    }
    let median = |field: fn(&Scaling) -> f64| median(all.iter().map(field));
    let at_once = median(|round| round.at_once);
    if at_once < AT_ONCE {
        output::note(format!(
            "it is sure of only {:.1} % of the time that two CPUs were at work at once, in the best of {TRIES} tries: \
             there is no row for hits on both with {keys} keys. Something else wants the CPUs {cpus:?}: one was at this work \
             for {:.1} % of its time",
            100.0 * at_once,
            100.0 * median(|round| round.had)
        ));
        return Ok(None);
    }
    Ok(Some(Scaling {
        keys: filled.keys(),
        alone_ns: median(|round| round.alone_ns),
        together_ns: median(|round| round.together_ns),
        ratio: median(|round| round.ratio),
        at_once,
        had: median(|round| round.had),
    }))
}

fn round(filled: &Filled, sources: &mut [Source; 2], cpus: [usize; 2]) -> Result<Scaling> {
    let echo = turns(sources, cpus)?;
    let before = filled.datapath().stats()?.udp_hits;
    for source in &mut *sources {
        source.aim(Some(filled.datapath().rx()?))?;
    }
    let hits = turns(sources, cpus)?;
    let counted = filled.datapath().stats()?.udp_hits - before;
    for source in sources {
        source.aim(None)?;
    }
    let requests: u64 = hits.iter().flatten().map(|turn| turn.packets).sum();
    ensure!(
        requests - counted <= (STRAYS * requests as f64) as u64,
        "{counted} of {requests} GETs were hits on two CPUs"
    );
    let net = |i: usize| -> [f64; 2] {
        std::array::from_fn(|cpu| hits[i][cpu].packet_ns() - echo[i][cpu].packet_ns())
    };
    let (one, two) = (net(0), net(1));
    let mean = |of: [f64; 2]| (of[0] + of[1]) / 2.0;
    Ok(Scaling {
        keys: filled.keys(),
        alone_ns: mean(one),
        together_ns: mean(two),
        ratio: two.map(f64::recip).iter().sum::<f64>() / mean(one.map(f64::recip)),
        at_once: at_once(&echo[1]).min(at_once(&hits[1])),
        had: echo[1]
            .iter()
            .chain(&hits[1])
            .map(Turn::had)
            .fold(1.0, f64::min),
    })
}

/// What a source has done on a CPU.
struct Turn {
    start: Instant,
    end: Instant,
    packets: u64,
    /// Time in which the CPU was making packets, without all that comes between.
    busy: Duration,
}

impl Turn {
    fn packet_ns(&self) -> f64 {
        self.busy.as_nanos() as f64 / self.packets as f64
    }

    /// The share of the time in which the CPU was at work.
    fn had(&self) -> f64 {
        self.busy.as_secs_f64() / (self.end - self.start).as_secs_f64()
    }
}

/// The share of the longer one's work in which both were at work, at least: what both have worked beyond the time that
/// there was. (Two that had half of their CPUs each may have been at work in turns, or at once: nothing is sure.)
fn at_once([a, b]: &[Turn; 2]) -> f64 {
    let time = a.end.max(b.end) - a.start.min(b.start);
    let both = (a.busy + b.busy).saturating_sub(time);
    both.as_nanos() as f64 / a.busy.max(b.busy).as_nanos() as f64
}

/// What two sources do on a CPU each: one after the other, and together.
fn turns(sources: &mut [Source; 2], [a, b]: [usize; 2]) -> Result<[[Turn; 2]; 2]> {
    let [first, second] = sources;
    let alone = [run(first, a, &Team::of(1))?, run(second, b, &Team::of(1))?];
    let team = Team::of(2);
    let together = std::thread::scope(|scope| {
        let other = scope.spawn(|| run(second, b, &team));
        let this = run(first, a, &team);
        let other = other.join().expect("measuring does not panic");
        anyhow::Ok([this?, other?])
    });
    Ok([alone, together?])
}

/// Sources that start together and end together.
struct Team {
    ready: Barrier,
    /// Those that have not made as many packets as they are to.
    unfinished: AtomicU32,
}

impl Team {
    fn of(sources: u32) -> Self {
        Self {
            ready: Barrier::new(sources as usize),
            unfinished: AtomicU32::new(sources),
        }
    }
}

/// Makes packets on this CPU, from when all are ready until none is unfinished: the faster one goes on, so that the other
/// is not left alone (but not for long: that may have failed).
fn run(source: &mut Source, cpu: usize, team: &Team) -> Result<Turn> {
    let pinned = cpu::pin_thread(&[cpu]);
    team.ready.wait();
    pinned?;
    let [least, packets] = RUNS;
    let (start, mut runs, mut busy) = (Instant::now(), 0, Duration::ZERO);
    while runs < least || (runs < 4 * least && team.unfinished.load(Ordering::Relaxed) > 0) {
        interrupt::check()?;
        busy += source.run(packets)? * packets;
        runs += 1;
        if runs == least {
            team.unfinished.fetch_sub(1, Ordering::Relaxed);
        }
    }
    Ok(Turn {
        start,
        end: Instant::now(),
        packets: u64::from(runs * packets),
        busy,
    })
}

/// The rows as a table.
pub(super) fn table(rows: &[Scaling]) -> Table {
    let head = "keys,net ns on 1 CPU,net ns on each of 2,2 CPUs to 1,at once";
    let mut table = Table::new(0, head.split(','));
    for row in rows {
        table.row([
            whole(row.keys.into()),
            format!("{:.0}", row.alone_ns),
            format!("{:.0}", row.together_ns),
            format!("{:.2}×", row.ratio),
            format!("≥ {:.0} %", 100.0 * row.at_once),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_the_other_is_not_at_work_at_once() {
        let start = Instant::now();
        let turn = |from, to, busy| Turn {
            start: start + Duration::from_millis(from),
            end: start + Duration::from_millis(to),
            packets: 1,
            busy: Duration::from_millis(busy),
        };
        // In turns, one of them longer, and side by side.
        assert_eq!(at_once(&[turn(0, 100, 50), turn(0, 100, 50)]), 0.0);
        assert_eq!(turn(100, 200, 50).had(), 0.5);
        assert_eq!(at_once(&[turn(0, 100, 100), turn(50, 100, 50)]), 0.5);
        assert_eq!(at_once(&[turn(0, 100, 100), turn(0, 100, 75)]), 0.75);
    }
}
