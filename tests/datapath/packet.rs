//! Building packets, right ones by default and wrong ones on demand.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::bytes::{internet_checksum, ones_complement_sum};

/// MAC address of the client, or of the last router before the server.
pub const CLIENT_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];
/// MAC address of the server.
pub const SERVER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];

/// memcached's port.
pub const PORT: u16 = 11211;
/// The client's port.
pub const CLIENT_PORT: u16 = 40_000;
/// memcached's IPv4 address.
pub const SERVER4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// The client's IPv4 address, which is allowed to be served.
pub const CLIENT4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
/// memcached's IPv6 address.
pub const SERVER6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
/// The client's IPv6 address, which is allowed to be served.
pub const CLIENT6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);

/// EtherTypes, by the book (IEEE 802 numbers).
pub const IPV4: u16 = 0x0800;
pub const IPV6: u16 = 0x86dd;
pub const VLAN: u16 = 0x8100;
pub const SERVICE_VLAN: u16 = 0x88a8;

/// IP protocol numbers.
pub const ICMP: u8 = 1;
pub const ICMPV6: u8 = 58;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

/// TCP flags.
pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;
pub const URG: u8 = 0x20;
pub const ECE: u8 = 0x40;
pub const CWR: u8 = 0x80;

/// The memcached UDP frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    pub id: u16,
    pub sequence: u16,
    pub count: u16,
    pub reserved: u16,
}

impl Frame {
    /// The frame of a message of one datagram.
    pub const fn single(id: u16) -> Self {
        Self {
            id,
            sequence: 0,
            count: 1,
            reserved: 0,
        }
    }

    fn bytes(self) -> [u8; 8] {
        let mut bytes = [0; 8];
        let fields = [self.id, self.sequence, self.count, self.reserved];
        for (place, field) in bytes.chunks_exact_mut(2).zip(fields) {
            place.copy_from_slice(&field.to_be_bytes());
        }
        bytes
    }
}

/// What stands in the checksum field of UDP or TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// The checksum.
    Full,
    /// The sum of the pseudo header alone, as a stack leaves it for the network card to finish.
    Partial,
    /// Zero: none.
    None,
    /// Not the checksum.
    Wrong,
}

/// The transport layer of a packet.
#[derive(Clone, Debug)]
pub enum Transport {
    Udp {
        /// `None`: the payload follows the UDP header directly.
        frame: Option<Frame>,
        checksum: Checksum,
        /// Added to the length in the UDP header.
        lie: i32,
    },
    Tcp {
        sequence: u32,
        acknowledgement: u32,
        flags: u8,
        window: u16,
        options: Vec<u8>,
        checksum: Checksum,
    },
    Icmp {
        kind: u8,
        code: u8,
        checksum: Checksum,
    },
}

/// A packet to be: every method alters one thing about it.
#[derive(Clone, Debug)]
pub struct PacketBuilder {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub source_mac: [u8; 6],
    pub destination_mac: [u8; 6],
    /// EtherType and tag, the outermost first.
    pub tags: Vec<(u16, u16)>,
    pub transport: Transport,
    pub payload: Vec<u8>,
    /// IPv4 options or IPv6 extension headers.
    pub extra: Vec<u8>,
    /// What the IP header says that follows, if not the transport: an extension header.
    pub next_header: Option<u8>,
    /// The 16 bits of the IPv4 header with the fragment's offset and flags.
    pub fragment: u16,
    /// Added to the IPv4 header's checksum.
    pub ip_checksum_lie: u16,
    /// Added to the length in the IP header.
    pub ip_length_lie: i32,
    /// What follows the IP packet in its frame.
    pub padding: Vec<u8>,
    pub hop_limit: u8,
    pub traffic_class: u8,
    pub identification: u16,
}

impl PacketBuilder {
    /// A request with this payload over UDP and IPv4.
    pub fn udp(payload: impl AsRef<[u8]>) -> Self {
        Self {
            source: (CLIENT4, CLIENT_PORT).into(),
            destination: (SERVER4, PORT).into(),
            source_mac: CLIENT_MAC,
            destination_mac: SERVER_MAC,
            tags: Vec::new(),
            transport: Transport::Udp {
                frame: Some(Frame::single(1)),
                checksum: Checksum::Full,
                lie: 0,
            },
            payload: payload.as_ref().to_vec(),
            extra: Vec::new(),
            next_header: None,
            fragment: 0x4000,
            ip_checksum_lie: 0,
            ip_length_lie: 0,
            padding: Vec::new(),
            hop_limit: 61,
            traffic_class: 0,
            identification: 0x1d1d,
        }
    }

