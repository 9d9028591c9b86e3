//! The host between the network and the kernel: what prestack's programs do on each side.

use std::collections::BTreeMap;

use super::memcached::{Command, Replies};
use super::tcp::Packet;
use crate::{Arrival, Departing, Ends, Policy, Reply, Segment, Translation, is_before};
use prestack_proto::net::TCP_FIN;

/// Where a packet goes.
pub enum Way {
    /// To the kernel.
    Kernel(Packet),
    /// Back to the client.
    Client(Packet),
}

/// The host's state of the connection.
pub struct Host {
    pub policy: Policy,
    pub translation: Translation,
    pub ends: Ends,
    /// The bytes of the last answer.
    answer: Vec<u8>,
    tracker: Tracker,
    /// Commands that were answered here, by the wire number of their first byte.
    pub served: Vec<(u32, Command)>,
    /// How much a packet can grow that is answered, and one from which an answer is sent again.
    tail_room: usize,
    part_room: usize,
    pub resent: u64,
    pub dropped: u64,
}

impl Host {
    pub fn new(policy: Policy, tail_room: usize, part_room: usize) -> Self {
        Self {
            policy,
            translation: Translation::default(),
            ends: Ends::default(),
            answer: Vec::new(),
            tracker: Tracker::default(),
            served: Vec::new(),
            tail_room,
            part_room,
            resent: 0,
            dropped: 0,
        }
    }

    fn is_active(&self) -> bool {
        self.translation.is_active != 0
    }

    /// A packet arrives at the interface.
    pub fn arrives(&mut self, packet: Packet, now: u64) -> Option<Way> {
        let segment = packet.segment;
        if self.is_active() {
            match self
                .translation
                .arrive(&self.ends, &self.policy, &segment, now)
            {
                Arrival::Go => {}
                Arrival::Resend => {
                    self.resent += 1;
                    let mut again = self.translation.send_again(&self.ends, &segment);
                    again.shorten((packet.data.len() + self.part_room) as u32);
                    let data = &self.answer[again.offset as usize..][..again.len as usize];
                    return Some(turn(&packet, again.reply, data.to_vec()));
                }
                Arrival::Acknowledge => {
                    let reply = self.translation.reply_bare(&self.ends, &segment);
                    return Some(turn(&packet, reply, Vec::new()));
                }
            }
        }
        if let Some(answered) = self.serve(&packet, now) {
            return Some(answered);
        }
        let mut packet = packet;
        if self.is_active() {
            let passing =
                self.translation
                    .pass(&mut self.ends, &segment, self.policy.is_serving != 0, now);
            packet.segment.sequence = passing.sequence;
            packet.segment.acknowledgement = passing.acknowledgement;
            packet.segment.window = passing.window;
            for block in &mut packet.blocks {
                *block = self.translation.pass_block(&segment, *block);
            }
        } else if segment.flags & 6 == 0 {
            self.ends.take(&segment);
        }
        if !packet.is_damaged {
            self.tracker.passes(&packet);
        }
        Some(Way::Kernel(packet))
    }

    /// Answers the requests in a packet, if all are known.
    fn serve(&mut self, packet: &Packet, now: u64) -> Option<Way> {
        let segment = packet.segment;
        if packet.is_damaged || !self.tracker.owes_nothing() || !self.tracker.has_answered {
            return None;
        }
        let mut answer = Vec::new();
        let mut commands = Vec::new();
        let mut at = 0;
        while at < packet.data.len() {
            let data = &packet.data[at..];
            if !data.starts_with(b"get ") {
                return None;
            }
            let (command, len) = Command::parse(data)?;
            let reply = command.reply();
            if reply == b"END\r\n" {
                return None;
            }
            answer.extend(reply);
            commands.push((segment.sequence.wrapping_add(at as u32), command));
            at += len;
        }
        if !self
            .translation
            .may_serve(&self.ends, &self.policy, &segment, now)
            || answer.len() > packet.data.len() + self.tail_room
        {
            return None;
        }
        let reply = self.translation.serve(
            &mut self.ends,
            &self.policy,
            &segment,
            answer.len() as u32,
            now,
        )?;
        self.served.extend(commands);
        self.answer.clone_from(&answer);
        Some(turn(packet, reply, answer))
    }

