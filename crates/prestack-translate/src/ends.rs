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
        }
    }

    /// A segment is passed to the kernel, in whose numbers it is.
    #[inline(always)]
    pub fn take(&mut self, passed: &Segment) {
        self.next = later(self.next, passed.end());
        if passed.has_timestamps != 0
            && !is_before(self.acked, passed.sequence)
            && is_before(self.recent, passed.timestamp)
        {
            self.recent = passed.timestamp;
        }
    }

    /// The kernel sends a segment.
    #[inline(always)]
    pub fn give(&mut self, sent: &Segment) {
        self.sent = later(self.sent, sent.end());
        self.acked = later(self.acked, sent.acknowledgement);
        self.window = sent.window;
        if sent.has_timestamps != 0 {
            self.timestamp = sent.timestamp;
            if sent.acknowledgement == self.next {
                // What the kernel did not heed, for its checksum say, has left nothing behind.
                self.recent = sent.echo;
            }
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

    #[test]
    fn a_timestamp_that_the_kernel_did_not_heed_is_forgotten() {
        let mut ends = Connection::fresh().ends;
        let recent = ends.recent;
        let damaged = Segment {
            timestamp: recent.wrapping_add(1 << 30),
            ..from_client(CLIENT, KERNEL)
        };
        ends.take(&damaged);
        assert_eq!(ends.recent, damaged.timestamp);
        let echo = recent.wrapping_add(1);
        let mut segment = Segment {
            echo,
            ..from_kernel(KERNEL, 0)
        };
        // While something is under way the kernel may not have seen it yet.
        ends.next = CLIENT.wrapping_add(1);
        ends.give(&segment);
        assert_eq!(ends.recent, damaged.timestamp);
        segment.acknowledgement = ends.next;
        ends.give(&segment);
        assert_eq!(ends.recent, echo);
    }
}
