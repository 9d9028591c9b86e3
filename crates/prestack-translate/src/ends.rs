//! What is known of the two ends of a connection.

use crate::segment::{Segment, is_before, later};

/// Where the kernel's socket is, in its own numbers.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Ends {
    /// Sequence number behind the last byte that was passed to the kernel.
    pub next: u32,
    /// What the kernel has acknowledged.
    pub acked: u32,
    /// Sequence number behind the last byte that the kernel has sent.
    pub sent: u32,
    /// The window field of the kernel's last segment.
    pub window: u32,
    /// The timestamp of the kernel's last segment.
    pub timestamp: u32,
    /// The latest timestamp of the client.
    pub recent: u32,
    /// What `next` was when the kernel [had got all](Ends::correct) last.
    pub before: u32,
}

impl Ends {
    /// The ends of a connection as a segment of the kernel tells them, which acknowledges all that was passed.
    #[inline(always)]
    #[must_use]
    pub const fn told_by(segment: &Segment) -> Self {
        Self {
            next: segment.acknowledgement,
            acked: segment.acknowledgement,
            sent: segment.end(),
            window: segment.window,
            timestamp: segment.timestamp,
            recent: segment.echo,
            before: segment.acknowledgement,
        }
    }

    /// A segment is passed to the kernel, in whose numbers it is.
    #[inline(always)]
    pub fn take(&mut self, passed: &Segment) {
        // An acknowledgement alone may lie beyond what has come, and is nothing that the kernel gets.
        if passed.length() != 0 {
            self.next = later(self.next, passed.end());
        }
        if passed.has_timestamps != 0
            && !is_before(self.acked, passed.sequence)
            && is_before(self.recent, passed.timestamp)
        {
            self.recent = passed.timestamp;
        }
    }

    /// The kernel is about to [send](Self::give) a segment, and has acknowledged all that is known to have come for it,
    /// of which nothing waits for what comes before. Was something else passed, the kernel has dropped it: it was
    /// damaged, or forged. But it may have been passed at this very moment, and not be known yet, so the kernel has to
    /// show it twice, and to send something new each time.
    #[inline(always)]
    pub fn correct(&mut self, sent: &Segment) {
        if sent.len == 0 || !is_before(self.sent, sent.end()) {
            return;
        }
        if self.next == self.before {
            self.next = sent.acknowledgement;
        }
        self.before = self.next;
    }

    /// The kernel sends a segment.
    #[inline(always)]
    pub fn give(&mut self, sent: &Segment) {
        self.sent = later(self.sent, sent.end());
        self.acked = later(self.acked, sent.acknowledgement);
        self.window = sent.window;
        if sent.has_timestamps != 0 {
            self.timestamp = sent.timestamp;
        }
    }

    /// Whether the kernel may heed a segment, in its numbers: it lies in the window (RFC 9293 3.10.7.4).
    /// `scale` is the shift of its window.
    #[inline(always)]
    #[must_use]
    pub const fn would_heed(&self, passed: &Segment, scale: u32) -> bool {
        let edge = self.acked.wrapping_add(self.window << (scale & 15));
        !is_before(passed.end(), self.acked) && !is_before(edge, passed.sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{CLIENT, Connection, KERNEL, WINDOW, from_client, from_kernel};
    use prestack_proto::net::TCP_FIN;

    #[test]
    fn a_segment_of_the_kernel_tells_them() {
        let told = Ends::told_by(&from_kernel(KERNEL.wrapping_sub(30), 30));
        assert_eq!(told, Connection::fresh().ends);
    }

    #[test]
    fn what_passes_moves_the_next_and_the_timestamp_forward() {
        let taken = |segment: &Segment| {
            let mut ends = Connection::fresh().ends;
            ends.take(segment);
            (ends.next, ends.recent)
        };
        let segment = Segment {
            len: 10,
            timestamp: 6,
            ..from_client(CLIENT, KERNEL)
        };
        let next = CLIENT.wrapping_add(10);
        assert_eq!(taken(&segment), (next, 6));
        let old = Segment {
            sequence: CLIENT.wrapping_sub(30),
            ..segment
        };
        assert_eq!(taken(&old), (CLIENT, 6));
        // Of what is beyond what the kernel lacks, or older, it does not take the timestamp (RFC 7323 4.3).
        let beyond = Segment {
            sequence: CLIENT.wrapping_add(1),
            ..segment
        };
        assert_eq!(taken(&beyond), (next.wrapping_add(1), 5));
        let older = Segment {
            timestamp: 4,
            ..segment
        };
        assert_eq!(taken(&older), (next, 5));
        let without = Segment {
            has_timestamps: 0,
            ..segment
        };
        assert_eq!(taken(&without), (next, 5));
    }

    #[test]
    fn an_acknowledgement_beyond_what_has_come_is_no_data() {
        let mut ends = Connection::fresh().ends;
        let mut segment = from_client(CLIENT.wrapping_add(500), KERNEL);
        ends.take(&segment);
        assert_eq!(ends.next, CLIENT);
        segment.flags |= u32::from(TCP_FIN);
        ends.take(&segment);
        assert_eq!(ends.next, CLIENT.wrapping_add(501));
    }

    #[test]
    fn what_the_kernel_has_dropped_is_taken_back() {
        let mut ends = Connection::fresh().ends;
        let beyond = Segment {
            len: 10,
            ..from_client(CLIENT.wrapping_add(500), KERNEL)
        };
        ends.take(&beyond);
        let next = CLIENT.wrapping_add(510);
        assert_eq!(ends.next, next);
        let mut sends = |len: u32, at: u32| {
            let segment = from_kernel(KERNEL.wrapping_add(at), len);
            ends.correct(&segment);
            ends.give(&segment);
            ends.next
        };
        // It may be under way. What is sent again, or acknowledges alone, shows nothing.
        assert_eq!(sends(5, 0), next);
        assert_eq!(sends(5, 0), next);
        assert_eq!(sends(0, 5), next);
        assert_eq!(sends(5, 5), CLIENT);
        assert_eq!(sends(5, 10), CLIENT);
        // Something else that is passed may be under way again.
        ends.take(&beyond);
        let mut segment = from_kernel(KERNEL.wrapping_add(15), 5);
        segment.acknowledgement = CLIENT;
        ends.correct(&segment);
        assert_eq!(ends.next, next);
    }

    #[test]
    fn what_leaves_moves_them_forward() {
        let mut ends = Connection::fresh().ends;
        let mut segment = from_kernel(KERNEL, 40);
        segment.acknowledgement = CLIENT.wrapping_add(9);
        segment.window = WINDOW - 1;
        segment.timestamp = 8;
        ends.give(&segment);
        let mut after = Ends {
            sent: KERNEL.wrapping_add(40),
            acked: CLIENT.wrapping_add(9),
            window: WINDOW - 1,
            timestamp: 8,
            ..Connection::fresh().ends
        };
        assert_eq!(ends, after);
        // What is sent again; without timestamps.
        let again = Segment {
            has_timestamps: 0,
            timestamp: 0,
            ..from_kernel(KERNEL, 10)
        };
        ends.give(&again);
        after.window = WINDOW;
        assert_eq!(ends, after);
    }
}
