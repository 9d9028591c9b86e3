//! Sockets on which many commands are under way.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;
use prestack_testbed::{Namespace, pace};
use prestack_tests::history::Time;

use super::command::{Answer, Command, Shape};
use super::record::Done;
use super::source::Way;

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait for a datagram before looking what else has been sent.
const GLANCE: Duration = Duration::from_millis(10);
/// Bytes of the frame before every datagram's payload.
const FRAME: usize = 8;

/// A socket.
pub struct Wire {
    pub way: Way,
    /// Its number, to be shown.
    pub who: u32,
    started: Instant,
    io: Io,
}

enum Io {
    Tcp(TcpStream),
    Udp {
        socket: UdpSocket,
        next_id: AtomicU16,
    },
}

/// Bytes that are sent together, and the commands that start among them.
pub struct Piece {
    bytes: Vec<u8>,
    starts: Vec<Command>,
}

/// A command that has been sent.
pub struct Sent {
    start: Time,
    command: Command,
    id: u16,
}

/// What has come of the answer to a request over UDP.
struct Asked {
    sent: Sent,
    message: Vec<Option<Vec<u8>>>,
    bytes: Vec<u8>,
}

impl Wire {
    pub fn connect(
        namespace: &Namespace,
        server: SocketAddr,
        way: Way,
        who: u32,
        started: Instant,
    ) -> Result<Self> {
        let timeout = Some(pace::patience(TIMEOUT));
        let io = namespace.run(|| -> Result<Io> {
            if way == Way::Udp {
                let socket = UdpSocket::bind(("0.0.0.0", 0))?;
                socket.connect(server)?;
                socket.set_read_timeout(Some(GLANCE))?;
                let next_id = AtomicU16::new(fastrand::u16(..));
                return Ok(Io::Udp { socket, next_id });
            }
            let stream = TcpStream::connect_timeout(&server, pace::patience(TIMEOUT))?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(timeout)?;
            stream.set_write_timeout(timeout)?;
            Ok(Io::Tcp(stream))
        });
        Ok(Self {
            way,
            who,
            started,
            io: io.context("connecting")?,
        })
    }

    /// Now, on the clock of all records.
    pub fn now(&self) -> Time {
        self.started.elapsed().as_nanos() as Time
    }

    /// Sends a piece, and tells `sent` of the commands that start with it.
    pub fn send(&self, piece: Piece, sent: &Sender<Sent>) -> Result<()> {
        let mut id = 0;
        let mut bytes = piece.bytes;
        if let Io::Udp { next_id, .. } = &self.io {
            id = next_id.fetch_add(1, Ordering::Relaxed);
            let frame = [id, 0, 1, 0].map(u16::to_be_bytes);
            bytes = [frame.concat(), bytes].concat();
        }
        for command in piece.starts {
            let start = self.now();
            let entry = Sent { start, command, id };
            // The receiver may have failed.
            let _ = sent.send(entry);
        }
        match &self.io {
            Io::Tcp(stream) => (&*stream).write_all(&bytes).context("sending"),
            Io::Udp { socket, .. } => {
                socket.send(&bytes).context("sending a datagram")?;
                Ok(())
            }
        }
    }

    /// Receives the answers to all that is sent, until there is nothing more to come.
    pub fn receive(&self, sent: &Receiver<Sent>) -> Result<Vec<Done>> {
        match &self.io {
            Io::Tcp(stream) => self.receive_stream(stream, sent),
            Io::Udp { socket, .. } => self.receive_datagrams(socket, sent),
        }
        .with_context(|| format!("socket {} ({:?})", self.who, self.way))
    }

    /// Sends pieces and receives all answers.
    pub fn exchange(&self, pieces: Vec<Piece>) -> Result<Vec<Done>> {
        let (sender, receiver) = channel();
        for piece in pieces {
            self.send(piece, &sender)?;
        }
        drop(sender);
        self.receive(&receiver)
    }

    /// Sends one command and receives its answer.
    pub fn ask(&self, command: Command) -> Result<Done> {
        let mut done = self.exchange(vec![Piece::of(command)])?;
        done.pop().context("no answer")
    }

    fn done(&self, sent: Sent, answer: Option<Answer>) -> Done {
        let end = if answer.is_some() {
            self.now()
        } else {
            Time::MAX
        };
        Done {
            start: sent.start,
            end,
            who: self.who,
            command: sent.command,
            answer,
        }
    }

