//! Measurements on one filled cache.

use anyhow::{Context, Result, bail, ensure};

use super::datapath::{Datapath, changes};
use super::form::Spelling;
use super::packet::{OTHER_PORT, PORT};
use super::sequence::Keys;
use super::source::{KEY_SIZE, Requests, Room, Source};
use super::{Cost, Fate, Kind, Setup};
use crate::dataset::Dataset;
use crate::interrupt;
use crate::outcome::median;
use crate::progress::Progress;
use crate::report::whole;

/// `XDP_TX` (include/uapi/linux/bpf.h).
pub(super) const XDP_TX: u32 = 3;
/// Test runs of a round, of which the median counts, and packets in each. Every one takes some milliseconds beside the
/// packets' time: the kernel waits for all CPUs to have seen that it starts.
pub(super) const RUNS: [u32; 2] = [16, 32_000];
/// Batches of a round of requests that are let through, and packets in a short and in a long one, which take turns.
/// After each they are answered: prestack does not have to remember more than it can. It then starts with caches that
/// are cold, which the program that does nothing never does: what a batch costs once is not to count.
const MISS_BATCHES: u32 = 50;
const MISSES: [u32; 2] = [256, 1_024];
/// Greatest share of packets that may take another way than they should. Keys that agree in place
/// and tag evict each other, and chance fills a set of the memory of unanswered requests.
pub(super) const STRAYS: f64 = 0.01;

/// A cache with all keys of a dataset in it.
pub(super) struct Filled {
    setup: Setup,
    dataset: Dataset,
    datapath: Datapath,
}

impl Filled {
    /// Loads prestack's `object` and has every key asked for and answered once.
    pub(super) fn new(object: &[u8], setup: Setup) -> Result<Self> {
        let dataset = Dataset::new(setup.keys, KEY_SIZE, setup.value_size)?;
        let mut datapath = Datapath::load(object, setup.memory_mib)?;
        for spelling in [Spelling::Plain, Spelling::Base64] {
            let is_hit = |kind: &Kind| kind.is_hit() && kind.form.spelling() == spelling;
            if !setup.kinds.iter().any(is_hit) {
                continue;
            }
            datapath.teach(setup.keys, STRAYS / 2.0, |n| spelling.lesson(&dataset, n))?;
        }
        Ok(Self {
            setup,
            dataset,
            datapath,
        })
    }

    /// How many keys it has.
    pub(super) fn keys(&self) -> u32 {
        self.setup.keys
    }

    /// prestack's programs.
    pub(super) fn datapath(&self) -> &Datapath {
        &self.datapath
    }

    /// A source of plain GETs that are hits.
    pub(super) fn hits(&self) -> Result<Source> {
        Source::load(&self.dataset, self.requests(Kind::HIT))
    }

    /// Measures what packets of a kind cost: medians of `rounds`, in each of which the program
    /// that does nothing takes its turn as well.
    pub(super) fn measure(&self, kind: Kind, rounds: u32, progress: &Progress) -> Result<Cost> {
        let Setup {
            keys,
            value_size,
            memory_mib,
            ..
        } = self.setup;
        let requests = self.requests(kind);
        let mut source = Source::load(&self.dataset, requests)?;
        self.check_source(&mut source, requests)
            .with_context(|| format!("the source of requests: {kind}"))?;
        self.check_replies(requests, kind)?;
        // The first runs find caches cold.
        self.round(&mut source, kind)?;
        let mut costs = Vec::new();
        for round in 1..=rounds {
            progress.step(&format!(
                "{kind}, {} keys, values of {value_size} bytes: round {round}",
                whole(keys.into())
            ));
            costs.push(self.round(&mut source, kind)?);
        }
        Ok(Cost::new(
            kind.to_string(),
            (keys, value_size, memory_mib),
            &costs,
        ))
    }

    /// Requests that make packets of a kind.
    fn requests(&self, kind: Kind) -> Requests {
        let keys = self.setup.keys;
        let (first, port, room) = match kind.fate {
            Fate::Hit => (0, PORT, Room::Tail),
            Fate::HitGrownAtHead => (0, PORT, Room::Head),
            Fate::Miss => (keys, PORT, Room::Tail),
            Fate::OtherPort => (0, OTHER_PORT, Room::Tail),
        };
        Requests {
            form: kind.form,
            layers: kind.layers,
            port,
            keys: Keys { first, count: keys },
            room,
        }
    }

    /// The source makes the packets that are expected of it.
    fn check_source(&self, source: &mut Source, requests: Requests) -> Result<()> {
        source.aim(None)?;
        for (items, id) in source.upcoming(100) {
            let ran = source.run_once()?;
            let expected = requests.packet(&self.dataset, &items, id);
            ensure!(
                ran.action == XDP_TX && ran.packet == expected,
                "it made {:x?}, not {expected:x?}",
                ran.packet
            );
        }
        Ok(())
    }