    /// A TCP segment with this payload over IPv4.
    pub fn tcp(sequence: u32, flags: u8, payload: impl AsRef<[u8]>) -> Self {
        Self {
            transport: Transport::Tcp {
                sequence,
                acknowledgement: 0x0101_0101,
                flags,
                window: 0xffff,
                options: Vec::new(),
                checksum: Checksum::Full,
            },
            ..Self::udp(payload)
        }
    }

    /// An error that a router sends about a packet, of which it quotes so many bytes (ICMP: RFC 792; ICMPv6: RFC 4443).
    pub fn error(kind: u8, code: u8, about: &Self, quoted: usize) -> Self {
        let packet = about.clone().untagged().build();
        let error = Self {
            transport: Transport::Icmp {
                kind,
                code,
                checksum: Checksum::Full,
            },
            ..Self::udp(&packet[14..14 + quoted])
        };
        // It goes to where the packet came from.
        error.to(about.source).from((about.destination.ip(), 0))
    }

    /// The same between the IPv6 addresses.
    pub fn v6(self) -> Self {
        let (client, server) = (self.source.port(), self.destination.port());
        self.from((CLIENT6, client)).to((SERVER6, server))
    }

    pub fn from(mut self, source: impl Into<SocketAddr>) -> Self {
        self.source = source.into();
        self
    }

    /// The same to another MAC address.
    pub fn destined(mut self, mac: [u8; 6]) -> Self {
        self.destination_mac = mac;
        self
    }

    pub fn to(mut self, destination: impl Into<SocketAddr>) -> Self {
        self.destination = destination.into();
        self
    }

    /// The same from another port of the client's.
    pub fn client_port(mut self, port: u16) -> Self {
        self.source.set_port(port);
        self
    }

    /// The same to another port of the server's.
    pub fn server_port(mut self, port: u16) -> Self {
        self.destination.set_port(port);
        self
    }

    /// Adds a VLAN tag behind those that are there.
    pub fn tag(mut self, ethertype: u16, tag: u16) -> Self {
        self.tags.push((ethertype, tag));
        self
    }

    /// Changes the memcached frame of a datagram.
    pub fn frame(mut self, new: Frame) -> Self {
        if let Transport::Udp { frame, .. } = &mut self.transport {
            *frame = Some(new);
        }
        self
    }

    /// Changes the request id of a datagram.
    pub fn id(self, id: u16) -> Self {
        self.frame(Frame::single(id))
    }

    /// Leaves the memcached frame out.
    pub fn no_frame(mut self) -> Self {
        if let Transport::Udp { frame, .. } = &mut self.transport {
            *frame = None;
        }
        self
    }

    pub fn checksum(mut self, new: Checksum) -> Self {
        let (Transport::Udp { checksum, .. }
        | Transport::Tcp { checksum, .. }
        | Transport::Icmp { checksum, .. }) = &mut self.transport;
        *checksum = new;
        self
    }

    /// Makes the length in the UDP header wrong by this much.
    pub fn udp_length_lie(mut self, new: i32) -> Self {
        if let Transport::Udp { lie, .. } = &mut self.transport {
            *lie = new;
        }
        self
    }

    /// Makes the length in the IP header wrong by this much.
    pub fn ip_length_lie(mut self, lie: i32) -> Self {
        self.ip_length_lie = lie;
        self
    }

    /// Makes the IPv4 header's checksum wrong by this much.
    pub fn ip_checksum_lie(mut self, lie: u16) -> Self {
        self.ip_checksum_lie = lie;
        self
    }

    /// Adds IPv4 options, a multiple of four bytes.
    pub fn ip_options(mut self, options: &[u8]) -> Self {
        assert!(options.len().is_multiple_of(4) && options.len() <= 40);
        self.extra = options.to_vec();
        self
    }

    /// Puts an IPv6 extension header of this kind between the IP header and the transport.
    pub fn extension_header(mut self, kind: u8) -> Self {
        let transport = self.protocol();
        self.next_header = Some(kind);
        self.extra = vec![transport, 0, 1, 4, 0, 0, 0, 0];
        self
    }

    /// Makes the IPv4 header say that this protocol follows.
    pub fn ip_protocol(mut self, protocol: u8) -> Self {
        self.next_header = Some(protocol);
        self
    }

    /// Makes the packet a fragment: offset in units of eight bytes, and whether more follow.
    pub fn fragment(mut self, offset: u16, more: bool) -> Self {
        self.fragment = offset | if more { 0x2000 } else { 0 };
        self
    }

