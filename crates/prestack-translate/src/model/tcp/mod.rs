//! An end of a TCP connection.

mod receive;
mod send;

use std::collections::{BTreeMap, VecDeque};

use crate::{Agreement, Block, Segment, is_before};
use prestack_proto::net::{TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN};

/// Shortest retransmission timeout, in µs (`TCP_RTO_MIN` of Linux).
pub const RTO: u64 = 200_000;
/// Longest.
const MAX_RTO: u64 = 120_000_000;
/// How long an acknowledgement is delayed, in µs (`TCP_DELACK_MIN` of Linux).
const DELAYED_ACK: u64 = 40_000;
/// First congestion window, in segments.
const FIRST_WINDOW: u32 = 10;

/// A packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Packet {
    pub segment: Segment,
    pub data: Vec<u8>,
    pub blocks: Vec<Block>,
    /// What the kernel has agreed to, with its SYN-ACK.
    pub agreement: Option<Agreement>,
    /// Its checksum is wrong.
    pub is_damaged: bool,
    /// The end that gets it has no memory for its data.
    pub is_too_much: bool,
}

impl Packet {
    /// Cuts off what is behind so many bytes of data; `None` if there is nothing. Both have the same header but for what
    /// says where the data ends.
    pub fn cut_off(&mut self, len: usize) -> Option<Self> {
        if len == 0 || len >= self.data.len() {
            return None;
        }
        let mut rest = self.clone();
        rest.data = self.data.split_off(len);
        rest.segment.sequence = self.segment.sequence.wrapping_add(len as u32);
        rest.segment.len -= len as u32;
        self.segment.len = len as u32;
        self.segment.flags &= !u32::from(TCP_FIN);
        Some(rest)
    }
}

/// How an end behaves.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Sequence number of the SYN.
    pub first: u32,
    /// Largest segment sent, in bytes of data.
    pub mss: u32,
    /// Bytes of the receive buffer.
    pub buffer: u32,
    /// log₂ of the unit of the window.
    pub scale: u8,
    pub has_sack: bool,
    pub has_timestamps: bool,
    pub has_nagle: bool,
    /// µs without traffic after which it asks whether the other end is there; 0 for never.
    pub keepalive: u64,
}

/// An end.
pub struct Tcp {
    pub settings: Settings,
    out: Vec<Packet>,

    // What it sends.
    unacked: u32,
    next: u32,
    buffer: VecDeque<u8>,
    has_closed: bool,
    fin: Option<u32>,
    window: u32,
    window_at: (u32, u32),
    congestion: u32,
    threshold: u32,
    blocks: Vec<Block>,
    repeats: u32,
    /// What is sent again: from where on, up to where, and at what acknowledgement it is over.
    again: Option<(u32, u32, u32)>,
    backoff: u32,
    timer: Option<u64>,
    heard: u64,

    // What it receives.
    expected: u32,
    acked: u32,
    edge: u32,
    waiting: BTreeMap<u32, Vec<u8>>,
    latest: Vec<u32>,
    twice: Option<Block>,
    peer_fin: Option<u32>,
    pub received: VecDeque<u8>,
    /// Data was thrown away for want of memory, until what there is has been read.
    is_full: bool,
    delayed: Option<u64>,
    unacknowledged: u32,
    recent: u32,

    pub is_reset: bool,
    pub retransmissions: u64,
    pub timeouts: u64,
    /// The longest timeout that ran out.
    pub longest: u64,
    /// How often it found the first segment acknowledged selectively but not as a whole.
    pub reneged: u64,
}

