//! The packets that are measured, between a client and a server.

use prestack_proto::checksum::{fold, sum};
use prestack_proto::net::{
    ETHERNET_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_VLAN, IPV4_LEN, IPV6_LEN, PROTO_TCP,
    PROTO_UDP, TCP_ACK, TCP_LEN, TCP_SYN, UDP_LEN, VLAN_LEN,
};
use prestack_proto::udp::FRAME_LEN;

/// memcached's addresses and port, and a port of the same host that is nobody's.
pub(super) const SERVER4: [u8; 4] = [10, 0, 0, 1];
pub(super) const SERVER6: [u8; 16] = v6(1);
pub(super) const PORT: u16 = 11211;
pub(super) const OTHER_PORT: u16 = 11212;
/// The VLAN of tagged packets.
pub(super) const VLAN: u16 = 42;
/// The MAC address of the server: its last byte is the address's.
pub(super) const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, SERVER4[3]];
/// The same of the client.
pub(super) const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, CLIENT4[3]];
/// The client, and the networks that it is in.
pub(super) const CLIENT4: [u8; 4] = [10, 0, 0, 2];
const CLIENT6: [u8; 16] = v6(2);
const CLIENT_PORT: u16 = 40_000;
pub(super) const NETWORK4: ([u8; 4], [u8; 4]) = ([10, 0, 0, 0], [255, 255, 255, 0]);
pub(super) const NETWORK6: ([u8; 16], [u8; 16]) = (v6(0), {
    let mut mask = [0; 16];
    (mask[0], mask[1], mask[2], mask[3]) = (0xff, 0xff, 0xff, 0xff);
    (mask[4], mask[5], mask[6], mask[7]) = (0xff, 0xff, 0xff, 0xff);
    mask
});

/// A host of fd00::/64.
const fn v6(host: u8) -> [u8; 16] {
    let mut address = [0; 16];
    (address[0], address[15]) = (0xfd, host);
    address
}

/// What is below UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layers {
    /// IPv4.
    V4,
    /// IPv4 behind one VLAN tag.
    Tagged,
    /// IPv6.
    V6,
}

impl Layers {
    fn l3(self) -> usize {
        match self {
            Self::Tagged => ETHERNET_LEN + VLAN_LEN,
            _ => ETHERNET_LEN,
        }
    }

    fn l4(self) -> usize {
        match self {
            Self::V6 => self.l3() + IPV6_LEN,
            _ => self.l3() + IPV4_LEN,
        }
    }

    /// Position of the UDP checksum. The frame, and so the request's id, follows.
    pub(super) fn checksum_at(self) -> usize {
        self.l4() + 6
    }

    /// Position of what follows the frame.
    pub(super) fn payload_at(self) -> usize {
        self.l4() + UDP_LEN + FRAME_LEN
    }

    /// A request to a port of the server's.
    pub(super) fn to_server(self, port: u16, id: u16, payload: &[u8]) -> Vec<u8> {
        self.packet([2, 1], [CLIENT_PORT, port], id, payload)
    }

    /// An answer of memcached's to the client.
    pub(super) fn to_client(self, id: u16, payload: &[u8]) -> Vec<u8> {
        self.packet([1, 2], [PORT, CLIENT_PORT], id, payload)
    }

    /// The same packet without its UDP checksum, and the sum from which that follows.
    pub(super) fn without_checksum(self, mut packet: Vec<u8>) -> (Vec<u8>, u64) {
        packet[self.checksum_at()..][..2].fill(0);
        let sum = self.udp_sum(&packet);
        (packet, sum)
    }

    /// A packet from one host to another: 1 is the server, 2 the client.
    fn packet(self, [from, to]: [u8; 2], ports: [u16; 2], id: u16, payload: &[u8]) -> Vec<u8> {
        let udp_len = (UDP_LEN + FRAME_LEN + payload.len()) as u16;
        let mut packet = vec![2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, from];
        if self == Self::Tagged {
            packet.extend(ETHERTYPE_VLAN.to_be_bytes());
            packet.extend(VLAN.to_be_bytes());
        }
        if self == Self::V6 {
            packet.extend(ETHERTYPE_IPV6.to_be_bytes());
            packet.extend([0x60, 0, 0, 0]);
            packet.extend(udp_len.to_be_bytes());
            packet.extend([PROTO_UDP, 64]);
            for host in [from, to] {
                packet.extend(if host == 1 { SERVER6 } else { CLIENT6 });
            }
        } else {
            packet.extend(ETHERTYPE_IPV4.to_be_bytes());
            packet.extend([0x45, 0]);
            packet.extend((IPV4_LEN as u16 + udp_len).to_be_bytes());
            // Not fragmented, 64 hops, the checksum to be filled in.
            packet.extend([0x1d, 0x1d, 0x40, 0, 64, PROTO_UDP, 0, 0]);
            for host in [from, to] {
                packet.extend(if host == 1 { SERVER4 } else { CLIENT4 });
            }
            let checksum = !fold(sum(&packet[self.l3()..]));
            packet[self.l3() + 10..][..2].copy_from_slice(&checksum.to_ne_bytes());
        }
        for port in ports {
            packet.extend(port.to_be_bytes());
        }
        packet.extend(udp_len.to_be_bytes());
        packet.extend([0, 0]);
        // The frame: one datagram.
        packet.extend(id.to_be_bytes());
        packet.extend([0, 0, 0, 1, 0, 0]);
        packet.extend(payload);
        let checksum = match !fold(self.udp_sum(&packet)) {
            0 => 0xffff,
            checksum => checksum,
        };
        packet[self.checksum_at()..][..2].copy_from_slice(&checksum.to_ne_bytes());
        packet
    }

