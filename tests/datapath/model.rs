//! Random sequences of requests and replies against a model: a hit is always the current value.
//!
//! A pretended memcached carries requests out at random moments after they have arrived, and their
//! replies leave at random moments after that, in any order, or never. Every write is seen, and the
//! settle time is longer than the test, so that nothing excuses an old value.

use std::collections::VecDeque;

use crate::bytes::{get, item};
use crate::harness::{Datapath, Setup, Verdict, random, volume};
use crate::packet::{Frame, PacketBuilder};

/// Longest payload that memcached puts into one datagram behind the frame.
const DATAGRAM: usize = 1392;

/// What a request asks for; keys are numbers.
#[derive(Clone, Debug)]
enum Command {
    /// `get` of any number of keys.
    Get(Vec<usize>),
    /// `gets` of one key.
    Gets(usize),
    /// `mg` with `v`.
    MetaGet(usize),
    /// A new value, by `set` or by `ms`.
    Set {
        key: usize,
        value: Vec<u8>,
        is_meta: bool,
        is_quiet: bool,
    },
    /// `delete` or `md`.
    Delete {
        key: usize,
        is_meta: bool,
        is_quiet: bool,
    },
    FlushAll,
}

fn name(key: usize) -> String {
    format!("key-{key}")
}

impl Command {
    fn text(&self) -> Vec<u8> {
        let text = match self {
            Self::Get(keys) => {
                return get(&keys.iter().map(|&key| name(key)).collect::<Vec<_>>());
            }
            Self::Set {
                key,
                value,
                is_meta,
                is_quiet,
            } => {
                let (name, len) = (name(*key), value.len());
                let line = match (is_meta, is_quiet) {
                    (false, false) => format!("set {name} 0 0 {len}\r\n"),
                    (false, true) => format!("set {name} 0 0 {len} noreply\r\n"),
                    (true, false) => format!("ms {name} {len}\r\n"),
                    (true, true) => format!("ms {name} {len} q\r\n"),
                };
                return [line.as_bytes(), value, b"\r\n"].concat();
            }
            Self::Gets(key) => format!("gets {}\r\n", name(*key)),
            Self::MetaGet(key) => format!("mg {} v\r\n", name(*key)),
            Self::Delete {
                key,
                is_meta,
                is_quiet,
            } => match (is_meta, is_quiet) {
                (false, false) => format!("delete {}\r\n", name(*key)),
                (false, true) => format!("delete {} noreply\r\n", name(*key)),
                (true, false) => format!("md {}\r\n", name(*key)),
                (true, true) => format!("md {} q\r\n", name(*key)),
            },
            Self::FlushAll => "flush_all\r\n".to_owned(),
        };
        text.into_bytes()
    }
}

