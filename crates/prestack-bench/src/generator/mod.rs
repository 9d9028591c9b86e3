//! `prestack bench load`: the load generator on its own, for any memcached.

mod server;
mod told;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use prestack_testbed::cpu;

use crate::dataset::Dataset;
use crate::interrupt;
use crate::load::{Group, Load, MAX_UDP_ITEM, Transport};
use crate::outcome::{Outcomes, SHARES};
use crate::output;
use crate::popularity::Popularity;
use crate::protocol::Protocol;
use crate::report::whole;
use crate::sizes::Sizes;
use crate::trace::Trace;
use told::{Judge, Offer, Told};

/// A load is offered for so long at most: no clock goes as far as all seconds that can be written.
const LONGEST: Duration = Duration::from_secs(1_000_000);
/// Most requests a second: far more than can be sent.
const MAX_RATE: f64 = 1e7;

/// A published kind of load: sizes, popularity and share of writes, unless these are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Facebook's pool ETC: short keys, small values, 30 reads for each write
    Etc,
    /// In the manner of Twitter's clusters: long keys, small values, a tenth of it writes
    Twitter,
}

impl Kind {
    /// As it is told.
    fn name(self) -> &'static str {
        match self {
            Self::Etc => "etc",
            Self::Twitter => "twitter",
        }
    }
}

/// What load to offer, and to whom.
#[derive(Clone, Debug, clap::Args)]
pub struct LoadOptions {
    /// memcached; without a port 11211
    #[arg(long, value_name = "HOST[:PORT]", default_value = "127.0.0.1:11211")]
    pub server: String,
    /// What carries the requests
    #[arg(long, value_enum, default_value = "udp")]
    pub transport: Transport,
    /// In which protocol they are written
    #[arg(long, value_enum, default_value = "text")]
    pub protocol: Protocol,
    /// A published kind of load
    #[arg(long, value_enum)]
    pub kind: Option<Kind>,
    /// Number of items [default: 100000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    pub keys: Option<u32>,
    /// Bytes of a key: BYTES, FIRST-LAST, etc, twitter [default: 16]
    #[arg(long, value_name = "SIZES")]
    pub key_size: Option<Sizes>,
    /// Bytes of a value: BYTES, FIRST-LAST, etc, twitter [default: 32]
    #[arg(long, value_name = "SIZES")]
    pub value_size: Option<Sizes>,
    /// Which keys are asked for: uniform, zipf, zipf:EXPONENT [default: zipf]
    #[arg(long)]
    pub popularity: Option<Popularity>,
    /// Share of the requests that are writes [default: 0]
    #[arg(long, value_name = "SHARE")]
    pub write_ratio: Option<f64>,
    /// Write other keys than are read: a share of the keys, in place of the requests
    #[arg(long)]
    pub writes_apart: bool,
    /// Do what a trace of Twitter's says (CSV), in place of keys, sizes, popularity and share of writes; what is
    /// neither get nor gets is a SET. Each thread goes through all of it, from a place of its own
    #[arg(long, value_name = "FILE", conflicts_with_all = ["kind", "keys", "key_size", "value_size", "popularity", "write_ratio", "writes_apart"])]
    pub trace: Option<PathBuf>,
    /// Lines of the trace that are read
    #[arg(
        long,
        value_name = "N",
        default_value_t = 10_000_000,
        requires = "trace"
    )]
    pub trace_lines: usize,
    /// Writes ask for no answer (TCP)
    #[arg(long)]
    pub noreply: bool,
    /// Sockets in all [default: 2 over UDP, 64 over TCP]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub sockets: Option<u32>,
    /// Requests outstanding on a socket at most; over UDP a power of two up to 1024 [default: 32 over UDP, 1 over TCP]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=32_768))]
    pub depth: Option<u16>,
    /// Threads over TCP [default: 1] (over UDP each socket has its own)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads: Option<u32>,
    /// Requests a second that are sent whether answers come or not (an open loop), in place of as many as
    /// are answered (a closed one)
    #[arg(long, value_name = "RATE")]
    pub rate: Option<f64>,
    /// Seconds of load before anything is measured
    #[arg(long, value_name = "S", default_value_t = 2.0)]
    pub warm_up: f64,
    /// Seconds of measuring
    #[arg(long, value_name = "S", default_value_t = 10.0)]
    pub seconds: f64,
    /// The items are there already, as an earlier run without writes has stored them
    #[arg(long)]
    pub stored: bool,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Offers the load and prints what came of it.