    /// The kernel sends a packet.
    pub fn leaves(&mut self, mut packet: Packet, now: u64) -> Option<Packet> {
        let segment = packet.segment;
        if let Some(agreement) = packet.agreement {
            self.translation = Translation {
                agreement,
                ..Translation::default()
            };
            self.ends = Ends::told_by(&segment);
            self.tracker.begin(&self.ends);
            return Some(packet);
        }
        self.tracker.leaves(&packet);
        if !self.is_active() {
            if segment.flags & 4 == 0 {
                self.ends.give(&segment);
            }
            return Some(packet);
        }
        let departure =
            self.translation
                .leave(&mut self.ends, &segment, self.policy.is_serving != 0, now);
        match departure.departing {
            Departing::Go => {}
            Departing::WithoutFin => packet.segment.flags &= !1,
            Departing::Drop => {
                self.dropped += 1;
                return None;
            }
        }
        packet.segment.sequence = departure.sequence;
        packet.segment.acknowledgement = departure.acknowledgement;
        for block in &mut packet.blocks {
            *block = self
                .translation
                .leave_block(&self.ends, departure.acknowledgement, *block);
        }
        Some(packet)
    }
}

/// Turns a packet into one for the client.
fn turn(packet: &Packet, reply: Reply, data: Vec<u8>) -> Way {
    Way::Client(Packet {
        segment: Segment {
            sequence: reply.sequence,
            acknowledgement: reply.acknowledgement,
            len: data.len() as u32,
            flags: 0x18,
            window: reply.window,
            has_timestamps: packet.segment.has_timestamps,
            timestamp: reply.timestamp,
            echo: reply.echo,
            is_congested: 0,
        },
        data,
        blocks: Vec::new(),
        agreement: None,
        is_damaged: false,
        is_too_much: false,
    })
}

/// What the kernel and memcached have got and answered, as far as it was seen.
#[derive(Default)]
struct Tracker {
    next: u32,
    waiting: BTreeMap<u32, Vec<u8>>,
    requests: Vec<u8>,
    sent: u32,
    replies: Replies,
    asked: u64,
    answered: u64,
    /// Commands that were owed a reply before the last one that is not.
    quiet_after: Option<u64>,
    has_answered: bool,
    /// The kernel has closed the connection.
    has_ended: bool,
}

impl Tracker {
    fn begin(&mut self, ends: &Ends) {
        self.next = ends.next;
        self.sent = ends.sent;
    }

    fn owes_nothing(&self) -> bool {
        !self.has_ended
            && self.asked == self.answered
            && self.requests.is_empty()
            && self.waiting.is_empty()
            && self.quiet_after.is_none()
    }

    fn passes(&mut self, packet: &Packet) {
        let sequence = packet.segment.sequence;
        if packet.data.is_empty()
            || packet.segment.flags & 6 != 0
            || !is_before(self.next, sequence.wrapping_add(packet.segment.len))
        {
            return;
        }
        self.waiting.insert(sequence, packet.data.clone());
        while let Some((sequence, data)) = self
            .waiting
            .iter()
            .find(|(sequence, _)| !is_before(self.next, **sequence))
            .map(|(sequence, data)| (*sequence, data.clone()))
        {
            self.waiting.remove(&sequence);
            let known = self.next.wrapping_sub(sequence) as usize;
            if known < data.len() {
                self.requests.extend(&data[known..]);
                self.next = sequence.wrapping_add(data.len() as u32);
            }
        }
        while let Some((command, len)) = Command::parse(&self.requests) {
            self.requests.drain(..len);
            if let Command::SetQuiet(_) = command {
                self.quiet_after = Some(self.asked);
            } else {
                self.asked += 1;
            }
        }
    }

    fn leaves(&mut self, packet: &Packet) {
        self.has_ended |= packet.segment.has(TCP_FIN);
        let sequence = packet.segment.sequence;
        let known = self.sent.wrapping_sub(sequence) as usize;
        if packet.data.len() <= known || is_before(self.sent, sequence) {
            return;
        }
        self.sent = sequence.wrapping_add(packet.data.len() as u32);
        let (whole, values) = self.replies.add(&packet.data[known..]);
        self.answered += whole;
        self.has_answered |= values != 0;
        if self.quiet_after.is_some_and(|asked| self.answered > asked) {
            self.quiet_after = None;
        }
    }
}
