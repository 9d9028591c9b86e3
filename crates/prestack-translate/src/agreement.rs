//! What the two ends of a connection offer each other in SYN and SYN-ACK.

use prestack_proto::net::{TCP_ACK, TCP_SYN};
use prestack_proto::window::Source;

use crate::rules::{Rule, heeds};
use crate::segment::Segment;

/// TCP options (IANA registry "TCP Option Kind Numbers"). Connections with others (MD5 and TCP-AO, which
/// sign segments; Multipath TCP; Fast Open; what is not known) are not served.
const OPTION_END: u64 = 0;
const OPTION_NOTHING: u64 = 1;
const OPTION_MSS: u64 = 2;
const OPTION_WINDOW_SCALE: u64 = 3;
const OPTION_SACK_PERMITTED: u64 = 4;
const OPTION_TIMESTAMPS: u64 = 8;
/// Bytes of options at most.
const MAX_OPTIONS: u64 = 40;
/// The segment size of one who says nothing (RFC 9293 3.7.1).
const DEFAULT_MSS: u16 = 536;
/// Greatest shift of the window (RFC 7323).
const GREATEST_SCALE: u64 = 14;

/// The options of a SYN or SYN-ACK.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Offer {
    /// Its sequence number.
    pub sequence: u32,
    /// Largest segment that is taken, in bytes of data and options.
    pub mss: u16,
    /// log₂ of the unit of the window field; [`Offer::NONE`] without the option.
    pub scale: u8,
    /// [`Offer::TIMESTAMPS`] and the following.
    pub has: u8,
}

impl Offer {
    /// No window scale.
    pub const NONE: u8 = 0xff;
    /// It has timestamps.
    pub const TIMESTAMPS: u8 = 1;
    /// It has an option, or flags, with which nothing is served.
    pub const REFUSED: u8 = 2;

    /// Reads the `len` bytes of options at the start of `source`, which can be read eight bytes further, of
    /// a SYN or SYN-ACK.
    #[inline(always)]
    #[must_use]
    pub fn read<S: Source + ?Sized>(segment: &Segment, source: &S, len: u64) -> Self {
        let mut offer = Self {
            sequence: segment.sequence,
            mss: DEFAULT_MSS,
            scale: Self::NONE,
            has: 0,
        };
        // Data is Fast Open's. Both ECN flags ask for ECN in a SYN; more say that it is the accurate one,
        // which counts segments.
        if segment.len != 0 || segment.flags & 0xf00 != 0 {
            offer.has = Self::REFUSED;
        }
        let mut at = source.forgotten(0);
        for _ in 0..MAX_OPTIONS {
            if at >= len {
                break;
            }
            let Some(word) = source.word(at) else { break };
            let (kind, size) = (word & 0xff, word >> 8 & 0xff);
            if kind == OPTION_END {
                break;
            }
            if kind == OPTION_NOTHING {
                at = source.forgotten(at + 1);
                continue;
            }
            if size < 2 || at + size > len {
                offer.has |= Self::REFUSED;
                break;
            }
            match kind {
                OPTION_MSS if size == 4 => offer.mss = (word >> 16) as u16,
                OPTION_WINDOW_SCALE if size == 3 => {
                    let scale = word >> 16 & 0xff;
                    offer.scale = if scale > GREATEST_SCALE {
                        GREATEST_SCALE as u8
                    } else {
                        scale as u8
                    };
                }
                OPTION_SACK_PERMITTED => {}
                OPTION_TIMESTAMPS if size == 10 => offer.has |= Self::TIMESTAMPS,
                _ => offer.has |= Self::REFUSED,
            }
            if kind == OPTION_MSS {
                offer.mss = offer.mss.swap_bytes();
            }
            at = source.forgotten(at + size);
        }
        offer
    }
}

/// What the two ends have agreed to.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Agreement {
    /// Largest segment that the client takes, in bytes of data and options.
    pub mss: u16,
    /// log₂ of the unit of the client's window field.
    pub client_shift: u8,
    /// log₂ of the unit of the kernel's.
    pub server_shift: u8,
    /// [`Agreement::SERVABLE`] and the following.
    pub flags: u32,
}

impl Agreement {
    /// The connection may be served.
    pub const SERVABLE: u32 = 1;
    /// Every segment has timestamps.
    pub const TIMESTAMPS: u32 = 2;

