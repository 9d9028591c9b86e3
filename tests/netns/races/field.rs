//! memcached, prestack, and the sockets of the clients.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use prestack_testbed::{MemcachedOptions, TcpClient};
use prestack_tests::stage::Stage;

use super::command::Command;
use super::keys::{self, KINDS, REGISTERS};
use super::record::{self, Done};
use super::source::{self, Habits, Source, Way};
use super::wire::Wire;

/// prestack's settle time.
pub const SETTLE: Duration = Duration::from_millis(500);
/// Entries outlive the test, so that nothing but an invalidation removes one.
const ARGS: [&str; 7] = [
    "--always-on",
    "--memory",
    "8MiB",
    "--max-age",
    "60s",
    "--settle",
    "500ms",
];

/// Where it all happens.
pub struct Field {
    /// Draws what the rounds do.
    pub source: Source,
    /// The clients' sockets.
    pub wires: Vec<Wire>,
    /// A TCP connection to set keys with.
    pub control: Wire,
    /// Two sockets to read keys with.
    pub readers: [Wire; 2],
    /// Two that read while memcached comes back.
    pub hot: [Wire; 2],
    /// What memcached itself says.
    pub oracle: TcpClient,
    pub stage: Stage,
    started: Instant,
    sockets: u32,
}

impl Field {
    /// memcached with so many threads, prestack with `args` beyond those of every test, and clients with
    /// these sockets.
    pub fn new(
        threads: u32,
        args: &[&str],
        seed: u64,
        habits: Habits,
        ways: &[Way],
    ) -> Result<Self> {
        let options = MemcachedOptions {
            threads,
            ..MemcachedOptions::default()
        };
        let stage = Stage::with(options, &[&ARGS[..], args].concat())?;
        let started = Instant::now();
        let server = stage.server4();
        let connect = |way, who| Wire::connect(&stage.bed.client, server, way, who, started);
        let wires = ways
            .iter()
            .zip(10..)
            .map(|(&way, who)| connect(way, who))
            .collect::<Result<Vec<_>>>()?;
        let values = Arc::new(AtomicU64::new(1));
        Ok(Self {
            source: Source::new(seed, habits, &values),
            control: connect(Way::Text, 0)?,
            readers: [connect(Way::Udp, 1)?, connect(Way::Text, 2)?],
            hot: [connect(Way::Udp, 3)?, connect(Way::Udp, 4)?],
            oracle: stage.behind()?,
            sockets: 10 + wires.len() as u32,
            wires,
            started,
            stage,
        })
    }

    /// A new socket of the same kind in place of one.
    pub fn renew(&mut self, place: usize) -> Result<()> {
        let way = self.wires[place].way;
        self.wires[place] = self.connect(way)?;
        Ok(())
    }

    /// One more socket.
    pub fn connect(&mut self, way: Way) -> Result<Wire> {
        self.sockets += 1;
        let server: SocketAddr = self.stage.server4();
        let namespace = &self.stage.bed.client;
        Wire::connect(namespace, server, way, self.sockets, self.started)
    }

    /// Sets all keys, and has a part of them cached.
    pub fn prepare(&mut self) -> Result<Vec<Done>> {
        let mut all = Vec::new();
        for key in 0..KINDS.len() {
            let number = self.source.number(Way::Udp);
            all.push(self.control.ask(source::start(key, number))?);
        }
        for key in 0..KINDS.len() {
            for _ in 0..self.source.random.u8(..4) {
                all.push(self.readers[0].ask(source::get(key))?);
            }
        }
        self.source.cas = (0..REGISTERS)
            .map(|key| self.cas(key))
            .collect::<Result<_>>()?;
        Ok(all)
    }

    /// The unique number of a register's item.
    fn cas(&mut self, key: usize) -> Result<u64> {
        let gets = [b"gets ", &keys::name(key)[..], b"\r\n"].concat();
        self.oracle.send(&gets)?;
        let items = self.oracle.items()?;
        let cas = items.first().and_then(|item| item.cas);
        cas.context("a register is not there")
    }

    /// Fails unless every key reads, over UDP and TCP, as memcached itself says.
    pub fn verify(&mut self) -> Result<Vec<Done>> {
        let mut all = Vec::new();
        for key in 0..KINDS.len() {
            self.verify_key(key, &mut all)?;
        }
        Ok(all)
    }

    fn verify_key(&mut self, key: usize, all: &mut Vec<Done>) -> Result<()> {
        let name = keys::name(key);
        let [udp, tcp] = &self.readers;
        for _ in 0..200 {
            let truth = self.oracle.get(&name)?;
            let binary = self.source.binary_get(key);
            let asked: [(&Wire, Command); 5] = [
                (udp, source::get(key)),
                (udp, source::meta_get(key)),
                (udp, binary),
                (tcp, source::get(key)),
                (udp, source::get(key)),
            ];
            let mut answers = Vec::new();
            for (wire, command) in asked {
                answers.push(wire.ask(command)?);
            }
            if self.oracle.get(&name)? != truth {
                // A write that nobody waits for has come just now.
                continue;
            }
            for done in &answers {
                let answer = done.answer.as_ref().context("no answer")?;
                record::agree(key, answer, truth.as_deref())
                    .with_context(|| format!("{:?}", done.command.shown()))?;
            }
            all.extend(answers);
            return Ok(());
        }
        bail!("a key does not come to rest")
    }

    /// Fails if prestack has lost its way in the connections, all of which it has seen from their start.
    /// On a machine that is busy with other things a client may send unacknowledged segments again,
    /// joined otherwise than before: doubt is right then, and rare.
    pub fn check_doubts(&self, operations: usize) -> Result<String> {
        let stats = self.stage.prestack.stats()?;
        let requests = stats.get("doubted_requests")?;
        let replies = stats.get("doubted_replies")?;
        let told = [
            "udp.hits",
            "tcp.hits",
            "fills",
            "fills_refused",
            "invalidations",
            "forgets",
            "doubted_requests",
            "doubted_replies",
            "regained",
            "reparsed",
            "strays",
            "requests_lost",
        ];
        let told: Vec<String> = told
            .iter()
            .filter_map(|name| Some(format!("{name} {}", stats.get(name).ok()?)))
            .collect();
        ensure!(
            requests + replies <= 1 + operations as u64 / 1_000_000,
            "flows were not understood: {}",
            told.join(", ")
        );
        Ok(told.join(", "))
    }
}
