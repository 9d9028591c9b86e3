//! More requests than the server can take: what a second of its CPU answers, and what is left of memcached.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use prestack_testbed::cpu::{self, CpuSplit};
use prestack_testbed::{Memcached, MemcachedOptions, Prestack, Testbed};
use serde::Serialize;

use crate::comparison::{PORT, median, requests_seen};
use crate::dataset::Dataset;
use crate::interrupt;
use crate::kernel::flood::{self, Flood};
use crate::load::{Group, Load};
use crate::popularity::Popularity;
use crate::progress::Progress;
use crate::report::{ECHO, whole};
use crate::section::Section;
use crate::server_cpu::ServerCpu;
use crate::table::Table;
use crate::wire::Echo;

/// Numbers of keys.
const KEYS: [u32; 2] = [1_000, 100_000];
/// Of so many requests one is for a key that memcached does not have, where there are misses.
const MISSING: u32 = 10;
/// Requests that are sent at once.
const PIECE: u32 = 1 << 17;
/// How long a bounded rate waits for its next request.
const TICK: Duration = Duration::from_millis(1);
/// How long a flood goes on before it is measured.
const WARM_UP: Duration = Duration::from_millis(300);

/// What became of a flood.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Overload {
    keys: u32,
    /// Whether a tenth of the requests are misses.
    has_misses: bool,
    side: &'static str,
    /// Requests sent per second.
    offered: f64,
    /// Requests answered at XDP per second.
    answered: f64,
    /// The same per second of the server's CPU time.
    per_cpu_second: f64,
    /// Requests that memcached saw per second.
    memcached: f64,
}

/// Steps of [`run`] for its progress.
pub(crate) fn steps(rounds: u32) -> usize {
    KEYS.len() * 2 * (1 + rounds as usize)
}

/// Measures a flood of `duration` on each side, `rounds` times.
pub(crate) fn run(rounds: u32, duration: Duration, progress: &Progress) -> Result<Vec<Overload>> {
    let measure_all = || {
        // Else what receives would leave memcached no time at all.
        cpu::take_turns()?;
        let mut rows = Vec::new();
        for keys in KEYS {
            for has_misses in [false, true] {
                let misses = if has_misses { ", a tenth missing" } else { "" };
                let name = format!("flood, {} keys{misses}", whole(keys.into()));
                progress.step(&format!("{name}: storing the items"));
                let scene = Scene::new(keys, has_misses)?;
                let mut all = Vec::new();
                for round in 1..=rounds {
                    progress.step(&format!("{name}: round {round}"));
                    all.push(scene.round(duration)?);
                }
                rows.extend(combine(&all));
            }
        }
        Ok(rows)
    };
    // A thread of its own, as its scheduling changes.
    thread::scope(|scope| scope.spawn(measure_all).join()).expect("measuring does not panic")
}

/// Medians of the rounds, for each side.
fn combine(rounds: &[Vec<Overload>]) -> Vec<Overload> {
    let side = |(i, first): (usize, &Overload)| {
        let of = |field: fn(&Overload) -> f64| median(rounds.iter().map(|round| field(&round[i])));
        Overload {
            offered: of(|row| row.offered),
            answered: of(|row| row.answered),
            per_cpu_second: of(|row| row.per_cpu_second),
            memcached: of(|row| row.memcached),
            ..first.clone()
        }
    };
    rounds[0].iter().enumerate().map(side).collect()
}

/// A testbed with memcached in it, its items stored.
struct Scene {
    bed: Testbed,
    memcached: Memcached,
    split: CpuSplit,
    dataset: Dataset,
    has_misses: bool,
}

impl Scene {
    fn new(keys: u32, has_misses: bool) -> Result<Self> {
        let mut bed = Testbed::new()?;
        flood::address(&mut bed)?;
        let split = CpuSplit::halves()?;
        let options = MemcachedOptions {
            port: PORT,
            udp_port: PORT,
            ..MemcachedOptions::default()
        };
        let memcached = Memcached::start(&bed.server, options)?;
        cpu::pin_process(memcached.pid(), &split.server)?;
        let dataset = Dataset::new(keys, 16, 32)?;
        dataset.load(Some(&bed.client), (bed.links[0].server4, PORT).into())?;
        Ok(Self {
            bed,
            memcached,
            split,
            dataset,
            has_misses,
        })
    }

