//! `prestack stats`.

use prestack_abi::{cache::BUCKET_BYTES, config::Config, stats::Stats};
use serde_json::{Map, Value, json};

use super::{Running, table};
use crate::{
    cache::{self, Usage},
    cli::StatsArgs,
    clock, maps,
};

/// A backend's share.
struct Share {
    epoch: u64,
    usage: Usage,
}

/// What the datapath has counted.
///
/// # Errors
/// The instance does not run, or cannot be asked.
pub fn stats(args: &StatsArgs) -> anyhow::Result<String> {
    let running = Running::find(&args.instance.instance)?;
    let counters = maps::counters(&running.state.maps)?;
    let maps = running.cache()?;
    let usage = cache::usage(
        &maps,
        &running.controls,
        running.backends(),
        clock::now_ns(),
    );
    let shares: Vec<_> = (0u8..)
        .zip(usage)
        .map(|(backend, usage)| Share {
            epoch: running.controls.epoch_of(backend),
            usage,
        })
        .collect();
    let memory = memory_in_use(&running.controls.config());
    if args.json {
        let is_aside = running.controls.is_aside();
        let json = serde_json::to_string_pretty(&to_json(&counters, is_aside, memory, &shares))?;
        return Ok(json + "\n");
    }
    Ok(to_text(&counters, memory, &shares))
}

/// Bytes of the cache over which entries are spread: never less than before.
fn memory_in_use(config: &Config) -> u64 {
    u64::from(config.base) * u64::from(config.parts) * BUCKET_BYTES as u64
}

/// Everything, with the counters of a transport in an object of their own, and those of what passed while the
/// datapath stood aside, and whether it does.
fn to_json(counters: &Stats, is_aside: bool, memory_in_use: u64, shares: &[Share]) -> Value {
    let [mut udp, mut tcp, mut aside, mut all] = [(); 4].map(|()| Map::new());
    aside.insert("now".into(), is_aside.into());
    for (name, count) in counters.iter() {
        match name.split_once('_') {
            Some(("udp", name)) => udp.insert(name.into(), count.into()),
            Some(("tcp", name)) => tcp.insert(name.into(), count.into()),
            Some(("aside", name)) => aside.insert(name.into(), count.into()),
            _ => all.insert(name.into(), count.into()),
        };
    }
    all.insert("udp".into(), udp.into());
    all.insert("tcp".into(), tcp.into());
    all.insert("aside".into(), aside.into());
    let total = total(shares);
    all.insert("epoch".into(), total.epoch.into());
    all.insert("entries".into(), total.usage.entries.into());
    all.insert("bytes".into(), total.usage.bytes.into());
    all.insert("memory_in_use".into(), memory_in_use.into());
    let backends = shares.iter().enumerate().map(|(number, share)| {
        json!({
            "backend": number,
            "epoch": share.epoch,
            "entries": share.usage.entries,
            "bytes": share.usage.bytes,
        })
    });
    all.insert("backends".into(), backends.collect());
    all.into()
}

/// All backends together; the epoch then counts every time that one of them was emptied.
fn total(shares: &[Share]) -> Share {
    Share {
        epoch: shares.iter().map(|share| share.epoch).sum(),
        usage: Usage {
            entries: shares.iter().map(|share| share.usage.entries).sum(),
            bytes: shares.iter().map(|share| share.usage.bytes).sum(),
        },
    }
}

fn to_text(counters: &Stats, memory_in_use: u64, shares: &[Share]) -> String {
    let ratio = |hits: u64, misses: u64| match hits + misses {
        0 => "-".into(),
        gets => format!("{:.1}%", 100.0 * hits as f64 / gets as f64),
    };
    let total = total(shares);
    let mut rows: Vec<(&str, String)> = Vec::new();
    for (name, count) in counters.iter() {
        rows.push((name, count.to_string()));
        match name {
            "udp_misses" => rows.push((
                "udp_hit_ratio",
                ratio(counters.udp_hits, counters.udp_misses),
            )),
            "tcp_misses" => rows.push((
                "tcp_hit_ratio",
                ratio(counters.tcp_hits, counters.tcp_misses),
            )),
            _ => {}
        }
    }
    rows.push(("epoch", total.epoch.to_string()));
    rows.push(("entries", total.usage.entries.to_string()));
    rows.push(("bytes", total.usage.bytes.to_string()));
    rows.push(("memory_in_use", memory_in_use.to_string()));
    let width = rows.iter().map(|(_, value)| value.len()).max().unwrap_or(0);
    let rows: Vec<_> = rows
        .iter()
        .map(|(name, value)| (*name, format!("{value:>width$}")))
        .collect();
    table(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_in_the_manual() {
        let manual = include_str!("../../../../docs/operations.md");
        let (_, manual) = manual.split_once("\n## Counters\n").expect("a section");
        let (manual, _) = manual.split_once("\n## ").expect("another one behind it");
        for row in to_text(&Stats::default(), 0, &[]).lines() {
            let (name, _) = row.split_once(' ').expect("two columns");
            let is_told = manual
                .lines()
                .filter_map(|line| line.strip_prefix('|')?.split('|').next())
                .any(|cell| cell.contains(&format!("`{name}`")));
            assert!(is_told, "{name}");
        }
    }

    #[test]
    fn json_has_the_documented_names() {
        let counters = Stats {
            udp_hits: 7,
            tcp_passed: 8,
            fills_refused: 9,
            aside_tcp_gets: 10,
            ..Stats::default()
        };
        let share = |epoch, entries| Share {
            epoch,
            usage: Usage { entries, bytes: 64 },
        };
        let json = to_json(&counters, true, 4096, &[share(3, 1), share(2, 4)]);
        assert_eq!(json["udp"]["hits"], 7);
        assert_eq!(json["tcp"]["passed"], 8);
        assert_eq!(json["fills_refused"], 9);
        assert_eq!(
            (&json["aside"]["tcp_gets"], &json["aside"]["now"]),
            (&10.into(), &true.into())
        );
        for name in ["hits", "misses", "passed"] {
            assert!(
                json["udp"][name].is_u64() && json["tcp"][name].is_u64(),
                "{name}"
            );
        }
        for name in ["fills", "invalidations", "evictions"] {
            assert!(json[name].is_u64(), "{name}");
        }
        assert_eq!(
            (&json["epoch"], &json["entries"], &json["bytes"]),
            (&5.into(), &5.into(), &128.into())
        );
        assert_eq!(json["memory_in_use"], 4096);
        assert_eq!(json["backends"][1]["entries"], 4);
    }
}
