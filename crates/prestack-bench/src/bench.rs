//! `prestack bench`: the numbers of docs/benchmarks.md.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde::Serialize;

use crate::comparison::{Comparison, Workload, combine};
use crate::docs;
use crate::generator::{self, LoadOptions};
use crate::how::How;
use crate::html;
use crate::interrupt;
use crate::kernel;
use crate::kernel::hit_rate::{self, HitRate};
use crate::loss::{self, Loss};
use crate::machine::Machine;
use crate::open_loop::{self, Overload};
use crate::output;
use crate::peer::Peer;
use crate::progress::Progress;
use crate::report::{self, Report};
use crate::sections;
use crate::suite::{self, Series};

/// A part of the benchmarks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Nanoseconds of a packet in the kernel
    Kernel,
    /// Those of TCP segments alone
    KernelTcp,
    /// A closed loop of UDP GETs over a veth pair, without and with prestack
    ClosedLoop,
    /// A closed loop of GETs and SETs on TCP connections, without and with prestack
    Tcp,
    /// The same with `--tcp-hits`, by which GETs are answered there
    TcpHits,
    /// What requests and packets cost that prestack lets through, over UDP and TCP
    Passing,
    /// The hit rate by the cache's memory, beside an ideal LRU's
    HitRate,
    /// More GETs than the server can take, as live XDP frames
    OpenLoop,
    /// The hit rate of mixed clients where packets are lost
    Loss,
    /// One thing varied at a time: keys, values, mixtures, CPUs, memory (takes long)
    Suite,
}

/// Parts in which peers are measured.
const PEERS_TAKE_PART: [Part; 3] = [Part::Kernel, Part::ClosedLoop, Part::Suite];
/// Parts whose number of keys can be told.
const KEYS_VARY: [Part; 4] = [Part::ClosedLoop, Part::Tcp, Part::TcpHits, Part::OpenLoop];
/// Parts whose number of connections can be told.
const CONNECTIONS_VARY: [Part; 3] = [Part::Tcp, Part::TcpHits, Part::Passing];
/// Parts in which prestack may stand aside.
const STANDS_ASIDE: [Part; 5] = [
    Part::ClosedLoop,
    Part::Tcp,
    Part::TcpHits,
    Part::Passing,
    Part::Suite,
];

/// What is not part of the benchmarks.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum BenchCommand {
    /// Offer a load to any memcached, and tell how it was answered
    Load(LoadOptions),
}

/// What the benchmarks may be told.
#[derive(Clone, Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BenchOptions {
    /// Something else than the benchmarks
    #[command(subcommand)]
    pub command: Option<BenchCommand>,
    /// Run these parts alone
    #[arg(long, value_name = "PART,…", value_delimiter = ',')]
    pub only: Vec<Part>,
    /// Run all parts, those that take long too
    #[arg(long, conflicts_with = "only")]
    pub all: bool,
    /// Measure another XDP cache beside prestack: the programs pinned there are put on the server's device
    #[arg(long = "peer", value_name = "NAME=XDP_PIN[,TC_PIN]")]
    pub peers: Vec<Peer>,
    /// Rounds of each side of each comparison
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// Seconds of each round of the closed loop
    #[arg(long, value_name = "S", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=600))]
    pub seconds: u32,
    /// Connections of the closed loop over TCP [default: 64]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=8000))]
    pub connections: Option<u32>,
    /// Keys, in place of the numbers of them that `closed-loop` and `open-loop` have, and of the 100000 of `tcp` and
    /// of a row of `tcp-hits`
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub keys: Option<u32>,
    /// Share of the requests over TCP that are writes, in place of none and a half
    #[arg(long, value_name = "SHARE")]
    pub write_ratio: Option<f64>,
    /// Have prestack follow and serve requests in closed loops also where it would stand aside, since that does not
    /// pay
    #[arg(long)]
    pub always_on: bool,
    /// Write a page with plots of everything that was measured, too
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write the tables to their places in a Markdown file, too (`<!-- bench: NAME -->`)
    #[arg(long, value_name = "FILE")]
    pub docs: Option<PathBuf>,
    /// Print JSON instead of tables
    #[arg(long)]
    pub json: bool,
}

