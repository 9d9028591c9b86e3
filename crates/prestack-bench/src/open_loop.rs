//! More requests than the server can take: what a second of its CPU answers, and what is left of memcached.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use prestack_testbed::cpu::{self, CpuSplit, Scheduling};
use prestack_testbed::{Memcached, MemcachedOptions, Prestack, Testbed, napi};
use serde::Serialize;

use crate::comparison::{PORT, requests_seen};
use crate::dataset::Dataset;
use crate::interrupt;
use crate::kernel::flood::{self, Flood, Sink};
use crate::load::{Group, Load};
use crate::outcome::median;
use crate::popularity::Popularity;
use crate::progress::Progress;
use crate::report::{ECHO, whole};
use crate::section::Section;
use crate::server_cpu::ServerCpu;
use crate::table::Table;
use crate::warm_up;
use crate::wire::Echo;

/// Numbers of keys, unless one is given.
const KEYS: [u32; 2] = [1_000, 100_000];
/// Of so many requests one is for a key that memcached does not have, where there are misses.
const MISSING: u32 = 10;
/// Requests a second in all where there are misses; at last as many as can be sent.
const RATES: [Option<f64>; 4] = [Some(250e3), Some(500e3), Some(1e6), None];
/// How often the source looks at once whether a request is due: for some tenths of a second, as between two times
/// the kernel waits for some tens of milliseconds.
const LOOKS: u32 = 1 << 23;
/// The same where one always is.
const UNPACED_LOOKS: u32 = 1 << 20;
/// How long requests are sent before anything is counted.
const WARM_UP: Duration = Duration::from_millis(300);
/// How long the cache may take to be asked for all keys.
const SWEEP_LIMIT: Duration = Duration::from_secs(30);

/// What the server's CPU did with requests.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Answers {
    /// Requests sent per second.
    offered: f64,
    /// Requests answered at XDP per second.
    at_xdp: f64,
    /// Requests that memcached saw per second.
    memcached: f64,
    /// Share of a CPU that the server used.
    busy: f64,
}

/// What became of a flood of GETs of what is there.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Flooded {
    keys: u32,
    side: &'static str,
    /// Share of the GETs that prestack answered of those that it saw.
    #[serde(skip_serializing_if = "Option::is_none")]
    hit_ratio: Option<f64>,
    #[serde(flatten)]
    answers: Answers,
}

/// What became of misses among hits.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Mixed {
    keys: u32,
    /// Requests per second that were to be sent.
    rate: Option<f64>,
    with: Answers,
    /// memcached, and its misses alone.
    alone: Answers,
}

/// All of it.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Overload {
    floods: Vec<Flooded>,
    mixtures: Vec<Mixed>,
}

impl Answers {
    fn medians<'a>(of: impl Iterator<Item = &'a Self> + Clone) -> Self {
        let of = |field: fn(&Self) -> f64| median(of.clone().map(field));
        Self {
            offered: of(|answers| answers.offered),
            at_xdp: of(|answers| answers.at_xdp),
            memcached: of(|answers| answers.memcached),
            busy: of(|answers| answers.busy),
        }
    }

    /// What a second of the server's CPU answered.
    fn of_cpu_second(&self) -> f64 {
        (self.at_xdp + self.memcached) / self.busy
    }
}

impl Overload {
    /// Medians of rounds.
    fn combine(rounds: &[Self]) -> Self {
        let flooded = |(i, first): (usize, &Flooded)| Flooded {
            answers: Answers::medians(rounds.iter().map(|round| &round.floods[i].answers)),
            hit_ratio: first
                .hit_ratio
                .map(|_| median(rounds.iter().filter_map(|round| round.floods[i].hit_ratio))),
            ..first.clone()
        };
        let mixed = |(i, first): (usize, &Mixed)| Mixed {
            with: Answers::medians(rounds.iter().map(|round| &round.mixtures[i].with)),
            alone: Answers::medians(rounds.iter().map(|round| &round.mixtures[i].alone)),
            ..first.clone()
        };
        Self {
            floods: rounds[0].floods.iter().enumerate().map(flooded).collect(),
            mixtures: rounds[0].mixtures.iter().enumerate().map(mixed).collect(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.floods.is_empty()
    }
}

/// Steps of [`run`] for its progress.
pub(crate) fn steps(keys: Option<u32>, rounds: u32) -> usize {
    numbers(keys).len() * (1 + rounds as usize)
}

/// Fails with fewer keys than there must be.
pub(crate) fn check(keys: u32) -> Result<()> {
    let least = MISSING - 1;
    ensure!(
        keys >= least,
        "--keys {keys}: open-loop takes {least} at least, as every {MISSING}th GET is for one more that is not there"
    );
    Ok(())
}

/// The numbers of keys that are measured, where `keys` may be given.
fn numbers(keys: Option<u32>) -> Vec<u32> {
    keys.map_or_else(|| KEYS.into(), |keys| vec![keys])
}

/// Measures for `duration` each time, `rounds` times, with so many keys, or else with its own numbers of them.
pub(crate) fn run(
    keys: Option<u32>,
    rounds: u32,
    duration: Duration,
    progress: &Progress,
) -> Result<Overload> {
    let measure_all = || {
        let scheduling = Scheduling::own()?;
        // Else what receives would leave memcached no time at all.
        Scheduling::TURNS.set(0)?;
        let mut all = Overload::default();
        for keys in numbers(keys) {
            let name = format!("flood, {} keys", whole(keys.into()));
            progress.step(&format!("{name}: storing the items"));
            let scene = Scene::new(keys, duration, scheduling)?;
            let mut of_rounds = Vec::new();
            for round in 1..=rounds {
                progress.step(&format!("{name}: round {round}"));
                of_rounds.push(scene.round()?);
            }
            let Overload { floods, mixtures } = Overload::combine(&of_rounds);
            all.floods.extend(floods);
            all.mixtures.extend(mixtures);
        }
        Ok(all)
    };
    // A thread of its own, as its scheduling changes.
    thread::scope(|scope| scope.spawn(measure_all).join()).expect("measuring does not panic")
}

/// A testbed with memcached in it, its items stored.
struct Scene {
    bed: Testbed,
    memcached: Memcached,
    split: CpuSplit,
    dataset: Dataset,
    duration: Duration,
    /// As the caller has it: of what sends and receives, where memcached need not run beside.
    scheduling: Scheduling,
    _sink: Sink,
}

impl Scene {
    fn new(keys: u32, duration: Duration, scheduling: Scheduling) -> Result<Self> {
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
            _sink: Sink::new(&bed)?,
            bed,
            memcached,
            split,
            dataset,
            duration,
            scheduling,
        })
    }