    /// The numbers of a TCP segment: its first byte's, and what it acknowledges.
    pub fn numbers(&self) -> (u32, u32) {
        match self.transport {
            Transport::Tcp {
                sequence,
                acknowledgement,
                ..
            } => (sequence, acknowledgement),
            _ => panic!("it has no numbers"),
        }
    }

    /// The number of a TCP segment's first byte.
    pub fn sequence(mut self, number: u32) -> Self {
        if let Transport::Tcp { sequence, .. } = &mut self.transport {
            *sequence = number;
        }
        self
    }

    /// The flags of a TCP segment.
    pub fn flags(mut self, new: u8) -> Self {
        if let Transport::Tcp { flags, .. } = &mut self.transport {
            *flags = new;
        }
        self
    }

    /// The same without VLAN tags.
    pub fn untagged(mut self) -> Self {
        self.tags.clear();
        self
    }

    /// What a TCP segment acknowledges.
    pub fn acknowledging(mut self, number: u32) -> Self {
        if let Transport::Tcp {
            acknowledgement, ..
        } = &mut self.transport
        {
            *acknowledgement = number;
        }
        self
    }

    /// The window that a TCP segment announces.
    pub fn window(mut self, new: u16) -> Self {
        if let Transport::Tcp { window, .. } = &mut self.transport {
            *window = new;
        }
        self
    }

    /// The same in the other direction.
    pub fn reversed(mut self) -> Self {
        std::mem::swap(&mut self.source, &mut self.destination);
        std::mem::swap(&mut self.source_mac, &mut self.destination_mac);
        self
    }

    /// Adds TCP options, a multiple of four bytes.
    pub fn tcp_options(mut self, new: &[u8]) -> Self {
        assert!(new.len().is_multiple_of(4) && new.len() <= 40);
        if let Transport::Tcp { options, .. } = &mut self.transport {
            *options = new.to_vec();
        }
        self
    }

    /// Adds bytes behind the IP packet.
    pub fn padding(mut self, padding: impl AsRef<[u8]>) -> Self {
        self.padding = padding.as_ref().to_vec();
        self
    }

    /// The same with another payload.
    pub fn payload(mut self, payload: impl AsRef<[u8]>) -> Self {
        self.payload = payload.as_ref().to_vec();
        self
    }

    /// memcached's answer to this datagram, as its stack hands it to the network card: one datagram
    /// with this payload, its checksum partial.
    pub fn reply(&self, payload: impl AsRef<[u8]>) -> Self {
        let id = match self.transport {
            Transport::Udp {
                frame: Some(frame), ..
            } => frame.id,
            _ => 0,
        };
        Self {
            source_mac: self.destination_mac,
            destination_mac: self.source_mac,
            tags: self.tags.clone(),
            ..Self::udp(payload)
                .from(self.destination)
                .to(self.source)
                .id(id)
                .checksum(Checksum::Partial)
        }
    }

    /// memcached's way of answering nothing: a datagram without payload whose count is 0.
    pub fn nothing(&self) -> Self {
        let reply = self.reply("");
        let Transport::Udp { frame, .. } = reply.transport else {
            panic!("only a datagram has a frame");
        };
        let mut frame = frame.expect("a request has a frame");
        frame.count = 0;
        reply.frame(frame)
    }

    fn protocol(&self) -> u8 {
        match self.transport {
            Transport::Udp { .. } => UDP,
            Transport::Tcp { .. } => TCP,
            Transport::Icmp { .. } if self.source.is_ipv4() => ICMP,
            Transport::Icmp { .. } => ICMPV6,
        }
    }

