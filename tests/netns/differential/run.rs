//! One stream of commands to both servers, in lockstep.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use prestack_testbed::{TcpClient, pace};
use prestack_tests::environment::say;
use prestack_tests::stage::{self, store};

use super::binary;
use super::command::{Comparison, Datagram};
use super::datagrams::Sockets;
use super::forms::{FORMS, Form, Tally};
use super::history::History;
use super::server::{Connections, Server, get_hits};
use super::source::Source;
use super::stream::Stretch;

/// The ids below this are used again and again.
const FEW_IDS: u16 = 200;
/// Most commands in one batch.
const BATCH: usize = 64;
/// Most datagrams that answer one batch, as the device's queue holds 256.
const BATCH_ANSWERS: usize = 80;
/// Most bytes of one batch.
const BATCH_BYTES: usize = 24_000;

/// Whether the text and the binary connections are over IPv6.
const TEXT: [bool; 3] = [false, true, false];
const BINARY: [bool; 2] = [false, true];
/// The text connection of calm stretches: nothing on it is cut, or too long for a segment.
const CALM: usize = 2;

/// When a run ends.
#[derive(Clone, Copy)]
pub enum Limit {
    /// After so many commands.
    Commands(u64),
    /// After so long a time.
    Time(Duration),
}

/// After how many commands what is sent changes.
#[derive(Clone, Copy)]
pub struct Pace {
    /// Those after which prestack is started anew.
    pub round: u64,
    /// Those of a calm stretch, about.
    pub calm: u64,
}

fn open(servers: &[Server; 2], families: &[bool]) -> Result<Vec<Connections>> {
    let connections = families.iter().map(|v6| Connections::open(servers, *v6));
    connections.collect()
}

/// Both servers, the connections to them, and what has been seen.
pub struct Run {
    servers: [Server; 2],
    source: Source,
    sockets: Vec<Sockets>,
    text: Vec<Connections>,
    binary: Vec<Connections>,
    behind: [TcpClient; 2],
    history: History,
    tally: Tally,
    /// The same over TCP.
    tcp_tally: Tally,
    /// GETs over TCP that prestack had answered when it was restarted last.
    tcp_hits: u64,
    /// Answers whose datagrams came in another order with prestack than without.
    reordered: u64,
    ids: u16,
}

/// Of so many commands one may have such an answer, and one more in a run: prestack does not change their order.
const REORDERED_OF: u64 = 100_000;

impl Run {
    /// Starts both servers, the first with prestack if it has arguments.
    pub fn new(prestack: Option<&[&str]>, seed: u64) -> Result<Self> {
        let servers = [Server::start(prestack)?, Server::start(None)?];
        let families = [false, false, false, true, true];
        let sockets = families.map(|v6| Sockets::open(&servers, v6));
        Ok(Self {
            source: Source::new(seed),
            sockets: sockets.into_iter().collect::<Result<_>>()?,
            text: open(&servers, &TEXT)?,
            binary: open(&servers, &BINARY)?,
            behind: [servers[0].behind()?, servers[1].behind()?],
            history: History::default(),
            tally: Tally::default(),
            tcp_tally: Tally::default(),
            tcp_hits: 0,
            reordered: 0,
            ids: FEW_IDS + 1,
            servers,
        })
    }

    /// Sends commands up to `limit`; fails when an answer differs.
    pub fn go(&mut self, limit: Limit, pace: Pace) -> Result<()> {
        let start = Instant::now();
        let result = self.stretches(limit, pace);
        let commands = self.history.commands;
        let rate = commands as f64 / start.elapsed().as_secs_f64();
        say(&format!("{commands} commands, {rate:.0}/s"));
        result.with_context(|| {
            format!(
                "after {commands} commands, the last being\n{}",
                self.history
            )
        })
    }

    /// Changes every hot key at both servers without prestack seeing it.
    pub fn write_unseen(&mut self) -> Result<()> {
        for client in &mut self.behind {
            for key in self.source.hot_keys() {
                store(client, key, b"unseen")?;
            }
        }
        Ok(())
    }

    /// Asks for hot keys; fails when an answer differs.
    pub fn get_hot_keys(&mut self) -> Result<()> {
        (0..10).try_for_each(|_| self.counted(Stretch::Text, Form::Get))
    }

    /// Prints what was served, and returns it.
    pub fn tally(&self) -> Result<&Tally> {
        say(&self.tally.to_string());
        if let Some(prestack) = &self.servers[0].prestack {
            println!("{}", prestack.instance().command(&["stats"])?);
        }
        Ok(&self.tally)
    }

    /// If prestack is to answer over TCP, fails unless of the items asked for there in each form at least a share of
    /// `least` came from the cache. On a slow machine too few are asked for.
    pub fn check_tcp_hits(&self, least: f64) -> Result<()> {
        let hits = self.tcp_hits + self.tcp_hits_now()?;
        println!("{hits} GETs answered over TCP");
        if self.servers[0].carries_connections() {
            say(&format!("over TCP:\n{}", self.tcp_tally));
            ensure!(hits > 0, "nothing was answered over TCP");
            if !pace::is_slow() {
                self.tcp_tally.check(&FORMS, least);
            }
        }
        Ok(())
    }

