//! The headers of a request over IPv4 without tags or options, in registers.

use prestack_proto::checksum::{add_word, fold};
use prestack_proto::net::{
    ETHERTYPE_IPV4, HOP_LIMIT, IPV4_DONT_FRAGMENT, IPV4_FRAGMENT, IPV4_LEN, PROTO_UDP,
};
use prestack_proto::udp::Frame;

use super::{HEADER_WORDS, PAYLOAD, SHORTEST};
use crate::packet::Packet;
use crate::rx::reply::PAYLOAD_AT;

/// The words of a packet before its payload, as they lie there.
#[derive(Clone, Copy)]
pub struct Head(pub [u64; HEADER_WORDS]);

impl Head {
    /// Reads the words.
    ///
    /// # Safety
    ///
    /// The packet [reaches](Packet::reaches) further.
    #[inline(always)]
    pub unsafe fn read(packet: Packet) -> Self {
        // SAFETY: the caller's.
        Self(core::array::from_fn(|i| unsafe {
            packet.fixed::<u64>(8 * i as u64)
        }))
    }

    /// Whether this is Ethernet without tags, and IPv4 without options or fragments.
    #[inline(always)]
    pub fn is_ipv4(&self) -> bool {
        const TYPES: u64 = (ETHERTYPE_IPV4.to_be() as u64) | 0x45 << 16;
        const FRAGMENT: u64 = (IPV4_FRAGMENT.to_be() as u64) << 32;
        (self.0[1] >> 32 & 0x00ff_ffff ^ TYPES) | (self.0[2] & FRAGMENT) == 0
    }

    /// Whether UDP follows, and a memcached frame of one datagram.
    #[inline(always)]
    pub fn is_request(&self) -> bool {
        self.protocol() == PROTO_UDP && Frame(self.frame()).is_single()
    }

    #[inline(always)]
    pub fn protocol(&self) -> u8 {
        (self.0[2] >> 56) as u8
    }

    /// The first four bytes of the payload.
    #[inline(always)]
    pub fn verb(&self) -> u32 {
        (self.0[6] >> 16) as u32
    }

    #[inline(always)]
    pub fn frame(&self) -> u64 {
        self.0[5] >> 16 | self.0[6] << 48
    }

    #[inline(always)]
    pub fn total_len(&self) -> u64 {
        u64::from((self.0[2] as u16).swap_bytes())
    }

    #[inline(always)]
    pub fn udp_len(&self) -> u64 {
        u64::from(((self.0[4] >> 48) as u16).swap_bytes())
    }

    /// Length of the header of a TCP segment.
    #[inline(always)]
    pub fn tcp_header_len(&self) -> u64 {
        (self.0[5] >> 52 & 0xf) * 4
    }

    /// The flags of a TCP segment.
    #[inline(always)]
    pub fn tcp_flags(&self) -> u8 {
        (self.0[5] >> 56) as u8
    }

    #[inline(always)]
    pub fn source(&self) -> u32 {
        (self.0[3] >> 16) as u32
    }

    #[inline(always)]
    pub fn destination(&self) -> u32 {
        (self.0[3] >> 48) as u32 | ((self.0[4] & 0xffff) as u32) << 16
    }

    /// Source port in the lower, destination port in the upper half.
    #[inline(always)]
    pub fn ports(&self) -> u32 {
        (self.0[4] >> 16) as u32
    }

    #[inline(always)]
    fn checksum(&self) -> u16 {
        self.0[5] as u16
    }

    #[inline(always)]
    fn addresses_sum(&self) -> u64 {
        u64::from(self.source()) + u64::from(self.destination())
    }

    /// Whether the checksums hold, given the sum of the payload: see [`checksum`](crate::rx::checksum).
    #[inline(always)]
    pub fn checksums_hold(&self, payload: u64) -> bool {
        let w = &self.0;
        let addresses = self.addresses_sum();
        let ip = (w[1] >> 48) + u64::from(w[3] as u16) + addresses;
        let pseudo = addresses + u64::from(u16::to_be(PROTO_UDP.into())) + (w[4] >> 48);
        let field = self.checksum();
        let udp = add_word(
            pseudo + u64::from(self.ports()) + (w[4] >> 48),
            self.frame(),
        );
        let udp = udp + u64::from(field) + payload;
        fold(add_word(ip, w[2])) == 0xffff
            && (field == 0 || fold(udp) == 0xffff || field == fold(pseudo))
    }

    /// The head of the reply of `reply_len` bytes with this `sum`.
    #[inline(always)]
    pub fn reply(&self, reply_len: u64, sum: u16) -> Self {
        let w = &self.0;
        let udp_len = PAYLOAD_AT + reply_len;
        let total_len = IPV4_LEN as u64 + udp_len;
        let be = |len: u64| u64::from((len as u16).swap_bytes());
        let (source, destination) = (u64::from(self.destination()), u64::from(self.source()));
        let second = be(total_len)
            | u64::from(IPV4_DONT_FRAGMENT.to_be()) << 32
            | u64::from(HOP_LIMIT) << 48
            | u64::from(PROTO_UDP) << 56;
        let addresses = source + destination;
        let ip = !fold(add_word(addresses + 0x45, second));
        let ports = u64::from(self.ports().rotate_left(16));
        let udp = if self.checksum() == 0 {
            0
        } else {
            let pseudo = addresses + u64::from(u16::to_be(PROTO_UDP.into())) + be(udp_len);
            let header = pseudo + ports + be(udp_len) + u64::from(sum);
            match !fold(add_word(header, self.frame())) {
                // RFC 768: zero says that there is none.
                0 => 0xffff,
                checksum => checksum,
            }
        };
        Self([
            w[0] >> 48 | (w[1] & 0xffff_ffff) << 16 | w[0] << 48,
            (w[0] >> 16 & 0xffff_ffff) | u64::from(ETHERTYPE_IPV4.to_be()) << 32 | 0x45 << 48,
            second,
            u64::from(ip) | source << 16 | destination << 48,
            destination >> 16 | ports << 16 | be(udp_len) << 48,
            u64::from(udp) | self.frame() << 16,
            self.frame() >> 48,
        ])
    }

    /// Writes the head before the payload.
    #[inline(always)]
    pub fn write(&self, packet: Packet) -> Option<()> {
        if !packet.reaches(SHORTEST) {
            return None;
        }
        for i in 0..HEADER_WORDS - 1 {
            // SAFETY: the packet reaches further.
            unsafe { packet.set_fixed(8 * i as u64, self.0[i]) };
        }
        // SAFETY: as above.
        unsafe { packet.set_fixed(PAYLOAD - 2, self.0[HEADER_WORDS - 1] as u16) };
        Some(())
    }
}
