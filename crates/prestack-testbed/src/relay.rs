//! A relay of frames between the two devices in the middle of a link. It loses, delays, reorders and
//! copies TCP segments as a seed decides, for kernels that cannot (netem).

mod fate;
mod socket;

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::ethtool::Offload;
use crate::link::Middle;
pub use fate::Disturbance;
use fate::Fates;
use socket::{HEADER, LONGEST, PRIORITY, Socket, put_tag};

/// The longest that a frame waits for others to overtake it.
const PATIENCE: Duration = Duration::from_millis(5);
/// Most frames that wait in one direction; beyond that the oldest go.
const WAITING: usize = 4_096;
/// How often a relay looks whether it is to end.
const PERIOD: Duration = Duration::from_millis(50);
/// Frames taken in before those that wait are looked at again.
const BATCH: usize = 64;

/// A relay; the devices are apart again when it is dropped.
pub struct Relay {
    counts: [Arc<Counts>; 2],
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// What one direction of a relay has done so far.
#[derive(Debug, Default)]
struct Counts {
    segments: AtomicU64,
    lost: AtomicU64,
    held: AtomicU64,
    copied: AtomicU64,
    altered: AtomicU64,
    refused: AtomicU64,
}

/// What both directions of a relay have done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Relayed {
    /// TCP segments that came, joined ones counted once.
    pub segments: u64,
    /// Those that were lost.
    pub lost: u64,
    /// Those that were held back.
    pub held: u64,
    /// Those that went out twice.
    pub copied: u64,
    /// Those that were changed.
    pub altered: u64,
    /// Frames for which a device had no room.
    pub refused: u64,
}

impl Relay {
    /// Joins the devices of `middle`; `to_server` and `to_client` are done to what goes there.
    ///
    /// # Errors
    /// When the kernel refuses packet sockets.
    pub fn start(
        middle: &Middle,
        to_server: Disturbance,
        to_client: Disturbance,
        seed: u64,
    ) -> Result<Self> {
        let open = |port: &String| {
            // What is joined would be lost together.
            Offload::Gro.set(&middle.namespace, port, false)?;
            let open = || anyhow::Ok(Arc::new(Socket::open(port)?));
            middle.namespace.run(open)
        };
        let [server, client] = &middle.ports;
        let [server, client] = [open(server)?, open(client)?];
        let mut relay = Self {
            counts: Default::default(),
            stop: Arc::default(),
            threads: Vec::new(),
        };
        let ways = [
            (&client, &server, to_server, seed),
            (&server, &client, to_client, !seed),
        ];
        for ((from, to, disturbance, seed), counts) in ways.into_iter().zip(&relay.counts) {
            let mut direction = Direction {
                from: Arc::clone(from),
                to: Arc::clone(to),
                buffer: Box::new([0; LONGEST]),
                fates: Fates::new(disturbance, seed),
                delay: disturbance.delay,
                has_tags: disturbance.has_tags,
                waiting: VecDeque::new(),
                counts: Arc::clone(counts),
            };
            let stop = Arc::clone(&relay.stop);
            let thread = thread::Builder::new().name("relay".into());
            let run = move || {
                while !stop.load(Ordering::Relaxed) {
                    // The device goes down with its namespace.
                    if direction.step().is_err() {
                        break;
                    }
                }
            };
            relay
                .threads
                .push(thread.spawn(run).context("starting a thread")?);
        }
        Ok(relay)
    }

