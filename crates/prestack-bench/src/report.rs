//! The comparison as a table for people and as JSON for programs.

use std::fmt::Write;

use anyhow::{Result, bail};
use prestack_testbed::cpu::CpuSplit;
use serde::Serialize;

use crate::comparison::{Side, Workload};
use crate::load::Transport;
use crate::suite::Series;
use crate::table::Table;

/// The side of an XDP program that sends requests back.
pub(crate) const ECHO: &str = "XDP echo";
/// The side of an XDP program that does nothing.
const XDP_ALONE: &str = "XDP alone";

/// A workload's comparison.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) series: Series,
    /// How it was measured, in words.
    pub(crate) setting: String,
    pub(crate) workload: Workload,
    /// memcached alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) without: Option<Side>,
    /// An XDP program that sends requests back (UDP), or memcached behind one that does nothing (TCP).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) bare_xdp: Option<Side>,
    pub(crate) with: Side,
    /// Other caches, by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) peers: Vec<(String, Side)>,
}

impl Report {
    /// The table.
    pub(crate) fn table(&self) -> String {
        let sides: Vec<&Side> = self.sides().map(|(_, side)| side).collect();
        let mut table = String::new();
        let mut row = |name: &str, cells: Vec<String>, ratio: String| {
            write!(table, "{name:<26}").expect("a string takes everything");
            for cell in cells {
                write!(table, "{cell:>15}").expect("a string takes everything");
            }
            let line = format!("   {ratio}");
            writeln!(table, "{}", line.trim_end()).expect("a string takes everything");
        };
        let names = self.sides().map(|(name, _)| name.to_owned()).collect();
        row("", names, String::new());
        let mut numbers = |name: &str, of: fn(&Side) -> f64, fraction: usize, is_cost: bool| {
            let cells = sides.iter().map(|side| match fraction {
                0 => whole(of(side)),
                _ => format!("{:.fraction$}", of(side)),
            });
            let with = of(&self.with);
            let ratio = match self.without.as_ref().map(of) {
                None => String::new(),
                Some(without) if is_cost && with > without => {
                    format!("{:.2}× more", with / without)
                }
                Some(without) if is_cost => format!("{:.2}× less", without / with),
                Some(without) => format!("{:.2}×", with / without),
            };
            row(name, cells.collect(), ratio);
        };
        numbers("requests/s", |side| side.median.rate, 0, false);
        numbers("latency p50 (µs)", |side| side.median.p50_us, 0, true);
        numbers("latency p99 (µs)", |side| side.median.p99_us, 0, true);
        let cpu = |side: &Side| side.median.server_cpu_ns / 1e3;
        numbers("server CPU/request (µs)", cpu, 2, true);
        let mut counts = |name: &str, cell: &dyn Fn(&Side) -> String| {
            row(
                name,
                sides.iter().map(|side| cell(side)).collect(),
                String::new(),
            );
        };
        if self.workload.transport == Transport::Udp || self.workload.has_tcp_hits {
            counts("hits", &|side| format!("{:.1} %", side.hit_ratio * 100.0));
        }
        counts("unanswered", &|side| whole(side.median.timeouts as f64));
        table
    }

    /// The sides, each with its name.
    pub(crate) fn sides(&self) -> impl Iterator<Item = (&str, &Side)> {
        let name = if self.workload.bare_passes() {
            XDP_ALONE
        } else {
            ECHO
        };
        let bare_xdp = self.bare_xdp.iter().map(move |side| (name, side));
        let without = self.without.iter().map(|side| ("memcached", side));
        let peers = self.peers.iter().map(|(name, side)| (&name[..], side));
        without
            .chain(bare_xdp)
            .chain(peers)
            .chain([("with prestack", &self.with)])
    }

    /// Fails when an answer was not memcached's, or came twice, or said of what is stored that it is not there.
    pub(crate) fn check(&self) -> Result<()> {
        for (name, Side { median, .. }) in self.sides() {
            if median.wrong > 0 {
                bail!(
                    "{name}: {} answers were not memcached's{}",
                    median.wrong,
                    median.such_as()
                );
            }
            if median.missing() > 0 && !self.workload.is_absent {
                bail!(
                    "{name}: {} answers said that an item is not there, or that there is no memory: all are stored, \
                     and memcached has room for them",
                    median.missing()
                );
            }
            if median.strays > median.timeouts {
                bail!("{name}: {} answers came to no request", median.strays);
            }
        }
        Ok(())
    }
}

/// Reports of one kind as a table, a row for each side.
pub(crate) fn table(reports: &[&Report]) -> Table {
    let head = ",side,requests/s,to memcached,p50 µs,p99 µs,CPU µs/request,hits,unanswered";
    let mut table = Table::new(2, head.split(','));
    for report in reports {
        let memcached = report.without.as_ref().map(|side| side.median.rate);
        for (i, (name, side)) in report.sides().enumerate() {
            let Side { median, hit_ratio } = side;
            let label = if i == 0 {
                report.workload.label()
            } else {
                String::new()
            };
            let workload = &report.workload;
            let is_cache = (workload.transport == Transport::Udp || workload.has_tcp_hits)
                && !["memcached", ECHO, XDP_ALONE].contains(&name);
            table.row([
                label,
                name.to_owned(),
                whole(median.rate),
                memcached.map_or_else(String::new, |rate| format!("{:.2}×", median.rate / rate)),
                whole(median.p50_us),
                whole(median.p99_us),
                format!("{:.2}", median.server_cpu_ns / 1e3),
                if is_cache {
                    format!("{:.1} %", hit_ratio * 100.0)
                } else {
                    String::new()
                },
                whole(median.timeouts as f64),
            ]);
        }
    }
    table
}