/// One datapath, its clients, and the pretended memcached behind it.
struct World {
    random: fastrand::Rng,
    path: Datapath,
    /// What memcached holds.
    items: Vec<Option<Vec<u8>>>,
    /// What has arrived and not been carried out.
    arrived: Vec<(PacketBuilder, Command)>,
    /// What has been carried out: the datagrams that have not left, by request.
    leaving: Vec<VecDeque<PacketBuilder>>,
    next_id: u16,
    /// One in this many requests takes an id that has just been used, is without reply or lost.
    mishaps: u32,
    /// Writes in 1000 requests.
    writes: u32,
    /// Numbers the values, no two of which are the same.
    written: u32,
    hits: usize,
    log: Vec<String>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let setup = Setup {
            seed: random.u64(..),
            buckets: *random.choice(&[1, 2, 64]).expect("a choice"),
            ..Setup::default()
        };
        let keys = random.usize(1..8);
        Self {
            path: Datapath::with(&setup),
            items: (0..keys).map(|key| Some(vec![b'a'; key])).collect(),
            arrived: Vec::new(),
            leaving: Vec::new(),
            next_id: 0,
            mishaps: *random.choice(&[20, 200, 2000]).expect("a choice"),
            writes: *random.choice(&[20, 60, 200]).expect("a choice"),
            written: 0,
            hits: 0,
            log: Vec::new(),
            random,
        }
    }

    fn step(&mut self) {
        match self.random.u32(..100) {
            ..40 => self.arrive(),
            40..68 => self.carry_out(),
            _ => self.leave(),
        }
    }

    fn is_mishap(&mut self) -> bool {
        self.random.u32(..self.mishaps) == 0
    }

    fn key(&mut self) -> usize {
        self.random.usize(..self.items.len())
    }

    fn command(&mut self) -> Command {
        let key = self.key();
        let is_meta = self.random.bool();
        if self.random.u32(..1000) >= self.writes {
            return match self.random.u32(..20) {
                ..14 => Command::Get(vec![key]),
                14..18 => Command::Get((0..self.random.usize(2..5)).map(|_| self.key()).collect()),
                18 => Command::Gets(key),
                _ => Command::MetaGet(key),
            };
        }
        let is_quiet = self.is_mishap();
        match self.random.u32(..100) {
            ..70 => Command::Set {
                key,
                value: self.value(),
                is_meta,
                is_quiet,
            },
            70..99 => Command::Delete {
                key,
                is_meta,
                is_quiet,
            },
            _ if self.is_mishap() => Command::FlushAll,
            _ => Command::Get(vec![key]),
        }
    }

    /// A value that has not been before; a few do not fit one datagram.
    fn value(&mut self) -> Vec<u8> {
        self.written += 1;
        let mut value = format!("{}.", self.written).into_bytes();
        let len = match self.random.u32(..20) {
            ..16 => self.random.usize(..40),
            16..18 => self.random.usize(..1300),
            18 => self.random.usize(1330..1400),
            _ => self.random.usize(1400..1460),
        };
        value.resize(value.len() + len, b'x');
        value
    }

    /// A request arrives. If the cache answers it, the answer is memcached's own.
    fn arrive(&mut self) {
        let command = self.command();
        let id = if self.is_mishap() {
            self.next_id - self.random.u16(..self.next_id.clamp(1, 20))
        } else {
            self.next_id += 1;
            self.next_id
        };
        let request = PacketBuilder::udp(command.text()).id(id);
        let request = match self.random.u32(..4) {
            0 => request.v6(),
            1 => request.client_port(40_001),
            _ => request,
        };
        let verdict = self.path.rx(&request);
        self.log.push(format!(
            "{id} from {}: {} {}",
            request.source,
            short(&request.payload),
            match &verdict {
                Verdict::Passed => "passed".to_owned(),
                Verdict::Served(reply) => format!("served {}", short(reply)),
            }
        ));
        if let Verdict::Served(served) = verdict {
            let Command::Get(keys) = &command else {
                panic!("{command:?} is answered by the cache\n{}", self.story());
            };
            let mut current = Vec::new();
            for &key in keys {
                if let Some(value) = &self.items[key] {
                    current.extend(item(name(key), 0, value));
                }
            }
            current.extend(b"END\r\n");
            assert!(
                served == current,
                "memcached has {}\n{}",
                short(&current),
                self.story()
            );
            self.hits += 1;
        } else if !self.is_mishap() {
            self.arrived.push((request, command));
        }
    }

    /// memcached carries out one of the requests that have arrived.
    fn carry_out(&mut self) {
        if self.arrived.is_empty() {
            return;
        }
        let chosen = self.random.usize(..self.arrived.len());
        let (request, command) = self.arrived.swap_remove(chosen);
        let messages = self.answer(&command);
        self.log
            .push(format!("carried out: {}", short(&request.payload)));
        let mut datagrams = VecDeque::new();
        for message in messages {
            let parts = message.chunks(DATAGRAM);
            let count = parts.len() as u16;
            for (sequence, part) in (0..).zip(parts) {
                let reply = request.reply(part);
                let id = frame_id(&reply);
                datagrams.push_back(reply.frame(Frame {
                    id,
                    sequence,
                    count,
                    reserved: 0,
                }));
            }
        }
        if !datagrams.is_empty() {
            self.leaving.push(datagrams);
        }
    }

    /// Carries a command out; returns the messages of its reply.
    fn answer(&mut self, command: &Command) -> Vec<Vec<u8>> {
        let reply = |is_quiet: bool, text: &str| match is_quiet {
            true => Vec::new(),
            false => vec![text.as_bytes().to_vec()],
        };
        match command {
            Command::Get(keys) => {
                let mut messages = Vec::new();
                for &key in keys {
                    if let Some(value) = &self.items[key] {
                        messages.push(item(name(key), 0, value));
                    }
                }
                // The end is part of the last hit's message, or a message of its own.
                match messages.last_mut() {
                    Some(last) if keys.len() == 1 || self.random.bool() => last.extend(b"END\r\n"),
                    _ => messages.push(b"END\r\n".to_vec()),
                }
                messages
            }
            Command::Gets(key) => {
                let found = self.items[*key].as_ref().map(|value| {
                    let line = format!("VALUE {} 0 {} 17\r\n", name(*key), value.len());
                    [line.as_bytes(), value, b"\r\n"].concat()
                });
                vec![[&found.unwrap_or_default()[..], b"END\r\n"].concat()]
            }
            Command::MetaGet(key) => vec![self.items[*key].as_ref().map_or_else(
                || b"EN\r\n".to_vec(),
                |value| [format!("VA {}\r\n", value.len()).as_bytes(), value, b"\r\n"].concat(),
            )],
            Command::Set {
                key,
                value,
                is_meta,
                is_quiet,
            } => {
                self.items[*key] = Some(value.clone());
                reply(*is_quiet, if *is_meta { "HD\r\n" } else { "STORED\r\n" })
            }
            Command::Delete {
                key,
                is_meta,
                is_quiet,
            } => {
                let text = match (self.items[*key].take().is_some(), is_meta) {
                    (true, false) => "DELETED\r\n",
                    (false, false) => "NOT_FOUND\r\n",
                    (true, true) => "HD\r\n",
                    (false, true) => "NF\r\n",
                };
                reply(*is_quiet, text)
            }
            Command::FlushAll => {
                self.items.fill(None);
                reply(false, "OK\r\n")
            }
        }
    }

    /// The next datagram of one of the replies leaves, or is lost with the rest.
    fn leave(&mut self) {
        if self.leaving.is_empty() {
            return;
        }
        let chosen = self.random.usize(..self.leaving.len());
        let datagrams = &mut self.leaving[chosen];
        let datagram = datagrams.pop_front().expect("a reply has datagrams");
        let is_last = datagrams.is_empty();
        let is_lost = self.is_mishap();
        if is_last || is_lost {
            self.leaving.swap_remove(chosen);
        }
        if !is_lost {
            self.log.push(format!(
                "{} left to {}: {}",
                frame_id(&datagram),
                datagram.destination,
                short(&datagram.payload)
            ));
            self.path.tx(&datagram);
        }
    }

    /// What has happened last.
    fn story(&self) -> String {
        self.log[self.log.len().saturating_sub(60)..].join("\n")
    }
}

fn frame_id(packet: &PacketBuilder) -> u16 {
    match packet.transport {
        crate::packet::Transport::Udp {
            frame: Some(frame), ..
        } => frame.id,
        _ => panic!("a datagram has a frame"),
    }
}

/// The beginning and the end of a text, for people.
fn short(text: &[u8]) -> String {
    let start = &text[..text.len().min(40)];
    format!("\"{}\" ({})", start.escape_ascii(), text.len())
}

#[test]
fn a_hit_is_the_current_value() {
    const STEPS: usize = 300;
    let mut random = random();
    let rounds = volume(100);
    let mut hits = 0;
    for _ in 0..rounds {
        let mut world = World::new(random.u64(..));
        for _ in 0..STEPS {
            world.step();
        }
        hits += world.hits;
    }
    let steps = rounds * STEPS;
    println!("{hits} hits in {steps} steps");
    assert!(
        hits >= steps / 100,
        "{hits} hits in {steps} steps show little"
    );
}
