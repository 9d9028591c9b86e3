//! How many GETs the cache answers, by its memory, and how many an ideal LRU would.

use anyhow::Result;
use prestack_abi::cache::{BUCKET_BYTES, EntryHeader, GRANULE, MAX_REPLY};
use serde::Serialize;

use super::datapath::{Datapath, GROWS_AFTER};
use super::form::Form;
use super::measure::XDP_TX;
use super::packet::{Layers, PORT};
use crate::dataset::Dataset;
use crate::interrupt;
use crate::lru::Lru;
use crate::plot::{Line, Plot, Scale};
use crate::popularity::Popularity;
use crate::progress::Progress;
use crate::report::whole;
use crate::section::Section;
use crate::sizes::Sizes;
use crate::table::Table;

/// Numbers of keys.
const KEYS: u32 = 100_000;
/// Memory of the cache, as a share of what all entries take.
const SHARES: [f64; 3] = [0.01, 0.05, 0.25];
/// Loads: name, short name, sizes of keys and values, popularity.
const LOADS: [(&str, &str, Sizes, Sizes, Popularity); 3] = [
    (
        "16 B keys, 32 B values, Zipf 0.99",
        "small",
        Sizes::Fixed(16),
        Sizes::Fixed(32),
        Popularity::Zipf(0.99),
    ),
    (
        "sizes as in ETC, Zipf 0.99",
        "ETC",
        Sizes::Etc,
        Sizes::Etc,
        Popularity::Zipf(0.99),
    ),
    (
        "sizes in Twitter's manner, Zipf 1.2",
        "Twitter",
        Sizes::Twitter,
        Sizes::Twitter,
        Popularity::Zipf(1.2),
    ),
];

/// The hits of a load.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct HitRate {
    load: &'static str,
    /// Memory of the cache, as a share of what all entries take.
    share: f64,
    memory_kib: u64,
    /// Share of the GETs that prestack answered.
    prestack: f64,
    /// Share that an LRU of the same bytes would, its items as large as prestack's entries.
    lru: f64,
    /// The same, its items keys and values alone.
    dense_lru: f64,
}

/// Steps of [`run`] for its progress.
pub(crate) fn steps() -> usize {
    LOADS.len() * SHARES.len()
}

/// Measures prestack's `object`.
///
/// # Errors
/// When the kernel refuses the programs.
pub(crate) fn run(object: &[u8], progress: &Progress) -> Result<Vec<HitRate>> {
    let mut rows = Vec::new();
    for (load, _, keys, values, popularity) in LOADS {
        let dataset = Dataset::with_sizes(KEYS, keys, values)?;
        // What fits no datagram is memcached's in any case.
        let reply = |n| Form::Get(1).hit(&dataset, &[n]);
        let reply_sizes: Vec<usize> = (0..KEYS).map(|n| reply(n).len()).collect();
        let fits = |n: &u32| reply_sizes[*n as usize] <= MAX_REPLY;
        let asked: Vec<u32> = popularity
            .sequence(KEYS)
            .iter()
            .copied()
            .filter(fits)
            .collect();
        let entry = |len: &usize| EntryHeader::granules(*len as u64) as u32 * GRANULE as u32;
        let entries: Vec<u32> = reply_sizes.iter().map(entry).collect();
        let items = |n| (dataset.key_len(n) + dataset.value_len(n)) as u32;
        let items: Vec<u32> = (0..KEYS).map(items).collect();
        let fitting = (0..KEYS)
            .filter(fits)
            .map(|n| u64::from(entries[n as usize]));
        let all: u64 = fitting.sum();
        for share in SHARES {
            progress.step(&format!("hit rate: {load}, {} %", 100.0 * share));
            let buckets = (share * all as f64 / BUCKET_BYTES as f64).round().max(1.0) as u32;
            let bytes = u64::from(buckets) * BUCKET_BYTES as u64;
            let lru = |sizes: &[u32]| {
                let mut lru = Lru::new(bytes, sizes.to_vec());
                hits(&asked, |n| Ok(lru.get(n)))
            };
            let mut datapath = Datapath::with_buckets(object, buckets)?;
            let mut gets = 0u32;
            let prestack = hits(&asked, |n| {
                gets += 1;
                if gets.is_multiple_of(GROWS_AFTER) {
                    datapath.grow()?;
                }
                get(&datapath, &dataset, n, gets as u16)
            });
            rows.push(HitRate {
                load,
                share,
                memory_kib: bytes >> 10,
                prestack: prestack?,
                lru: lru(&entries)?,
                dense_lru: lru(&items)?,
            });
        }
    }
    Ok(rows)
}

/// The share of hits among the second half of what is asked for.
fn hits(asked: &[u32], mut get: impl FnMut(u32) -> Result<bool>) -> Result<f64> {
    let (warm_up, measured) = asked.split_at(asked.len() / 2);
    for chunk in warm_up.chunks(10_000) {
        interrupt::check()?;
        for &n in chunk {
            get(n)?;
        }
    }
    let mut hits = 0;
    for chunk in measured.chunks(10_000) {
        interrupt::check()?;
        for &n in chunk {
            hits += u32::from(get(n)?);
        }
    }
    Ok(f64::from(hits) / measured.len() as f64)
}

/// Asks for an item; memcached answers what prestack does not.
fn get(datapath: &Datapath, dataset: &Dataset, n: u32, id: u16) -> Result<bool> {
    let form = Form::Get(1);
    let request = Layers::V4.to_server(PORT, id, &form.request(dataset, &[n]));
    let is_hit = datapath.run_rx(&request)?.action == XDP_TX;
    if !is_hit {
        datapath.answer(&Layers::V4.to_client(id, &form.hit(dataset, &[n])))?;
    }
    Ok(is_hit)
}

/// The rows as a table and a plot.
pub(crate) fn section(rows: &[HitRate]) -> Section {
    let head = "load,of the working set,memory,prestack,LRU,points,LRU without heads";
    let mut table = Table::new(1, head.split(','));
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    for row in rows {
        table.row([
            row.load.to_owned(),
            format!("{:.0} %", 100.0 * row.share),
            format!("{} KiB", whole(row.memory_kib as f64)),
            percent(row.prestack),
            percent(row.lru),
            format!("{:+.1}", 100.0 * (row.prestack - row.lru)),
            percent(row.dense_lru),
        ]);
    }
    let lines = LOADS.iter().flat_map(|(load, short, ..)| {
        let of_load = rows.iter().filter(move |row| row.load == *load);
        let line = |name: &str, of: fn(&HitRate) -> f64| Line {
            name: format!("{name}, {short}"),
            points: of_load
                .clone()
                .map(|row| (100.0 * row.share, 100.0 * of(row)))
                .collect(),
        };
        [
            line("prestack", |row| row.prestack),
            line("LRU", |row| row.lru),
        ]
    });
    Section {
        name: "hit-rate",
        title: "Hit rate by memory of the cache",
        setting: "GETs alone, 100,000 keys, through the programs by BPF_PROG_TEST_RUN, beside an ideal LRU of the \
            same bytes whose items take as much as prestack's entries, or (without heads) as their keys and values \
            alone. What fits no datagram is not asked for. The second half of a million GETs is counted."
            .to_owned(),
        plot: Some(Plot {
            axes: ["memory in % of what all entries take", "% hits"],
            scale: Scale::Log,
            lines: lines.collect(),
        }),
        table,
    }
}
