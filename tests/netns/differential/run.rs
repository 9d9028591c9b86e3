//! One stream of commands to both servers, in lockstep.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use prestack_testbed::TcpClient;

use super::binary;
use super::command::{Comparison, Datagram};
use super::datagrams::Sockets;
use super::forms::{Form, Tally};
use super::history::History;
use super::server::{Connections, Server, get_hits};
use super::source::Source;
use super::stream::Stretch;
use super::text;

/// Ids of requests: few, so that they are soon used again.
const IDS: u16 = 200;
/// The first of the ids of `mn`.
const LAST_IDS: u16 = 1_000;
/// Most commands in one batch.
const BATCH: usize = 64;
/// Most datagrams that answer one batch, as the device's queue holds 256.
const BATCH_ANSWERS: usize = 80;
/// Most bytes of one batch.
const BATCH_BYTES: usize = 24_000;

/// When a run ends.
#[derive(Clone, Copy)]
pub enum Limit {
    /// After so many commands.
    Commands(u64),
    /// After so long a time.
    Time(Duration),
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
    last: u16,
}

impl Run {
    /// Starts both servers, the first with prestack if it has arguments.
    pub fn new(prestack: Option<&[&str]>, seed: u64) -> Result<Self> {
        let servers = [Server::start(prestack)?, Server::start(None)?];
        let families = [false, false, false, true, true];
        let sockets = families.map(|v6| Sockets::open(&servers, v6));
        let connections = || [false, true].map(|v6| Connections::open(&servers, v6));
        Ok(Self {
            source: Source::new(seed),
            sockets: sockets.into_iter().collect::<Result<_>>()?,
            text: connections().into_iter().collect::<Result<_>>()?,
            binary: connections().into_iter().collect::<Result<_>>()?,
            behind: [servers[0].behind()?, servers[1].behind()?],
            history: History::default(),
            tally: Tally::default(),
            last: 0,
            servers,
        })
    }

    /// Sends commands up to `limit`, in stretches of about `stretch` commands; fails when an
    /// answer differs.
    pub fn go(&mut self, limit: Limit, stretch: usize) -> Result<()> {
        let start = Instant::now();
        let result = self.stretches(limit, stretch);
        let commands = self.history.commands;
        let rate = commands as f64 / start.elapsed().as_secs_f64();
        println!("{commands} commands, {rate:.0}/s");
        result.with_context(|| {
            format!(
                "after {commands} commands, the last being\n{}",
                self.history
            )
        })
    }

    /// Prints what was served, and returns it.
    pub fn tally(&self) -> Result<&Tally> {
        println!("{}", self.tally);
        if let Some(prestack) = &self.servers[0].prestack {
            println!("{}", prestack.instance().command(&["stats"])?);
        }
        Ok(&self.tally)
    }

    fn stretches(&mut self, limit: Limit, length: usize) -> Result<()> {
        let start = Instant::now();
        let is_over = |commands| match limit {
            Limit::Commands(limit) => commands >= limit,
            Limit::Time(limit) => start.elapsed() >= limit,
        };
        while !is_over(self.history.commands) {
            let stretch = Stretch::any(&mut self.source);
            let length = if stretch.is_calm() {
                length
            } else {
                length / 10
            };
            let end = self.history.commands + (length / 2 + self.source.below(length)) as u64;
            self.replenish()?;
            while self.history.commands < end && !is_over(self.history.commands) {
                self.step(stretch)
                    .with_context(|| format!("in a stretch {stretch:?}"))?;
            }
        }
        Ok(())
    }

    /// Gives every hot key a value.
    fn replenish(&mut self) -> Result<()> {
        let mut batch = Vec::new();
        for key in self.source.hot_keys().to_vec() {
            let mut value = self.source.value();
            value.truncate(1_000);
            batch.push(Datagram::new(text::set(&key, &value)));
        }
        self.datagrams(batch)
    }

    fn step(&mut self, stretch: Stretch) -> Result<()> {
        if !stretch.is_calm() && self.source.one_in(3) {
            return if self.source.one_in(2) {
                self.text_segment(stretch)
            } else {
                self.binary_segment(stretch)
            };
        }
        let forms = stretch.counted();
        if !forms.is_empty() && self.source.one_in(4) {
            let form = forms[self.source.below(forms.len())];
            return self.counted(form);
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
        self.datagrams(batch)
    }

    /// GETs of one form, of which is counted how many reach memcached.
    fn counted(&mut self, form: Form) -> Result<()> {
        let batch = (0..24).map(|_| form.ask(&mut self.source)).collect();
        let before = self.get_hits()?;
        self.datagrams(batch)?;
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
    fn datagrams(&mut self, batch: Vec<Datagram>) -> Result<()> {
        let socket = self.source.below(self.sockets.len());
        let first = self.source.below(IDS.into()) as u16;
        let ids = (0..IDS).map(|i| (first + i * 7) % IDS);
        let batch: Vec<_> = ids.zip(batch).collect();
        self.last = (self.last + 1) % 50;
        let exchanged = self.sockets[socket].exchange(&batch, LAST_IDS + self.last);
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

    fn text_segment(&mut self, stretch: Stretch) -> Result<()> {
        let segment = stretch.text_segment(&mut self.source);
        let at = self.source.below(self.text.len());
        self.segment(true, at, segment, b"mn\r\n", b"MN\r\n")
    }

    fn binary_segment(&mut self, stretch: Stretch) -> Result<()> {
        let segment = stretch.binary_segment(&mut self.source);
        let at = self.source.below(self.binary.len());
        let (noop, answer) = binary::noop(self.source.number() as u32);
        self.segment(false, at, segment, &noop, &answer)
    }

    /// Sends commands over one of the connections, sometimes in pieces, and compares what comes
    /// back up to the answer `end` to `last`.
    fn segment(
        &mut self,
        text: bool,
        at: usize,
        mut bytes: Vec<u8>,
        last: &[u8],
        end: &[u8],
    ) -> Result<()> {
        bytes.extend(last);
        let mut pieces = vec![&bytes[..]];
        while pieces.len() < 4 && self.source.one_in(3) {
            let piece = pieces.pop().unwrap_or_default();
            let (head, tail) = piece.split_at(self.source.below(piece.len()));
            pieces.extend([head, tail]);
        }
        let connections = if text {
            &mut self.text
        } else {
            &mut self.binary
        };
        let exchanged = connections[at].exchange(&self.servers, &pieces, end);
        let lengths: Vec<usize> = pieces.iter().map(|piece| piece.len()).collect();
        let protocol = if text { "text" } else { "binary" };
        self.history
            .add(format!("TCP {protocol} {at}, cut into {lengths:?}"), bytes);
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