    /// Hits are answered as memcached would.
    fn check_replies(&self, requests: Requests, kind: Kind) -> Result<()> {
        if !kind.is_hit() {
            return Ok(());
        }
        let Requests { form, layers, .. } = requests;
        let before = self.datapath.stats()?;
        let mut hits = 0;
        for (items, id) in (0..100).map(|n| requests.keys.request(n, form.keys())) {
            let request = requests.packet(&self.dataset, &items, id);
            let ran = self.datapath.run_rx(&request)?;
            if ran.action != XDP_TX {
                continue;
            }
            hits += 1;
            let reply = layers.payload_at().min(ran.packet.len());
            let (headers, reply) = ran.packet.split_at(reply);
            let frame = [&id.to_be_bytes()[..], &[0, 0, 0, 1, 0, 0]].concat();
            ensure!(
                headers.ends_with(&frame) && reply == form.hit(&self.dataset, &items),
                "{kind}: a wrong answer to items {items:?}: {}",
                reply.escape_ascii()
            );
        }
        let counted = changes(&before, &self.datapath.stats()?);
        ensure!(
            hits >= 97 && counted.get("udp_hits") == Some(&hits),
            "{kind}: {hits} of 100 requests were answered. The counters say: {counted:?}"
        );
        Ok(())
    }

    /// Nanoseconds of a packet through prestack, and through the program that does nothing.
    fn round(&self, source: &mut Source, kind: Kind) -> Result<(f64, f64)> {
        interrupt::check()?;
        source.aim(None)?;
        let echo = self.run(source, kind, false)?;
        source.aim(Some(self.datapath.rx()?))?;
        let before = self.datapath.stats()?;
        let rx = self.run(source, kind, true)?;
        let changes = changes(&before, &self.datapath.stats()?);
        let count = |name| changes.get(name).copied().unwrap_or(0);
        let packets = packets(kind);
        let are_few = |n: u64| n as f64 <= STRAYS * packets as f64;
        let is_right = match kind.fate {
            Fate::Hit | Fate::HitGrownAtHead => {
                count("udp_hits") + count("udp_misses") == packets && are_few(count("udp_misses"))
            }
            Fate::Miss => count("udp_misses") == packets && are_few(count("requests_lost")),
            Fate::OtherPort => changes.is_empty(),
        };
        if !is_right {
            bail!("{packets} packets were to be: {kind}. The counters say: {changes:?}");
        }
        Ok((rx, echo))
    }

    /// Nanoseconds of a packet. prestack sees misses answered.
    fn run(&self, source: &mut Source, kind: Kind, is_prestack: bool) -> Result<f64> {
        if kind.fate != Fate::Miss {
            return typical(source);
        }
        let reply = kind.form.miss();
        let mut times = [Vec::new(), Vec::new()];
        for _ in 0..MISS_BATCHES {
            for (packets, times) in MISSES.into_iter().zip(&mut times) {
                let requests = source.upcoming(packets);
                times.push(source.run(packets)?.as_nanos() as f64 * f64::from(packets));
                if !is_prestack {
                    continue;
                }
                for (_, id) in requests {
                    self.datapath.answer(&kind.layers.to_client(id, &reply))?;
                }
            }
        }
        Ok(of_one_more(MISSES, times))
    }
}

/// Nanoseconds of a packet from the source, the median of some runs.
pub(super) fn typical(source: &mut Source) -> Result<f64> {
    let [runs, packets] = RUNS;
    let mut times = Vec::new();
    for _ in 0..runs {
        interrupt::check()?;
        times.push(source.run(packets)?.as_nanos() as f64);
    }
    Ok(median(times.into_iter()))
}

/// Nanoseconds of a packet more, by the times of batches of two lengths.
fn of_one_more([short, long]: [u32; 2], times: [Vec<f64>; 2]) -> f64 {
    let [of_short, of_long] = times.map(|times| median(times.into_iter()));
    (of_long - of_short) / f64::from(long - short)
}

/// Packets of a round.
fn packets(kind: Kind) -> u64 {
    let packets = match kind.fate {
        Fate::Miss => MISS_BATCHES * MISSES.iter().sum::<u32>(),
        _ => RUNS.iter().product(),
    };
    packets.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_batch_costs_once_does_not_count() {
        let once = 5_000.0;
        let batch = |packets: u32| vec![once + 100.0 * f64::from(packets); 3];
        assert_eq!(of_one_more(MISSES, MISSES.map(batch)), 100.0);
        // Nor does a run that something else has made long.
        let mut times = MISSES.map(batch);
        times[1][0] *= 10.0;
        assert_eq!(of_one_more(MISSES, times), 100.0);
    }
}
