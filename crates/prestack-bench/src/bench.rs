//! `prestack bench`: the numbers of docs/benchmarks.md.

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use crate::comparison::{Comparison, Side, Workload, combine};
use crate::interrupt;
use crate::kernel::{self, Cost};
use crate::popularity::Popularity;
use crate::progress::Progress;
use crate::report::{self, Report};

/// A part of the benchmarks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Nanoseconds of a packet in the kernel
    Kernel,
    /// A closed loop of UDP GETs over a veth pair, without and with prestack
    ClosedLoop,
}

/// What the benchmarks may be told.
#[derive(Clone, Debug, clap::Args)]
pub struct BenchOptions {
    /// Run this part alone
    #[arg(long, value_name = "PART")]
    pub only: Option<Part>,
    /// Rounds of each side of each comparison
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// Seconds of each round of the closed loop
    #[arg(long, value_name = "S", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=600))]
    pub seconds: u32,
    /// Print JSON instead of tables
    #[arg(long)]
    pub json: bool,
}

#[derive(Serialize)]
struct Results {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kernel: Vec<Cost>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    closed_loop: Vec<Report>,
}

/// Runs the benchmarks, those in the kernel on prestack's BPF `object`, and prints their results.
///
/// # Errors
/// Without root's privileges or memcached, when prestack does not come to serve, when an answer
/// was wrong, or after Ctrl-C. Nothing is left behind in any case.
pub fn run(options: &BenchOptions, object: &[u8]) -> Result<()> {
    interrupt::catch()?;
    let is_wanted = |part| options.only.is_none_or(|only| only == part);
    let workloads = if is_wanted(Part::ClosedLoop) {
        workloads()
    } else {
        Vec::new()
    };
    let mut steps = workloads.len() * (1 + 2 * options.rounds as usize);
    if is_wanted(Part::Kernel) {
        steps += kernel::steps(options.rounds);
    }
    let progress = Progress::new(steps);
    let mut kernel = Vec::new();
    if is_wanted(Part::Kernel) {
        kernel = kernel::run(object, options.rounds, &progress)?;
    }
    let mut closed_loop = Vec::new();
    let mut settings = Vec::new();
    for workload in workloads {
        let (report, setting) = compare(workload, options, &progress)?;
        closed_loop.push(report);
        settings.push(setting);
    }
    drop(progress);
    let results = Results {
        kernel,
        closed_loop,
    };
    if options.json {
        println!("{}", serde_json::to_string_pretty(&results)?);
    } else {
        if !results.kernel.is_empty() {
            println!("{}", kernel::table(&results.kernel));
        }
        for (report, setting) in results.closed_loop.iter().zip(settings) {
            println!("{setting}\n\n{}", report.table());
        }
    }
    results.closed_loop.iter().try_for_each(Report::check)
}

/// Hits alone (a high `max-age`) with a small and a large set of keys, then the product's default
/// `max-age` with the skew that caches usually see.
fn workloads() -> Vec<Workload> {
    let workload = |keys, popularity, max_age: &str| Workload {
        keys,
        key_size: 16,
        value_size: 32,
        popularity,
        max_age: max_age.to_owned(),
    };
    vec![
        workload(1_000, Popularity::Uniform, "60s"),
        workload(100_000, Popularity::Uniform, "60s"),
        workload(100_000, Popularity::Zipf(0.99), "1s"),
    ]
}

fn compare(
    workload: Workload,
    options: &BenchOptions,
    progress: &Progress,
) -> Result<(Report, String)> {
    let name = format!("{} keys, {}", workload.keys, workload.popularity);
    progress.step(&format!("{name}: storing the items"));
    let comparison = Comparison::new(&workload)?;
    let duration = Duration::from_secs(options.seconds.into());
    let (mut without, mut with): (Vec<Side>, Vec<Side>) = Default::default();
    for round in 1..=options.rounds {
        progress.step(&format!("{name}: round {round} without prestack"));
        without.push(comparison.without(duration)?);
        progress.step(&format!("{name}: round {round} with prestack"));
        with.push(comparison.with(duration)?);
    }
    let setting = report::setting(&workload, comparison.split());
    Ok((
        Report {
            workload,
            without: combine(&without),
            with: combine(&with),
        },
        setting,
    ))
}
