//! The program that makes TCP segments and hands each to a program under test.

use std::time::Duration;

use anyhow::{Context, Result};
use aya::maps::{Array, ProgramArray};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions, TestRunResult, Xdp};
use aya::{Ebpf, EbpfLoader};

use super::packet::{PORT, Tcp};
use super::programs::{LONGEST, map_mut, program, program_mut, refused};
use super::source::OBJECT;

/// Programs of the object.
const REQUEST: &str = "tcp_request";
const REPLY: &str = "tcp_reply";
const ECHO: &str = "echo";
const ECHO_REPLY: &str = "echo_reply";

/// The clients' first port.
const CLIENT_PORT: u16 = 40_000;
/// Sequence numbers of the first bytes.
const CLIENT_START: u32 = 0xffff_0000;
const SERVER_START: u32 = 0x1234_5678;

/// Segments that are sent before any is answered. Both are powers of two.
#[derive(Clone, Copy, Debug)]
pub(super) struct Batch {
    /// Connections, which take turns.
    pub(super) flows: u32,
    /// Segments of each.
    pub(super) of_each: u32,
}

impl Batch {
    pub(super) fn segments(self) -> u32 {
        self.flows * self.of_each
    }

    /// The clients' ports.
    fn ports(self) -> impl Iterator<Item = u16> {
        (0..self.flows as u16).map(|flow| CLIENT_PORT + flow)
    }
}

/// What the segments carry: all requests, and all replies, have one length.
#[derive(Clone, Debug)]
pub(super) struct Exchange {
    pub(super) request: Vec<u8>,
    pub(super) reply: Vec<u8>,
    /// Where in the request the eight digits of the key's number stand, if it has a key.
    pub(super) request_key_at: Option<usize>,
    /// The same of the reply.
    pub(super) reply_key_at: Option<usize>,
    /// What each flow has sent and received before.
    pub(super) before: Vec<u8>,
}

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Requests,
    Replies,
}

/// The loaded programs.
pub(super) struct Segments {
    ebpf: Ebpf,
    exchange: Exchange,
    batch: Batch,
}

impl Segments {
    /// A source of segments with this exchange for `keys` keys.
    pub(super) fn load(exchange: Exchange, keys: u32, batch: Batch) -> Result<Self> {
        let place = |key_at: Option<usize>| key_at.map_or(0, |at| (Tcp::DATA + at) as u64);
        let client_start = CLIENT_START.wrapping_add(exchange.before.len() as u32);
        let mut ebpf = EbpfLoader::new()
            .override_global("FLOW_BITS", &u64::from(batch.flows.ilog2()), true)
            .override_global("BATCH_BITS", &u64::from(batch.of_each.ilog2()), true)
            .override_global("REQUEST_LEN", &(exchange.request.len() as u64), true)
            .override_global("REPLY_LEN", &(exchange.reply.len() as u64), true)
            .override_global("CLIENT_START", &u64::from(client_start), true)
            .override_global("SERVER_START", &u64::from(SERVER_START), true)
            .override_global("CLIENT_PORT", &u64::from(CLIENT_PORT), true)
            .override_global("REQUEST_KEY_AT", &place(exchange.request_key_at), true)
            .override_global("REPLY_KEY_AT", &place(exchange.reply_key_at), true)
            .override_global("KEYS_OF_FLOWS", &u64::from(keys), true)
            .load(OBJECT)
            .context("loading the source of segments into the kernel")?;
        for name in [REQUEST, ECHO] {
            program_mut::<Xdp>(&mut ebpf, name)?
                .load()
                .map_err(|error| refused(name, error))?;
        }
        for name in [REPLY, ECHO_REPLY] {
            program_mut::<SchedClassifier>(&mut ebpf, name)?
                .load()
                .map_err(|error| refused(name, error))?;
        }
        Ok(Self {
            ebpf,
            exchange,
            batch,
        })
    }