///
/// # Errors
/// When memcached cannot be reached or stops, when an answer was wrong or most of them were misses, or after Ctrl-C,
/// which ends the measurement before its time.
pub fn run(options: &LoadOptions) -> Result<()> {
    interrupt::catch()?;
    let warm_up = time(options.warm_up, "--warm-up")?;
    let measured = time(options.seconds, "--seconds")?;
    ensure!(!measured.is_zero(), "--seconds must be more than 0");
    options.check()?;
    // Items are stored over TCP.
    let is_udp = options.stored && options.transport == Transport::Udp;
    let server = server::find(&options.server, is_udp)?;
    let (load, description) = load(options, server)?;
    load.check()?;
    if !options.stored {
        let bar = bar(0, "storing the items");
        let stored = load.dataset.load(None, server);
        bar.finish_and_clear();
        ensure!(
            !interrupt::is_set(),
            "interrupted; the items that were stored until then stay"
        );
        stored?;
    }
    let judge = Judge {
        transport: options.transport,
        is_stored: options.stored,
        bytes: load.dataset.bytes(),
    };
    let offer = |duration: Duration, what| {
        let stop = interrupt::flag();
        let run = || load.run_groups(None, duration, stop, || Ok(Duration::ZERO));
        with_bar(duration, what, run).map_err(|error| judge.explained(error))
    };
    let warmed_up = offer(warm_up, "warming up")?.total;
    ensure!(
        !interrupt::is_set(),
        "interrupted before anything was measured; the items stay stored"
    );
    if warmed_up.wrong > 0 || warmed_up.timeouts > 0 {
        judge.judge(&warmed_up).context("while it was warmed up")?;
    }
    let Outcomes { total, elapsed, .. } = offer(measured, "measuring")?;
    let told = Told {
        server,
        load: description,
        offer: options.offer(&load.groups[0]),
        items: load.dataset.keys(),
        bytes: judge.bytes,
        seconds: elapsed.as_secs_f64(),
        interrupted: interrupt::is_set(),
        hit_ratio: told::hit_ratio(&total),
        outcome: total,
        shares: SHARES,
    };
    if !told.interrupted {
        judge.is_any(&told.outcome)?;
    }
    output::print(&if options.json {
        serde_json::to_string_pretty(&told)?
    } else {
        told.table()
    })?;
    ensure!(
        !told.interrupted,
        "interrupted: this is of {:.1} s, and not of {}; the items stay stored",
        told.seconds,
        options.seconds
    );
    for note in judge.judge(&told.outcome)? {
        output::say(&format!("note: {note}"));
    }
    Ok(())
}

/// So many seconds, which `option` has told.
fn time(seconds: f64, option: &str) -> Result<Duration> {
    ensure!(
        seconds >= 0.0,
        "{option} {seconds}: it must be 0 seconds or more"
    );
    let time = Duration::try_from_secs_f64(seconds);
    time.ok()
        .filter(|time| *time <= LONGEST)
        .with_context(|| format!("{option} {seconds}: at most {} s", LONGEST.as_secs()))
}

impl LoadOptions {
    /// Fails when an option would have no effect.
    fn check(&self) -> Result<()> {
        let is_udp = self.transport == Transport::Udp;
        if let Some(threads) = self.threads {
            ensure!(
                !is_udp,
                "--threads says nothing over UDP, where each socket has its own thread: --sockets"
            );
            let sockets = self.sockets();
            ensure!(
                threads as usize <= sockets,
                "--threads {threads}: there are {sockets} sockets, and each has one thread (--sockets)"
            );
        }
        ensure!(
            !self.writes_apart || self.write_ratio() > 0.0,
            "--writes-apart says nothing without writes (--write-ratio)"
        );
        Ok(())
    }

