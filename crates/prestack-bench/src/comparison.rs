//! The same load on the same memcached, without and with prestack.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use prestack_testbed::cpu::{self, CpuSplit};
use prestack_testbed::{Memcached, MemcachedOptions, Prestack, TcpClient, Testbed, bpf};
use serde::Serialize;

use crate::dataset::Dataset;
use crate::interrupt;
use crate::load::{Group, Load, Transport};
use crate::outcome::{Outcome, median};
use crate::peer::Peer;
use crate::popularity::Popularity;
use crate::protocol::Protocol;
use crate::report::whole;
use crate::server_cpu::ServerCpu;
use crate::warm_up;
use crate::wire::Echo;

/// memcached's port in the testbed.
pub(crate) const PORT: u16 = 11211;
/// The port of the memcached that prestack does not serve.
const PORT_ELSEWHERE: u16 = 11311;
/// The longest time that it takes to ask for every key.
const FILL_LIMIT: Duration = Duration::from_secs(60);
/// To ask for more keys than this once may take longer than prestack waits for a first hit.
const MANY_KEYS: u32 = 200_000;
/// prestack's default `--max-age`: to ask for every key once may take longer, and nothing hits while that goes on.
pub(crate) const BRIEF: &str = "1s";
/// How long memcached alone is warmed up.
const WARM_UP: Duration = Duration::from_millis(500);

/// What is asked of memcached, and how prestack is set.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Workload {
    pub(crate) keys: u32,
    pub(crate) key_size: usize,
    pub(crate) value_size: usize,
    #[serde(serialize_with = "as_text")]
    pub(crate) popularity: Popularity,
    pub(crate) max_age: String,
    #[serde(serialize_with = "as_text")]
    pub(crate) transport: Transport,
    /// Share of writes.
    pub(crate) write_ratio: f64,
    /// Keys that are written are not read.
    pub(crate) writes_apart: bool,
    /// Connections (TCP).
    pub(crate) connections: usize,
    /// Requests are answered over TCP (`--tcp-hits`).
    pub(crate) has_tcp_hits: bool,
    /// Only keys are asked for that memcached does not have.
    pub(crate) is_absent: bool,
    /// Memory of prestack's cache, where it is not the default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) memory: Option<String>,
    /// It is of what prestack has to let pass: what that costs is measured.
    pub(crate) is_passing: bool,
    /// Another memcached is asked, which prestack does not serve: any other service over UDP.
    pub(crate) is_elsewhere: bool,
    /// prestack never stands aside.
    pub(crate) is_always_on: bool,
    /// Server and client have all CPUs together, not half of them each.
    pub(crate) shares_cpus: bool,
}

impl Workload {
    /// GETs over UDP for so many keys of 16 bytes, with values of 32, uniform, hits alone.
    pub(crate) fn gets(keys: u32) -> Self {
        Self {
            keys,
            key_size: 16,
            value_size: 32,
            popularity: Popularity::Uniform,
            max_age: "60s".to_owned(),
            transport: Transport::Udp,
            write_ratio: 0.0,
            writes_apart: false,
            connections: 0,
            has_tcp_hits: false,
            is_absent: false,
            memory: None,
            is_passing: false,
            is_elsewhere: false,
            is_always_on: false,
            shares_cpus: false,
        }
    }

    /// What it is of what passes.
    pub(crate) fn passing_label(&self) -> String {
        if self.is_elsewhere {
            "another service".to_owned()
        } else if self.is_absent {
            "misses".to_owned()
        } else if self.write_ratio > 0.0 {
            "SETs".to_owned()
        } else {
            format!("GETs, values of {} B", whole(self.value_size as f64))
        }
    }

    /// Whether the XDP program that is measured beside lets everything pass, and does not send it back.
    pub(crate) fn bare_passes(&self) -> bool {
        self.transport == Transport::Tcp || self.is_passing
    }