/// Everything that was measured.
#[derive(Serialize)]
pub(crate) struct Results {
    pub(crate) machine: Machine,
    pub(crate) how: How,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kernel: Option<kernel::Measured>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) comparisons: Vec<Report>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) hit_rates: Vec<HitRate>,
    #[serde(skip_serializing_if = "Overload::is_empty")]
    pub(crate) overload: Overload,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) losses: Vec<Loss>,
}

/// Runs the benchmarks, those in the kernel on prestack's BPF `object`, and prints their results.
///
/// # Errors
/// Without root's privileges or memcached, when prestack does not come to serve, when an answer
/// was wrong, or after Ctrl-C. Nothing is left behind in any case.
pub fn run(options: &BenchOptions, object: &[u8]) -> Result<()> {
    if let Some(BenchCommand::Load(options)) = &options.command {
        return generator::run(options);
    }
    for peer in &options.peers {
        peer.program()?;
        peer.tc_program()?;
    }
    // Not after minutes of measuring.
    if let Some(path) = &options.docs {
        docs::check(path)?;
    }
    if let Some(path) = &options.html {
        html::check(path)?;
    }
    options.check()?;
    interrupt::catch()?;
    let mut workloads = Vec::new();
    if options.wants(Part::ClosedLoop) {
        workloads.extend(suite::overview(options));
    }
    if options.wants(Part::Tcp) {
        workloads.extend(suite::tcp(options));
    }
    if options.wants(Part::TcpHits) {
        workloads.extend(suite::tcp_hits(options));
    }
    if options.wants(Part::Passing) {
        workloads.extend(suite::passing(options));
    }
    if options.wants(Part::Suite) {
        workloads.extend(suite::suite());
    }
    for (_, workload) in &mut workloads {
        workload.is_always_on = options.always_on;
    }
    let sides = |workload: &Workload| 3 + options.peers_of(workload).len();
    let rounds = options.rounds as usize;
    let mut steps: usize = workloads.iter().map(|(_, w)| 1 + rounds * sides(w)).sum();
    let is_kernel = options.wants(Part::Kernel);
    let is_tcp_alone = !is_kernel && options.wants(Part::KernelTcp);
    if is_kernel || is_tcp_alone {
        steps += kernel::steps(options.rounds, is_tcp_alone, &options.peers);
    }
    if options.wants(Part::HitRate) {
        steps += hit_rate::steps();
    }
    if options.wants(Part::OpenLoop) {
        steps += open_loop::steps(options.keys, options.rounds);
    }
    steps += usize::from(options.wants(Part::Loss));
    let progress = Progress::new(steps);
    let mut kernel = None;
    if is_kernel || is_tcp_alone {
        let peers = &options.peers;
        kernel = Some(kernel::run(
            object,
            options.rounds,
            is_tcp_alone,
            peers,
            &progress,
        )?);
    }
    let comparisons = workloads
        .into_iter()
        .map(|(series, workload)| compare(series, workload, options, &progress))
        .collect::<Result<Vec<_>>>()?;
    let mut hit_rates = Vec::new();
    if options.wants(Part::HitRate) {
        hit_rates = hit_rate::run(object, &progress)?;
    }
    let mut overload = Overload::default();
    if options.wants(Part::OpenLoop) {
        let duration = Duration::from_secs(options.seconds.into());
        overload = open_loop::run(options.keys, options.rounds, duration, &progress)?;
    }
    let mut losses = Vec::new();
    if options.wants(Part::Loss) {
        progress.step("losing packets");
        let binary = std::env::current_exe().context("finding prestack's own binary")?;
        losses = loss::measure(binary, &loss::Offer::default(), &[0.0, 0.001, 0.01])?;
    }
    drop(progress);
    let results = Results {
        machine: Machine::this(),
        how: How::now(
            options.rounds,
            options.seconds,
            options.how(),
            output::notes(),
        ),
        kernel,
        comparisons,
        hit_rates,
        overload,
        losses,
    };
    show(&results, options)?;
    results.comparisons.iter().try_for_each(Report::check)
}

