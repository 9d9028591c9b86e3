//! Clients of the load generator over TCP: connections with requests outstanding on each.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;

use crate::client::{Asker, Request, TICK, Taken, WrongAnswer};
use crate::pace::Pace;

/// A connection that waits so long for an answer is given up.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Most connections that are looked at with one system call.
const EVENTS: usize = 64;
/// Bytes that are read with one system call.
const READ: usize = 64 << 10;
/// Most writes without an answer in a row: a GET follows, whose answer says that they are over.
const MAX_QUIET: usize = 64;

struct Connection {
    stream: TcpStream,
    requests: VecDeque<Request>,
    /// Of them, those that are to be answered.
    owed: usize,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Whether the kernel took all of `output`.
    is_sent: bool,
}

/// Some connections, driven by one thread.
pub(crate) struct Connections {
    asker: Asker,
    /// Requests that may be outstanding on a connection.
    depth: usize,
    connections: Vec<Connection>,
    /// The connection that sends the next request that is due.
    turn: usize,
    epoll: Epoll,
    read: Box<[u8]>,
}

impl Connections {
    /// Connections with at most `depth` requests outstanding on each.
    pub(crate) fn new(asker: Asker, streams: Vec<TcpStream>, depth: usize) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("making an epoll")?;
        let mut connections = Vec::new();
        for (i, stream) in streams.into_iter().enumerate() {
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, i as u64))?;
            connections.push(Connection {
                stream,
                requests: VecDeque::new(),
                owed: 0,
                input: Vec::new(),
                output: Vec::new(),
                is_sent: true,
            });
        }
        Ok(Self {
            asker,
            depth,
            connections,
            turn: 0,
            epoll,
            read: vec![0; READ].into(),
        })
    }

    /// Keeps requests outstanding on every connection, or as the pace says, until the limit, `end` or
    /// `stop` is reached, then waits for what is outstanding, quiet writes too. Returns what was asked,
    /// and what came of it.
    pub(crate) fn run(mut self, pace: Pace, end: Instant, stop: &AtomicBool) -> Result<Asker> {
        self.asker.begin(pace, end);
        let mut events = [EpollEvent::empty(); EVENTS];
        let mut now = Instant::now();
        let (mut looked, mut is_first, mut is_closed) = (now, true, false);
        loop {
            let is_over =
                |asker: &Asker, now| asker.left == 0 || now >= end || stop.load(Ordering::Relaxed);
            if !is_over(&self.asker, now) {
                if self.asker.pace.is_open() || is_first {
                    self.ask_all(now)?;
                    is_first = false;
                }
            } else {
                if !is_closed {
                    let end = now.min(end);
                    if self.asker.pace.is_open() {
                        self.ask_all(end)?;
                    }
                    self.asker.close(end);
                    is_closed = true;
                }
                if !self.end_all(now)? {
                    return Ok(self.asker);
                }
            }
            let ready = self.wait(&mut events, now)?;
            for event in &events[..ready] {
                let i = event.data() as usize;
                now = Instant::now();
                if event.events().contains(EpollFlags::EPOLLOUT) {
                    self.send(i)?;
                }
                if event.events() != EpollFlags::EPOLLOUT {
                    self.receive(i)?;
                }
                if !is_over(&self.asker, now) {
                    self.ask(i, now)?;
                }
            }
            now = Instant::now();
            if now - looked >= TICK {
                looked = now;
                self.look_for_late(now)?;
            }
        }
    }

    /// Waits for answers until a request is due.
    fn wait(&self, events: &mut [EpollEvent], now: Instant) -> Result<usize> {
        let look = |events: &mut [EpollEvent]| match self.epoll.wait(events, EpollTimeout::ZERO) {
            Err(Errno::EINTR) => Ok(0),
            ready => ready.context("waiting for answers"),
        };
        let ready = look(events)?;
        let limit = self.asker.pace.wait(now, TICK);
        if ready > 0 || limit.is_zero() {
            return Ok(ready);
        }
        let mut epoll = [PollFd::new(self.epoll.0.as_fd(), PollFlags::POLLIN)];
        match nix::poll::ppoll(&mut epoll, Some(TimeSpec::from_duration(limit)), None) {
            Ok(0) | Err(Errno::EINTR) => Ok(0),
            Ok(_) => look(events),
            Err(e) => Err(e).context("waiting for answers"),
        }
    }

    /// Sends the requests that are due, from the connections in turn.
    fn ask_all(&mut self, now: Instant) -> Result<()> {
        for _ in 0..self.connections.len() {
            if !self.asker.pace.is_due(now) {
                break;
            }
            self.turn = (self.turn + 1) % self.connections.len();
            self.ask(self.turn, now)?;
        }
        Ok(())
    }

    /// Sends requests until as many as there may be are outstanding, or none is due.
    fn ask(&mut self, i: usize, now: Instant) -> Result<()> {
        let connection = &mut self.connections[i];
        if !connection.is_sent {
            return Ok(());
        }
        while connection.owed < self.depth {
            let quiet = connection.requests.len() - connection.owed;
            let is_read = quiet >= MAX_QUIET;
            let Some(request) = self.asker.ask(now, is_read, &mut connection.output) else {
                break;
            };
            connection.owed += usize::from(!request.is_quiet());
            connection.requests.push_back(request);
        }
        self.send(i)
    }

    /// Asks on each connection on which nothing is owed and quiet writes are left whether they are over. Returns
    /// whether there is anything to wait for.
    fn end_all(&mut self, now: Instant) -> Result<bool> {
        let mut waits = false;
        for i in 0..self.connections.len() {
            let connection = &mut self.connections[i];
            if connection.is_sent
                && connection.owed == 0
                && let Some(write) = connection.requests.back()
            {
                let to = &mut connection.output;
                let read = self.asker.ask_whether_over(write, now, to);
                connection.requests.push_back(read);
                connection.owed = 1;
                self.send(i)?;
            }
            let connection = &self.connections[i];
            waits |= connection.owed > 0 || !connection.is_sent;
        }
        Ok(waits)
    }

    /// Hands the kernel what it takes, and has it say when it takes more.
    fn send(&mut self, i: usize) -> Result<()> {
        let connection = &mut self.connections[i];
        if connection.output.is_empty() {
            return Ok(());
        }
        let was_sent = connection.is_sent;
        match connection.stream.write(&connection.output) {
            Ok(sent) => {
                connection.output.drain(..sent);
            }
            Err(error) if is_temporary(&error) => {}
            Err(error) => return Err(error).context("sending requests"),
        }
        connection.is_sent = connection.output.is_empty();
        if connection.is_sent != was_sent {
            let mut flags = EpollFlags::EPOLLIN;
            flags.set(EpollFlags::EPOLLOUT, !connection.is_sent);
            let mut event = EpollEvent::new(flags, i as u64);
            self.epoll.modify(&connection.stream, &mut event)?;
        }
        Ok(())
    }

    /// Takes the answers that are there.
    fn receive(&mut self, i: usize) -> Result<()> {
        let connection = &mut self.connections[i];
        let len = match connection.stream.read(&mut self.read) {
            Ok(0) => bail!("memcached closed a connection"),
            Ok(len) => len,
            Err(error) if is_temporary(&error) => return Ok(()),
            Err(error) => return Err(error).context("receiving answers"),
        };
        let now = Instant::now();
        let mut input = std::mem::take(&mut connection.input);
        let mut at = 0;
        if input.is_empty() {
            // All of it in place, as a rule.
            while let Some(taken) = self.take(i, at, None, len, now)? {
                at += taken;
            }
            input.extend(&self.read[at..len]);
        } else {
            input.extend(&self.read[..len]);
            while let Some(taken) = self.take(i, at, Some(&input), input.len(), now)? {
                at += taken;
            }
            input.drain(..at);
        }
        self.connections[i].input = input;
        Ok(())
    }

    /// Takes the answer at `at` of `input`, or else of what was read last, before `end`. Returns its
    /// length; `None` if there is no whole one.
    fn take(
        &mut self,
        i: usize,
        at: usize,
        input: Option<&[u8]>,
        end: usize,
        now: Instant,
    ) -> Result<Option<usize>> {
        let bytes = &input.unwrap_or(&self.read)[at..end];
        if bytes.is_empty() {
            return Ok(None);
        }
        let connection = &mut self.connections[i];
        while let Some(request) = connection.requests.front() {
            if request.is_quiet() {
                // It comes before the request that is answered here.
                self.asker.is_over(request);
                connection.requests.pop_front();
                continue;
            }
            match self.asker.take(request, bytes, now) {
                Taken::Answer(len) => {
                    connection.requests.pop_front();
                    connection.owed -= 1;
                    return Ok(Some(len));
                }
                Taken::Partial => return Ok(None),
                Taken::Wrong => {
                    let first = self.asker.tally.first_wrong.take();
                    return Err(WrongAnswer(first.unwrap_or_default()).into());
                }
            }
        }
        self.asker.tally.strays += 1;
        Ok(Some(bytes.len()))
    }

    /// Fails when a connection has waited too long for an answer.
    fn look_for_late(&self, now: Instant) -> Result<()> {
        for connection in &self.connections {
            // A quiet write before it may have waited for a request that is answered.
            let mut requests = connection.requests.iter();
            if let Some(request) = requests.find(|request| !request.is_quiet())
                && now.saturating_duration_since(request.sent) >= TIMEOUT
            {
                bail!("memcached has not answered for {TIMEOUT:?} on a connection");
            }
        }
        Ok(())
    }
}

