//! Checking packets that the datapath sends, by the book and without its code.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::bytes::{ones_complement_sum, pseudo_header};
use crate::packet::{Frame, IPV4, IPV6, SERVICE_VLAN, UDP, VLAN};

/// A UDP datagram with a memcached frame, taken apart.
#[derive(Debug)]
pub struct Datagram {
    pub macs: [[u8; 6]; 2],
    /// The bytes between the MAC addresses and the EtherType of IP.
    pub tags: Vec<u8>,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub hop_limit: u8,
    pub ports: [u16; 2],
    pub has_checksum: bool,
    pub frame: Frame,
    pub payload: Vec<u8>,
}

/// Takes bytes from the front of a packet.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> &'a [u8] {
        assert!(len <= self.0.len(), "the packet ends early");
        let (taken, rest) = self.0.split_at(len);
        self.0 = rest;
        taken
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        self.take(N).try_into().expect("as many bytes as taken")
    }

    fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.array())
    }
}

/// Shortest Ethernet frame (IEEE 802.3), without its checksum.
pub const SHORTEST: usize = 60;

/// Takes a reply apart. Panics unless it is one that every stack accepts: all lengths exact, all
/// checksums right. Zeros may follow up to the length of the shortest frame.
pub fn datagram(packet: &[u8]) -> Datagram {
    let mut reader = Reader(packet);
    let (macs, tags, ethertype) = ethernet(&mut reader);
    if packet.len() <= SHORTEST && ethertype == IPV4 {
        let total = u16::from_be_bytes([reader.0[2], reader.0[3]]);
        let (used, padding) = reader.0.split_at(usize::from(total));
        assert!(padding.iter().all(|byte| *byte == 0), "{padding:?}");
        reader.0 = used;
    }
    let (source, destination, hop_limit) = match ethertype {
        IPV4 => ipv4(&mut reader),
        IPV6 => ipv6(&mut reader),
        other => panic!("EtherType {other:#06x}"),
    };
    let whole = reader.0;
    let ports = [reader.u16(), reader.u16()];
    let len = reader.u16();
    assert_eq!(usize::from(len), whole.len(), "length of the UDP datagram");
    let has_checksum = reader.u16() != 0;
    if has_checksum {
        let pseudo = pseudo_header(source, destination, UDP, len);
        let sum = ones_complement_sum(&[&pseudo[..], whole].concat());
        assert_eq!(sum, 0xffff, "the UDP checksum does not hold");
    } else {
        assert!(source.is_ipv4(), "IPv6 without a UDP checksum");
    }
    let frame = Frame {
        id: reader.u16(),
        sequence: reader.u16(),
        count: reader.u16(),
        reserved: reader.u16(),
    };
    Datagram {
        macs,
        tags,
        source,
        destination,
        hop_limit,
        ports,
        has_checksum,
        frame,
        payload: reader.0.to_vec(),
    }
}

/// The MAC addresses, the VLAN tags and the EtherType behind them.
fn ethernet(reader: &mut Reader<'_>) -> ([[u8; 6]; 2], Vec<u8>, u16) {
    let macs = [reader.array(), reader.array()];
    let mut tags = Vec::new();
    let mut ethertype = reader.u16();
    while ethertype == VLAN || ethertype == SERVICE_VLAN {
        tags.extend(ethertype.to_be_bytes());
        tags.extend(reader.take(2));
        ethertype = reader.u16();
    }
    (macs, tags, ethertype)
}

fn ipv4(reader: &mut Reader<'_>) -> (IpAddr, IpAddr, u8) {
    let packet = reader.0;
    assert_eq!(reader.take(1), [0x45], "IPv4 without options");
    reader.take(1);
    assert_eq!(
        usize::from(reader.u16()),
        packet.len(),
        "length of the packet"
    );
    reader.take(2);
    assert_eq!(reader.u16() & 0x3fff, 0, "a fragment");
    let [hop_limit, protocol] = reader.array();
    assert_eq!(protocol, UDP);
    assert_eq!(
        ones_complement_sum(&packet[..20]),
        0xffff,
        "the IPv4 header's checksum does not hold"
    );
    reader.take(2);
    let source: Ipv4Addr = reader.array().into();
    let destination: Ipv4Addr = reader.array().into();
    (source.into(), destination.into(), hop_limit)
}

fn ipv6(reader: &mut Reader<'_>) -> (IpAddr, IpAddr, u8) {
    assert_eq!(reader.take(1)[0] >> 4, 6, "version");
    reader.take(3);
    let len = reader.u16();
    let [next_header, hop_limit] = reader.array();
    assert_eq!(next_header, UDP);
    let source: Ipv6Addr = reader.array().into();
    let destination: Ipv6Addr = reader.array().into();
    assert_eq!(usize::from(len), reader.0.len(), "length of the payload");
    (source.into(), destination.into(), hop_limit)
}

/// The payload of the reply to a request. Panics unless everything around it is as the client
/// expects it: sent back where the request came from, with the request's id, in one datagram.
/// Padding behind the request is not looked at.
pub fn reply(request: &[u8], reply: &[u8]) -> Vec<u8> {
    let asked = Asked::of(request);
    let reply = datagram(reply);
    assert_eq!(reply.macs, [asked.macs[1], asked.macs[0]], "MAC addresses");
    assert_eq!(reply.tags, asked.tags, "VLAN tags");
    assert_eq!(
        (reply.source, reply.destination),
        (asked.destination, asked.source),
        "addresses"
    );
    assert_eq!(reply.ports, [asked.ports[1], asked.ports[0]], "ports");
    assert_eq!(reply.frame, Frame::single(asked.id), "memcached frame");
    assert_eq!(
        reply.has_checksum, asked.has_checksum,
        "a checksum if the request had one"
    );
    assert!(
        reply.hop_limit >= 32,
        "a hop limit that gets the reply home"
    );
    reply.payload
}

/// What of a request its reply depends on.
struct Asked {
    macs: [[u8; 6]; 2],
    tags: Vec<u8>,
    source: IpAddr,
    destination: IpAddr,
    ports: [u16; 2],
    has_checksum: bool,
    id: u16,
}

impl Asked {
    fn of(packet: &[u8]) -> Self {
        let mut reader = Reader(packet);
        let (macs, tags, ethertype) = ethernet(&mut reader);
        let (source, destination): (IpAddr, IpAddr) = if ethertype == IPV4 {
            reader.take(12);
            let pair: [[u8; 4]; 2] = [reader.array(), reader.array()];
            (pair[0].into(), pair[1].into())
        } else {
            reader.take(8);
            let pair: [[u8; 16]; 2] = [reader.array(), reader.array()];
            (pair[0].into(), pair[1].into())
        };
        let ports = [reader.u16(), reader.u16()];
        reader.take(2);
        let has_checksum = reader.u16() != 0;
        let id = reader.u16();
        Self {
            macs,
            tags,
            source,
            destination,
            ports,
            has_checksum,
            id,
        }
    }
}
