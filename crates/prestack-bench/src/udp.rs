//! A client of the load generator over UDP: a socket and a window of outstanding requests.

use std::collections::VecDeque;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::time::TimeSpec;

use crate::batch::Batch;
use crate::client::{Asker, Request, TICK, Taken};
use crate::pace::Pace;
use crate::report::whole;

/// A request unanswered for so long counts as an error.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes of the frame before every datagram's payload.
const FRAME: usize = 8;
/// Most bytes of a datagram.
const CAPACITY: usize = 2048;
/// Most datagrams of an answer: the longest value of memcached's default has 1 MiB.
const MAX_PARTS: u16 = 1024;

/// Most requests outstanding on a socket: each slot then has 64 ids at least.
pub(crate) const MAX_WINDOW: u16 = 1_024;

/// A place in the window.
struct Slot {
    /// The id of its request, or of its next one while it is free.
    id: u16,
    request: Option<Request>,
    /// Payloads of an answer of several datagrams.
    parts: Vec<Option<Vec<u8>>>,
}

/// A client. Slot `s` of its window uses the request ids that are `s` modulo the window.
pub(crate) struct Window {
    asker: Asker,
    socket: UdpSocket,
    slots: Vec<Slot>,
    /// Slots without a request, in the order in which they became free: so an id comes again as late as can be, and
    /// hardly when an answer to its last request may yet come.
    free: VecDeque<usize>,
    requests: Batch,
    replies: Batch,
    request: Vec<u8>,
}

impl Window {
    /// A client with a window of `window` requests, a power of two, on a connected socket.
    pub(crate) fn new(asker: Asker, socket: UdpSocket, window: u16) -> Result<Self> {
        debug_assert!(window.is_power_of_two());
        socket
            .set_nonblocking(true)
            .context("making a socket one that does not wait")?;
        let slot = |id| Slot {
            id,
            request: None,
            parts: Vec::new(),
        };
        let window_len = usize::from(window);
        Ok(Self {
            requests: Batch::new(window_len, CAPACITY),
            replies: Batch::new(window_len, CAPACITY),
            asker,
            socket,
            slots: (0..window).map(slot).collect(),
            free: (0..window_len).collect(),
            request: Vec::new(),
        })
    }

    /// Keeps the window full, or as the pace says, until the limit, `end` or `stop` is reached, then waits
    /// for what is outstanding. Returns what was asked, and what came of it.
    pub(crate) fn run(mut self, pace: Pace, end: Instant, stop: &AtomicBool) -> Result<Asker> {
        self.asker.begin(pace, end);
        let mut now = Instant::now();
        let (mut looked, mut is_closed) = (now, false);
        loop {
            let over = self.asker.left == 0 || now >= end || stop.load(Ordering::Relaxed);
            if over && !is_closed {
                let end = now.min(end);
                if self.asker.pace.is_open() {
                    self.send(end)?;
                }
                self.asker.close(end);
                is_closed = true;
            }
            if over && self.free.len() == self.slots.len() {
                return Ok(self.asker);
            }
            if !over {
                self.send(now)?;
            }
            self.receive(now)?;
            now = Instant::now();
            if now - looked >= TICK {
                looked = now;
                self.time_out(now);
            }
        }
    }

    /// Sends a request from every free slot, as far as any are due.
    fn send(&mut self, now: Instant) -> Result<()> {
        let mut count = 0;
        while let Some(&s) = self.free.front() {
            let slot = &mut self.slots[s];
            self.request.clear();
            self.request.extend(slot.id.to_be_bytes());
            self.request.extend([0, 0, 0, 1, 0, 0]);
            let Some(request) = self.asker.ask(now, false, &mut self.request) else {
                break;
            };
            slot.request = Some(request);
            self.free.pop_front();
            self.requests.set(count, &self.request);
            count += 1;
        }
        let mut sent = 0;
        while sent < count {
            match self.requests.send(&self.socket, sent..count) {
                Ok(n) => sent += n,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => self.wait(PollFlags::POLLOUT, TICK)?,
                Err(e) => return Err(e).context(self.said(e, "sending requests")),
            }
        }
        Ok(())
    }

