//! The comparison as a table for people and as JSON for programs.

use std::fmt::Write;

use anyhow::{Result, bail};
use prestack_testbed::cpu::CpuSplit;
use serde::Serialize;

use crate::comparison::{Side, Workload};

/// A workload's comparison.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) workload: Workload,
    pub(crate) without: Side,
    pub(crate) with: Side,
}

impl Report {
    /// The table.
    pub(crate) fn table(&self) -> String {
        let (a, b) = (&self.without, &self.with);
        let mut table = String::new();
        let mut row = |name: &str, without: &str, with: &str, ratio: &str| {
            let line = format!("{name:<26}{without:>12}{with:>16}   {ratio}");
            writeln!(table, "{}", line.trim_end()).expect("a string takes everything");
        };
        row("", "memcached", "with prestack", "");
        row(
            "requests/s",
            &whole(a.median.rate),
            &whole(b.median.rate),
            &{ format!("{:.2}×", b.median.rate / a.median.rate) },
        );
        let latencies = [
            ("latency p50 (µs)", a.median.p50_us, b.median.p50_us),
            ("latency p99 (µs)", a.median.p99_us, b.median.p99_us),
        ];
        for (name, a, b) in latencies {
            row(name, &whole(a), &whole(b), &format!("{:.2}× less", a / b));
        }
        let (cpu_a, cpu_b) = (a.median.server_cpu_ns / 1e3, b.median.server_cpu_ns / 1e3);
        row(
            "server CPU/request (µs)",
            &format!("{cpu_a:.2}"),
            &format!("{cpu_b:.2}"),
            &{ format!("{:.2}× less", cpu_a / cpu_b) },
        );
        row("hits", "-", &format!("{:.1} %", b.hit_ratio * 100.0), "");
        row(
            "unanswered",
            &whole(a.median.timeouts as f64),
            &whole(b.median.timeouts as f64),
            "",
        );
        table
    }

    /// Fails when an answer was not memcached's, or came twice.
    pub(crate) fn check(&self) -> Result<()> {
        for (name, side) in [("without", &self.without), ("with", &self.with)] {
            let Side { median, .. } = side;
            if median.wrong > 0 {
                bail!(
                    "{} answers {name} prestack were not memcached's",
                    median.wrong
                );
            }
            if median.strays > median.timeouts {
                bail!(
                    "{} answers {name} prestack came to no request",
                    median.strays
                );
            }
        }
        Ok(())
    }
}

/// One sentence on how it was measured.
pub(crate) fn setting(workload: &Workload, split: &CpuSplit) -> String {
    format!(
        "Closed loop of UDP GETs over a veth pair, {} keys of {} bytes ({}), values of {} bytes, \
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
