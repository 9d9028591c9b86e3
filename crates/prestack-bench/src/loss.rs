//! What lost packets cost: clients that read and write over UDP and TCP, through a wire that loses a share
//! of the frames, and the hit rate that is left.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use prestack_testbed::{Memcached, MemcachedOptions, Prestack, Testbed, cpu};
use serde::Serialize;

use crate::dataset::Dataset;
use crate::interrupt;
use crate::load::{Group, Load, Transport};
use crate::popularity::Popularity;
use crate::protocol::Protocol;
use crate::report::whole;
use crate::table::Table;
use crate::warm_up;
use crate::wire::Wire;

/// memcached's port.
const PORT: u16 = 11211;
/// How long the load goes on with a loss before anything is counted.
const WARM_UP: Duration = Duration::from_secs(2);

/// What is offered, in requests a second whether answers come or not: a loss that slows writers down must
/// not leave more hits for it.
#[derive(Clone, Debug)]
pub struct Offer {
    /// Keys, of Zipf's popularity.
    pub keys: u32,
    /// GETs over UDP.
    pub udp_gets: f64,
    /// Over TCP, half of them writes with a reply.
    pub tcp: f64,
    /// Over TCP, half of them writes without a reply.
    pub tcp_noreply: f64,
    /// How long each share of loss is measured.
    pub duration: Duration,
}

impl Default for Offer {
    fn default() -> Self {
        Self {
            keys: 1_000,
            udp_gets: 20_000.0,
            tcp: 2_000.0,
            tcp_noreply: 1_000.0,
            duration: Duration::from_secs(10),
        }
    }
}

/// What came of a share of loss.
#[derive(Clone, Debug, Serialize)]
pub struct Loss {
    /// Share of the frames that were to be lost, each way.
    pub share: f64,
    /// Frames that were.
    pub lost: u64,
    /// Share of the UDP GETs that arrived and were hits.
    pub hit_ratio: f64,
    /// Requests answered right per second.
    pub rate: f64,
    /// Requests without an answer.
    pub timeouts: u64,
    /// Counters of prestack's, how much they rose.
    pub counters: Vec<(&'static str, u64)>,
}

/// Counters that tell what loss does.
const COUNTERS: [&str; 6] = [
    "doubted_requests",
    "doubted_replies",
    "regained",
    "reparsed",
    "holes_closed",
    "forgets",
];

/// Measures these shares of loss, with the prestack `binary`.
///
/// # Errors
/// Without root's privileges or memcached, when prestack does not come to serve, or when an answer was
/// wrong.
pub fn measure(binary: PathBuf, offer: &Offer, shares: &[f64]) -> Result<Vec<Loss>> {
    let (bed, middle) = Testbed::with_middle()?;
    let mut wire = Wire::new(
        &middle.namespace,
        middle.ports.each_ref().map(String::as_str),
    )?;
    let options = MemcachedOptions {
        port: PORT,
        udp_port: PORT,
        ..MemcachedOptions::default()
    };
    let _memcached = Memcached::start(&bed.server, options)?;
    let server = (bed.links[0].server4, PORT).into();
    let dataset = Dataset::new(offer.keys, 16, 32)?;
    dataset.load(Some(&bed.client), server)?;
    // What is lost is to be told, and not whether it would pay to stand aside then.
    let args = ["--interface", &bed.links[0].server_dev, "--always-on"];
    let mut prestack = Prestack::start_binary(binary, &bed.server, &args)?;
    let group = |transport, rate, write_ratio, is_quiet, sockets, depth| Group {
        transport,
        protocol: Protocol::Text,
        write_ratio,
        writes_apart: false,
        is_quiet,
        sockets,
        depth,
        threads: 1,
        rate: Some(rate),
    };
    let groups = vec![
        group(Transport::Udp, offer.udp_gets, 0.0, false, 1, 512),
        group(Transport::Tcp, offer.tcp, 0.5, false, 16, 8),
        group(Transport::Tcp, offer.tcp_noreply, 0.5, true, 8, 8),
    ];
    let cpus = cpu::all()?;
    let load = Load::new(dataset, Popularity::Zipf(0.99), server, groups, &cpus);
    let stop = interrupt::flag();
    let run = |duration| {
        let outcome = load.run(&bed.client, duration, stop, || Ok(Duration::ZERO))?;
        interrupt::check()?;
        anyhow::Ok(outcome)
    };
    warm_up::until_settled(&prestack, true, || run(warm_up::LOOK).map(drop))?;
    let mut rows = Vec::new();
    for &share in shares {
        wire.set_loss(share)?;
        run(WARM_UP)?;
        let (lost, before) = (wire.lost()?, prestack.stats()?);
        let start = Instant::now();
        let outcome = run(offer.duration)?;
        let after = prestack.stats()?;
        ensure!(
            outcome.wrong == 0,
            "{} answers were wrong at a loss of {share} after {:?}{}",
            outcome.wrong,
            start.elapsed(),
            outcome.such_as()
        );
        ensure!(
            outcome.missing() == 0,
            "{} answers said at a loss of {share} that an item is not there, or that there is no memory: all are \
             stored, and memcached has room for them",
            outcome.missing()
        );
        let rise = |name| anyhow::Ok(after.get(name)? - before.get(name)?);
        let (hits, misses) = (rise("udp.hits")?, rise("udp.misses")?);
        let counters = COUNTERS.map(|name| anyhow::Ok((name, rise(name)?)));
        rows.push(Loss {
            share,
            lost: wire.lost()? - lost,
            hit_ratio: hits as f64 / (hits + misses).max(1) as f64,
            rate: outcome.rate,
            timeouts: outcome.timeouts,
            counters: counters
                .into_iter()
                .collect::<Result<_>>()
                .context("reading prestack's counters")?,
        });
    }
    prestack.stop()?;
    Ok(rows)
}

/// The rows as text, a column for each.
#[must_use]
pub fn text(rows: &[Loss]) -> String {
    table(rows).text()
}

/// The same as a table.
pub(crate) fn table(rows: &[Loss]) -> Table {
    let percents = rows.iter().map(|loss| format!("{} %", 100.0 * loss.share));
    let mut table = Table::new(1, std::iter::once("loss".to_owned()).chain(percents));
    let mut row = |name: &str, cell: &dyn Fn(&Loss) -> String| {
        table.row(std::iter::once(name.to_owned()).chain(rows.iter().map(cell)));
    };
    row("frames lost", &|loss| whole(loss.lost as f64));
    row("hit rate", &|loss| {
        format!("{:.2} %", 100.0 * loss.hit_ratio)
    });
    row("requests/s", &|loss| whole(loss.rate));
    row("unanswered", &|loss| whole(loss.timeouts as f64));
    for (i, name) in COUNTERS.into_iter().enumerate() {
        row(name, &|loss| whole(loss.counters[i].1 as f64));
    }
    table
}
