//! The same load on the same memcached, without and with prestack.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use prestack_testbed::cpu::{self, CpuSplit};
use prestack_testbed::{Memcached, MemcachedOptions, Prestack, Testbed};
use serde::Serialize;

use crate::dataset::Dataset;
use crate::interrupt;
use crate::load::{Load, Outcome};
use crate::popularity::Popularity;
use crate::server_cpu::ServerCpu;

/// memcached's port in the testbed.
const PORT: u16 = 11211;
/// The longest time that prestack's cache is given to fill.
const FILL_LIMIT: Duration = Duration::from_secs(10);
/// How long memcached alone is warmed up.
const WARM_UP: Duration = Duration::from_millis(500);

/// What is asked of memcached, and how prestack is set.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Workload {
    pub(crate) keys: u32,
    pub(crate) key_size: usize,
    pub(crate) value_size: usize,
    #[serde(serialize_with = "as_text")]
    pub(crate) popularity: Popularity,
    pub(crate) max_age: String,
}

/// One side of the comparison: medians of the rounds, sums of the errors.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Side {
    #[serde(flatten)]
    pub(crate) median: Outcome,
    /// Share of the requests that prestack answered.
    pub(crate) hit_ratio: f64,
}

/// A testbed with memcached in it, its items stored.
pub(crate) struct Comparison {
    bed: Testbed,
    memcached: Memcached,
    split: CpuSplit,
    load: Load,
    prestack: PathBuf,
    max_age: String,
}

impl Comparison {
    pub(crate) fn new(workload: &Workload) -> Result<Self> {
        let dataset = Dataset::new(workload.keys, workload.key_size, workload.value_size)?;
        let prestack = std::env::current_exe().context("finding prestack's own binary")?;
        let split = CpuSplit::halves()?;
        let bed = Testbed::new()?;
        let memcached = MemcachedOptions {
            port: PORT,
            udp_port: PORT,
            memory_mib: memory_mib(workload),
            ..MemcachedOptions::default()
        };
        let memcached = Memcached::start(&bed.server, memcached)?;
        cpu::pin_process(memcached.pid(), &split.server)?;
        let server = (bed.links[0].server4, PORT).into();
        dataset.load(&bed.client, server)?;
        let load = Load::new(dataset, workload.popularity, server, &split.client);
        Ok(Self {
            bed,
            memcached,
            split,
            load,
            prestack,
            max_age: workload.max_age.clone(),
        })
    }

    /// CPUs of the two ends.
    pub(crate) fn split(&self) -> &CpuSplit {
        &self.split
    }

    /// A round against memcached alone.
    pub(crate) fn without(&self, duration: Duration) -> Result<Side> {
        self.bed.separate_cpus(&self.split)?;
        self.measure(&self.load, WARM_UP, &[])?;
        let median = self.measure(&self.load, duration, &[])?;
        Ok(Side {
            median,
            hit_ratio: 0.0,
        })
    }

    /// A round with prestack, its cache filled before. The time for which prestack waits after a
    /// write whose end it cannot see is short here: nothing is written.
    pub(crate) fn with(&self, duration: Duration) -> Result<Side> {
        let dev = &self.bed.links[0].server_dev;
        let args = [
            "--interface",
            dev,
            "--max-age",
            &self.max_age,
            "--settle",
            "100ms",
        ];
        let mut prestack = Prestack::start_binary(self.prestack.clone(), &self.bed.server, &args)?;
        cpu::pin_process(prestack.pid(), &self.split.server)?;
        // The kernel may have made new threads for the device with its XDP program.
        self.bed.separate_cpus(&self.split)?;
        self.fill(&prestack)?;

        let hits = prestack.stats()?.get("udp.hits")?;
        let median = self.measure(&self.load, duration, &[prestack.pid()])?;
        let hits = prestack.stats()?.get("udp.hits")? - hits;
        prestack.stop()?;
        let hit_ratio = hits as f64 / median.answered.max(1) as f64;
        Ok(Side { median, hit_ratio })
    }

    /// Asks for all keys in turn until the hit ratio rises no more.
    fn fill(&self, prestack: &Prestack) -> Result<()> {
        let sweep = self.load.sweep();
        let start = Instant::now();
        let mut before = 0.0;
        while start.elapsed() < FILL_LIMIT {
            let hits = prestack.stats()?.get("udp.hits")?;
            let answered = self.measure(&sweep, FILL_LIMIT, &[])?.answered;
            let hits = prestack.stats()?.get("udp.hits")? - hits;
            let ratio = hits as f64 / answered.max(1) as f64;
            if ratio > 0.0 && ratio < before + 0.02 {
                break;
            }
            before = ratio;
        }
        Ok(())
    }

    fn measure(&self, load: &Load, duration: Duration, prestack: &[i32]) -> Result<Outcome> {
        let server = ServerCpu {
            processes: [&[self.memcached.pid()], prestack].concat(),
            devices: vec![self.bed.links[0].server_dev.clone()],
        };
        let stop = interrupt::flag();
        let outcome = load.run(&self.bed.client, duration, stop, || server.used())?;
        interrupt::check()?;
        ensure!(outcome.answered > 0, "no request was answered");
        Ok(outcome)
    }
}

/// The side that rounds of the same kind give together.
pub(crate) fn combine(rounds: &[Side]) -> Side {
    let median = |field: fn(&Side) -> f64| median(rounds.iter().map(field));
    let sum = |field: fn(&Side) -> u64| rounds.iter().map(field).sum();
    Side {
        median: Outcome {
            rate: median(|side| side.median.rate),
            answered: sum(|side| side.median.answered),
            p50_us: median(|side| side.median.p50_us),
            p99_us: median(|side| side.median.p99_us),
            p999_us: median(|side| side.median.p999_us),
            timeouts: sum(|side| side.median.timeouts),
            wrong: sum(|side| side.median.wrong),
            strays: sum(|side| side.median.strays),
            server_cpu_ns: median(|side| side.median.server_cpu_ns),
        },
        hit_ratio: median(|side| side.hit_ratio),
    }
}

/// The middle one of some values, of which there is one at least, or the mean of the two there.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let (low, high) = ((values.len() - 1) / 2, values.len() / 2);
    (values[low] + values[high]) / 2.0
}

/// Memory that holds the workload's items without eviction.
fn memory_mib(workload: &Workload) -> u32 {
    // An item has a header of about 56 bytes, and slabs waste up to a quarter.
    let item = workload.key_size + workload.value_size + 56;
    let bytes = item as u64 * u64::from(workload.keys) * 5 / 4;
    64 + (bytes >> 20) as u32
}

fn as_text<S: serde::Serializer>(value: &Popularity, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_combine_to_medians_and_sums() {
        let side = |rate, wrong| Side {
            median: Outcome {
                rate,
                answered: 10,
                p50_us: 1.0,
                p99_us: 2.0,
                p999_us: 3.0,
                timeouts: 1,
                wrong,
                strays: 0,
                server_cpu_ns: 4.0,
            },
            hit_ratio: 0.5,
        };
        let all = combine(&[side(9.0, 1), side(1.0, 0), side(2.0, 2)]);
        assert_eq!(
            (all.median.rate, all.median.wrong, all.median.timeouts),
            (2.0, 3, 3)
        );
        assert_eq!(combine(&[side(1.0, 0), side(3.0, 0)]).median.rate, 2.0);
    }
}