    /// The packet as it is on the wire.
    pub fn build(&self) -> Vec<u8> {
        let mut packet = [self.destination_mac, self.source_mac].concat();
        for (ethertype, tag) in &self.tags {
            packet.extend(ethertype.to_be_bytes());
            packet.extend(tag.to_be_bytes());
        }
        let transport = self.transport_bytes();
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                packet.extend(IPV4.to_be_bytes());
                packet.extend(self.ipv4_header(source, destination, transport.len()));
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                packet.extend(IPV6.to_be_bytes());
                packet.extend(self.ipv6_header(source, destination, transport.len()));
            }
            mixed => panic!("a packet has addresses of one family: {mixed:?}"),
        }
        packet.extend(transport);
        packet.extend(&self.padding);
        packet
    }

    fn ipv4_header(&self, source: Ipv4Addr, destination: Ipv4Addr, payload: usize) -> Vec<u8> {
        let header_len = 20 + self.extra.len();
        let total = length(header_len + payload, self.ip_length_lie);
        let mut header = vec![0x40 | (header_len / 4) as u8, self.traffic_class];
        header.extend(total.to_be_bytes());
        header.extend(self.identification.to_be_bytes());
        header.extend(self.fragment.to_be_bytes());
        let protocol = self.next_header.unwrap_or(self.protocol());
        header.extend([self.hop_limit, protocol, 0, 0]);
        header.extend(source.octets());
        header.extend(destination.octets());
        header.extend(&self.extra);
        let checksum = internet_checksum(&header).wrapping_add(self.ip_checksum_lie);
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        header
    }

    fn ipv6_header(&self, source: Ipv6Addr, destination: Ipv6Addr, payload: usize) -> Vec<u8> {
        let class_and_flow = 0x6000_0000 | u32::from(self.traffic_class) << 20 | 0x0abcd;
        let mut header = class_and_flow.to_be_bytes().to_vec();
        header.extend(length(self.extra.len() + payload, self.ip_length_lie).to_be_bytes());
        header.extend([self.next_header.unwrap_or(self.protocol()), self.hop_limit]);
        header.extend(source.octets());
        header.extend(destination.octets());
        header.extend(&self.extra);
        header
    }

    fn transport_bytes(&self) -> Vec<u8> {
        let mut bytes = self.source.port().to_be_bytes().to_vec();
        bytes.extend(self.destination.port().to_be_bytes());
        match &self.transport {
            Transport::Udp {
                frame,
                checksum,
                lie,
            } => {
                let frame = frame.map_or_else(Vec::new, |frame| frame.bytes().to_vec());
                let len = length(8 + frame.len() + self.payload.len(), *lie);
                bytes.extend(len.to_be_bytes());
                bytes.extend([0, 0]);
                bytes.extend(frame);
                bytes.extend(&self.payload);
                let field = self.udp_checksum(&bytes, len, *checksum);
                bytes[6..8].copy_from_slice(&field.to_be_bytes());
            }
            Transport::Tcp {
                sequence,
                acknowledgement,
                flags,
                window,
                options,
                checksum,
            } => {
                bytes.extend(sequence.to_be_bytes());
                bytes.extend(acknowledgement.to_be_bytes());
                bytes.extend([(((20 + options.len()) / 4) << 4) as u8, *flags]);
                bytes.extend(window.to_be_bytes());
                bytes.extend([0; 4]);
                bytes.extend(options);
                bytes.extend(&self.payload);
                let pseudo = self.pseudo_header(bytes.len() as u16);
                let full = internet_checksum(&[&pseudo[..], &bytes].concat());
                let field = match checksum {
                    Checksum::Full => full,
                    Checksum::Partial => ones_complement_sum(&pseudo),
                    Checksum::None => 0,
                    Checksum::Wrong => full.wrapping_add(1),
                };
                bytes[16..18].copy_from_slice(&field.to_be_bytes());
            }
            Transport::Icmp {
                kind,
                code,
                checksum,
            } => {
                // What is behind the checksum says how long a packet may be, for some.
                bytes = vec![*kind, *code, 0, 0, 0, 0, 5, 0x78];
                bytes.extend(&self.payload);
                let full = match self.source {
                    SocketAddr::V4(_) => internet_checksum(&bytes),
                    SocketAddr::V6(_) => {
                        let pseudo = self.pseudo_header(bytes.len() as u16);
                        internet_checksum(&[&pseudo[..], &bytes].concat())
                    }
                };
                let field = match checksum {
                    Checksum::Full => full,
                    Checksum::Wrong => full.wrapping_add(1),
                    Checksum::Partial | Checksum::None => 0,
                };
                bytes[2..4].copy_from_slice(&field.to_be_bytes());
            }
        }
        bytes
    }

    fn udp_checksum(&self, datagram: &[u8], len: u16, checksum: Checksum) -> u16 {
        // Without a length the real one counts.
        let len = if len == 0 { datagram.len() as u16 } else { len };
        let pseudo = self.pseudo_header(len);
        let full = match internet_checksum(&[&pseudo[..], datagram].concat()) {
            0 => 0xffff,
            sum => sum,
        };
        match checksum {
            Checksum::Full => full,
            Checksum::Partial => ones_complement_sum(&pseudo),
            Checksum::None => 0,
            // A step further by one, zero left out, for zero would say that there is none.
            Checksum::Wrong => full.checked_add(1).unwrap_or(1),
        }
    }

    fn pseudo_header(&self, len: u16) -> Vec<u8> {
        crate::bytes::pseudo_header(
            self.source.ip(),
            self.destination.ip(),
            self.protocol(),
            len,
        )
    }
}

fn length(real: usize, lie: i32) -> u16 {
    u16::try_from(real as i32 + lie).expect("a length that fits its field")
}
