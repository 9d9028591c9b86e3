//! What an end sends.

use super::{MAX_RTO, Packet, RTO, Tcp};
use crate::{Block, is_before, later};

/// Repeated acknowledgements that say that something was lost (RFC 5681).
const REPEATS: u32 = 3;

impl Tcp {
    /// Sequence number behind what the application has written.
    fn written(&self) -> u32 {
        self.unacked.wrapping_add(self.buffer.len() as u32)
    }

    fn timeout(&self) -> u64 {
        (RTO << self.backoff.min(20)).min(MAX_RTO)
    }

    fn is_reported(&self, sequence: u32) -> Option<u32> {
        self.blocks
            .iter()
            .find(|block| !is_before(sequence, block.start) && is_before(sequence, block.end))
            .map(|block| block.end)
    }

    /// Bytes that are on their way.
    fn flight(&self) -> u32 {
        let reported: u32 = self
            .blocks
            .iter()
            .map(|block| block.end.wrapping_sub(block.start))
            .sum();
        let lost = self.again.map_or(0, |(from, until, _)| {
            (0..until.wrapping_sub(from))
                .filter(|i| self.is_reported(from.wrapping_add(*i)).is_none())
                .count() as u32
        });
        self.next
            .wrapping_sub(self.unacked)
            .saturating_sub(reported + lost)
    }

    pub(super) fn take_acknowledgement(&mut self, packet: &Packet, now: u64) {
        let segment = &packet.segment;
        let acknowledgement = segment.acknowledgement;
        if is_before(acknowledgement, self.unacked) {
            return;
        }
        let window = segment.window << self.settings_peer_scale();
        let is_wider = window != self.window;
        let (at_sequence, at_acknowledgement) = self.window_at;
        if is_before(at_acknowledgement, acknowledgement)
            || is_before(at_sequence, segment.sequence)
            || at_sequence == segment.sequence && window > self.window
        {
            self.window = window;
            self.window_at = (segment.sequence, acknowledgement);
        }
        let is_new_report = self.take_blocks(&packet.blocks, acknowledgement);
        if acknowledgement != self.unacked {
            self.advance(acknowledgement, now);
        } else if segment.length() == 0
            && self.next != self.unacked
            && (is_new_report || !self.settings.has_sack && !is_wider)
        {
            self.repeats += 1;
            if self.repeats == REPEATS && self.again.is_none() {
                self.lose_one();
            }
        } else if is_new_report && self.again.is_some() {
            self.lose_below_reports();
        }
    }

    /// The shift of the other end's window: both ends are set alike.
    fn settings_peer_scale(&self) -> u32 {
        self.settings.scale.into()
    }

    /// Takes note of what the other end has beyond a gap; false if nothing is new.
    fn take_blocks(&mut self, blocks: &[Block], acknowledgement: u32) -> bool {
        let mut is_new = false;
        for block in blocks {
            let is_valid = is_before(block.start, block.end)
                && !is_before(self.next, block.end)
                && !is_before(block.start, acknowledgement)
                && !is_before(block.start, self.unacked);
            if is_valid
                && self
                    .is_reported(block.start)
                    .is_none_or(|end| end != block.end)
            {
                is_new |= (0..block.end.wrapping_sub(block.start))
                    .any(|i| self.is_reported(block.start.wrapping_add(i)).is_none());
                self.blocks.push(*block);
            }
        }
        self.tidy(later(self.unacked, acknowledgement));
        is_new
    }

    /// Sorts and joins the blocks, and leaves out what lies before `from`.
    fn tidy(&mut self, from: u32) {
        let mut blocks = std::mem::take(&mut self.blocks);
        blocks.sort_by_key(|block| block.start.wrapping_sub(self.unacked));
        for mut block in blocks {
            block.start = later(block.start, from);
            match self.blocks.last_mut() {
                Some(last) if !is_before(last.end, block.start) => {
                    last.end = later(last.end, block.end);
                }
                _ if is_before(block.start, block.end) => self.blocks.push(block),
                _ => {}
            }
        }
    }

    fn advance(&mut self, acknowledgement: u32, now: u64) {
        let len = acknowledgement.wrapping_sub(self.unacked);
        let data = (len as usize).min(self.buffer.len());
        self.buffer.drain(..data);
        self.unacked = acknowledgement;
        self.tidy(acknowledgement);
        self.repeats = 0;
        self.backoff = 0;
        let mss = self.settings.mss;
        if self.congestion < self.threshold {
            self.congestion += len.min(mss);
        } else {
            self.congestion += (mss * mss / self.congestion).max(1);
        }
        if let Some((from, until, over)) = self.again {
            if !is_before(acknowledgement, over) {
                self.again = None;
            } else {
                // What comes next is missing as well.
                let until = if is_before(acknowledgement, until) {
                    until
                } else {
                    let next = acknowledgement.wrapping_add(mss);
                    if is_before(next, over) { next } else { over }
                };
                self.again = Some((later(from, acknowledgement), until, over));
            }
        }
        // What it was told of has been thrown away (Linux looks at the first segment).
        if self
            .blocks
            .first()
            .is_some_and(|block| block.start == acknowledgement)
        {
            self.reneged += 1;
            self.blocks.clear();
            self.again = Some((acknowledgement, self.next, self.next));
        }
        self.timer = (self.unacked != self.next).then(|| now + self.timeout());
    }