    /// What it is, as far as it is not as [`gets`](Self::gets).
    pub(crate) fn label(&self) -> String {
        let usual = Self::gets(self.keys);
        let mut label = match self.keys {
            1 => "1 key".to_owned(),
            keys => format!("{} keys", whole(keys.into())),
        };
        let mut add = |is_other: bool, text: String| {
            if is_other {
                label += &format!(", {text}");
            }
        };
        add(self.is_absent, "none there".to_owned());
        add(
            self.value_size != usual.value_size,
            format!("values of {} B", whole(self.value_size as f64)),
        );
        add(
            self.popularity != usual.popularity,
            self.popularity.to_string(),
        );
        add(
            self.write_ratio > 0.0,
            format!("{} % SETs", 100.0 * self.write_ratio),
        );
        add(self.writes_apart, "of other keys".to_owned());
        add(
            self.transport == Transport::Udp && self.max_age != usual.max_age,
            format!("max-age {}", self.max_age),
        );
        add(
            self.has_tcp_hits && self.connections == 1,
            "one connection".to_owned(),
        );
        add(self.is_elsewhere, "another service".to_owned());
        add(self.shares_cpus, "both ends on all CPUs".to_owned());
        label
    }
}

/// One side of the comparison: medians of the rounds, sums of the errors.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Side {
    #[serde(flatten)]
    pub(crate) median: Outcome,
    /// Share of the requests that prestack answered.
    pub(crate) hit_ratio: f64,
}

/// A testbed with memcached in it, its items stored.
pub(crate) struct Comparison {
    bed: Testbed,
    memcacheds: Vec<Memcached>,
    split: CpuSplit,
    load: Load,
    prestack: PathBuf,
    workload: Workload,
}

impl Comparison {
    pub(crate) fn new(workload: &Workload) -> Result<Self> {
        let dataset = Dataset::new(workload.keys, workload.key_size, workload.value_size)?;
        let prestack = std::env::current_exe().context("finding prestack's own binary")?;
        let split = if workload.shares_cpus {
            let all = cpu::all()?;
            CpuSplit {
                server: all.clone(),
                client: all,
            }
        } else {
            CpuSplit::halves()?
        };
        let bed = Testbed::new()?;
        let ports = if workload.is_elsewhere {
            &[PORT, PORT_ELSEWHERE][..]
        } else {
            &[PORT]
        };
        let mut memcacheds = Vec::new();
        for &port in ports {
            let options = MemcachedOptions {
                port,
                udp_port: port,
                memory_mib: memory_mib(workload),
                ..MemcachedOptions::default()
            };
            let memcached = Memcached::start(&bed.server, options)?;
            cpu::pin_process(memcached.pid(), &split.server)?;
            memcacheds.push(memcached);
        }
        let port = *ports.last().expect("there is one at least");
        let server = (bed.links[0].server4, port).into();
        if !workload.is_absent {
            dataset.load(Some(&bed.client), server)?;
        }
        let cpus = &split.client;
        let group = match workload.transport {
            Transport::Udp => Group {
                write_ratio: workload.write_ratio,
                ..Group::udp_gets(cpus.len())
            },
            Transport::Tcp => Group {
                writes_apart: workload.writes_apart,
                ..Group::tcp(workload.connections, workload.write_ratio, cpus.len())
            },
        };
        let load = Load::new(dataset, workload.popularity, server, vec![group], cpus);
        Ok(Self {
            bed,
            memcacheds,
            split,
            load,
            prestack,
            workload: workload.clone(),
        })
    }

    /// CPUs of the two ends.
    pub(crate) fn split(&self) -> &CpuSplit {
        &self.split
    }

    /// A round against memcached alone.
    pub(crate) fn without(&self, duration: Duration) -> Result<Side> {
        self.bed.separate_cpus(&self.split)?;
        self.measure(&self.load, WARM_UP, &[])?;
        let median = self.measure(&self.load, duration, &[])?;
        Ok(Side {
            median,
            hit_ratio: 0.0,
        })
    }