    /// The segments that open the flows: memcached's host agrees to the connections.
    pub(super) fn openings(&self) -> impl Iterator<Item = Vec<u8>> + use<> {
        self.batch.ports().map(|port| {
            let opening = Tcp {
                ports: [PORT, port],
                numbers: [SERVER_START.wrapping_sub(1), CLIENT_START],
                flags: Tcp::SYN | Tcp::ACK,
            };
            opening.to_client(b"")
        })
    }

    /// The segments with what has been sent before, if there is any.
    pub(super) fn beginnings(&self) -> impl Iterator<Item = Vec<u8>> {
        let before = &self.exchange.before;
        let ports = self.batch.ports().filter(|_| !before.is_empty());
        ports.map(|port| {
            let beginning = Tcp {
                ports: [port, PORT],
                numbers: [CLIENT_START, SERVER_START],
                flags: Tcp::ACK,
            };
            beginning.to_server(before)
        })
    }

    /// Hands the segments to these programs from now on, or to programs that do nothing.
    pub(super) fn aim(&mut self, targets: Option<(&Xdp, &SchedClassifier)>) -> Result<()> {
        let (requests, replies) = match targets {
            Some((rx, tx)) => (rx.fd()?, tx.fd()?),
            None => (
                program::<Xdp>(&self.ebpf, ECHO)?.fd()?,
                program::<SchedClassifier>(&self.ebpf, ECHO_REPLY)?.fd()?,
            ),
        };
        let (requests, replies) = (requests.try_clone()?, replies.try_clone()?);
        let mut map: ProgramArray<_> = map_mut(&mut self.ebpf, "TARGET")?;
        map.set(0, &requests, 0)?;
        let mut map: ProgramArray<_> = map_mut(&mut self.ebpf, "REPLY_TARGET")?;
        Ok(map.set(0, &replies, 0)?)
    }

    /// Segments made so far each way.
    pub(super) fn made(&mut self) -> Result<[u64; 2]> {
        let map: Array<_, u64> = map_mut(&mut self.ebpf, "MADE")?;
        Ok([map.get(&0, 0)?, map.get(&1, 0)?])
    }

    /// Goes back to where so many had been made.
    pub(super) fn go_back(&mut self, made: [u64; 2]) -> Result<()> {
        let mut map: Array<_, u64> = map_mut(&mut self.ebpf, "MADE")?;
        map.set(0, made[0], 0)?;
        Ok(map.set(1, made[1], 0)?)
    }

    /// Makes a batch of segments of all flows; returns the mean time of one.
    pub(super) fn run(&self, way: Way) -> Result<Duration> {
        let repeat = self.batch.segments();
        let ran = match way {
            Way::Requests => run::<Xdp>(program(&self.ebpf, REQUEST)?, &self.packet(way), repeat),
            Way::Replies => {
                run::<SchedClassifier>(program(&self.ebpf, REPLY)?, &self.packet(way), repeat)
            }
        };
        ran.context("running the source of segments")
    }

    /// The segment in which the programs change what differs.
    fn packet(&self, way: Way) -> Vec<u8> {
        let tcp = |ports| Tcp {
            ports,
            numbers: [0, 0],
            flags: Tcp::ACK | Tcp::PUSH,
        };
        match way {
            Way::Requests => tcp([CLIENT_PORT, PORT]).to_server(&self.exchange.request),
            Way::Replies => tcp([PORT, CLIENT_PORT]).to_client(&self.exchange.reply),
        }
    }
}

fn run<P>(program: &P, packet: &[u8], repeat: u32) -> Result<Duration>
where
    P: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = TestRunResult>,
{
    let mut out = [0; LONGEST];
    let ran = program.test_run(TestRunOptions {
        data_in: Some(packet),
        data_out: Some(&mut out),
        repeat,
        ..TestRunOptions::default()
    })?;
    Ok(ran.duration)
}
