//! `prestack bench load`: the load generator on its own, for any memcached.

use std::fmt::Write;
use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use prestack_testbed::cpu;
use serde::Serialize;

use crate::dataset::Dataset;
use crate::interrupt;
use crate::load::{Group, Load, Transport, any_address};
use crate::outcome::{Outcome, SHARES};
use crate::popularity::Popularity;
use crate::protocol::Protocol;
use crate::report::whole;
use crate::sizes::Sizes;
use crate::trace::Trace;

/// How long memcached may take to be found at an address, where there are several.
const REACH_LIMIT: Duration = Duration::from_secs(1);
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

/// What load to offer, and to whom.
#[derive(Clone, Debug, clap::Args)]
pub struct LoadOptions {
    /// memcached
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:11211")]
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
    /// Threads over TCP (over UDP each socket has its own)
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads: u32,
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

/// What the generator tells.
#[derive(Serialize)]
struct Told {
    server: SocketAddr,
    load: String,
    items: u32,
    bytes: u64,
    seconds: f64,
    #[serde(flatten)]
    outcome: Outcome,
    /// The shares of the requests that `quantiles_us` is about.
    shares: [f64; SHARES.len()],
}

/// Offers the load and prints what came of it.
///
/// # Errors
/// When memcached cannot be reached, when an answer was wrong, or after Ctrl-C.
pub fn run(options: &LoadOptions) -> Result<()> {
    interrupt::catch()?;
    let seconds = |seconds: f64, option| {
        let duration = Duration::try_from_secs_f64(seconds);
        let duration = duration.with_context(|| format!("{option} {seconds}"))?;
        ensure!(
            duration <= LONGEST,
            "{option} {seconds}: at most {} s are measured",
            LONGEST.as_secs()
        );
        Ok(duration)
    };
    let (warm_up, measured) = (
        seconds(options.warm_up, "--warm-up")?,
        seconds(options.seconds, "--seconds")?,
    );
    ensure!(!measured.is_zero(), "--seconds must be more than 0");
    let (load, description) = load(options, server(options)?)?;
    load.check()?;
    let server = load.server;
    if !options.stored {
        let bar = bar(0, "storing the items");
        load.dataset.load(None, server)?;
        bar.finish_and_clear();
    }
    let offer = |duration: Duration, what| {
        let stop = interrupt::flag();
        let run = || load.run_groups(None, duration, stop, || Ok(Duration::ZERO));
        with_bar(duration, what, run)
    };
    let warmed_up = offer(warm_up, "warming up")?.total;
    if warmed_up.wrong > 0 {
        bail!(
            "{} answers were wrong while it was warmed up",
            warmed_up.wrong
        );
    }
    if warmed_up.timeouts > 0 {
        check_answered(&warmed_up, options.transport)?;
    }
    let outcomes = offer(measured, "measuring")?;
    let told = Told {
        server,
        load: description,
        items: load.dataset.keys(),
        bytes: load.dataset.bytes(),
        seconds: options.seconds,
        outcome: outcomes.total,
        shares: SHARES,
    };
    if options.json {
        println!("{}", serde_json::to_string_pretty(&told)?);
    } else {
        println!("{}", table(&told));
    }
    if told.outcome.wrong > 0 {
        bail!("{} answers were wrong", told.outcome.wrong);
    }
    check_answered(&told.outcome, options.transport)
}

/// Fails when nothing was answered, and says what to look at.
fn check_answered(outcome: &Outcome, transport: Transport) -> Result<()> {
    ensure!(
        outcome.answered + outcome.timeouts + outcome.not_sent > 0,
        "no request was due: --rate is too low for the time"
    );
    ensure!(
        outcome.answered > 0,
        "nothing was answered: {}",
        match transport {
            Transport::Udp =>
                "is UDP on? Stock memcached has it off unless it is told a port (-U PORT; `stats settings` says \
                 which). Does a firewall drop it?",
            Transport::Tcp => "is memcached stopped or overloaded?",
        }
    );
    Ok(())
}

/// The address to which the load is offered. Of several it is the first at which memcached is.
fn server(options: &LoadOptions) -> Result<SocketAddr> {
    let addresses: Vec<SocketAddr> = options
        .server
        .to_socket_addrs()
        .with_context(|| format!("{:?} is not HOST:PORT", options.server))?
        .collect();
    if let [address] = addresses[..] {
        return Ok(address);
    }
    // Items are stored over TCP.
    let is_udp = options.stored && options.transport == Transport::Udp;
    first_reached(&addresses, is_udp).with_context(|| {
        format!(
            "memcached is not at any address of {}; --server takes one too",
            options.server
        )
    })
}

/// The first of these addresses at which something answers.
fn first_reached(addresses: &[SocketAddr], is_udp: bool) -> Result<SocketAddr> {
    let mut failures = Vec::new();
    for &address in addresses {
        let reached = if is_udp {
            answers(address)
        } else {
            TcpStream::connect_timeout(&address, REACH_LIMIT).map(drop)
        };
        match reached {
            Ok(()) => return Ok(address),
            Err(error) => failures.push(format!("{address}: {error}")),
        }
    }
    bail!("{}", failures.join(", "))
}

/// Fails when memcached does not answer there over UDP.
fn answers(address: SocketAddr) -> io::Result<()> {
    let socket = UdpSocket::bind(any_address(address))?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(REACH_LIMIT))?;
    socket.send(b"\0\0\0\0\0\x01\0\0version\r\n")?;
    socket.recv(&mut [0; 64]).map(drop)
}