    fn receive_stream(&self, mut stream: &TcpStream, sent: &Receiver<Sent>) -> Result<Vec<Done>> {
        let mut done = Vec::new();
        let mut buffer: Vec<u8> = Vec::new();
        for sent in sent {
            if sent.command.shape == Shape::Silent {
                done.push(self.done(sent, None));
                continue;
            }
            let answer = loop {
                if let Some((answer, len)) = sent.command.answer(&buffer)? {
                    buffer.drain(..len);
                    break answer;
                }
                let mut piece = [0; 16_384];
                let shown = || format!("waiting for the answer to {:?}", sent.command.shown());
                let len = stream.read(&mut piece).with_context(shown)?;
                ensure!(len != 0, "closed, {}", shown());
                buffer.extend(&piece[..len]);
            };
            done.push(self.done(sent, Some(answer)));
        }
        ensure!(buffer.is_empty(), "{} bytes too many", buffer.len());
        Ok(done)
    }

    fn receive_datagrams(&self, socket: &UdpSocket, sent: &Receiver<Sent>) -> Result<Vec<Done>> {
        let mut done = Vec::new();
        let mut asked: HashMap<u16, Asked> = HashMap::new();
        let mut latest = Instant::now();
        loop {
            let mut datagram = [0; 65_536];
            let received = match socket.recv(&mut datagram) {
                Ok(len) => Some(&datagram[..len]),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                    None
                }
                Err(e) => return Err(e).context("receiving a datagram"),
            };
            // After that: what has been answered has been sent.
            let is_all = loop {
                match sent.try_recv() {
                    Ok(sent) if sent.command.shape == Shape::Silent => {
                        done.push(self.done(sent, None));
                    }
                    Ok(sent) => {
                        latest = Instant::now();
                        asked.insert(sent.id, Asked::new(sent));
                    }
                    Err(end) => break end == TryRecvError::Disconnected,
                }
            };
            if let Some(datagram) = received {
                let id = u16::from_be_bytes([datagram[0], datagram[1]]);
                if let Some(entry) = asked.get_mut(&id)
                    && let Some(answer) = entry.take(datagram)?
                    && let Some(Asked { sent, .. }) = asked.remove(&id)
                {
                    done.push(self.done(sent, Some(answer)));
                }
            }
            if is_all && asked.is_empty() {
                return Ok(done);
            }
            if is_all && latest.elapsed() > pace::patience(TIMEOUT) {
                let of = asked.values().map(|asked| asked.sent.command.shown());
                bail!("no answer to {:?}", of.collect::<Vec<_>>());
            }
        }
    }
}

impl Asked {
    fn new(sent: Sent) -> Self {
        Self {
            sent,
            message: Vec::new(),
            bytes: Vec::new(),
        }
    }

    /// Takes in a datagram; returns the answer once it is complete.
    fn take(&mut self, datagram: &[u8]) -> Result<Option<Answer>> {
        let word = |at| usize::from(u16::from_be_bytes([datagram[at], datagram[at + 1]]));
        let (sequence, count) = (word(2), word(4).max(1));
        self.message.resize(count, None);
        ensure!(sequence < count, "datagram {sequence} of {count}");
        self.message[sequence] = Some(datagram[FRAME..].to_vec());
        if self.message.iter().any(Option::is_none) {
            return Ok(None);
        }
        self.bytes
            .extend(self.message.drain(..).flatten().flatten());
        let Some((answer, len)) = self.sent.command.answer(&self.bytes)? else {
            return Ok(None);
        };
        ensure!(len == self.bytes.len(), "the answer goes on");
        Ok(Some(answer))
    }
}

impl Piece {
    /// A command in one piece.
    pub fn of(command: Command) -> Self {
        Self {
            bytes: command.bytes.clone(),
            starts: vec![command],
        }
    }
}

/// Distributes commands to pieces: over UDP one each; over TCP also several in one, or cut anywhere.
pub fn cut(random: &mut Rng, way: Way, commands: Vec<Command>) -> Vec<Piece> {
    if way == Way::Udp || random.u8(..3) == 0 {
        return commands.into_iter().map(Piece::of).collect();
    }
    let stream: Vec<u8> = commands.iter().flat_map(|c| c.bytes.clone()).collect();
    let cuts = if random.bool() {
        0
    } else {
        random.usize(..3 * commands.len() + 1)
    };
    let mut ends: Vec<usize> = (0..cuts).map(|_| random.usize(1..=stream.len())).collect();
    ends.push(stream.len());
    ends.sort_unstable();
    ends.dedup();
    let mut commands = commands.into_iter().peekable();
    let (mut from, mut start) = (0, 0);
    let mut pieces = Vec::new();
    for end in ends {
        let mut starts = Vec::new();
        while let Some(command) = commands.next_if(|_| start < end) {
            start += command.bytes.len();
            starts.push(command);
        }
        let bytes = stream[from..end].to_vec();
        pieces.push(Piece { bytes, starts });
        from = end;
    }
    pieces
}