    /// GETs over TCP that prestack has answered since it was started.
    fn tcp_hits_now(&self) -> Result<u64> {
        let prestack = self.servers[0].prestack.as_ref();
        prestack.map_or(Ok(0), |prestack| prestack.stats()?.get("tcp.hits"))
    }

    fn stretches(&mut self, limit: Limit, pace: Pace) -> Result<()> {
        let start = Instant::now();
        let is_over = |commands| match limit {
            Limit::Commands(limit) => commands >= limit,
            Limit::Time(limit) => start.elapsed() >= limit,
        };
        let mut begun = 0;
        while !is_over(self.history.commands) {
            if self.history.commands >= begun + pace.round {
                begun = self.history.commands;
                self.restart().context("restarting prestack")?;
            }
            let progress = (self.history.commands - begun) as f64 / pace.round as f64;
            let stretch = Stretch::any(&mut self.source, progress);
            let length = stretch.length(pace.calm);
            let length = length / 2 + self.source.below(length as usize) as u64;
            let end = self.history.commands + length;
            self.replenish(stretch)?;
            while self.history.commands < end && !is_over(self.history.commands) {
                self.step(stretch)
                    .with_context(|| format!("in a stretch {stretch:?}"))?;
            }
        }
        Ok(())
    }

    /// Starts prestack anew. It does not follow a TCP connection that was there before.
    fn restart(&mut self) -> Result<()> {
        self.tcp_hits += self.tcp_hits_now()?;
        if self.servers[0].carries_connections() {
            self.text.clear();
            self.binary.clear();
            self.servers[0].restart_prestack()?;
            self.text = open(&self.servers, &TEXT)?;
        } else {
            self.servers[0].restart_prestack()?;
            self.text[CALM] = Connections::open(&self.servers, TEXT[CALM])?;
        }
        self.binary = open(&self.servers, &BINARY)?;
        Ok(())
    }

    /// Gives every hot key a value.
    fn replenish(&mut self, stretch: Stretch) -> Result<()> {
        let mut batch = Vec::new();
        for key in self.source.hot_keys().to_vec() {
            let mut value = self.source.value();
            value.truncate(1_000);
            batch.push(Datagram::new(stage::set(&key, &value)));
        }
        self.datagrams(stretch, batch)
    }

    fn step(&mut self, stretch: Stretch) -> Result<()> {
        if self.source.one_in(stretch.datagrams_per_segment()) {
            return if self.source.one_in(2) || stretch.is_calm() {
                self.text_segment(stretch)
            } else {
                self.binary_segment(stretch)
            };
        }
        let forms = stretch.counted();
        if !forms.is_empty() && self.source.one_in(4) {
            let form = forms[self.source.below(forms.len())];
            return if self.source.one_in(4) {
                self.gets_over_tcp(form)
            } else {
                self.counted(stretch, form)
            };
        }
        let mut left =
            [1, 1 + self.source.below(8), 1 + self.source.below(BATCH)][self.source.below(3)];
        let (mut batch, mut answers, mut bytes) = (Vec::new(), 0, 0);
        while left > 0 && answers < BATCH_ANSWERS && bytes < BATCH_BYTES {
            let datagram = stretch.datagram(&mut self.source);
            left -= 1;
            answers += datagram.answers;
            bytes += datagram.payload.len();
            batch.push(datagram);
        }
        self.datagrams(stretch, batch)
    }

    /// GETs of one form, of which is counted how many reach memcached.
    fn counted(&mut self, stretch: Stretch, form: Form) -> Result<()> {
        let batch = (0..24).map(|_| form.ask(&mut self.source)).collect();
        let before = self.get_hits()?;
        self.datagrams(stretch, batch)?;
        let after = self.get_hits()?;
        let [looked_for, found] = [0, 1].map(|side| after[side] - before[side]);
        self.tally.count(form, found, looked_for);
        Ok(())
    }

    fn get_hits(&mut self) -> Result<[u64; 2]> {
        let [a, b] = &mut self.behind;
        Ok([get_hits(a)?, get_hits(b)?])
    }

