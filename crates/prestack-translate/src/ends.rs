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