    fn round(&self, duration: Duration) -> Result<Vec<Overload>> {
        let keys = self.dataset.keys();
        let asked = if self.has_misses {
            (u64::from(keys) * u64::from(MISSING) / u64::from(MISSING - 1)) as u32
        } else {
            keys
        };
        let mut flood = Flood::new(&self.bed, &self.dataset, asked)?;
        let mut rows = Vec::new();
        if self.has_misses {
            self.bed.separate_cpus(&self.split)?;
            let none = || Ok(0);
            rows.push(self.measure(&mut flood, "memcached", duration, None, &[], &none)?);
        } else {
            let echo = Echo::new(&self.bed.server, &self.bed.links[0].server_dev)?;
            self.bed.separate_cpus(&self.split)?;
            let count = || echo.count();
            let row = self.measure(&mut flood, ECHO, duration, None, &[], &count)?;
            ensure!(row.answered > 0.0, "the XDP echo answered nothing");
            rows.push(row);
        }
        let with = self.with(&mut flood, duration)?;
        if self.has_misses {
            self.bed.separate_cpus(&self.split)?;
            let rate = Some(with.offered.min(with.answered / f64::from(MISSING - 1)));
            let side = "memcached, the misses alone";
            rows.push(self.measure(&mut flood, side, duration, rate, &[], &|| Ok(0))?);
        }
        rows.push(with);
        Ok(rows)
    }

    /// With prestack, its cache filled.
    fn with(&self, flood: &mut Flood<'_>, duration: Duration) -> Result<Overload> {
        let binary: PathBuf = std::env::current_exe().context("finding prestack's own binary")?;
        let dev = &self.bed.links[0].server_dev;
        let args = ["--interface", dev, "--max-age", "60s", "--settle", "100ms"];
        let mut prestack = Prestack::start_binary(binary, &self.bed.server, &args)?;
        cpu::pin_process(prestack.pid(), &self.split.server)?;
        self.bed.separate_cpus(&self.split)?;
        let load = Load::new(
            self.dataset.clone(),
            Popularity::Uniform,
            (self.bed.links[0].server4, PORT).into(),
            vec![Group::udp_gets(1)],
            &self.split.client,
        );
        thread::sleep(Duration::from_millis(200));
        for _ in 0..3 {
            let limit = Duration::from_secs(30);
            let stop = interrupt::flag();
            load.sweep()
                .run(&self.bed.client, limit, stop, || Ok(Duration::ZERO))?;
        }
        let hits = || prestack.stats()?.get("udp.hits");
        let pid = [prestack.pid()];
        let row = self.measure(flood, "with prestack", duration, None, &pid, &hits)?;
        prestack.stop()?;
        ensure!(row.answered > 0.0, "prestack answered nothing");
        Ok(row)
    }

    /// Sends as much as can be, or so many requests a second.
    fn measure(
        &self,
        flood: &mut Flood<'_>,
        side: &'static str,
        duration: Duration,
        rate: Option<f64>,
        prestack: &[i32],
        answered: &dyn Fn() -> Result<u64>,
    ) -> Result<Overload> {
        let server = ServerCpu {
            processes: [&[self.memcached.pid()], prestack].concat(),
            devices: vec![self.bed.links[0].server_dev.clone()],
        };
        cpu::pin_thread(&self.split.client)?;
        let result = (|| {
            send(flood, WARM_UP, rate)?;
            let before = (answered()?, requests_seen(&self.bed)?, server.used()?);
            let start = Instant::now();
            let offered = send(flood, duration, rate)?;
            let elapsed = start.elapsed().as_secs_f64();
            let used = server.used()? - before.2;
            let answers = (answered()? - before.0) as f64;
            let seen = requests_seen(&self.bed)? - before.1;
            Ok(Overload {
                keys: self.dataset.keys(),
                has_misses: self.has_misses,
                side,
                offered: offered as f64 / elapsed,
                answered: answers / elapsed,
                per_cpu_second: answers / used.as_secs_f64(),
                memcached: seen as f64 / elapsed,
            })
        })();
        cpu::pin_thread(&[&self.split.server[..], &self.split.client].concat())?;
        result
    }
}

/// Sends requests for so long; returns how many.
fn send(flood: &mut Flood<'_>, duration: Duration, rate: Option<f64>) -> Result<u64> {
    let start = Instant::now();
    let mut sent = 0;
    while start.elapsed() < duration {
        interrupt::check()?;
        let due = |rate: f64| (rate * start.elapsed().as_secs_f64()) as u64 - sent;
        match rate.map_or(PIECE.into(), due) {
            0 => thread::sleep(TICK),
            due => {
                flood.send(due as u32)?;
                sent += due;
            }
        }
    }
    Ok(sent)
}

/// The rows as a table.
pub(crate) fn section(rows: &[Overload]) -> Section {
    let head = "keys,side,offered/s,answered at XDP/s,per second of CPU,memcached saw/s";
    let mut table = Table::new(2, head.split(','));
    for row in rows {
        let misses = if row.has_misses {
            ", a tenth of the GETs for others"
        } else {
            ""
        };
        table.row([
            format!("{}{misses}", whole(row.keys.into())),
            row.side.to_owned(),
            whole(row.offered),
            whole(row.answered),
            whole(row.per_cpu_second),
            whole(row.memcached),
        ]);
    }
    Section {
        name: "open-loop",
        title: "More than the server can take",
        setting: "GETs as live XDP frames from the client's CPU, without pause, into a veth pair; 16-byte keys, \
            32-byte values, uniform, --max-age 60s. CPU time is that of all of the server: memcached, the daemon, \
            and the thread that receives."
            .to_owned(),
        plot: None,
        table,
    }
}
