//! What a segment says, and sequence numbers.

use prestack_proto::net::{TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN};

/// Whether sequence number `a` comes before `b` (RFC 9293 3.4).
#[inline(always)]
#[must_use]
pub const fn is_before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

/// The later one of two sequence numbers.
#[inline(always)]
#[must_use]
pub const fn later(a: u32, b: u32) -> u32 {
    if is_before(a, b) { b } else { a }
}

/// A TCP segment's header, in host byte order.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Sequence number of its first byte.
    pub sequence: u32,
    /// What it acknowledges.
    pub acknowledgement: u32,
    /// Bytes of data.
    pub len: u32,
    /// The 12 bits of flags, reserved ones included.
    pub flags: u32,
    /// The window field, not shifted.
    pub window: u32,
    /// Non-zero if it has timestamps (RFC 7323).
    pub has_timestamps: u32,
    /// Its own timestamp.
    pub timestamp: u32,
    /// The timestamp that it echoes.
    pub echo: u32,
    /// Non-zero if its IP header says that congestion was experienced (RFC 3168).
    pub is_congested: u32,
}

impl Segment {
    /// Whether one of these flags is set.
    #[inline(always)]
    #[must_use]
    pub const fn has(&self, flags: u8) -> bool {
        self.flags & flags as u32 != 0
    }

    /// What it takes of the stream: its data, and one for SYN and FIN each.
    #[inline(always)]
    #[must_use]
    pub const fn length(&self) -> u32 {
        let syn = self.has(TCP_SYN) as u32;
        let fin = self.has(TCP_FIN) as u32;
        self.len.wrapping_add(syn + fin)
    }

    /// Sequence number behind what it takes of the stream.
    #[inline(always)]
    #[must_use]
    pub const fn end(&self) -> u32 {
        self.sequence.wrapping_add(self.length())
    }

    /// Whether it acknowledges something, and neither starts nor resets the connection.
    #[inline(always)]
    pub(crate) const fn acknowledges(&self) -> bool {
        self.flags & (TCP_ACK | TCP_SYN | TCP_RST) as u32 == TCP_ACK as u32
    }
}