    /// A round against an XDP program alone. It sends requests back. Where prestack cannot answer it does
    /// nothing, and memcached answers: with any XDP program veth makes a copy of every packet, which a network
    /// card does not.
    pub(crate) fn bare_xdp(&self, duration: Duration) -> Result<Side> {
        let (server, dev) = (&self.bed.server, &self.bed.links[0].server_dev);
        if self.workload.bare_passes() {
            let _pass = bpf::attach_pass(server, dev)?;
            return self.without(duration);
        }
        let _echo = Echo::new(server, dev)?;
        self.bed.separate_cpus(&self.split)?;
        let mut load = self.load.clone();
        for group in &mut load.groups {
            group.protocol = Protocol::Echo;
            group.write_ratio = 0.0;
        }
        self.measure(&load, WARM_UP, &[])?;
        let median = self.measure(&load, duration, &[])?;
        Ok(Side {
            median,
            hit_ratio: 0.0,
        })
    }

    /// A round with a peer's programs. Its cache is filled before where nothing is written.
    pub(crate) fn with_peer(&self, peer: &Peer, duration: Duration) -> Result<Side> {
        let side = self.try_peer(peer, duration);
        side.with_context(|| format!("measuring the peer {}", peer.name))
    }

    fn try_peer(&self, peer: &Peer, duration: Duration) -> Result<Side> {
        let dev = &self.bed.links[0].server_dev;
        let _attached = peer.attach(&self.bed.server, dev)?;
        self.bed.separate_cpus(&self.split)?;
        if self.is_filled() {
            // Twice: what it has not taken then it does not take.
            for _ in 0..2 {
                self.measure(&self.load.sweep(), FILL_LIMIT, &[])?;
            }
        }
        self.measure(&self.load, WARM_UP, &[])?;
        let seen = requests_seen(&self.bed)?;
        let median = self.measure(&self.load, duration, &[])?;
        let seen = requests_seen(&self.bed)? - seen;
        let hits = median.answered.saturating_sub(seen);
        let hit_ratio = hits as f64 / median.answered.max(1) as f64;
        Ok(Side { median, hit_ratio })
    }

    /// Whether hits alone are measured.
    fn is_filled(&self) -> bool {
        (self.workload.transport == Transport::Udp || self.workload.has_tcp_hits)
            && self.workload.write_ratio == 0.0
            && !self.workload.is_absent
    }