    fn round(&self) -> Result<Overload> {
        let keys = self.dataset.keys();
        let missing = keys..keys + keys / (MISSING - 1);
        let flood = |items| Flood::new(&self.bed, &self.dataset, items);
        let flooded = |side, answers| Flooded {
            keys,
            side,
            hit_ratio: None,
            answers,
        };
        let mut hits = flood(0..keys)?;
        let memcached = self.measure(&mut hits, None, &[], &|| Ok(0))?;
        let echo = self.echo(&mut hits)?;
        let prestack = self.prestack()?;
        let at_xdp = || prestack.stats()?.get("udp.hits");
        let daemon = [prestack.pid()];
        let before = prestack.stats()?;
        let with = self.measure_alone(&mut hits, &daemon, &at_xdp)?;
        let after = prestack.stats()?;
        let rise = |name| anyhow::Ok((after.get(name)? - before.get(name)?) as f64);
        let hit_ratio = rise("udp.hits")? / (rise("udp.hits")? + rise("udp.misses")?).max(1.0);
        ensure!(with.at_xdp > 0.0, "prestack answered nothing");
        let floods = vec![
            flooded("memcached", memcached),
            flooded(ECHO, echo),
            Flooded {
                hit_ratio: Some(hit_ratio),
                ..flooded("with prestack", with)
            },
        ];
        let mut both = flood(0..missing.end)?;
        let of_both = RATES.map(|rate| self.measure(&mut both, rate, &daemon, &at_xdp));
        drop(prestack);
        let mut misses = flood(missing)?;
        let mut mixtures = Vec::new();
        for (rate, with) in RATES.into_iter().zip(of_both) {
            let with = with?;
            // Of a flood as many as reached prestack.
            let of_misses = match rate {
                Some(rate) => rate / f64::from(MISSING),
                None => with.at_xdp / f64::from(MISSING - 1),
            };
            let alone = self.measure(&mut misses, Some(of_misses), &[], &|| Ok(0))?;
            mixtures.push(Mixed {
                keys,
                rate,
                with,
                alone,
            });
        }
        Ok(Overload { floods, mixtures })
    }

    fn echo(&self, flood: &mut Flood<'_>) -> Result<Answers> {
        let echo = Echo::new(&self.bed.server, &self.bed.links[0].server_dev)?;
        let answers = self.measure_alone(flood, &[], &|| echo.count())?;
        ensure!(answers.at_xdp > 0.0, "the XDP echo answered nothing");
        Ok(answers)
    }

    /// prestack, its cache filled.
    fn prestack(&self) -> Result<Prestack> {
        let binary: PathBuf = std::env::current_exe().context("finding prestack's own binary")?;
        let dev = &self.bed.links[0].server_dev;
        let args = ["--interface", dev, "--max-age", "1h", "--settle", "100ms"];
        let prestack = Prestack::start_binary(binary, &self.bed.server, &args)?;
        cpu::pin_process(prestack.pid(), &self.split.server)?;
        self.bed.separate_cpus(&self.split)?;
        let load = Load::new(
            self.dataset.clone(),
            Popularity::Uniform,
            (self.bed.links[0].server4, PORT).into(),
            vec![Group::udp_gets(1)],
            &self.split.client,
        );
        let sweep = load.sweep();
        warm_up::until_settled(&prestack, false, || {
            let stop = interrupt::flag();
            sweep.run(&self.bed.client, SWEEP_LIMIT, stop, || Ok(Duration::ZERO))?;
            interrupt::check()
        })?;
        Ok(prestack)
    }