    /// What it has done so far.
    #[must_use]
    pub fn counts(&self) -> Relayed {
        let sum = |field: fn(&Counts) -> &AtomicU64| {
            self.counts
                .iter()
                .map(|counts| field(counts).load(Ordering::Relaxed))
                .sum()
        };
        Relayed {
            segments: sum(|counts| &counts.segments),
            lost: sum(|counts| &counts.lost),
            held: sum(|counts| &counts.held),
            copied: sum(|counts| &counts.copied),
            altered: sum(|counts| &counts.altered),
            refused: sum(|counts| &counts.refused),
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A frame that waits.
struct Waiting {
    frame: Vec<u8>,
    /// When it goes at the latest.
    due: Instant,
    /// Before it goes so many others do.
    behind: u64,
}

/// One direction of a relay.
struct Direction {
    from: Arc<Socket>,
    to: Arc<Socket>,
    buffer: Box<[u8; LONGEST]>,
    fates: Fates,
    delay: Duration,
    has_tags: bool,
    /// In the order in which they came.
    waiting: VecDeque<Waiting>,
    counts: Arc<Counts>,
}

impl Direction {
    /// Waits for something to do, and does it.
    fn step(&mut self) -> io::Result<()> {
        let due = self.waiting.iter().map(|waiting| waiting.due).min();
        let left = due.map_or(PERIOD, |due| due.saturating_duration_since(Instant::now()));
        let timeout = PollTimeout::try_from(left.min(PERIOD)).unwrap_or(PollTimeout::ZERO);
        let mut polled = [PollFd::new(self.from.as_fd(), PollFlags::POLLIN)];
        match poll(&mut polled, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        for _ in 0..BATCH {
            let Some(frame) = self.from.receive(&mut self.buffer)? else {
                break;
            };
            self.arrived(frame)?;
        }
        self.let_go(Instant::now())
    }

    fn arrived(&mut self, mut frame: Vec<u8>) -> io::Result<()> {
        if self.has_tags {
            put_tag(&mut frame, PRIORITY);
        }
        let Some(payload) = tcp_payload(&frame[HEADER..]) else {
            return self.send(&frame);
        };
        let count = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        count(&self.counts.segments);
        let fate = self.fates.next();
        if fate.is_lost {
            count(&self.counts.lost);
            return Ok(());
        }
        if fate.is_altered && alter(&mut frame[HEADER + payload..]) {
            count(&self.counts.altered);
        }
        let now = Instant::now();
        let copy = fate.copy_overtaken_by.map(|behind| {
            count(&self.counts.copied);
            Waiting {
                frame: frame.clone(),
                due: now + self.delay + PATIENCE,
                behind,
            }
        });
        match fate.overtaken_by {
            Some(behind) => {
                count(&self.counts.held);
                self.waiting.push_back(Waiting {
                    frame,
                    due: now + self.delay + PATIENCE,
                    behind,
                });
            }
            None if self.delay.is_zero() => self.passes(&frame)?,
            None => self.waiting.push_back(Waiting {
                frame,
                due: now + self.delay,
                behind: u64::MAX,
            }),
        }
        self.waiting.extend(copy);
        while self.waiting.len() > WAITING {
            let oldest = self.waiting.pop_front().expect("it is not empty");
            self.send(&oldest.frame)?;
        }
        Ok(())
    }

    /// Sends what has waited long enough.
    fn let_go(&mut self, now: Instant) -> io::Result<()> {
        while let Some(place) = self
            .waiting
            .iter()
            .position(|waiting| waiting.due <= now || waiting.behind == 0)
        {
            let waiting = self.waiting.remove(place).expect("the place was found");
            if waiting.behind == u64::MAX {
                self.passes(&waiting.frame)?;
            } else {
                self.send(&waiting.frame)?;
            }
        }
        Ok(())
    }

    /// Sends a frame that overtakes those that are held back.
    fn passes(&mut self, frame: &[u8]) -> io::Result<()> {
        self.send(frame)?;
        for waiting in &mut self.waiting {
            if waiting.behind != u64::MAX {
                waiting.behind = waiting.behind.saturating_sub(1);
            }
        }
        if self.delay.is_zero() {
            self.let_go(Instant::now())?;
        }
        Ok(())
    }

    fn send(&self, frame: &[u8]) -> io::Result<()> {
        if !self.to.send(frame)? {
            self.counts.refused.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Where the payload of a TCP segment is in its frame; nothing if the frame has none that is not a
/// fragment, behind at most one VLAN tag.
fn tcp_payload(frame: &[u8]) -> Option<usize> {
    const TCP: u8 = 6;
    let word = |at: usize| Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]));
    let (kind, at) = match word(12)? {
        0x8100 => (word(16)?, 18),
        kind => (kind, 14),
    };
    let tcp = match kind {
        0x0800 if *frame.get(at + 9)? == TCP => at + usize::from(frame[at] & 0xf) * 4,
        0x86dd if *frame.get(at + 6)? == TCP => at + 40,
        _ => return None,
    };
    Some(tcp + usize::from(frame.get(tcp + 12)? >> 4) * 4)
}

/// Makes two different 16-bit words change places, which no checksum tells; whether there were any.
fn alter(payload: &mut [u8]) -> bool {
    let words = payload.len() / 2;
    let Some(first) = payload.get(..2).map(<[u8]>::to_vec) else {
        return false;
    };
    let other = (1..words)
        .rev()
        .find(|i| payload[2 * i..2 * i + 2] != first);
    other.is_some_and(|i| {
        payload.copy_within(2 * i..2 * i + 2, 0);
        payload[2 * i..2 * i + 2].copy_from_slice(&first);
        true
    })
}