    /// What comes of the client's offer, which the caller has held, and of the kernel's SYN-ACK: not servable
    /// unless that is the answer to this very SYN.
    #[inline(always)]
    #[must_use]
    pub fn reach(client: &Offer, syn_ack: &Segment, kernel: &Offer) -> Self {
        let is_agreed =
            syn_ack.flags & u32::from(TCP_SYN | TCP_ACK) == u32::from(TCP_SYN | TCP_ACK);
        let is_its = syn_ack.acknowledgement == client.sequence.wrapping_add(1)
            || !heeds(Rule::ResetBySynAck);
        if !is_agreed || !is_its || (client.has | kernel.has) & Offer::REFUSED != 0 {
            return Self::default();
        }
        let mut agreement = Self {
            mss: client.mss,
            client_shift: 0,
            server_shift: 0,
            flags: Self::SERVABLE,
        };
        // Both or none (RFC 7323).
        if client.scale != Offer::NONE && kernel.scale != Offer::NONE {
            agreement.client_shift = client.scale;
            agreement.server_shift = kernel.scale;
        }
        if client.has & kernel.has & Offer::TIMESTAMPS != 0 {
            agreement.flags |= Self::TIMESTAMPS;
        }
        agreement
    }

    #[inline(always)]
    pub(crate) const fn is_servable(&self) -> bool {
        self.flags & Self::SERVABLE != 0
    }

    #[inline(always)]
    pub(crate) const fn has_timestamps(&self) -> bool {
        self.flags & Self::TIMESTAMPS != 0
    }

    #[inline(always)]
    pub(crate) const fn client_scale(&self) -> u32 {
        self.client_shift as u32 & 15
    }

    #[inline(always)]
    pub(crate) const fn server_scale(&self) -> u32 {
        self.server_shift as u32 & 15
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINUX: [u8; 20] = [
        2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7,
    ];

    fn read(flags: u32, options: &[u8]) -> Offer {
        let segment = Segment {
            sequence: u32::MAX,
            flags,
            ..Segment::default()
        };
        let mut bytes = options.to_vec();
        bytes.extend([0xa5; 8]);
        Offer::read(&segment, &bytes.as_slice(), options.len() as u64)
    }

    fn syn_ack(acknowledgement: u32) -> Segment {
        Segment {
            acknowledgement,
            flags: u32::from(TCP_SYN | TCP_ACK),
            ..Segment::default()
        }
    }

    #[test]
    fn reads_what_linux_offers() {
        let offer = read(2, &LINUX);
        assert_eq!((offer.mss, offer.scale), (1460, 7));
        assert_eq!(offer.has, Offer::TIMESTAMPS);
        let offer = read(2, &[]);
        assert_eq!((offer.mss, offer.scale, offer.has), (536, Offer::NONE, 0));
    }

    #[test]
    fn refuses_what_cannot_be_kept_up() {
        for kind in [19u8, 29, 30, 34, 172, 174, 253, 254] {
            let mut options = LINUX.to_vec();
            options.extend([kind, 4, 0, 0]);
            assert_ne!(read(2, &options).has & Offer::REFUSED, 0, "{kind}");
        }
        assert_ne!(read(0x102, &LINUX).has & Offer::REFUSED, 0);
        let with_data = Segment {
            len: 1,
            flags: 2,
            ..Segment::default()
        };
        let offer = Offer::read(&with_data, &[0u8; 8].as_slice(), 0);
        assert_ne!(offer.has & Offer::REFUSED, 0);
        assert_ne!(read(2, &LINUX[..19]).has & Offer::REFUSED, 0);
        assert_ne!(read(2, &[8, 0]).has & Offer::REFUSED, 0);
        assert_eq!(read(0xc2, &LINUX).has & Offer::REFUSED, 0);
    }

    #[test]
    fn needs_the_syn_that_is_agreed_to() {
        let (client, kernel) = (read(2, &LINUX), read(0x12, &LINUX[..16]));
        let agreement = Agreement::reach(&client, &syn_ack(0), &kernel);
        assert!(agreement.is_servable() && agreement.has_timestamps());
        assert_eq!((agreement.client_scale(), agreement.server_scale()), (0, 0));
        assert!(!Agreement::reach(&client, &syn_ack(1), &kernel).is_servable());
    }
}
