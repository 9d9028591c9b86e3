//! Nanoseconds of a TCP segment in `rx` and `tx`, the programs that they hand it over to included.

use std::fmt;

use anyhow::{Result, ensure};
use prestack_abi::stats::Stats;

use super::Cost;
use super::datapath::{Datapath, changes};
use super::form::Form;
use super::segments::{Batch, Exchange, Segments, Way};
use super::source::KEY_SIZE;
use crate::dataset::Dataset;
use crate::interrupt;
use crate::progress::Progress;
use crate::report::whole;

/// How the names of all packets begin.
pub(super) const PREFIX: &str = "TCP, ";
/// Bytes of a value.
const VALUE_SIZE: usize = 32;
/// Memory of the cache, the default of `prestack run`.
const MEMORY_MIB: u32 = 256;
/// Batches of a round.
const BATCHES: u32 = 60;
/// Least share of GETs that fill when all should: a key has one ticket at a time, and some are asked for
/// twice in a batch.
const FILLING: f64 = 0.85;
/// Greatest share of the keys that may not be in the cache when it is filled.
const STRAYS: f64 = 0.005;
/// Data of a full segment on Ethernet.
const FULL: usize = 1448;

/// What connections do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A `get` while nobody reads over UDP.
    Get,
    /// A `get` of a key that is in the cache, which needs no ticket.
    GetCached,
    /// A `get` whose reply fills the cache.
    GetFilling,
    /// A `get` of what memcached does not have.
    GetMissing,
    /// A `set`.
    Set,
    /// A full segment out of the middle of a long value, and its acknowledgement.
    Data,
}

const SETUPS: [(Kind, u32); 9] = [
    (Kind::Set, 1_000),
    (Kind::Get, 10_000),
    (Kind::GetCached, 10_000),
    (Kind::GetFilling, 10_000),
    (Kind::GetMissing, 10_000),
    (Kind::Set, 10_000),
    (Kind::Data, 1_000),
    (Kind::GetFilling, 100_000),
    (Kind::Set, 100_000),
];

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Get => "get",
            Self::GetCached => "get, cached",
            Self::GetFilling => "get that fills",
            Self::GetMissing => "get, missing",
            Self::Set => "set",
            Self::Data => "data",
        })
    }
}

impl Kind {
    /// As many as can be: each test run finds the caches colder than the last left them. A flow has at most
    /// eight tickets, and data is not to exceed the window.
    fn batch(self) -> Batch {
        let (flows, of_each) = match self {
            Self::Get | Self::GetCached | Self::Set => (64, 64),
            Self::GetFilling | Self::GetMissing => (256, 8),
            Self::Data => (64, 32),
        };
        Batch { flows, of_each }
    }

    fn exchange(self, dataset: &Dataset) -> Exchange {
        let get = Form::Get(1);
        let request = match self {
            Self::Set => {
                let key = dataset.key(0);
                let head = [b"set ", &key[..], b" 0 0 32\r\n"].concat();
                [head, dataset.value(0), b"\r\n".to_vec()].concat()
            }
            Self::Data => vec![b'x'; FULL],
            _ => get.request(dataset, &[0]),
        };
        let reply = match self {
            Self::Get | Self::GetCached | Self::GetFilling => get.hit(dataset, &[0]),
            Self::GetMissing => get.miss(),
            Self::Set => b"STORED\r\n".to_vec(),
            Self::Data => Vec::new(),
        };
        let digits_at = |before: &str| Some(before.len() + KEY_SIZE - 8);
        let has_value = !matches!(self, Self::GetMissing | Self::Set | Self::Data);
        Exchange {
            request,
            reply,
            request_key_at: if self == Self::Data {
                None
            } else {
                digits_at("get ")
            },
            reply_key_at: if has_value { digits_at("VALUE ") } else { None },
            before: if self == Self::Data {
                b"set kkkkkkkkkkkkkkkk 0 0 50000000\r\n".to_vec()
            } else {
                Vec::new()
            },
        }
    }
}

/// Steps of [`run`] for its progress.
pub(super) fn steps(rounds: u32) -> usize {
    SETUPS.len() * (1 + rounds as usize)
}

