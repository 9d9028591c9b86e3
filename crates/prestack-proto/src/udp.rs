//! The frame before every memcached UDP payload (doc/protocol.txt, "UDP protocol").

/// Bytes of a frame: request id, sequence number, datagram count, reserved; big-endian `u16`s.
pub const FRAME_LEN: usize = 8;

/// A frame as the eight bytes read little-endian, so that it stays in one register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame(pub u64);

impl Frame {
    /// Sequence 0 of 1 datagram, reserved 0: what every request and every one-datagram reply has.
    const SINGLE: u64 = 1 << 40;

    /// The request id as it stands on the wire (byte order does not matter to compare it).
    #[inline(always)]
    #[must_use]
    pub const fn id(self) -> u16 {
        self.0 as u16
    }

    /// Whether the message is this one datagram.
    #[inline(always)]
    #[must_use]
    pub const fn is_single(self) -> bool {
        self.0 & !0xffff == Self::SINGLE
    }

    /// The sequence number in host byte order.
    #[inline(always)]
    #[must_use]
    pub const fn sequence(self) -> u16 {
        ((self.0 >> 16) as u16).swap_bytes()
    }

    /// The number of datagrams of the message, in host byte order.
    #[inline(always)]
    #[must_use]
    pub const fn count(self) -> u16 {
        ((self.0 >> 32) as u16).swap_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(bytes: [u8; 8]) -> Frame {
        Frame(u64::from_le_bytes(bytes))
    }

    #[test]
    fn fields_are_big_endian() {
        let f = frame([0x12, 0x34, 0, 2, 0, 4, 0, 0]);
        assert_eq!((f.id(), f.sequence(), f.count()), (0x3412, 2, 4));
        assert!(!f.is_single());
    }

    #[test]
    fn single_asks_for_every_field() {
        assert!(frame([9, 9, 0, 0, 0, 1, 0, 0]).is_single());
        for odd in [
            [0, 0, 0, 1, 0, 1, 0, 0],
            [0, 0, 0, 0, 0, 2, 0, 0],
            [0, 0, 0, 0, 1, 0, 0, 0],
            [0, 0, 0, 0, 0, 1, 0, 7],
        ] {
            assert!(!frame(odd).is_single(), "{odd:?}");
        }
    }
}