impl BenchOptions {
    fn wants(&self, part: Part) -> bool {
        let takes_long = matches!(part, Part::Suite | Part::OpenLoop | Part::Passing);
        match &self.only[..] {
            [] => self.all || !takes_long,
            only => only.contains(&part),
        }
    }

    /// Fails when the parts cannot do what is asked of them.
    fn check(&self) -> Result<()> {
        if let Some(ratio) = self.write_ratio {
            ensure!(
                (0.0..=1.0).contains(&ratio),
                "--write-ratio: the share of writes must be 0 to 1"
            );
        }
        if let (Some(keys), true) = (self.keys, self.wants(Part::OpenLoop)) {
            open_loop::check(keys)?;
        }
        for (is_given, option, heeded_by) in [
            (!self.peers.is_empty(), "--peer", &PEERS_TAKE_PART[..]),
            (self.keys.is_some(), "--keys", &KEYS_VARY),
            (
                self.connections.is_some(),
                "--connections",
                &CONNECTIONS_VARY,
            ),
            (self.write_ratio.is_some(), "--write-ratio", &[Part::Tcp]),
            (self.always_on, "--always-on", &STANDS_ASIDE),
        ] {
            ensure!(
                !is_given || heeded_by.iter().any(|&part| self.wants(part)),
                "{option} says nothing to the parts that are run; name one that heeds it: --only {}",
                names(heeded_by)
            );
        }
        Ok(())
    }

    /// The options that numbers depend on.
    fn how(&self) -> String {
        let mut how = format!("--rounds {} --seconds {}", self.rounds, self.seconds);
        let mut add = |option: &str, value: Option<String>| {
            if let Some(value) = value {
                how += &format!(" {option} {value}");
            }
        };
        add("--connections", self.connections.map(|n| n.to_string()));
        add("--keys", self.keys.map(|n| n.to_string()));
        add(
            "--write-ratio",
            self.write_ratio.map(|ratio| ratio.to_string()),
        );
        if self.always_on {
            how += " --always-on";
        }
        how
    }

    /// The peers that are measured with a workload: they are caches of what is asked for over UDP.
    fn peers_of(&self, workload: &Workload) -> &[Peer] {
        if workload.bare_passes() {
            &[]
        } else {
            &self.peers
        }
    }
}

/// The parts as `--only` takes them.
fn names(parts: &[Part]) -> String {
    let names = parts.iter().filter_map(ValueEnum::to_possible_value);
    let names: Vec<_> = names.map(|value| value.get_name().to_owned()).collect();
    names.join(",")
}

/// Prints the results, and writes the files that are asked for.
fn show(results: &Results, options: &BenchOptions) -> Result<()> {
    let machine = results.machine.line();
    let sections = sections::of(results);
    if let Some(path) = &options.html {
        let page = html::page(&machine, &results.how, &sections)?;
        std::fs::write(path, page).with_context(|| format!("writing {}", path.display()))?;
    }
    if let Some(path) = &options.docs {
        let how = format!("({machine}; `{}`)", options.how());
        docs::update(path, &how, &sections)?;
    }
    if options.json {
        return output::print(&serde_json::to_string_pretty(results)?);
    }
    let mut text = format!("{machine}\n\n");
    for section in &sections {
        text += &section.text();
        text.push('\n');
    }
    output::print(text.trim_end_matches('\n'))
}