    /// Sends a batch from one of the sockets and compares the answers.
    fn datagrams(&mut self, stretch: Stretch, batch: Vec<Datagram>) -> Result<()> {
        let socket = self.source.below(self.sockets.len());
        let (first, limit) = if stretch != Stretch::Text && self.source.one_in(8) {
            (self.source.below(FEW_IDS.into()) as u16, FEW_IDS)
        } else {
            (self.ids, u16::MAX)
        };
        let ids = (first..limit).chain(0..);
        let batch: Vec<_> = ids.zip(batch).collect();
        self.ids = self
            .ids
            .checked_add(BATCH as u16 + 1)
            .unwrap_or(FEW_IDS + 1);
        let exchanged = self.sockets[socket].exchange(&batch, self.ids - 1);
        let Ok(exchanged) = exchanged else {
            for (id, datagram) in batch {
                self.remember(socket, id, datagram);
            }
            exchanged?;
            return Ok(());
        };
        for ((id, datagram), answers) in batch.into_iter().zip(exchanged) {
            let agree = answers.agree(datagram.comparison);
            if datagram.comparison == Comparison::Exact && datagram.payload.starts_with(b"gets ") {
                self.learn(answers.first());
            }
            self.remember(socket, id, datagram);
            if !agree {
                let [with, without] = answers.parts;
                bail!("with prestack:    {with:?}\nwithout prestack: {without:?}");
            }
            self.reordered += u64::from(answers.is_reordered());
            if self.reordered > 1 + self.history.commands / REORDERED_OF {
                bail!("{} answers came in another order", self.reordered);
            }
        }
        Ok(())
    }

    fn remember(&mut self, socket: usize, id: u16, datagram: Datagram) {
        let to = format!("UDP socket {socket} id {id} frame {:?}", datagram.frame);
        self.history.add(to, datagram.payload);
    }

    /// Learns the unique number of the item in an answer to `gets`.
    fn learn(&mut self, answer: &[u8]) {
        let line = answer.split(|&b| b == b'\r').next().unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|&b| b == b' ').collect();
        if let [b"VALUE", key, _, _, number] = words[..]
            && let Ok(Ok(number)) = std::str::from_utf8(number).map(str::parse)
        {
            self.source.learn(key, number);
        }
    }

    /// GETs of one form one by one over a connection, each in a segment of its own, quiet ones with the NOOP that ends
    /// them. How many reach memcached is counted.
    fn gets_over_tcp(&mut self, form: Form) -> Result<()> {
        let before = self.get_hits()?;
        for _ in 0..8 {
            let mut bytes = form.ask(&mut self.source).payload;
            if form.is_binary() {
                let at = self.source.below(self.binary.len());
                let (noop, answer) = binary::noop(self.source.number() as u32);
                if form.is_quiet() {
                    bytes.extend(noop);
                    self.pieces(false, at, &[&bytes], &answer)?;
                } else {
                    self.pieces(false, at, &[&bytes, &noop], &answer)?;
                }
            } else {
                self.pieces(true, CALM, &[&bytes, b"mn\r\n"], b"MN\r\n")?;
            }
        }
        let after = self.get_hits()?;
        let [looked_for, found] = [0, 1].map(|side| after[side] - before[side]);
        self.tcp_tally.count(form, found, looked_for);
        Ok(())
    }

    fn text_segment(&mut self, stretch: Stretch) -> Result<()> {
        let segment = stretch.text_segment(&mut self.source);
        let at = if stretch.is_calm() {
            CALM
        } else {
            self.source.below(CALM)
        };
        self.segment(stretch, true, at, segment, b"mn\r\n", b"MN\r\n")
    }

    fn binary_segment(&mut self, stretch: Stretch) -> Result<()> {
        let segment = stretch.binary_segment(&mut self.source);
        let at = self.source.below(self.binary.len());
        let (noop, answer) = binary::noop(self.source.number() as u32);
        self.segment(stretch, false, at, segment, &noop, &answer)
    }

    /// Sends commands over one of the connections, sometimes in pieces, and compares what comes
    /// back up to the answer `end` to `last`.
    fn segment(
        &mut self,
        stretch: Stretch,
        text: bool,
        at: usize,
        mut bytes: Vec<u8>,
        last: &[u8],
        end: &[u8],
    ) -> Result<()> {
        bytes.extend(last);
        let mut pieces = vec![&bytes[..]];
        while !stretch.is_calm() && pieces.len() < 4 && self.source.one_in(3) {
            let piece = pieces.pop().unwrap_or_default();
            let (head, tail) = piece.split_at(self.source.below(piece.len()));
            pieces.extend([head, tail]);
        }
        self.pieces(text, at, &pieces, end)
    }

    /// Sends each piece as a segment over one of the connections, and compares what comes back up to `end`.
    fn pieces(&mut self, text: bool, at: usize, pieces: &[&[u8]], end: &[u8]) -> Result<()> {
        let connections = if text {
            &mut self.text
        } else {
            &mut self.binary
        };
        let exchanged = connections[at].exchange(&self.servers, pieces, end);
        let lengths: Vec<usize> = pieces.iter().map(|piece| piece.len()).collect();
        let protocol = if text { "text" } else { "binary" };
        self.history.add(
            format!("TCP {protocol} {at}, cut into {lengths:?}"),
            pieces.concat(),
        );
        let [with, without] = exchanged?;
        if with != without {
            bail!(
                "with prestack:    \"{}\"\nwithout prestack: \"{}\"",
                with.escape_ascii(),
                without.escape_ascii()
            );
        }
        Ok(())
    }
}
