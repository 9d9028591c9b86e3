//! `prestack demo`: stock memcached without and with prestack, in half a minute.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::comparison::{Comparison, Side, Workload, combine};
use crate::interrupt;
use crate::output;
use crate::popularity::Popularity;
use crate::progress::Progress;
use crate::report::{self, Report};
use crate::suite::Series;

/// How often each side is measured.
const ROUNDS: u32 = 3;

/// What the demo may be told.
#[derive(Clone, Debug, clap::Args)]
pub struct DemoOptions {
    /// Seconds of measuring, in all
    #[arg(long, value_name = "S", default_value_t = 18, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub seconds: u32,
    /// Number of items
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub keys: u32,
    /// Bytes of a key (8 to 250)
    #[arg(long, value_name = "BYTES", default_value_t = 16, value_parser = clap::value_parser!(u16).range(8..=250))]
    pub key_size: u16,
    /// Bytes of a value (at most 1100)
    #[arg(long, value_name = "BYTES", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1100))]
    pub value_size: u16,
    /// Which keys are asked for: uniform, zipf, zipf:EXPONENT
    #[arg(long, default_value = "uniform")]
    pub popularity: Popularity,
    /// How old an answer of prestack's may be
    #[arg(long, value_name = "TIME", default_value = "60s")]
    pub max_age: String,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Runs the demo and prints its result.
///
/// # Errors
/// Without root's privileges or memcached, when prestack does not come to serve, when an answer
/// was wrong, or after Ctrl-C. Nothing is left behind in any case.
pub fn run(options: &DemoOptions) -> Result<()> {
    let workload = Workload {
        key_size: options.key_size.into(),
        value_size: options.value_size.into(),
        popularity: options.popularity,
        max_age: options.max_age.clone(),
        ..Workload::gets(options.keys)
    };
    interrupt::catch()?;
    let duration = Duration::from_secs(options.seconds.into()) / (2 * ROUNDS);
    let progress = Progress::new(1 + 2 * ROUNDS as usize);
    progress.step("making a testbed with memcached in it");
    let comparison = Comparison::new(&workload)?;
    let (mut without, mut with): (Vec<Side>, Vec<Side>) = Default::default();
    for round in 1..=ROUNDS {
        progress.step(&format!("round {round} of {ROUNDS} without prestack"));
        without.push(comparison.without(duration)?);
        progress.step(&format!("round {round} of {ROUNDS} with prestack"));
        with.push(comparison.with(duration)?);
    }
    drop(progress);
    let report = Report {
        series: Series::Overview,
        setting: report::setting(&workload, comparison.split()),
        workload,
        without: combine(&without),
        bare_xdp: None,
        with: combine(&with).context("there is at least one round")?,
        peers: Vec::new(),
    };
    if options.json {
        output::print(&serde_json::to_string_pretty(&report)?)?;
    } else {
        output::print(&format!("{}\n{}", report.table(), report.setting))?;
    }
    report.check()
}
