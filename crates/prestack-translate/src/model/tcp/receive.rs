//! What an end receives.

use super::{DELAYED_ACK, Packet, Tcp};
use crate::{Block, is_before};
use prestack_proto::net::TCP_FIN;

impl Tcp {
    /// Where the window would end.
    pub(super) fn wanted_edge(&self) -> u32 {
        let room = self
            .settings
            .buffer
            .saturating_sub(self.received.len() as u32);
        let room = if self.is_full { 0 } else { room };
        self.expected.wrapping_add(room)
    }

    /// There is no memory for what comes next, though it lies in the window: Linux takes the acknowledgement that
    /// comes with it (`tcp_data_queue` in net/ipv4/tcp_input.c), and says that there is no room.
    pub(super) fn throw_away(&mut self, now: u64) {
        self.is_full = true;
        self.edge = self.expected;
        self.acknowledge(now);
    }

    /// Announces a wider window, if it is much wider (RFC 9293 3.8.6.2.2), in whole units.
    pub(super) fn open_edge(&mut self) {
        let wanted = self.wanted_edge();
        let step = self.settings.mss.min(self.settings.buffer / 2);
        if !is_before(wanted, self.edge) && wanted.wrapping_sub(self.edge) >= step {
            self.edge = wanted;
        }
        if is_before(self.edge, self.expected) {
            self.edge = self.expected;
        }
    }

    /// What has come beyond a gap, the latest first.
    pub(super) fn blocks_to_report(&self) -> Vec<Block> {
        let mut blocks: Vec<Block> = Vec::new();
        let mut starts: Vec<u32> = self.waiting.keys().copied().collect();
        starts.sort_by_key(|start| start.wrapping_sub(self.expected));
        for start in starts {
            let end = start.wrapping_add(self.waiting[&start].len() as u32);
            match blocks.last_mut() {
                Some(last) if !is_before(last.end, start) => {
                    if is_before(last.end, end) {
                        last.end = end;
                    }
                }
                _ => blocks.push(Block { start, end }),
            }
        }
        let age = |block: &Block| {
            self.latest
                .iter()
                .rposition(|at| !is_before(*at, block.start) && is_before(*at, block.end))
        };
        blocks.sort_by_key(|block| std::cmp::Reverse(age(block)));
        blocks
    }

    pub(super) fn note_twice(&mut self, start: u32, end: u32) {
        self.twice = Some(Block { start, end });
    }

    pub(super) fn take_data(&mut self, packet: &Packet, now: u64) {
        let segment = &packet.segment;
        if segment.has(TCP_FIN) {
            self.peer_fin = Some(segment.sequence.wrapping_add(segment.len));
        }
        if segment.length() == 0 {
            // A probe, or what is old.
            if is_before(segment.sequence, self.expected) {
                self.acknowledge(now);
            }
            return;
        }
        let end = segment.sequence.wrapping_add(segment.len);
        if is_before(self.expected, segment.sequence) {
            if !packet.data.is_empty() && !is_before(self.edge, end) {
                let known = self.waiting.get(&segment.sequence).map_or(0, Vec::len);
                if known < packet.data.len() {
                    self.waiting.insert(segment.sequence, packet.data.clone());
                } else {
                    self.note_twice(segment.sequence, end);
                }
                self.latest.push(segment.sequence);
            }
            self.acknowledge(now);
            return;
        }
        let had_gap = !self.waiting.is_empty();
        let is_old = !packet.data.is_empty() && !is_before(self.expected, end);
        if is_old {
            self.note_twice(segment.sequence, end);
        } else {
            self.append(segment.sequence, &packet.data);
            while let Some(start) = self
                .waiting
                .keys()
                .copied()
                .find(|start| !is_before(self.expected, *start))
            {
                let data = self.waiting.remove(&start).unwrap();
                self.append(start, &data);
            }
        }
        if !had_gap {
            self.latest.clear();
        }
        let is_end = self.peer_fin == Some(self.expected);
        if is_end {
            self.expected = self.expected.wrapping_add(1);
        }
        if self
            .peer_fin
            .is_some_and(|fin| is_before(fin, self.expected))
            && !is_end
        {
            // The end is sent again.
            self.acknowledge(now);
            return;
        }
        self.unacknowledged += 1;
        if had_gap || is_old || is_end || self.unacknowledged >= 2 {
            self.acknowledge(now);
        } else if self.delayed.is_none() {
            self.delayed = Some(now + DELAYED_ACK);
        }
    }

    /// Takes what comes next, as far as there is room.
    fn append(&mut self, sequence: u32, data: &[u8]) {
        let known = self.expected.wrapping_sub(sequence) as usize;
        let room = self.edge.wrapping_sub(self.expected) as usize;
        if let Some(new) = data.get(known..) {
            let new = &new[..new.len().min(room)];
            self.received.extend(new);
            self.expected = self.expected.wrapping_add(new.len() as u32);
        }
    }
}