/// The load that the options ask for, and what it is in words.
fn load(options: &LoadOptions, server: SocketAddr) -> Result<(Load, String)> {
    let is_udp = options.transport == Transport::Udp;
    let (sizes, popularity, write_ratio) = match options.kind {
        None => (
            [Sizes::Fixed(16), Sizes::Fixed(32)],
            Popularity::Zipf(0.99),
            0.0,
        ),
        Some(Kind::Etc) => ([Sizes::Etc; 2], Popularity::Zipf(0.99), 1.0 / 31.0),
        Some(Kind::Twitter) => ([Sizes::Twitter; 2], Popularity::Zipf(1.2), 0.1),
    };
    let key_size = options.key_size.unwrap_or(sizes[0]);
    let value_size = options.value_size.unwrap_or(sizes[1]);
    let popularity = options.popularity.unwrap_or(popularity);
    let write_ratio = options.write_ratio.unwrap_or(write_ratio);
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
    let sockets = options.sockets.unwrap_or(if is_udp { 2 } else { 64 }) as usize;
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
            sockets.min(options.threads as usize)
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
        let what = format!("the trace {}; {how}", path.display());
        return Ok((Load::of_trace(trace, server, vec![group], &cpus), what));
    }
    let keys = options.keys.unwrap_or(100_000);
    let dataset = Dataset::with_sizes(keys, key_size, value_size)?;
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

fn table(told: &Told) -> String {
    let Told { outcome, .. } = told;
    let mut table = format!(
        "{}: {}\n{} items, {} bytes of keys and values, every answer checked byte for byte\n",
        told.server,
        told.load,
        whole(told.items.into()),
        whole(told.bytes as f64)
    );
    let mut row = |name: &str, value: String| {
        write!(table, "\n{name:<26}{value:>14}").expect("a string takes everything");
    };
    row("requests/s", whole(outcome.rate));
    for (share, latency) in SHARES.into_iter().zip(&outcome.quantiles_us) {
        let name = format!("latency p{} (µs)", (1e5 * share).round() / 1e3);
        row(&name, format!("{latency:.1}"));
    }
    row("answered", whole(outcome.answered as f64));
    row("missing or refused", whole(outcome.missing as f64));
    row("unanswered", whole(outcome.timeouts as f64));
    row("not sent", whole(outcome.not_sent as f64));
    row("wrong", whole(outcome.wrong as f64));
    row("answers to nothing", whole(outcome.strays as f64));
    table
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
    let result = result?;
    interrupt::check()?;
    Ok(result)
}

/// A bar on standard error if that is a terminal, hidden otherwise.
fn bar(len: u64, what: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} {msg}").expect("the template is valid");
    ProgressBar::new(len).with_style(style).with_message(what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tally::Tally;
    use clap::Parser;
    use std::net::TcpListener;

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
            assert!(refusal.contains("--transport tcp"), "{kind}: {refusal}");
        }
    }

    #[test]
    fn the_first_address_at_which_something_answers_is_taken() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let there = listener.local_addr().unwrap();
        let nowhere = ([127, 0, 0, 1], 1).into();
        assert_eq!(first_reached(&[nowhere, there], false).unwrap(), there);
        let failure = first_reached(&[nowhere], false).unwrap_err().to_string();
        assert!(failure.starts_with("127.0.0.1:1: "), "{failure}");

        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let there = socket.local_addr().unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut request = [0; 64];
                let (len, client) = socket.recv_from(&mut request).unwrap();
                socket.send_to(&request[..len], client).unwrap();
            });
            assert_eq!(first_reached(&[nowhere, there], true).unwrap(), there);
        });
    }

    #[test]
    fn a_load_that_nothing_answered_says_what_to_look_at() {
        let check = |tally: &Tally, transport| {
            let outcome = Outcome::new(tally, Duration::from_secs(1), Duration::ZERO);
            check_answered(&outcome, transport).map_err(|error| error.to_string())
        };
        let mut tally = Tally::new();
        assert!(
            check(&tally, Transport::Udp)
                .unwrap_err()
                .contains("--rate")
        );
        tally.timed_out(Duration::from_secs(1));
        assert!(
            check(&tally, Transport::Udp)
                .unwrap_err()
                .contains("-U PORT")
        );
        assert!(!check(&tally, Transport::Tcp).unwrap_err().contains("-U"));
        tally.answered(Duration::from_secs(1), false);
        check(&tally, Transport::Udp).unwrap();
    }
}
