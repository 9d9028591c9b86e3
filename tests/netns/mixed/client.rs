//! A client with one connection, that says much or little at a time and checks all that it reads.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use prestack_testbed::pace::patience;

use super::answer::{Checker, Part};
use super::shared::Shared;
use super::source::{Batch, Source};

/// Requests up to this length are at times cut into single bytes.
const SHORT: usize = 150;

/// How much of what was sent is told after an error: batches, and bytes of each.
const HISTORY: usize = 12;
const SHOWN: usize = 400;

/// What a client mostly does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Habit {
    /// Everything.
    Mixed,
    /// It asks for the same again, one by one, and writes little.
    Reading,
}

/// What a client has done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub commands: u64,
    /// Bytes of answers, all checked.
    pub bytes: u64,
    /// The longest time in which nothing moved.
    pub worst: Duration,
}

impl Tally {
    pub fn and(self, other: Self) -> Self {
        Self {
            commands: self.commands + other.commands,
            bytes: self.bytes + other.bytes,
            worst: self.worst.max(other.worst),
        }
    }
}

/// A client.
pub struct Client {
    stream: TcpStream,
    source: Source,
    checker: Checker,
    tally: Tally,
    /// How long nothing may move while it is owed something.
    stall: Duration,
    /// The beginnings of what was sent last, and where it was cut.
    history: VecDeque<String>,
}

impl Client {
    pub fn new(
        stream: TcpStream,
        source: Source,
        shared: Arc<Vec<Shared>>,
        stall: Duration,
    ) -> Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            source,
            checker: Checker::new(shared),
            tally: Tally::default(),
            stall: patience(stall),
            history: VecDeque::new(),
        })
    }

    /// Gives each of its shared keys a value.
    pub fn prepare(&mut self) -> Result<()> {
        let mut batch = Batch::default();
        for key in self.source.writes() {
            self.source.store_shared(&mut batch, key);
        }
        self.source.get_large(&mut batch);
        self.exchange(batch, &[])
    }

    /// Goes on until it has sent so many commands.
    pub fn run(&mut self, habit: Habit, commands: u64) -> Result<Tally> {
        if habit == Habit::Reading {
            for _ in 0..20 {
                self.alone(Source::set_short)?;
            }
        }
        while self.tally.commands < commands {
            let draw = self.source.random.u32(..100);
            match (habit, draw) {
                (Habit::Mixed, 0..60) | (Habit::Reading, 0) => self.one()?,
                (Habit::Mixed, 60..80) | (Habit::Reading, 1..70) => self.again()?,
                (Habit::Mixed, _) => self.many()?,
                (Habit::Reading, 70..74) => self.alone(Source::set_short)?,
                (Habit::Reading, _) => self.alone(Source::read)?,
            }
        }
        self.tally.bytes = self.checker.checked;
        self.end()?;
        Ok(self.tally)
    }

    /// A command of any kind, perhaps cut.
    fn one(&mut self) -> Result<()> {
        let mut batch = Batch::default();
        self.source.any(&mut batch);
        self.cut_and_exchange(batch)
    }

    /// A command in one piece.
    fn alone(&mut self, draw: impl Fn(&mut Source, &mut Batch)) -> Result<()> {
        let mut batch = Batch::default();
        draw(&mut self.source, &mut batch);
        self.exchange(batch, &[])
    }

    /// The same GET several times.
    fn again(&mut self) -> Result<()> {
        let hot = self.source.hot();
        for _ in 0..self.source.random.usize(3..20) {
            self.alone(&hot)?;
        }
        Ok(())
    }

    /// Many commands at a time, perhaps cut.
    fn many(&mut self) -> Result<()> {
        let mut batch = Batch::default();
        let is_reading = self.source.random.bool();
        for _ in 0..self.source.random.usize(2..20) {
            if is_reading {
                self.source.read(&mut batch);
            } else {
                self.source.any(&mut batch);
            }
        }
        self.cut_and_exchange(batch)
    }

    /// Ends the connection, on which nothing more may come.
    fn end(&mut self) -> Result<()> {
        self.stream.set_nonblocking(false)?;
        self.stream.set_read_timeout(Some(self.stall))?;
        self.stream.write_all(b"quit\r\n")?;
        let mut more = Vec::new();
        self.stream
            .read_to_end(&mut more)
            .context("waiting for the end of the connection")?;
        ensure!(more.is_empty(), "{:?} came last", more.escape_ascii());
        Ok(())
    }

    /// Sends what may be in several pieces.
    fn cut_and_exchange(&mut self, batch: Batch) -> Result<()> {
        let (random, len) = (&mut self.source.random, batch.requests.len());
        let cuts: Vec<usize> = match random.u32(..10) {
            0 if len < SHORT => (1..len).collect(),
            1..3 => {
                let count = random.usize(1..4);
                let mut cuts: Vec<usize> = (0..count).map(|_| random.usize(1..len)).collect();
                cuts.sort_unstable();
                cuts
            }
            _ => Vec::new(),
        };
        self.exchange(batch, &cuts)
    }

    /// Sends a batch, cut at these places, and reads and checks all answers to it. What is read while
    /// something is still to be sent is taken at once: neither end waits for the other.
    fn exchange(&mut self, batch: Batch, cuts: &[usize]) -> Result<()> {
        let Batch {
            requests,
            mut answers,
            commands,
        } = batch;
        answers.reverse();
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        let shown = &requests[..requests.len().min(SHOWN)];
        self.history
            .push_back(format!("\"{}\" cut at {cuts:?}", shown.escape_ascii()));
        let result = self.converse(&requests, cuts, &mut answers);
        self.tally.commands += commands;
        result.with_context(|| {
            format!(
                "after {} commands on {:?}, the last being\n{}",
                self.tally.commands,
                self.stream.local_addr(),
                Vec::from(self.history.clone()).join("\n")
            )
        })
    }

    fn converse(&mut self, requests: &[u8], cuts: &[usize], answers: &mut Vec<Part>) -> Result<()> {
        let mut ends = cuts.iter().copied().chain([requests.len()]).peekable();
        let (mut sent, mut buffer) = (0, [0; 65_536]);
        let mut moved = Instant::now();
        while sent < requests.len() || !answers.is_empty() {
            let mut has_moved = false;
            while let Some(&end) = ends.peek() {
                match self.stream.write(&requests[sent..end]) {
                    Ok(len) => {
                        has_moved |= len > 0;
                        sent += len;
                        if sent == end {
                            ends.next();
                        }
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error).context("sending"),
                }
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => bail!("the server closed the connection"),
                Ok(len) => {
                    has_moved = true;
                    self.checker.take(&buffer[..len], answers)?;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("receiving"),
            }
            let now = Instant::now();
            self.tally.worst = self.tally.worst.max(now - moved);
            if has_moved {
                moved = now;
                continue;
            }
            ensure!(
                now - moved < self.stall,
                "nothing has moved for {:?}; {} bytes are sent, {} answers open",
                now - moved,
                sent,
                answers.len()
            );
            let wanted = if sent < requests.len() {
                PollFlags::POLLIN | PollFlags::POLLOUT
            } else {
                PollFlags::POLLIN
            };
            let mut polled = [PollFd::new(self.stream.as_fd(), wanted)];
            poll(&mut polled, PollTimeout::from(500u16))?;
        }
        Ok(())
    }
}
