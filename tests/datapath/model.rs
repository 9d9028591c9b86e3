//! Random sequences of requests and replies against a model: a hit is always the current value.
//!
//! A pretended memcached carries requests out at random moments after they have arrived, and their
//! replies leave at random moments after that, in any order, or never. Every write is seen, and the
//! settle time is longer than the test, so that nothing excuses an old value.

use std::collections::VecDeque;

use crate::binary;
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
    /// `gets`.
    Gets(Vec<usize>),
    /// `mg` with these flags.
    MetaGet(usize, &'static str),
    /// A binary GET with this opcode.
    Binary(usize, u8),
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

/// What binary requests carry and their replies repeat.
const OPAQUE: u32 = 0x0a0b_0c0d;

/// An item in memcached.
#[derive(Clone)]
struct Stored {
    value: Vec<u8>,
    flags: u32,
    cas: u64,
}

fn name(key: usize) -> String {
    format!("key-{key}")
}

fn names(keys: &[usize]) -> Vec<String> {
    keys.iter().map(|&key| name(key)).collect()
}

impl Command {
    fn text(&self) -> Vec<u8> {
        let text = match self {
            Self::Get(keys) => {
                return get(&names(keys));
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
            Self::Gets(keys) => format!("gets {}\r\n", names(keys).join(" ")),
            Self::MetaGet(key, flags) => format!("mg {} {flags}\r\n", name(*key)),
            Self::Binary(key, opcode) => {
                return binary::get(*opcode, name(*key).as_bytes(), OPAQUE);
            }
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
    items: Vec<Option<Stored>>,
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
            items: (0..keys)
                .map(|key| {
                    Some(Stored {
                        value: vec![b'a'; key],
                        flags: 0,
                        cas: 1 << 40,
                    })
                })
                .collect(),
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
                ..8 => Command::Get(vec![key]),
                8..11 => Command::Get((0..self.random.usize(2..5)).map(|_| self.key()).collect()),
                11..13 => Command::Gets(vec![key]),
                13 => Command::Gets((0..self.random.usize(2..5)).map(|_| self.key()).collect()),
                14..17 => Command::MetaGet(
                    key,
                    self.random
                        .choice(["v", "v f c k", "c v", "k v f"])
                        .expect("a choice"),
                ),
                _ => Command::Binary(
                    key,
                    self.random
                        .choice([binary::GET, binary::GETQ, binary::GETK, binary::GETKQ])
                        .expect("a choice"),
                ),
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
            let current: Vec<u8> = self.answer(&command).concat();
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
            if message.is_empty() {
                datagrams.push_back(request.nothing());
                continue;
            }
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
                self.text_answer(keys, |name, stored| item(name, stored.flags, &stored.value))
            }
            Command::Gets(keys) => self.text_answer(keys, |name, stored| {
                let Stored { value, flags, cas } = stored;
                let line = format!("VALUE {name} {flags} {} {cas}\r\n", value.len());
                [line.as_bytes(), value, b"\r\n"].concat()
            }),
            Command::MetaGet(key, asked) => vec![self.items[*key].as_ref().map_or_else(
                || b"EN\r\n".to_vec(),
                |Stored { value, flags, cas }| {
                    let mut head = format!("VA {}", value.len());
                    for flag in asked.split(' ') {
                        match flag {
                            "f" => head += &format!(" f{flags}"),
                            "c" => head += &format!(" c{cas}"),
                            "k" => head += &format!(" k{}", name(*key)),
                            _ => {}
                        }
                    }
                    [head.as_bytes(), b"\r\n", value, b"\r\n"].concat()
                },
            )],
            Command::Binary(key, opcode) => {
                let name = name(*key);
                let is_quiet = matches!(*opcode, binary::GETQ | binary::GETKQ);
                match &self.items[*key] {
                    Some(Stored { value, flags, cas }) => vec![binary::hit(
                        *opcode,
                        name.as_bytes(),
                        *flags,
                        *cas,
                        value,
                        OPAQUE,
                    )],
                    // In a datagram without payload.
                    None if is_quiet => vec![Vec::new()],
                    None => vec![binary::not_found(*opcode, OPAQUE)],
                }
            }
            Command::Set {
                key,
                value,
                is_meta,
                is_quiet,
            } => {
                self.items[*key] = Some(Stored {
                    value: value.clone(),
                    flags: 0,
                    cas: self.written.into(),
                });
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

    /// The messages that answer a text GET.
    fn text_answer(
        &mut self,
        keys: &[usize],
        show: impl Fn(String, &Stored) -> Vec<u8>,
    ) -> Vec<Vec<u8>> {
        let mut messages = Vec::new();
        for (i, &key) in keys.iter().enumerate() {
            if let Some(stored) = &self.items[key] {
                messages.push(show(name(key), stored));
            } else if i == 0 && keys.len() > 1 {
                // memcached's way of saying nothing of the first.
                messages.push(Vec::new());
            }
        }
        // The end is part of the last hit's message, or a message of its own.
        match messages.last_mut() {
            Some(last) if !last.is_empty() && (keys.len() == 1 || self.random.bool()) => {
                last.extend(b"END\r\n");
            }
            _ => messages.push(b"END\r\n".to_vec()),
        }
        messages
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
    // Of few rounds all may be poor ones.
    assert!(
        hits + 12 >= steps / 100,
        "{hits} hits in {steps} steps show little"
    );
}