/// Measures the sides of a workload in turns.
fn compare(
    series: Series,
    workload: Workload,
    options: &BenchOptions,
    progress: &Progress,
) -> Result<Report> {
    let name = format!("{}, {}", workload.transport, workload.label());
    progress.step(&format!("{name}: storing the items"));
    let comparison = Comparison::new(&workload)?;
    let duration = Duration::from_secs(options.seconds.into());
    let [mut without, mut bare_xdp, mut with] = [(); 3].map(|()| Vec::new());
    let peers = options.peers_of(&workload);
    let mut of_peers = vec![Vec::new(); peers.len()];
    for round in 1..=options.rounds {
        progress.step(&format!("{name}: round {round} without prestack"));
        without.push(comparison.without(duration)?);
        progress.step(&format!("{name}: round {round} with another XDP program"));
        bare_xdp.push(comparison.bare_xdp(duration)?);
        for (peer, sides) in peers.iter().zip(&mut of_peers) {
            progress.step(&format!("{name}: round {round} with {}", peer.name));
            sides.push(comparison.with_peer(peer, duration)?);
        }
        progress.step(&format!("{name}: round {round} with prestack"));
        with.push(comparison.with(duration)?);
    }
    let names = peers.iter().map(|peer| peer.name.clone());
    let sides = of_peers.iter().filter_map(|sides| combine(sides));
    let setting = report::usual_setting(&workload, comparison.split());
    Ok(Report {
        series,
        setting,
        workload,
        without: combine(&without),
        bare_xdp: combine(&bare_xdp),
        with: combine(&with).context("there is at least one round")?,
        peers: names.zip(sides).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: BenchOptions,
    }

    fn options(args: &[&str]) -> BenchOptions {
        Line::parse_from(["bench"].iter().chain(args)).options
    }

    /// What is said against these options.
    fn refusal(args: &[&str]) -> String {
        let checked = options(args).check();
        checked.expect_err("it is refused").to_string()
    }

    #[test]
    fn a_number_of_keys_takes_the_place_of_several() {
        let keys = |args: &[&str]| -> Vec<u32> {
            let workloads = suite::overview(&options(args)).into_iter();
            workloads.map(|(_, workload)| workload.keys).collect()
        };
        assert_eq!(keys(&[]), [1_000, 100_000, 100_000]);
        assert_eq!(keys(&["--keys", "7"]), [7]);
        assert_eq!(open_loop::steps(None, 1), 4);
        assert_eq!(open_loop::steps(Some(1_000), 1), 2);
    }

    #[test]
    fn what_the_parts_cannot_do_is_refused() {
        for (args, word) in [
            (
                &["--only", "tcp", "--write-ratio", "2"][..],
                "--write-ratio",
            ),
            (&["--only", "open-loop", "--keys", "8"], "--keys 8"),
            (
                &["--only", "suite", "--keys", "9"],
                "--only closed-loop,tcp,tcp-hits,open-loop",
            ),
            (
                &["--only", "tcp-hits", "--write-ratio", "0.1"],
                "--only tcp",
            ),
            (
                &["--only", "tcp", "--peer", "other=/pin"],
                "--only kernel,closed-loop,suite",
            ),
            (
                &["--only", "kernel,closed-loop", "--connections", "1"],
                "--only tcp,tcp-hits,passing",
            ),
            (
                &["--only", "kernel,open-loop", "--always-on"],
                "--only closed-loop",
            ),
        ] {
            let refusal = refusal(args);
            assert!(refusal.contains(word), "{refusal}");
        }
        options(&["--only", "open-loop", "--keys", "9"])
            .check()
            .expect("a tenth can be missing");
        options(&["--keys", "1"]).check().expect("one key is read");
        options(&[
            "--all",
            "--always-on",
            "--connections",
            "1",
            "--write-ratio",
            "0",
        ])
        .check()
        .expect("some parts heed each");
    }

    #[test]
    fn what_numbers_depend_on_is_told_with_them() {
        let how = |args: &[&str]| options(args).how();
        assert_eq!(how(&[]), "--rounds 5 --seconds 3");
        assert_eq!(
            how(&[
                "--keys",
                "10",
                "--connections",
                "64",
                "--write-ratio",
                "0.5",
                "--always-on"
            ]),
            "--rounds 5 --seconds 3 --connections 64 --keys 10 --write-ratio 0.5 --always-on"
        );
    }
}
