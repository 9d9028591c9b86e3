//! What memcached answers over UDP, stock and with a UDP socket for every worker thread (`prestack
//! memcached`), without a cache in front of it: what a miss meets. To be run as root after `cargo xtask
//! build`:
//!
//! ```text
//! cargo build --release --package prestack-tests --example threads
//! chrt --fifo 50 target/release/examples/threads
//! ```

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Result, ensure};
use prestack_bench::dataset::Dataset;
use prestack_bench::load::{Group, Load};
use prestack_bench::outcome::Outcome;
use prestack_bench::popularity::Popularity;
use prestack_bench::server_cpu::ServerCpu;
use prestack_testbed::cpu::{self, CpuSplit};
use prestack_testbed::{Memcached, MemcachedOptions, Testbed, binary};
use prestack_tests::classic::median;
use prestack_tests::stage::PORT;

/// How often each memcached is measured. They take short turns, so that a change of the machine's mood hits
/// all of them.
const ROUNDS: usize = 11;
/// How long each time.
const DURATION: Duration = Duration::from_millis(500);
/// How long it is asked before.
const WARM_UP: Duration = Duration::from_millis(100);
/// What is asked of memcached: how many clients there are, of which each has a socket, and so a thread that
/// it meets, and how many requests each keeps under way.
struct Demand {
    clients: usize,
    window: u16,
}

/// As much as there can be: half of what a veth ring holds.
const MUCH: Demand = Demand {
    clients: 16,
    window: 8,
};
/// One request after the other: memcached's threads sleep in between.
const LITTLE: Demand = Demand {
    clients: 1,
    window: 1,
};

/// A memcached in a testbed of its own.
struct Contender {
    name: String,
    bed: Testbed,
    memcached: Memcached,
    load: Load,
    outcomes: Vec<Outcome>,
}

impl Contender {
    fn new(threads: u32, is_stock: bool, demand: &Demand, split: &CpuSplit) -> Result<Self> {
        let bed = Testbed::new()?;
        let launcher = if is_stock { None } else { Some(binary()?) };
        let options = MemcachedOptions {
            threads,
            launcher,
            ..MemcachedOptions::default()
        };
        let memcached = Memcached::start(&bed.server, options)?;
        cpu::pin_process(memcached.pid(), &split.server)?;
        bed.separate_cpus(split)?;
        let server = (bed.links[0].server4, PORT).into();
        let dataset = Dataset::new(10_000, 16, 32)?;
        dataset.load(Some(&bed.client), server)?;
        let side = if is_stock {
            "stock"
        } else {
            "prestack memcached"
        };
        let cpus = &split.client;
        let group = Group {
            sockets: demand.clients,
            threads: demand.clients,
            depth: demand.window,
            ..Group::udp_gets(cpus.len())
        };
        let load = Load::new(dataset, Popularity::Uniform, server, vec![group], cpus);
        Ok(Self {
            name: format!("-t {threads}, {side}"),
            bed,
            memcached,
            load,
            outcomes: Vec::new(),
        })
    }

    fn measure(&mut self) -> Result<()> {
        let server = ServerCpu {
            processes: vec![self.memcached.pid()],
            devices: vec![self.bed.links[0].server_dev.clone()],
        };
        let stop = AtomicBool::new(false);
        let run = |duration| {
            self.load
                .run(&self.bed.client, duration, &stop, || server.used())
        };
        run(WARM_UP)?;
        let outcome = run(DURATION)?;
        ensure!(outcome.wrong == 0, "{}: wrong answers", self.name);
        self.outcomes.push(outcome);
        Ok(())
    }

    fn row(&self) -> String {
        let middle = |field: fn(&Outcome) -> f64| median(self.outcomes.iter().map(field).collect());
        let timeouts: u64 = self.outcomes.iter().map(|outcome| outcome.timeouts).sum();
        format!(
            "{:24} {:>12.0} {:>9.0} {:>9.0} {:>22.2} {:>11}",
            self.name,
            middle(|outcome| outcome.rate),
            middle(|outcome| outcome.p50_us),
            middle(|outcome| outcome.p99_us),
            middle(|outcome| outcome.server_cpu_ns) / 1e3,
            timeouts,
        )
    }
}

fn main() -> Result<()> {
    let halves = CpuSplit::halves()?;
    let all = [&halves.server[..], &halves.client].concat();
    let shared = CpuSplit {
        server: all.clone(),
        client: all,
    };
    for (demand, split) in [(MUCH, &halves), (MUCH, &shared), (LITTLE, &halves)] {
        let mut contenders = Vec::new();
        for threads in [1, 2, 4] {
            for is_stock in [true, false] {
                contenders.push(Contender::new(threads, is_stock, &demand, split)?);
            }
        }
        for _ in 0..ROUNDS {
            for contender in &mut contenders {
                contender.measure()?;
            }
        }
        println!(
            "{} clients on CPUs {:?}, each with {} requests under way; server on CPUs {:?}; medians of \
             {ROUNDS} rounds of {DURATION:?}:\n",
            demand.clients, split.client, demand.window, split.server
        );
        println!(
            "memcached                  requests/s  p50 (µs)  p99 (µs)  server CPU/request (µs)  unanswered"
        );
        for contender in &contenders {
            println!("{}", contender.row());
        }
        println!();
    }
    Ok(())
}