    fn sockets(&self) -> usize {
        let sockets = self.sockets.unwrap_or(match self.transport {
            Transport::Udp => 2,
            Transport::Tcp => 64,
        });
        sockets as usize
    }

    fn popularity(&self) -> Popularity {
        self.popularity.unwrap_or(match self.kind {
            None | Some(Kind::Etc) => Popularity::Zipf(0.99),
            Some(Kind::Twitter) => Popularity::Zipf(1.2),
        })
    }

    fn write_ratio(&self) -> f64 {
        self.write_ratio.unwrap_or(match self.kind {
            None => 0.0,
            Some(Kind::Etc) => 1.0 / 31.0,
            Some(Kind::Twitter) => 0.1,
        })
    }

    /// What these clients offer.
    fn offer(&self, group: &Group) -> Offer {
        let is_drawn = self.trace.is_none();
        Offer {
            transport: group.transport.to_string(),
            protocol: group.protocol.to_string(),
            popularity: is_drawn.then(|| self.popularity().to_string()),
            write_ratio: is_drawn.then_some(group.write_ratio),
            sockets: group.sockets,
            depth: group.depth,
            rate: group.rate,
        }
    }
}

/// The load that the options ask for, and what it is in words.
fn load(options: &LoadOptions, server: SocketAddr) -> Result<(Load, String)> {
    let is_udp = options.transport == Transport::Udp;
    let sizes = match options.kind {
        None => [Sizes::Fixed(16), Sizes::Fixed(32)],
        Some(Kind::Etc) => [Sizes::Etc; 2],
        Some(Kind::Twitter) => [Sizes::Twitter; 2],
    };
    let key_size = options.key_size.unwrap_or(sizes[0]);
    let value_size = options.value_size.unwrap_or(sizes[1]);
    let (popularity, write_ratio) = (options.popularity(), options.write_ratio());
    ensure!(
        (0.0..=1.0).contains(&write_ratio),
        "the share of writes must be 0 to 1"
    );
    if let Some(rate) = options.rate {
        ensure!(
            rate > 0.0 && rate <= MAX_RATE,
            "the rate must be more than 0 and at most {}",
            whole(MAX_RATE)
        );
    }
    let sockets = options.sockets();
    let group = Group {
        transport: options.transport,
        protocol: options.protocol,
        write_ratio,
        writes_apart: options.writes_apart,
        is_quiet: options.noreply,
        sockets,
        depth: options.depth.unwrap_or(if is_udp { 32 } else { 1 }),
        threads: if is_udp {
            sockets
        } else {
            options.threads.unwrap_or(1) as usize
        },
        rate: options.rate,
    };
    let how = format!(
        "{} over {}, {} sockets with {} outstanding on each, {}",
        options.protocol,
        options.transport,
        whole(group.sockets as f64),
        group.depth,
        match options.rate {
            Some(rate) => format!("open loop of {} requests/s", whole(rate)),
            None => "closed loop".to_owned(),
        }
    );
    let cpus = cpu::all()?;
    if let Some(path) = &options.trace {
        let trace = Trace::read(path, options.trace_lines)?;
        let what = format!("the trace {}, {}; {how}", path.display(), trace.summary);
        return Ok((Load::of_trace(trace, server, vec![group], &cpus), what));
    }
    let keys = options.keys.unwrap_or(100_000);
    let dataset = Dataset::with_sizes(keys, key_size, value_size)?;
    if let (Some(kind), true) = (options.kind, is_udp && write_ratio > 0.0) {
        let largest = dataset.largest();
        ensure!(
            largest <= MAX_UDP_ITEM,
            "--kind {} writes items of up to {} bytes, and a datagram takes {MAX_UDP_ITEM}: --transport tcp",
            kind.name(),
            whole(largest as f64)
        );
    }
    let what = format!(
        "keys of {key_size}, values of {value_size} bytes, {popularity}, {} % {}; {how}",
        (1e3 * write_ratio).round() / 10.0,
        if options.writes_apart {
            "of them written and not read"
        } else {
            "writes"
        }
    );
    let load = Load::new(dataset, popularity, server, vec![group], &cpus);
    Ok((load, what))
}