    /// Sends as many requests as can be, of which memcached has nothing to do.
    fn measure_alone(
        &self,
        flood: &mut Flood<'_>,
        prestack: &[i32],
        answered: &dyn Fn() -> Result<u64>,
    ) -> Result<Answers> {
        self.scheduling.set(0)?;
        let result = self.measure(flood, None, prestack, answered);
        Scheduling::TURNS.set(0)?;
        result
    }

    /// Sends so many requests a second, or as many as can be.
    fn measure(
        &self,
        flood: &mut Flood<'_>,
        rate: Option<f64>,
        prestack: &[i32],
        answered: &dyn Fn() -> Result<u64>,
    ) -> Result<Answers> {
        let server = ServerCpu {
            processes: [&[self.memcached.pid()], prestack].concat(),
            devices: vec![self.bed.links[0].server_dev.clone()],
        };
        self.bed.separate_cpus(&self.split)?;
        if rate.is_none() {
            // What takes the answers has the same CPU: while it does, the server would run out of requests.
            napi::receive_last(&self.bed.links[0].client_dev)?;
        }
        flood.set_rate(rate)?;
        let looks = rate.map_or(UNPACED_LOOKS, |_| LOOKS);
        cpu::pin_thread(&self.split.client)?;
        let result = (|| {
            send(flood, WARM_UP, looks)?;
            let before = (answered()?, requests_seen(&self.bed)?);
            let (sent, used, start) = (flood.sent()?, server.used()?, Instant::now());
            send(flood, self.duration, looks)?;
            let elapsed = start.elapsed().as_secs_f64();
            let busy = (server.used()? - used).as_secs_f64() / elapsed;
            let offered = (flood.sent()? - sent) as f64 / elapsed;
            let at_xdp = (answered()? - before.0) as f64 / elapsed;
            let seen = requests_seen(&self.bed)? - before.1;
            Ok(Answers {
                offered,
                at_xdp,
                memcached: seen as f64 / elapsed,
                busy,
            })
        })();
        cpu::pin_thread(&[&self.split.server[..], &self.split.client].concat())?;
        result
    }
}

/// Sends requests for so long.
fn send(flood: &mut Flood<'_>, duration: Duration, looks: u32) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < duration {
        interrupt::check()?;
        flood.send(looks)?;
    }
    Ok(())
}

/// A part in per cent: more than all is an error of the measurement.
fn share(part: f64, all: f64) -> String {
    format!("{:.1} %", 100.0 * part / all.max(1.0))
}

/// The results as tables.
pub(crate) fn sections(overload: &Overload) -> [Section; 2] {
    let head = "keys,side,offered/s,answered/s,hits,server's CPU,per second of it,to the echo";
    let mut floods = Table::new(2, head.split(','));
    for row in &overload.floods {
        let Answers {
            at_xdp,
            memcached,
            busy,
            ..
        } = row.answers;
        let is_echo = |other: &&Flooded| other.keys == row.keys && other.side == ECHO;
        let echo = overload.floods.iter().find(is_echo);
        let echo = echo.map_or(f64::NAN, |echo| echo.answers.of_cpu_second());
        floods.row([
            whole(row.keys.into()),
            row.side.to_owned(),
            whole(row.answers.offered),
            whole(at_xdp + memcached),
            row.hit_ratio
                .map_or_else(String::new, |ratio| format!("{:.1} %", 100.0 * ratio)),
            format!("{:.0} %", 100.0 * busy),
            whole(row.answers.of_cpu_second()),
            format!("{:.2}×", row.answers.of_cpu_second() / echo),
        ]);
    }
    let head = "keys,GETs/s,hits/s,misses/s,answered,misses alone/s,answered alone";
    let mut mixtures = Table::new(1, head.split(','));
    for Mixed {
        keys, with, alone, ..
    } in &overload.mixtures
    {
        // Of what prestack saw, so many were for keys that are not there.
        let misses = with.at_xdp / f64::from(MISSING - 1);
        mixtures.row([
            whole((*keys).into()),
            whole(with.offered),
            whole(with.at_xdp),
            whole(misses),
            share(with.memcached, misses),
            whole(alone.offered),
            share(alone.memcached, alone.offered),
        ]);
    }
    let source = "GETs as live XDP frames from the client's CPU into a veth pair; 16-byte keys, 32-byte values, \
        uniform.";
    [
        Section {
            name: "open-loop",
            title: "More than the server can take",
            setting: format!(
                "{source} As many as can be sent; answers for which the client has no time end in its full ring. CPU \
                time is that of all of the server: memcached, the daemon, and the thread that receives."
            ),
            plot: None,
            table: floods,
        },
        Section {
            name: "open-loop-misses",
            title: "Misses among more hits",
            setting: format!(
                "{source} With prestack, every tenth for a key that is not there; then memcached alone, asked for \
                these as often, and how many of them it answered. The last row of each number of keys: as many as \
                can be sent; what does not fit the server's ring is not counted as a miss."
            ),
            plot: None,
            table: mixtures,
        },
    ]
}