/// Reports of what passes as a table of the server's CPU time, a row for each.
pub(crate) fn passing_table(reports: &[&Report]) -> Table {
    let head = "requests,memcached µs,XDP alone µs,with prestack µs,to memcached,to XDP alone";
    let mut table = Table::new(1, head.split(','));
    for report in reports {
        let cost = |side: &Side| side.median.server_cpu_ns / 1e3;
        let with = cost(&report.with);
        let [memcached, bare] =
            [&report.without, &report.bare_xdp].map(|side| side.as_ref().map_or(f64::NAN, cost));
        table.row([
            format!(
                "{}, {}",
                report.workload.transport,
                report.workload.passing_label()
            ),
            format!("{memcached:.2}"),
            format!("{bare:.2}"),
            format!("{with:.2}"),
            format!("{:.2}×", with / memcached),
            format!("{:.2}×", with / bare),
        ]);
    }
    table
}

/// One sentence on how it was measured.
pub(crate) fn setting(workload: &Workload, split: &CpuSplit) -> String {
    let kind = match workload.transport {
        Transport::Udp => "UDP".to_owned(),
        Transport::Tcp => format!("{} TCP connections", workload.connections),
    };
    let kind = format!(
        "{}{} over {kind}",
        if workload.is_absent { "missing " } else { "" },
        match workload.write_ratio {
            0.0 => "GETs".to_owned(),
            ratio => format!("GETs and {} % SETs", 100.0 * ratio),
        }
    );
    format!(
        "Closed loop of {kind} over a veth pair, {} keys of {} bytes ({}), values of {} bytes, \
         every answer checked byte for byte.\n\
         Server (memcached, packet processing) on CPU {}, client on CPU {}; prestack with \
         --max-age {}.",
        whole(f64::from(workload.keys)),
        workload.key_size,
        workload.popularity,
        workload.value_size,
        cpus(&split.server),
        cpus(&split.client),
        workload.max_age,
    )
}

/// One sentence on how workloads like this one were measured, as far as their labels do not say.
pub(crate) fn usual_setting(workload: &Workload, split: &CpuSplit) -> String {
    if workload.is_passing {
        return format!(
            "Closed loop over a veth pair, {} keys of {} bytes, --max-age {}. CPU time of memcached, the daemon and \
             the thread that receives for each request: without prestack, behind an XDP program that does \
             nothing, and with prestack, {}. Server on CPU {}, client on CPU {}.",
            whole(workload.keys.into()),
            workload.key_size,
            workload.max_age,
            if workload.is_always_on {
                "which is kept from standing aside"
            } else {
                "once it stands aside"
            },
            cpus(&split.server),
            cpus(&split.client)
        );
    }
    let usual = match workload.transport {
        Transport::Udp => {
            "UDP, where nothing else is said GETs, uniform, with values of 32 bytes and \
            --max-age 60s"
                .to_owned()
        }
        Transport::Tcp => format!(
            "{} TCP connections, where nothing else is said values of {} bytes, --max-age {}{}",
            workload.connections,
            workload.value_size,
            workload.max_age,
            if workload.has_tcp_hits {
                ", --tcp-hits"
            } else {
                ""
            }
        ),
    };
    format!(
        "Closed loop over a veth pair and {usual}; keys of {} bytes, every answer checked byte for byte. Server \
         (memcached, packet processing) on CPU {}, client on CPU {}.",
        workload.key_size,
        cpus(&split.server),
        cpus(&split.client)
    )
}

fn cpus(cpus: &[usize]) -> String {
    match cpus {
        [first, .., last] => format!("{first} to {last}"),
        _ => cpus.iter().map(usize::to_string).collect(),
    }
}

/// A number without fraction, its thousands apart.
pub(crate) fn whole(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operations::Operation;
    use crate::outcome::Outcome;
    use crate::tally::Tally;
    use std::time::{Duration, Instant};

    /// What is said against a round with prestack in which one item was not there.
    fn refusal_of_missing(is_absent: bool) -> Option<String> {
        let mut tally = Tally::new();
        let latency = Duration::from_micros(100);
        tally.answer(Operation::Get, latency, Instant::now(), false);
        tally.missing = 1;
        let report = Report {
            series: Series::Overview,
            setting: String::new(),
            workload: Workload {
                is_absent,
                ..Workload::gets(1)
            },
            without: None,
            bare_xdp: None,
            with: Side {
                median: Outcome::new(&tally, Duration::from_secs(1), Duration::ZERO),
                hit_ratio: 0.0,
            },
            peers: Vec::new(),
        };
        report.check().err().map(|error| error.to_string())
    }

    #[test]
    fn what_is_stored_may_not_be_missing() {
        let refusal = refusal_of_missing(false).expect("the item is stored");
        assert!(
            refusal.starts_with("with prestack: 1 answers said"),
            "{refusal}"
        );
        assert_eq!(refusal_of_missing(true), None);
    }

    #[test]
    fn thousands_are_set_apart() {
        for (number, text) in [
            (0.0, "0"),
            (999.4, "999"),
            (1e3, "1,000"),
            (1_234_567.0, "1,234,567"),
        ] {
            assert_eq!(whole(number), text);
        }
    }
}