/// Whether the operation may be tried again.
fn is_temporary(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::tests::asker;
    use crate::dataset::Dataset;
    use std::net::TcpListener;
    use std::thread;

    /// The two ends of a connection.
    fn pair() -> [TcpStream; 2] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        [client, listener.accept().unwrap().0]
    }

    /// Reads until there is a GET.
    fn read_to_get(server: &mut TcpStream) {
        let mut bytes = Vec::<u8>::new();
        while !bytes.windows(4).any(|word| word == b"get ") {
            let mut piece = [0; 4096];
            let len = server.read(&mut piece).unwrap();
            assert!(len > 0, "the connection ends without a GET");
            bytes.extend(&piece[..len]);
        }
    }

    /// memcached's answer to a GET of the item's `version`-th value.
    fn hit(set: &Dataset, version: u32) -> Vec<u8> {
        let mut answer = [b"VALUE ", &set.key(0)[..], b" 0 32\r\n"].concat();
        set.write_value(0, version, &mut answer);
        answer.extend(b"\r\nEND\r\n");
        answer
    }

    #[test]
    fn quiet_writes_are_over_at_the_end() {
        let [client, mut server] = pair();
        let asker = asker(1.0, true, 3);
        let answer = hit(&asker.dataset, 3);
        let asker = thread::scope(|scope| {
            scope.spawn(move || {
                read_to_get(&mut server);
                server.write_all(&answer).unwrap();
            });
            let connections = Connections::new(asker, vec![client], 4).unwrap();
            let end = Instant::now() + TIMEOUT;
            let stop = AtomicBool::new(false);
            connections.run(Pace::Closed, end, &stop).unwrap()
        });
        assert_eq!((asker.tally.quiet, asker.tally.wrong), (3, 0));
        let versions = asker.versions.unwrap();
        // They were under way together.
        assert_eq!((versions.oldest(0), versions.newest(0)), (1, 3));
        // They are no longer, which would hide that what follows replaces them.
        let write = versions.write(0);
        versions.written(0, write);
        assert_eq!(versions.oldest(0), 4);
    }

    #[test]
    fn what_is_no_answer_ends_the_connection_and_is_shown() {
        let [client, mut server] = pair();
        let refusal = thread::scope(|scope| {
            scope.spawn(move || {
                read_to_get(&mut server);
                server.write_all(b"CLIENT_ERROR no\r\n").unwrap();
            });
            let connections = Connections::new(asker(0.0, false, 1), vec![client], 1).unwrap();
            let (end, stop) = (Instant::now() + TIMEOUT, AtomicBool::new(false));
            connections.run(Pace::Closed, end, &stop).err().unwrap()
        });
        let WrongAnswer(shown) = refusal.downcast_ref().expect("it is wrong");
        assert!(shown.contains("CLIENT_ERROR no"), "{shown}");
    }

    #[test]
    fn what_is_not_sent_counts_with_its_wait() {
        let [client, mut server] = pair();
        let asker = asker(0.0, false, u64::MAX);
        let answer = hit(&asker.dataset, 0);
        let asker = thread::scope(|scope| {
            scope.spawn(move || {
                read_to_get(&mut server);
                thread::sleep(Duration::from_millis(500));
                server.write_all(&answer).unwrap();
            });
            let connections = Connections::new(asker, vec![client], 1).unwrap();
            let start = Instant::now();
            let (end, stop) = (start + Duration::from_millis(300), AtomicBool::new(false));
            let pace = Pace::open(1e3, start, 1);
            connections.run(pace, end, &stop).unwrap()
        });
        let tally = asker.tally;
        assert_eq!((tally.answered(), tally.timeouts()), (1, 0));
        let (not_sent, latencies) = (tally.not_sent.len(), tally.latencies());
        assert!((200..400).contains(&not_sent), "{not_sent}");
        assert_eq!(latencies.len(), 1 + not_sent);
        let middle = Duration::from_nanos(latencies.value_at_quantile(0.5));
        assert!(middle > Duration::from_millis(100), "{middle:?}");
    }

    #[test]
    fn a_request_is_not_late_as_a_quiet_write_before_it_has_waited() {
        let [client, _server] = pair();
        let mut connections = Connections::new(asker(1.0, true, 1), vec![client], 1).unwrap();
        let start = Instant::now();
        connections.ask(0, start).unwrap();
        connections.look_for_late(start + 2 * TIMEOUT).unwrap();
        let asked = start + 2 * TIMEOUT;
        assert!(connections.end_all(asked).unwrap());
        connections.look_for_late(asked).unwrap();
        assert!(connections.look_for_late(asked + TIMEOUT).is_err());
    }
}
