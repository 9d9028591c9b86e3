//! The packets that are measured: UDP over IPv4 between a client and a server.

use prestack_proto::checksum::{fold, sum};
use prestack_proto::net::{ETHERNET_LEN, ETHERTYPE_IPV4, IPV4_LEN, PROTO_UDP, UDP_LEN};

/// memcached's address and port, and a port of the same host that is nobody's.
pub(super) const SERVER: [u8; 4] = [10, 0, 0, 1];
pub(super) const PORT: u16 = 11211;
pub(super) const OTHER_PORT: u16 = 11212;
/// The client, and the network that it is in.
const CLIENT: [u8; 4] = [10, 0, 0, 2];
const CLIENT_PORT: u16 = 40_000;
pub(super) const NETWORK: ([u8; 4], [u8; 4]) = ([10, 0, 0, 0], [255, 255, 255, 0]);

/// Bytes before a datagram's payload.
pub(super) const HEADERS: usize = ETHERNET_LEN + IPV4_LEN + UDP_LEN;
/// Where the UDP checksum stands.
const CHECKSUM_AT: usize = ETHERNET_LEN + IPV4_LEN + 6;

/// A datagram from the client to a port of the server's.
pub(super) fn to_server(port: u16, payload: &[u8]) -> Vec<u8> {
    packet((CLIENT, CLIENT_PORT), (SERVER, port), payload)
}

/// A datagram from memcached to the client.
pub(super) fn to_client(payload: &[u8]) -> Vec<u8> {
    packet((SERVER, PORT), (CLIENT, CLIENT_PORT), payload)
}

/// The same packet without its UDP checksum, and the sum from which that follows.
pub(super) fn without_checksum(mut packet: Vec<u8>) -> (Vec<u8>, u64) {
    packet[CHECKSUM_AT..][..2].fill(0);
    let sum = udp_sum(&packet);
    (packet, sum)
}

fn packet(from: ([u8; 4], u16), to: ([u8; 4], u16), payload: &[u8]) -> Vec<u8> {
    let udp_len = (UDP_LEN + payload.len()) as u16;
    let mut packet = vec![2, 0, 0, 0, 0, to.0[3], 2, 0, 0, 0, 0, from.0[3]];
    packet.extend(ETHERTYPE_IPV4.to_be_bytes());
    packet.extend([0x45, 0]);
    packet.extend((IPV4_LEN as u16 + udp_len).to_be_bytes());
    // Not fragmented, 64 hops, the checksum to be filled in.
    packet.extend([0x1d, 0x1d, 0x40, 0, 64, PROTO_UDP, 0, 0]);
    packet.extend(from.0);
    packet.extend(to.0);
    let checksum = !fold(sum(&packet[ETHERNET_LEN..]));
    packet[ETHERNET_LEN + 10..][..2].copy_from_slice(&checksum.to_ne_bytes());
    packet.extend(from.1.to_be_bytes());
    packet.extend(to.1.to_be_bytes());
    packet.extend(udp_len.to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    let checksum = match !fold(udp_sum(&packet)) {
        0 => 0xffff,
        checksum => checksum,
    };
    packet[CHECKSUM_AT..][..2].copy_from_slice(&checksum.to_ne_bytes());
    packet
}

/// Sum of the datagram and its pseudo header (RFC 768).
fn udp_sum(packet: &[u8]) -> u64 {
    let datagram = &packet[ETHERNET_LEN + IPV4_LEN..];
    let addresses = &packet[ETHERNET_LEN + 12..ETHERNET_LEN + IPV4_LEN];
    let rest = u64::from(u16::from(PROTO_UDP).to_be()) + u64::from((datagram.len() as u16).to_be());
    sum(datagram) + sum(addresses) + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_hold() {
        for payload in [&b""[..], b"x", b"get key\r\n"] {
            let packet = to_server(PORT, payload);
            assert_eq!(fold(sum(&packet[ETHERNET_LEN..][..IPV4_LEN])), 0xffff);
            assert_eq!(fold(udp_sum(&packet)), 0xffff);
            assert_eq!(&packet[HEADERS..], payload);
            let field = u16::from_ne_bytes([packet[CHECKSUM_AT], packet[CHECKSUM_AT + 1]]);
            let (_, sum) = without_checksum(packet);
            assert_eq!(!fold(sum), field);
        }
    }
}