    /// Takes the answers that are there, or waits for one until a request is due.
    fn receive(&mut self, now: Instant) -> Result<()> {
        let received = loop {
            match self.replies.receive(&self.socket) {
                Ok(n) => break n,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    let until_due = if self.free.is_empty() {
                        TICK
                    } else {
                        self.asker.pace.wait(now, TICK)
                    };
                    return self.wait(PollFlags::POLLIN, until_due);
                }
                Err(e) => return Err(e).context(self.said(e, "receiving answers")),
            }
        };
        let now = Instant::now();
        for i in 0..received {
            self.take(i, now);
        }
        Ok(())
    }

    fn wait(&self, flags: PollFlags, limit: Duration) -> Result<()> {
        let mut sockets = [PollFd::new(self.socket.as_fd(), flags)];
        match nix::poll::ppoll(&mut sockets, Some(TimeSpec::from_duration(limit)), None) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(e) => Err(e).context("waiting for answers"),
        }
    }

    /// Takes the `i`-th datagram received last.
    fn take(&mut self, i: usize, now: Instant) {
        let datagram = self.replies.received(i);
        let half = |at: usize| {
            let bytes = datagram.get(at..at + 2);
            bytes.map_or(0, |bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
        };
        let (id, part, parts) = (half(0), half(2), half(4));
        let payload = datagram.get(FRAME..);
        let s = usize::from(id) % self.slots.len();
        let slot = &mut self.slots[s];
        let request = slot.request.filter(|_| slot.id == id);
        let request = request.filter(|_| part < parts && parts <= MAX_PARTS);
        let (Some(request), Some(payload)) = (request, payload) else {
            self.asker.tally.strays += 1;
            return;
        };
        let joined;
        let answer = if parts == 1 {
            payload
        } else {
            slot.parts.resize(parts.into(), None);
            slot.parts[usize::from(part)] = Some(payload.to_vec());
            if slot.parts.iter().any(Option::is_none) {
                return;
            }
            joined = slot.parts.drain(..).flatten().flatten().collect::<Vec<_>>();
            &joined
        };
        match self.asker.take(&request, answer, now) {
            Taken::Answer(len) if len == answer.len() => {}
            Taken::Wrong => self.asker.give_up(&request),
            // Cut short, or more than an answer.
            Taken::Partial => {
                self.asker.wrong(&request, answer);
                self.asker.give_up(&request);
            }
            Taken::Answer(_) => self.asker.wrong(&request, answer),
        }
        self.release(s);
    }

    /// Gives up requests that have waited too long.
    fn time_out(&mut self, now: Instant) {
        for s in 0..self.slots.len() {
            let request = self.slots[s].request;
            let is_late = |r: &Request| now.saturating_duration_since(r.sent) >= TIMEOUT;
            if let Some(request) = request.filter(is_late) {
                self.asker.time_out(&request, now);
                self.release(s);
            }
        }
    }

    fn release(&mut self, s: usize) {
        let window = self.slots.len() as u16;
        let slot = &mut self.slots[s];
        slot.request = None;
        slot.parts.clear();
        slot.id = slot.id.wrapping_add(window);
        self.free.push_back(s);
    }

    /// What is said of an error that came about while `doing` something.
    fn said(&self, error: Errno, doing: &'static str) -> String {
        let answered = self.asker.answered_before + self.asker.tally.answered();
        match error {
            Errno::ECONNREFUSED if answered > 0 => format!(
                "nobody listens there on UDP any longer, after {} answers",
                whole(answered as f64)
            ),
            Errno::ECONNREFUSED => {
                "nobody listens there on UDP; stock memcached does so only if it is told to (-U PORT)"
                    .to_owned()
            }
            _ => doing.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::tests::asker;
    use std::thread;

    /// Nothing here takes so long.
    const LONG: Duration = Duration::from_secs(10);

    /// Two sockets that talk to each other.
    fn pair() -> [UdpSocket; 2] {
        let sockets = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        for (one, other) in [(0, 1), (1, 0)] {
            let address = sockets[other].local_addr().unwrap();
            sockets[one].connect(address).unwrap();
            sockets[one].set_read_timeout(Some(LONG)).unwrap();
        }
        sockets
    }

    /// Runs a closed loop with a window of one, and `serve` at its other end.
    fn run(asker: Asker, serve: impl FnOnce(UdpSocket) + Send) -> Asker {
        let [client, server] = pair();
        thread::scope(|scope| {
            scope.spawn(|| serve(server));
            let window = Window::new(asker, client, 1).unwrap();
            let (end, stop) = (Instant::now() + LONG, AtomicBool::new(false));
            window.run(Pace::Closed, end, &stop).unwrap()
        })
    }

    #[test]
    fn a_port_without_udp_is_told() {
        let [client, server] = pair();
        drop(server);
        let window = Window::new(asker(0.0, false, 1), client, 1).unwrap();
        let (end, stop) = (Instant::now() + LONG, AtomicBool::new(false));
        let refusal = window.run(Pace::Closed, end, &stop).err().unwrap();
        assert!(format!("{refusal:#}").contains("-U PORT"), "{refusal:#}");
    }

    #[test]
    fn who_has_answered_is_not_told_to_switch_udp_on() {
        let [client, server] = pair();
        let refusal = thread::scope(|scope| {
            scope.spawn(|| {
                let mut request = [0; CAPACITY];
                server.recv(&mut request).unwrap();
                let answer = [&request[..FRAME], b"END\r\n"].concat();
                server.send(&answer).unwrap();
                drop(server);
            });
            let window = Window::new(asker(0.0, false, u64::MAX), client, 1).unwrap();
            let (end, stop) = (Instant::now() + LONG, AtomicBool::new(false));
            window.run(Pace::Closed, end, &stop).err().unwrap()
        });
        let refusal = format!("{refusal:#}");
        assert!(refusal.contains("any longer, after 1 answer"), "{refusal}");
        assert!(!refusal.contains("-U"), "{refusal}");
    }

    #[test]
    fn a_server_that_freezes_is_told() {
        let Asker { tally, .. } = run(asker(0.0, false, 4), |server| {
            let mut request = [0; CAPACITY];
            server.recv(&mut request).unwrap();
            let answer = [&request[..FRAME], b"END\r\n"].concat();
            server.send(&answer).unwrap();
            // Three more, in vain.
            for _ in 0..3 {
                server.recv(&mut request).unwrap();
            }
            thread::sleep(TIMEOUT);
        });
        assert_eq!((tally.answered(), tally.timeouts()), (1, 3));
        let silence = tally.silence(3).expect("it was silent");
        assert!(silence >= 2 * TIMEOUT, "{silence:?}");
        assert_eq!(tally.silence(4), None);
    }

    #[test]
    fn a_wrong_answer_is_shown_with_what_was_expected() {
        let Asker { tally, dataset, .. } = run(asker(0.0, false, 1), |server| {
            let mut request = [0; CAPACITY];
            server.recv(&mut request).unwrap();
            let answer = [&request[..FRAME], b"CLIENT_ERROR no\r\n"].concat();
            server.send(&answer).unwrap();
        });
        assert_eq!(tally.wrong, 1);
        let first = tally.first_wrong.unwrap();
        let key = String::from_utf8(dataset.key(0)).unwrap();
        for part in [&key[..], "CLIENT_ERROR no", "a value of 32 bytes"] {
            assert!(first.contains(part), "{part}: {first}");
        }
    }

    #[test]
    fn ids_come_again_after_all_others() {
        let [client, server] = pair();
        let mut window = Window::new(asker(0.0, false, 0), client, 4).unwrap();
        let mut ids = Vec::new();
        for _ in 0..10 {
            window.asker.left = 1;
            window.send(Instant::now()).unwrap();
            let mut request = [0; CAPACITY];
            server.recv(&mut request).unwrap();
            let id = u16::from_be_bytes([request[0], request[1]]);
            window.release(usize::from(id) % 4);
            ids.push(id);
        }
        assert_eq!(ids, Vec::from_iter(0..10));
    }

    #[test]
    fn what_is_not_sent_counts_with_its_wait() {
        let [client, _server] = pair();
        let window = Window::new(asker(0.0, false, u64::MAX), client, 4).unwrap();
        let start = Instant::now();
        let (end, stop) = (start + Duration::from_millis(300), AtomicBool::new(false));
        let Asker { tally, .. } = window.run(Pace::open(1e3, start, 1), end, &stop).unwrap();
        assert_eq!((tally.answered(), tally.timeouts()), (0, 4));
        let (not_sent, latencies) = (tally.not_sent.len(), tally.latencies());
        assert!((200..400).contains(&not_sent), "{not_sent}");
        assert_eq!(latencies.len(), 4 + not_sent);
        let of = |share| Duration::from_nanos(latencies.value_at_quantile(share));
        assert!(of(0.5) > Duration::from_millis(100), "{:?}", of(0.5));
        assert!(of(1.0) >= TIMEOUT, "{:?}", of(1.0));
    }

    #[test]
    fn an_answer_after_the_end_is_late() {
        let [client, server] = pair();
        let window = Window::new(asker(0.0, false, 2), client, 1).unwrap();
        let (end, stop) = (Instant::now() + TIMEOUT / 2, AtomicBool::new(false));
        let tally = thread::scope(|scope| {
            scope.spawn(|| {
                for answered_at in [Instant::now(), end + TICK] {
                    let mut request = [0; CAPACITY];
                    server.recv(&mut request).unwrap();
                    thread::sleep(answered_at.saturating_duration_since(Instant::now()));
                    let answer = [&request[..FRAME], b"END\r\n"].concat();
                    server.send(&answer).unwrap();
                }
            });
            window.run(Pace::Closed, end, &stop).unwrap().tally
        });
        let timeouts = tally.timeouts();
        assert_eq!((tally.answered(), tally.late, timeouts), (2, 1, 0));
    }

    #[test]
    fn a_write_whose_answer_is_lost_hides_none_that_follow() {
        let Asker {
            tally,
            versions,
            dataset,
            ..
        } = run(asker(1.0, false, 2), |server| {
            let mut request = [0; CAPACITY];
            server.recv(&mut request).unwrap();
            server.recv(&mut request).unwrap();
            let answer = [&request[..FRAME], b"STORED\r\n"].concat();
            server.send(&answer).unwrap();
        });
        assert_eq!((tally.answered(), tally.timeouts()), (1, 1));
        let versions = versions.unwrap();
        assert_eq!((versions.oldest(0), versions.newest(0)), (2, 2));
        // The first may have been executed after the second.
        let reader = Asker {
            versions: Some(versions),
            dataset,
            ..asker(0.0, false, 1)
        };
        for (version, may_be_read) in [(0, false), (1, true), (2, true)] {
            let mut value = Vec::new();
            reader.dataset.write_value(0, version, &mut value);
            assert_eq!(reader.may_be(0, 2, &value), may_be_read, "{version}");
        }
    }

    #[test]
    fn a_datagram_without_a_whole_frame_answers_nothing() {
        let Asker { tally, .. } = run(asker(0.0, false, 1), |server| {
            let mut request = [0; CAPACITY];
            server.recv(&mut request).unwrap();
            for len in 0..FRAME {
                server.send(&request[..len]).unwrap();
            }
            let answer = [&request[..FRAME], b"END\r\n"].concat();
            server.send(&answer).unwrap();
        });
        assert_eq!((tally.strays, tally.missing), (FRAME as u64, 1));
        assert_eq!((tally.timeouts(), tally.wrong), (0, 0));
    }
}