/// Measures prestack's `object`.
pub(super) fn run(object: &[u8], rounds: u32, progress: &Progress) -> Result<Vec<Cost>> {
    let mut costs = Vec::new();
    for (kind, keys) in SETUPS {
        let name = format!("{PREFIX}{kind}, {} keys", whole(keys.into()));
        progress.step(&format!("{name}: opening the flows"));
        let mut measured = Measured::new(object, kind, keys)?;
        // The first runs find caches cold.
        measured.round()?;
        let (mut requests, mut replies) = (Vec::new(), Vec::new());
        for round in 1..=rounds {
            interrupt::check()?;
            progress.step(&format!("{name}: round {round}"));
            let [request, reply] = measured.round()?;
            requests.push(request);
            replies.push(reply);
        }
        let reply = if kind == Kind::Data {
            "acknowledgement"
        } else {
            "reply"
        };
        let cost = |packet: String, costs: &[(f64, f64)]| {
            Cost::new(packet, (keys, VALUE_SIZE, MEMORY_MIB), costs)
        };
        costs.push(cost(format!("{PREFIX}{kind}"), &requests));
        costs.push(cost(format!("{PREFIX}{kind}: {reply}"), &replies));
    }
    Ok(costs)
}

/// Flows that are open.
struct Measured {
    kind: Kind,
    datapath: Datapath,
    segments: Segments,
}

impl Measured {
    fn new(object: &[u8], kind: Kind, keys: u32) -> Result<Self> {
        let dataset = Dataset::new(keys, KEY_SIZE, VALUE_SIZE)?;
        let mut datapath = Datapath::load(object, MEMORY_MIB)?;
        // What fills finds as much of the cache in use as it needs.
        if matches!(kind, Kind::GetCached | Kind::GetFilling) {
            let get = Form::Get(1);
            datapath.teach(keys, STRAYS, |n| {
                [get.request(&dataset, &[n]), get.hit(&dataset, &[n])]
            })?;
        }
        if kind != Kind::GetCached {
            datapath.age()?;
        }
        if kind == Kind::Get {
            datapath.skip_tcp_fills()?;
        }
        let segments = Segments::load(kind.exchange(&dataset), keys, kind.batch())?;
        for opening in segments.openings() {
            datapath.answer(&opening)?;
        }
        for beginning in segments.beginnings() {
            datapath.run_rx(&beginning)?;
        }
        Ok(Self {
            kind,
            datapath,
            segments,
        })
    }

    /// Nanoseconds of a request's and of a reply's segment, each through prestack and through the program
    /// that does nothing.
    fn round(&mut self) -> Result<[(f64, f64); 2]> {
        let before = self.segments.made()?;
        self.segments.aim(None)?;
        let echo = self.batches()?;
        self.segments.go_back(before)?;
        let targets = (self.datapath.rx()?, self.datapath.tx()?);
        self.segments.aim(Some(targets))?;
        let counted = self.datapath.stats()?;
        let prestack = self.batches()?;
        self.check(&counted)?;
        Ok([(prestack[0], echo[0]), (prestack[1], echo[1])])
    }

    fn batches(&self) -> Result<[f64; 2]> {
        let mut nanoseconds = [0; 2];
        for _ in 0..BATCHES {
            nanoseconds[0] += self.segments.run(Way::Requests)?.as_nanos();
            nanoseconds[1] += self.segments.run(Way::Replies)?.as_nanos();
        }
        Ok(nanoseconds.map(|sum| sum as f64 / f64::from(BATCHES)))
    }

    /// The segments were what they were to be, since the counters stood there.
    fn check(&self, before: &Stats) -> Result<()> {
        let mut changes = changes(before, &self.datapath.stats()?);
        let segments = u64::from(BATCHES * self.kind.batch().segments());
        let mut take = |name| changes.remove(name).unwrap_or(0);
        let are_most = |n: u64| n as f64 >= FILLING * segments as f64;
        let passed = take("tcp_passed");
        let (fills, refused) = (take("fills"), take("fills_refused"));
        let (writes, evictions) = (take("invalidations"), take("evictions"));
        let is_right = match self.kind {
            Kind::GetFilling => are_most(fills) && refused + evictions + writes <= segments / 20,
            Kind::Set => writes == segments && fills + refused == 0,
            Kind::Get | Kind::GetCached | Kind::GetMissing | Kind::Data => {
                fills + refused + writes == 0
            }
        };
        ensure!(
            passed == segments && is_right && changes.is_empty(),
            "{segments} segments were to be: {}. The counters say: {passed} passed, {fills} fills, \
             {refused} refused, {writes} writes, and {changes:?}",
            self.kind
        );
        Ok(())
    }
}