    /// The counter of answered requests.
    fn hits(&self) -> &'static str {
        if self.workload.has_tcp_hits {
            "tcp.hits"
        } else {
            "udp.hits"
        }
    }

    /// A round with prestack, once it is as it stays. Where nothing is written it is filled before, and
    /// the time for which it waits after a write whose end it cannot see is short.
    pub(crate) fn with(&self, duration: Duration) -> Result<Side> {
        let dev = &self.bed.links[0].server_dev;
        let mut args = vec!["--interface", dev, "--max-age", &self.workload.max_age];
        if let Some(memory) = &self.workload.memory {
            args.extend(["--memory", memory]);
        }
        if self.workload.has_tcp_hits {
            args.push("--tcp-hits");
        }
        let is_filled = self.is_filled();
        let takes_long = is_filled && self.workload.keys > MANY_KEYS;
        let is_always_on = self.workload.is_always_on || takes_long;
        if is_always_on {
            args.push("--always-on");
        }
        if is_filled {
            args.extend(["--settle", "100ms"]);
        }
        let mut prestack = Prestack::start_binary(self.prestack.clone(), &self.bed.server, &args)?;
        cpu::pin_process(prestack.pid(), &self.split.server)?;
        // The kernel may have made new threads for the device with its XDP program.
        self.bed.separate_cpus(&self.split)?;
        if is_filled && self.workload.max_age != BRIEF {
            let sweep = self.load.sweep();
            warm_up::until_settled(&prestack, is_always_on, || self.warm_up(&sweep, FILL_LIMIT))?;
        }
        warm_up::until_settled(&prestack, is_always_on, || {
            self.warm_up(&self.load, warm_up::LOOK)
        })?;

        let hits = prestack.stats()?.get(self.hits())?;
        let median = self.measure(&self.load, duration, &[prestack.pid()])?;
        let hits = prestack.stats()?.get(self.hits())? - hits;
        prestack.stop()?;
        let hit_ratio = hits as f64 / median.answered.max(1) as f64;
        Ok(Side { median, hit_ratio })
    }

    /// Offers a load while the cache fills, grows, or is stood aside of.
    fn warm_up(&self, load: &Load, duration: Duration) -> Result<()> {
        let outcome = self.measure(load, duration, &[])?;
        let wrong = outcome.wrong;
        ensure!(
            wrong == 0,
            "{wrong} answers were not memcached's while the cache was filled{}",
            outcome.such_as()
        );
        Ok(())
    }

    fn measure(&self, load: &Load, duration: Duration, prestack: &[i32]) -> Result<Outcome> {
        let memcacheds = self.memcacheds.iter().map(Memcached::pid);
        let server = ServerCpu {
            processes: memcacheds.chain(prestack.iter().copied()).collect(),
            devices: vec![self.bed.links[0].server_dev.clone()],
        };
        let stop = interrupt::flag();
        let outcome = load.run(&self.bed.client, duration, stop, || server.used())?;
        interrupt::check()?;
        ensure!(
            outcome.answered > 0,
            "no request was answered right: {} answers were not memcached's, {} requests had none{}",
            outcome.wrong,
            outcome.timeouts,
            outcome.such_as()
        );
        Ok(outcome)
    }
}

/// Requests that the memcached of a testbed has seen, by its own account.
pub(crate) fn requests_seen(bed: &Testbed) -> Result<u64> {
    let mut client = TcpClient::connect(&bed.server, (bed.links[0].server4, PORT).into())?;
    client.send(b"stats\r\n")?;
    let mut seen = 0;
    loop {
        let line = client.line().context("reading memcached's counters")?;
        let line = String::from_utf8_lossy(&line);
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["STAT", "cmd_get" | "cmd_set", count] => seen += count.parse::<u64>()?,
            ["STAT", ..] => {}
            _ => return Ok(seen),
        }
    }
}

/// The side that rounds of the same kind give together; `None` without any.
pub(crate) fn combine(rounds: &[Side]) -> Option<Side> {
    if rounds.is_empty() {
        return None;
    }
    Some(Side {
        median: Outcome::combine(rounds.iter().map(|side| &side.median)),
        hit_ratio: median(rounds.iter().map(|side| side.hit_ratio)),
    })
}

/// Memory that holds the workload's items without eviction.
fn memory_mib(workload: &Workload) -> u32 {
    // An item has a header of about 56 bytes, and slabs waste up to a quarter.
    let item = workload.key_size + workload.value_size + 56;
    let bytes = item as u64 * u64::from(workload.keys) * 5 / 4;
    64 + (bytes >> 20) as u32
}

fn as_text<S: serde::Serializer>(value: &impl fmt::Display, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::SHARES;

    #[test]
    fn rounds_combine_to_medians_and_sums() {
        let side = |rate, wrong| Side {
            median: Outcome {
                rate,
                answered: 10,
                quantiles_us: vec![1.0; SHARES.len()],
                timeouts: 1,
                wrong,
                ..Outcome::default()
            },
            hit_ratio: 0.5,
        };
        let all = combine(&[side(9.0, 1), side(1.0, 0), side(2.0, 2)]).unwrap();
        assert_eq!(
            (all.median.rate, all.median.wrong, all.median.timeouts),
            (2.0, 3, 3)
        );
        let two = combine(&[side(1.0, 0), side(3.0, 0)]).unwrap();
        assert_eq!(two.median.rate, 2.0);
        assert!(combine(&[]).is_none());
    }
}