impl Tcp {
    /// An end that has exchanged SYNs with one that starts with `peer_first`.
    pub fn established(settings: Settings, peer_first: u32, peer_window: u32) -> Self {
        let next = settings.first.wrapping_add(1);
        let expected = peer_first.wrapping_add(1);
        Self {
            settings,
            out: Vec::new(),
            unacked: next,
            next,
            buffer: VecDeque::new(),
            has_closed: false,
            fin: None,
            window: peer_window,
            window_at: (expected, next),
            congestion: FIRST_WINDOW * settings.mss,
            threshold: u32::MAX / 4,
            blocks: Vec::new(),
            repeats: 0,
            again: None,
            backoff: 0,
            timer: None,
            heard: 0,
            expected,
            acked: expected,
            edge: expected.wrapping_add(settings.buffer),
            waiting: BTreeMap::new(),
            latest: Vec::new(),
            twice: None,
            peer_fin: None,
            received: VecDeque::new(),
            is_full: false,
            delayed: None,
            unacknowledged: 0,
            recent: 0,
            is_reset: false,
            retransmissions: 0,
            timeouts: 0,
            longest: 0,
            reneged: 0,
        }
    }

    /// What a client and a kernel agree to.
    pub fn agreement(client: &Settings, kernel: &Settings) -> Agreement {
        let has_timestamps = client.has_timestamps && kernel.has_timestamps;
        let timestamps = if has_timestamps {
            Agreement::TIMESTAMPS
        } else {
            0
        };
        Agreement {
            mss: client.mss as u16 + if has_timestamps { 12 } else { 0 },
            client_shift: client.scale,
            server_shift: kernel.scale,
            flags: Agreement::SERVABLE | timestamps,
        }
    }

    /// Packets that it has sent since.
    pub fn sent(&mut self) -> Vec<Packet> {
        std::mem::take(&mut self.out)
    }

    /// The application writes.
    pub fn write(&mut self, bytes: &[u8], now: u64) {
        self.buffer.extend(bytes);
        self.push(now);
    }

    /// The application has nothing more to send.
    pub fn close(&mut self, now: u64) {
        self.has_closed = true;
        self.push(now);
    }

    /// The application reads up to `max` bytes.
    pub fn read(&mut self, max: usize, now: u64) -> Vec<u8> {
        let len = max.min(self.received.len());
        let bytes = self.received.drain(..len).collect();
        self.is_full &= !self.received.is_empty();
        // A window that has opened is announced.
        let wider = self.wanted_edge().wrapping_sub(self.edge);
        if self.wanted_edge() != self.edge
            && !is_before(self.wanted_edge(), self.edge)
            && wider >= self.settings.mss.min(self.settings.buffer / 2)
            && self.edge.wrapping_sub(self.expected) < self.settings.mss
        {
            self.acknowledge(now);
        }
        bytes
    }

    /// Whether the other end has closed, and all it sent was read.
    pub fn is_at_end(&self) -> bool {
        self.received.is_empty()
            && self
                .peer_fin
                .is_some_and(|fin| self.expected == fin.wrapping_add(1))
    }

    /// Whether all that it has sent, the end included, has been acknowledged.
    pub fn is_done(&self) -> bool {
        self.fin
            .is_some_and(|fin| self.unacked == fin.wrapping_add(1))
    }

    /// Whether its timer has run out more than once without an acknowledgement in between.
    pub fn has_backed_off(&self) -> bool {
        self.backoff > 1
    }

    /// When it wants to be woken.
    pub fn wakes_at(&self) -> Option<u64> {
        if self.is_reset {
            return None;
        }
        let keepalive = (self.settings.keepalive != 0 && !self.is_done())
            .then(|| self.heard + self.settings.keepalive);
        [self.timer, self.delayed, keepalive]
            .into_iter()
            .flatten()
            .min()
    }

    /// Time passes.
    pub fn wake(&mut self, now: u64) {
        if self.is_reset {
            return;
        }
        if self.delayed.is_some_and(|at| at <= now) {
            self.acknowledge(now);
        }
        if self.timer.is_some_and(|at| at <= now) {
            self.time_out(now);
        }
        if self.settings.keepalive != 0 && self.heard + self.settings.keepalive <= now {
            self.heard = now;
            self.probe(now);
        }
    }

