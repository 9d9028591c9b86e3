//! One client of the load generator: a socket and a window of outstanding requests.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use nix::errno::Errno;

use crate::batch::Batch;
use crate::dataset::Dataset;

/// A request unanswered for so long counts as an error.
const TIMEOUT: Duration = Duration::from_secs(1);
/// How often a client looks for such requests.
const TICK: Duration = Duration::from_millis(50);

/// What clients have seen.
pub(crate) struct Tally {
    /// Latencies in nanoseconds of the requests answered right.
    pub(crate) latencies: Histogram<u64>,
    /// Requests without an answer.
    pub(crate) timeouts: u64,
    /// Answers that were not, byte for byte, memcached's.
    pub(crate) wrong: u64,
    /// Answers to no outstanding request: second ones, or late ones.
    pub(crate) strays: u64,
}

impl Tally {
    pub(crate) fn new() -> Self {
        let latencies = Histogram::new_with_bounds(100, 10_000_000_000, 3);
        let latencies = latencies.expect("the bounds are valid");
        Self {
            latencies,
            timeouts: 0,
            wrong: 0,
            strays: 0,
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.latencies
            .add(&other.latencies)
            .expect("all histograms have the same bounds");
        self.timeouts += other.timeouts;
        self.wrong += other.wrong;
        self.strays += other.strays;
    }
}

/// A place in the window.
#[derive(Clone, Copy)]
struct Slot {
    /// The id of its request, or of its next one while it is free.
    id: u16,
    key: u32,
    sent: Instant,
    free: bool,
}

/// A client. Slot `s` of its window uses the request ids that are `s` modulo the window.
pub(crate) struct Worker {
    dataset: Arc<Dataset>,
    keys: Arc<[u32]>,
    next_key: usize,
    /// Requests that may still be sent.
    left: u64,
    socket: UdpSocket,
    slots: Vec<Slot>,
    free: Vec<usize>,
    requests: Batch,
    replies: Batch,
    tally: Tally,
}

impl Worker {
    /// A client with a window of `window` requests, a power of two, that asks for `keys` from
    /// `next_key` on through a connected socket, at most `limit` times.
    pub(crate) fn new(
        dataset: Arc<Dataset>,
        keys: Arc<[u32]>,
        next_key: usize,
        limit: u64,
        socket: UdpSocket,
        window: u16,
    ) -> Result<Self> {
        debug_assert!(window.is_power_of_two());
        socket
            .set_read_timeout(Some(TICK))
            .context("setting a socket's time limit")?;
        let slot = |id| Slot {
            id,
            key: 0,
            sent: Instant::now(),
            free: true,
        };
        let window_len = usize::from(window);
        Ok(Self {
            requests: Batch::new(window_len, dataset.request_len()),
            replies: Batch::new(window_len, dataset.reply_capacity()),
            dataset,
            keys,
            next_key,
            left: limit,
            socket,
            slots: (0..window).map(slot).collect(),
            free: (0..window_len).collect(),
            tally: Tally::new(),
        })
    }

    /// Keeps the window full until the limit, `end` or `stop` is reached, then waits for what is
    /// outstanding.
    pub(crate) fn run(mut self, end: Instant, stop: &AtomicBool) -> Result<Tally> {
        let mut now = Instant::now();
        let mut looked = now;
        loop {
            let over = self.left == 0 || now >= end || stop.load(Ordering::Relaxed);
            if over && self.free.len() == self.slots.len() {
                return Ok(self.tally);
            }
            if !over {
                self.send(now)?;
            }
            self.receive()?;
            now = Instant::now();
            if now - looked >= TICK {
                looked = now;
                self.time_out(now);
            }
        }
    }

    /// Sends a request from every free slot.
    fn send(&mut self, now: Instant) -> Result<()> {
        let count = self.free.len().min(self.left as usize);
        for (i, s) in self.free.drain(..count).enumerate() {
            let slot = &mut self.slots[s];
            slot.key = self.keys[self.next_key];
            slot.sent = now;
            slot.free = false;
            self.next_key = (self.next_key + 1) % self.keys.len();
            self.dataset
                .write_request(slot.key, slot.id, self.requests.buffer(i));
        }
        self.left -= count as u64;
        let mut sent = 0;
        while sent < count {
            match self.requests.send(&self.socket, sent..count) {
                Ok(n) => sent += n,
                Err(Errno::EINTR) => {}
                Err(e) => return Err(e).context("sending requests"),
            }
        }
        Ok(())
    }

    /// Takes the answers that are there, or waits a little for one.
    fn receive(&mut self) -> Result<()> {
        let received = match self.replies.receive(&self.socket) {
            Ok(n) => n,
            Err(Errno::EAGAIN | Errno::EINTR) => 0,
            Err(e) => return Err(e).context("receiving answers"),
        };
        let now = Instant::now();
        for i in 0..received {
            let datagram = self.replies.received(i);
            let id = datagram
                .first_chunk()
                .map_or(0, |id| u16::from_be_bytes(*id));
            let s = usize::from(id) % self.slots.len();
            let slot = &self.slots[s];
            if slot.free || slot.id != id {
                self.tally.strays += 1;
                continue;
            }
            if self.dataset.is_reply(slot.key, id, datagram) {
                self.tally
                    .latencies
                    .saturating_record((now - slot.sent).as_nanos() as u64);
            } else {
                self.tally.wrong += 1;
            }
            self.release(s);
        }
        Ok(())
    }

    /// Gives up requests that have waited too long.
    fn time_out(&mut self, now: Instant) {
        for s in 0..self.slots.len() {
            let slot = &self.slots[s];
            if !slot.free && now - slot.sent >= TIMEOUT {
                self.tally.timeouts += 1;
                self.release(s);
            }
        }
    }

    fn release(&mut self, s: usize) {
        let window = self.slots.len() as u16;
        let slot = &mut self.slots[s];
        slot.free = true;
        slot.id = slot.id.wrapping_add(window);
        self.free.push(s);
    }
}
