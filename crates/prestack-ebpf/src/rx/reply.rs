//! Turning a request's packet into its reply.

use prestack_proto::checksum::fold;
use prestack_proto::net::{HOP_LIMIT, IPV4_DONT_FRAGMENT, PROTO_UDP, UDP_LEN};
use prestack_proto::udp::FRAME_LEN;

use super::checksum::pseudo_header;
use crate::packet::{Headers, Ipv4, Ipv6, Packet};

/// Bytes before a memcached payload in a datagram.
pub const PAYLOAD_AT: u64 = (UDP_LEN + FRAME_LEN) as u64;

/// Whether a reply of this length fits the interface.
#[inline(always)]
pub fn fits(mtu: u32, headers: &Headers, reply_len: u64) -> bool {
    headers.l4 - headers.l3 + PAYLOAD_AT + reply_len <= u64::from(mtu)
}

/// Writes every header of the reply: source and destination change places, lengths and checksums
/// are those of a reply of `reply_len` bytes with this `sum`. The frame of the request is the
/// frame of the reply.
#[inline(always)]
pub fn write_headers(packet: Packet, headers: &Headers, reply_len: u64, sum: u16) -> Option<()> {
    let udp_len = PAYLOAD_AT + reply_len;
    write_network(packet, headers, udp_len, PROTO_UDP)?;
    let udp = packet.at::<[u64; 2]>(headers.l4)?;
    // SAFETY: `at` checked the length: the UDP header and the frame.
    let [header, frame] = unsafe { *udp };
    let ports = headers.ports.rotate_left(16);
    let checksum = if header >> 48 == 0 {
        0
    } else {
        // It does not matter which address is the source's.
        let total = pseudo_header(&headers.addresses, udp_len as u16, PROTO_UDP)
            + u64::from(ports)
            + u64::from((udp_len as u16).to_be())
            + (frame & 0xffff_ffff)
            + (frame >> 32)
            + u64::from(sum);
        match !fold(total) {
            // RFC 768: zero says that there is none.
            0 => 0xffff,
            checksum => checksum,
        }
    };
    let second = u32::from((udp_len as u16).to_be()) | u32::from(checksum) << 16;
    // SAFETY: as above.
    unsafe { (*udp)[0] = u64::from(ports) | u64::from(second) << 32 };
    Some(())
}

/// Writes the headers before that of UDP or TCP, for `l4_len` bytes from there on: source and destination change
/// places.
#[inline(always)]
pub fn write_network(packet: Packet, headers: &Headers, l4_len: u64, protocol: u8) -> Option<()> {
    let (l3, l4) = (headers.l3, headers.l4);
    let macs = packet.at::<[u32; 3]>(0)?;
    // SAFETY: `at` checked the length.
    unsafe {
        let [a, b, c] = *macs;
        *macs = [b >> 16 | c << 16, c >> 16 | a << 16, a >> 16 | b << 16];
    }

    let (source, destination) = (&headers.addresses.destination, &headers.addresses.source);
    if headers.v6 {
        let ip = packet.at::<Ipv6>(l3)?;
        // SAFETY: `at` checked the length.
        unsafe {
            (*ip).version_class_flow = 0x6000_0000u32.to_be();
            (*ip).payload_length = (l4_len as u16).to_be();
            (*ip).next_header = protocol;
            (*ip).hop_limit = HOP_LIMIT;
            (*ip).source = *source;
            (*ip).destination = *destination;
        }
    } else {
        let total = (l4_len + l4 - l3) as u16;
        // Three words built in registers: narrow stores that a wide load reads back cost 11 ns.
        let first = 0x45 | u32::from(total.to_be()) << 16;
        let second = u32::from(IPV4_DONT_FRAGMENT.to_be()) << 16;
        let third = u32::from(HOP_LIMIT) | u32::from(protocol) << 8;
        let (from, to) = (source[3], destination[3]);
        let header_sum = u64::from(first)
            + u64::from(second)
            + u64::from(third)
            + u64::from(from)
            + u64::from(to);
        let ip = packet.at::<[u32; 5]>(l3)?;
        // SAFETY: `at` checked the length.
        unsafe {
            *ip = [
                first,
                second,
                third | u32::from(!fold(header_sum)) << 16,
                from,
                to,
            ]
        };
    }
    Some(())
}

const _: () = assert!(size_of::<Ipv4>() == size_of::<[u32; 5]>());