    /// A packet arrives.
    pub fn arrives(&mut self, packet: &Packet, now: u64) {
        let segment = &packet.segment;
        if self.is_reset {
            if !segment.has(TCP_RST) {
                self.refuse(segment);
            }
            return;
        }
        self.heard = now;
        if segment.has(TCP_RST) {
            if segment.sequence == self.expected {
                self.is_reset = true;
            } else if segment.sequence.wrapping_sub(self.expected)
                < self.edge.wrapping_sub(self.expected)
            {
                self.acknowledge(now);
            }
            return;
        }
        if segment.has(TCP_SYN) {
            self.acknowledge(now);
            return;
        }
        if segment.has_timestamps != 0 && is_before(segment.timestamp, self.recent) {
            self.acknowledge(now);
            return;
        }
        if is_before(segment.end(), self.acked) || is_before(self.edge, segment.sequence) {
            if !packet.data.is_empty() && is_before(segment.sequence, self.expected) {
                self.note_twice(segment.sequence, segment.end());
            }
            self.acknowledge(now);
            return;
        }
        if segment.has_timestamps != 0 && !is_before(self.acked, segment.sequence) {
            self.recent = segment.timestamp;
        }
        if !segment.has(TCP_ACK) || is_before(self.next, segment.acknowledgement) {
            self.acknowledge(now);
            return;
        }
        self.take_acknowledgement(packet, now);
        if packet.is_too_much && !packet.data.is_empty() && !self.received.is_empty() {
            self.throw_away(now);
        } else {
            self.take_data(packet, now);
        }
        self.push(now);
    }

    fn flags_of(is_fin: bool) -> u32 {
        u32::from(TCP_ACK) | if is_fin { u32::from(TCP_FIN) } else { 0 }
    }

    /// Sends a packet.
    fn emit(&mut self, sequence: u32, data: Vec<u8>, is_fin: bool, now: u64) {
        let mut blocks = Vec::new();
        if self.settings.has_sack {
            blocks.extend(self.twice.take());
            blocks.extend(self.blocks_to_report().into_iter().take(3));
        }
        self.open_edge();
        self.acked = self.expected;
        self.delayed = None;
        self.unacknowledged = 0;
        let window = self.edge.wrapping_sub(self.expected) >> self.settings.scale;
        self.out.push(Packet {
            segment: Segment {
                sequence,
                acknowledgement: self.expected,
                len: data.len() as u32,
                flags: Self::flags_of(is_fin),
                window: window.min(0xffff),
                has_timestamps: self.settings.has_timestamps.into(),
                timestamp: (now / 1000) as u32 + 1,
                echo: self.recent,
                is_congested: 0,
            },
            data,
            blocks,
            agreement: None,
            is_damaged: false,
            is_too_much: false,
        });
    }

    /// Sends an acknowledgement.
    fn acknowledge(&mut self, now: u64) {
        self.emit(self.next, Vec::new(), false, now);
    }

    /// Resets the connection: the packet that says so.
    pub fn reset(&mut self) -> Packet {
        self.is_reset = true;
        Packet {
            segment: Segment {
                sequence: self.next,
                acknowledgement: self.expected,
                flags: u32::from(TCP_RST | TCP_ACK),
                ..Segment::default()
            },
            data: Vec::new(),
            blocks: Vec::new(),
            agreement: None,
            is_damaged: false,
            is_too_much: false,
        }
    }

    /// Answers a segment of a connection that there is not.
    fn refuse(&mut self, segment: &Segment) {
        self.out.push(Packet {
            segment: Segment {
                sequence: segment.acknowledgement,
                flags: TCP_RST.into(),
                ..Segment::default()
            },
            data: Vec::new(),
            blocks: Vec::new(),
            agreement: None,
            is_damaged: false,
            is_too_much: false,
        });
    }

    /// Asks the other end for an acknowledgement, by something old.
    fn probe(&mut self, now: u64) {
        self.emit(self.unacked.wrapping_sub(1), Vec::new(), false, now);
    }
}