    /// What is missing first is sent again.
    fn lose_one(&mut self) {
        let mss = self.settings.mss;
        self.threshold = (self.flight() / 2).max(2 * mss);
        self.congestion = self.threshold;
        let until = self.unacked.wrapping_add(mss);
        let until = if is_before(until, self.next) {
            until
        } else {
            self.next
        };
        self.again = Some((self.unacked, until, self.next));
        self.lose_below_reports();
    }

    /// What is missing below what the other end has is sent again.
    fn lose_below_reports(&mut self) {
        if let (Some(last), Some((from, until, over))) = (self.blocks.last(), self.again) {
            self.again = Some((from, later(until, last.start), over));
        }
    }

    pub(super) fn time_out(&mut self, now: u64) {
        self.timer = None;
        self.longest = self.longest.max(self.timeout());
        self.backoff += 1;
        if self.unacked == self.next {
            if !self.buffer.is_empty() {
                // The window is closed.
                self.probe(now);
                self.timer = Some(now + self.timeout());
            }
            return;
        }
        self.timeouts += 1;
        let mss = self.settings.mss;
        self.threshold = (self.flight() / 2).max(2 * mss);
        self.congestion = mss;
        if self
            .blocks
            .first()
            .is_some_and(|block| block.start == self.unacked)
        {
            self.blocks.clear();
        }
        self.repeats = 0;
        self.again = Some((self.unacked, self.next, self.next));
        self.timer = Some(now + self.timeout());
        self.push(now);
    }

    /// Sends what may be sent.
    pub(super) fn push(&mut self, now: u64) {
        if self.is_reset {
            return;
        }
        self.push_again(now);
        let mss = self.settings.mss;
        loop {
            if self.fin.is_some() {
                break;
            }
            let left = self.written().wrapping_sub(self.next);
            let edge = self.unacked.wrapping_add(self.window);
            let room = if is_before(self.next, edge) {
                edge.wrapping_sub(self.next)
            } else {
                0
            };
            let flight = self.flight();
            let len = left.min(room).min(mss);
            let is_end = self.has_closed && len == left;
            let in_flight = self.next != self.unacked;
            if len == 0 && !is_end {
                break;
            }
            if flight >= self.congestion
                || len < left.min(mss) && in_flight
                || self.settings.has_nagle && len < mss && in_flight && !is_end
            {
                break;
            }
            let from = self.next.wrapping_sub(self.unacked) as usize;
            let data = self
                .buffer
                .range(from..from + len as usize)
                .copied()
                .collect();
            let sequence = self.next;
            self.next = self.next.wrapping_add(len);
            if is_end {
                self.fin = Some(self.next);
                self.next = self.next.wrapping_add(1);
            }
            self.emit(sequence, data, is_end, now);
            if self.timer.is_none() {
                self.timer = Some(now + self.timeout());
            }
        }
        if self.timer.is_none() && !self.buffer.is_empty() {
            self.timer = Some(now + self.timeout());
        }
    }

    /// Sends again what was lost, put together anew.
    fn push_again(&mut self, now: u64) {
        while let Some((from, until, over)) = self.again {
            if !is_before(from, until) || self.flight() >= self.congestion {
                return;
            }
            if let Some(end) = self.is_reported(from) {
                self.again = Some((end, later(until, end), over));
                continue;
            }
            let mut end = from.wrapping_add(self.settings.mss);
            if is_before(until, end) {
                end = until;
            }
            if let Some(block) = self
                .blocks
                .iter()
                .find(|block| is_before(from, block.start))
                && is_before(block.start, end)
            {
                end = block.start;
            }
            let is_end = self.fin.is_some_and(|fin| is_before(fin, end));
            let data_end = if is_end { self.fin.unwrap() } else { end };
            let at = from.wrapping_sub(self.unacked) as usize;
            let len = data_end.wrapping_sub(from) as usize;
            let data = self.buffer.range(at..at + len).copied().collect();
            self.retransmissions += 1;
            self.again = Some((end, until, over));
            self.emit(from, data, is_end, now);
        }
    }
}