/// Calls `run` while a bar shows how much of `duration` has gone.
fn with_bar<T: Send>(
    duration: Duration,
    what: &'static str,
    run: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    let bar = bar(duration.as_millis() as u64, what);
    let (start, is_over) = (Instant::now(), AtomicBool::new(false));
    let result = thread::scope(|scope| {
        let running = scope.spawn(|| {
            let result = run();
            is_over.store(true, Ordering::Relaxed);
            result
        });
        while !is_over.load(Ordering::Relaxed) && !running.is_finished() {
            bar.set_position(start.elapsed().as_millis() as u64);
            thread::sleep(Duration::from_millis(50));
        }
        running.join().expect("the load does not panic")
    });
    bar.finish_and_clear();
    result
}

/// A bar on standard error if that is a terminal, hidden otherwise.
fn bar(len: u64, what: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} {msg}").expect("the template is valid");
    ProgressBar::new(len).with_style(style).with_message(what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: LoadOptions,
    }

    fn options(args: &[&str]) -> LoadOptions {
        Line::parse_from(["load"].iter().chain(args)).options
    }

    /// What is said against these options.
    fn refusal(args: &[&str]) -> String {
        let loaded = load(&options(args), ([127, 0, 0, 1], 1).into());
        let refused = loaded.and_then(|(load, _)| load.check());
        format!("{:#}", refused.expect_err("it is refused"))
    }

    #[test]
    fn a_measurement_without_time_is_refused() {
        for seconds in ["0", "1e-12"] {
            let refusal = run(&options(&["--seconds", seconds])).unwrap_err();
            assert!(format!("{refusal:#}").contains("--seconds"), "{refusal:#}");
        }
    }

    #[test]
    fn a_time_without_end_is_refused() {
        for option in ["--seconds", "--warm-up"] {
            for seconds in ["1e19", "inf", "1000001"] {
                let refusal = run(&options(&[option, seconds])).unwrap_err();
                assert!(format!("{refusal:#}").contains(option), "{refusal:#}");
            }
        }
    }

    #[test]
    fn rates_that_cannot_be_are_refused() {
        for rate in ["0", "inf", "NaN", "1e12"] {
            let refusal = refusal(&["--rate", rate]);
            assert!(refusal.contains("rate"), "{rate}: {refusal}");
        }
    }

    #[test]
    fn kinds_with_large_values_are_refused_over_udp_with_what_takes_them() {
        for kind in ["etc", "twitter"] {
            let refusal = refusal(&["--kind", kind]);
            let kind = format!("--kind {kind} ");
            let is_told = refusal.starts_with(&kind) && refusal.contains("--transport tcp");
            assert!(is_told, "{refusal}");
        }
    }

    #[test]
    fn options_without_effect_are_refused() {
        for args in [
            &["--threads", "1"][..],
            &["--transport", "tcp", "--sockets", "4", "--threads", "5"],
            &["--writes-apart"],
            &["--writes-apart", "--write-ratio", "0"],
        ] {
            let refusal = options(args).check().unwrap_err().to_string();
            assert!(args.iter().any(|arg| refusal.starts_with(arg)), "{refusal}");
        }
        for args in [
            &["--transport", "tcp", "--sockets", "4", "--threads", "4"][..],
            &["--writes-apart", "--kind", "etc", "--transport", "tcp"],
        ] {
            options(args).check().unwrap();
        }
    }

    #[test]
    fn a_negative_time_is_refused() {
        let refusal = run(&options(&["--warm-up=-1"])).unwrap_err().to_string();
        assert_eq!(refusal, "--warm-up -1: it must be 0 seconds or more");
    }
}