    /// Sum of the datagram and its pseudo header (RFC 768, RFC 8200 8.1).
    fn udp_sum(self, packet: &[u8]) -> u64 {
        let (before, datagram) = packet.split_at(self.l4());
        let addresses = match self {
            Self::V6 => 2 * SERVER6.len(),
            _ => 2 * SERVER4.len(),
        };
        let addresses = &before[before.len() - addresses..];
        let rest =
            u64::from(u16::from(PROTO_UDP).to_be()) + u64::from((datagram.len() as u16).to_be());
        sum(datagram) + sum(addresses) + rest
    }
}

/// What differs from one TCP segment to another. All are IPv4, with the time stamps that Linux sends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tcp {
    /// Source and destination.
    pub(super) ports: [u16; 2],
    /// Sequence number and acknowledgement.
    pub(super) numbers: [u32; 2],
    pub(super) flags: u8,
}

impl Tcp {
    pub(super) const SYN: u8 = TCP_SYN;
    pub(super) const ACK: u8 = TCP_ACK;
    pub(super) const PUSH: u8 = 0x08;
    /// Two options that do nothing, and time stamps (RFC 7323).
    const OPTIONS: [u8; 12] = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 1];
    /// Position of the data.
    pub(super) const DATA: usize = ETHERNET_LEN + IPV4_LEN + TCP_LEN + Self::OPTIONS.len();

    /// A segment from the client.
    pub(super) fn to_server(self, data: &[u8]) -> Vec<u8> {
        self.packet([2, 1], data)
    }

    /// A segment from memcached.
    pub(super) fn to_client(self, data: &[u8]) -> Vec<u8> {
        self.packet([1, 2], data)
    }

    fn packet(self, [from, to]: [u8; 2], data: &[u8]) -> Vec<u8> {
        let tcp_len = TCP_LEN + Self::OPTIONS.len() + data.len();
        let mut packet = vec![2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, from];
        packet.extend(ETHERTYPE_IPV4.to_be_bytes());
        packet.extend([0x45, 0]);
        packet.extend(((IPV4_LEN + tcp_len) as u16).to_be_bytes());
        packet.extend([0x1d, 0x1d, 0x40, 0, 64, PROTO_TCP, 0, 0]);
        for host in [from, to] {
            packet.extend(if host == 1 { SERVER4 } else { CLIENT4 });
        }
        let checksum = !fold(sum(&packet[ETHERNET_LEN..]));
        packet[ETHERNET_LEN + 10..][..2].copy_from_slice(&checksum.to_ne_bytes());
        for port in self.ports {
            packet.extend(port.to_be_bytes());
        }
        for number in self.numbers {
            packet.extend(number.to_be_bytes());
        }
        let header_words = (TCP_LEN + Self::OPTIONS.len()) / 4;
        packet.extend([(header_words as u8) << 4, self.flags]);
        // The window; the checksum, which nobody looks at; no urgent data.
        packet.extend([0xff, 0xff, 0, 0, 0, 0]);
        packet.extend(Self::OPTIONS);
        packet.extend(data);
        packet
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_hold() {
        for layers in [Layers::V4, Layers::Tagged, Layers::V6] {
            for payload in [&b""[..], b"x", b"get key\r\n"] {
                let packet = layers.to_server(PORT, 7, payload);
                if layers != Layers::V6 {
                    assert_eq!(fold(sum(&packet[layers.l3()..][..IPV4_LEN])), 0xffff);
                }
                assert_eq!(fold(layers.udp_sum(&packet)), 0xffff);
                assert_eq!(&packet[layers.payload_at()..], payload);
                let at = layers.checksum_at();
                let field = u16::from_ne_bytes([packet[at], packet[at + 1]]);
                let (_, sum) = layers.without_checksum(packet);
                assert_eq!(!fold(sum), field);
            }
        }
    }
}
