//! Where things are in a packet: Ethernet, VLAN tags, IPv4 and IPv6, ports. Lengths are read, not
//! assumed.

use prestack_abi::config::{Config, MAPPED_V4};
use prestack_proto::net::{
    ETHERNET_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ, ETHERTYPE_VLAN,
    EXTENSION_AUTHENTICATION, EXTENSION_DESTINATION, EXTENSION_FRAGMENT, EXTENSION_HIP,
    EXTENSION_HOP_BY_HOP, EXTENSION_MOBILITY, EXTENSION_ROUTING, EXTENSION_SHIM6, IPV4_FRAGMENT,
    IPV4_LEN, IPV6_LEN, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP, VLAN_LEN,
};

use prestack_proto::verifier::{self, opaque};

/// Positions in a packet that are read or written in place are below this power of two: headers, a
/// request and a reply of 1,400 bytes.
pub const MAX_POSITION: u64 = 2048;

/// The bytes of a packet that can be read in place.
#[derive(Clone, Copy)]
pub struct Packet {
    /// Address of the first byte.
    pub start: u64,
    /// Address behind the last byte.
    pub end: u64,
    /// 0, which the verifier does not know.
    pub zero: u64,
}

impl Packet {
    /// The packet between two addresses.
    #[inline(always)]
    pub fn between(start: usize, end: usize, config: &Config) -> Self {
        // SAFETY: `config` is a reference. Volatile: the compiler must not conclude anything.
        let zero = unsafe { (&raw const config.zero).read_volatile() };
        Self {
            start: start as u64,
            end: end as u64,
            zero,
        }
    }

    /// How many bytes can be read.
    #[inline(always)]
    pub fn len(self) -> u64 {
        self.end - self.start
    }

    /// Whether `len` bytes, a number that the compiler knows, can be read.
    #[inline(always)]
    pub fn reaches(self, len: u64) -> bool {
        self.start + len <= self.end
    }

    /// The `T` at a position that the compiler knows.
    ///
    /// # Safety
    ///
    /// The packet [reaches](Self::reaches) behind it, which was checked on every way here.
    #[inline(always)]
    pub unsafe fn fixed<T: Copy>(self, at: u64) -> T {
        // SAFETY: the caller's. BPF reads words at any address.
        unsafe { *((self.start + at) as *const T) }
    }

    /// Writes a `T` at a position that the compiler knows.
    ///
    /// # Safety
    ///
    /// As for [`fixed`](Self::fixed).
    #[inline(always)]
    pub unsafe fn set_fixed<T>(self, at: u64, value: T) {
        // SAFETY: the caller's.
        unsafe { *((self.start + at) as *mut T) = value };
    }

    /// A pointer to a `T` at `at` bytes (below [`MAX_POSITION`]) from the start, if all of it is
    /// there.
    #[inline(always)]
    pub fn at<T>(self, at: u64) -> Option<*mut T> {
        // The mask bounds the position where it is used: the verifier of Linux 6.1 forgets bounds
        // that it learnt before the position went to the stack. Opaque, or the compiler leaves it
        // out, or subtracts a constant from the pointer, which the verifier does not accept.
        let pointer = opaque(self.start + (opaque(at) & (MAX_POSITION - 1)));
        if pointer + size_of::<T>() as u64 > self.end {
            return None;
        }
        Some(pointer as *mut T)
    }

    /// A copy of the `T` at `at`.
    #[inline(always)]
    pub fn read<T: Copy>(self, at: u64) -> Option<T> {
        // SAFETY: `at` checked that all bytes are there. BPF reads words at any address, and
        // compiles `read_unaligned` to byte loads.
        self.at::<T>(at).map(|pointer| unsafe { *pointer })
    }

    /// Writes a `T` at `at`.
    #[inline(always)]
    pub fn write<T>(self, at: u64, value: T) -> Option<()> {
        // SAFETY: as in `read`.
        self.at::<T>(at).map(|pointer| unsafe { *pointer = value })
    }
}

impl prestack_proto::window::Source for Packet {
    #[inline(always)]
    fn word(&self, at: u64) -> Option<u64> {
        self.read(at)
    }

    #[inline(always)]
    fn forgotten(&self, value: u64) -> u64 {
        verifier::forgotten(value, self.zero)
    }
}

/// Source and destination of a packet; addresses in network byte order, IPv4 mapped.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Addresses {
    pub source: [u32; 4],
    pub destination: [u32; 4],
}

/// What a packet carries.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Headers {
    /// Position of the IP header.
    pub l3: u64,
    /// Position of the UDP or TCP header.
    pub l4: u64,
    /// Bytes from there to the end of the IP packet.
    pub l4_len: u64,
    /// Whether the packet is IPv6.
    pub v6: bool,
    /// UDP or TCP.
    pub udp: bool,
    /// The first word of the UDP or TCP header: source port in the lower, destination port in the
    /// upper half, each in network byte order.
    pub ports: u32,
    /// Source and destination.
    pub addresses: Addresses,
}

impl Headers {
    /// The destination port in network byte order.
    #[inline(always)]
    pub fn destination_port(&self) -> u16 {
        (self.ports >> 16) as u16
    }

    /// The source port in network byte order.
    #[inline(always)]
    pub fn source_port(&self) -> u16 {
        self.ports as u16
    }
}

/// What a packet is.
#[derive(Clone, Copy)]
pub enum Sort {
    /// Nothing that can reach memcached.
    Foreign,
    /// It ends, or cannot be read any further, before it is known what it is.
    Short,
    /// UDP or TCP in an IP packet without options.
    Plain(Headers),
    /// UDP or TCP behind IP options: the ports are known.
    Options(Headers),
    /// May carry anything to any port of the destination: a fragment, an IPv6 extension header, an
    /// authentication header.
    Veiled(Addresses),
}

/// What an Ethernet frame carries, and where that starts: behind two tags at most.
#[inline(always)]
pub fn network(packet: Packet) -> Option<(u16, u64)> {
    let mut l3 = ETHERNET_LEN as u64;
    let mut ethertype = packet.read::<u16>(12)?;
    for _ in 0..2 {
        if ethertype != ETHERTYPE_VLAN.to_be() && ethertype != ETHERTYPE_QINQ.to_be() {
            break;
        }
        ethertype = packet.read(l3 + 2)?;
        l3 += VLAN_LEN as u64;
    }
    Some((ethertype, l3))
}

/// Locates the headers of a packet.
#[inline(always)]
pub fn locate(packet: Packet) -> Sort {
    let Some((ethertype, l3)) = network(packet) else {
        return Sort::Short;
    };
    if ethertype == ETHERTYPE_IPV4.to_be() {
        locate_v4(packet, l3)
    } else if ethertype == ETHERTYPE_IPV6.to_be() {
        locate_v6(packet, l3)
    } else {
        Sort::Foreign
    }
}

/// IPv4 header (RFC 791), fields in network byte order.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ipv4 {
    pub version_and_length: u8,
    pub tos: u8,
    pub total_length: u16,
    pub id: u16,
    pub fragment: u16,
    pub hop_limit: u8,
    pub protocol: u8,
    pub checksum: u16,
    pub source: u32,
    pub destination: u32,
}

/// IPv6 header (RFC 8200), fields in network byte order.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ipv6 {
    pub version_class_flow: u32,
    pub payload_length: u16,
    pub next_header: u8,
    pub hop_limit: u8,
    pub source: [u32; 4],
    pub destination: [u32; 4],
}

const _: () = assert!(size_of::<Ipv4>() == IPV4_LEN && size_of::<Ipv6>() == IPV6_LEN);

#[inline(always)]
fn locate_v4(packet: Packet, l3: u64) -> Sort {
    let Some(ip) = packet.at::<Ipv4>(l3) else {
        return Sort::Short;
    };
    // SAFETY: `at` checked the length.
    let ip = unsafe { &*ip };
    let protocol = ip.protocol;
    let is_authenticated = protocol == EXTENSION_AUTHENTICATION;
    if protocol != PROTO_UDP && protocol != PROTO_TCP && !is_authenticated {
        return Sort::Foreign;
    }
    let addresses = Addresses {
        source: [0, 0, MAPPED_V4, ip.source],
        destination: [0, 0, MAPPED_V4, ip.destination],
    };
    if ip.fragment & IPV4_FRAGMENT.to_be() != 0 || is_authenticated {
        return Sort::Veiled(addresses);
    }
    let header_len = u64::from(ip.version_and_length & 0x0f) * 4;
    let total = u64::from(u16::from_be(ip.total_length));
    if total == 0 {
        // A packet of more than 64 KiB that offloads have put together.
        return Sort::Veiled(addresses);
    }
    if header_len < IPV4_LEN as u64 || ip.version_and_length >> 4 != 4 || total < header_len {
        return Sort::Foreign;
    }
    let l4 = l3 + header_len;
    let Some(ports) = packet.read(l4) else {
        return Sort::Veiled(addresses);
    };
    let headers = Headers {
        l3,
        l4,
        l4_len: total - header_len,
        v6: false,
        udp: protocol == PROTO_UDP,
        ports,
        addresses,
    };
    if header_len == IPV4_LEN as u64 {
        Sort::Plain(headers)
    } else {
        Sort::Options(headers)
    }
}

/// What says what follows, and the offset, of the first four bytes of an IPv6 fragment header.
const FRAGMENT_START: u32 = u32::from_ne_bytes([0xff, 0, 0xff, 0xf8]);
/// These of the first fragment of an ICMPv6 message.
const FIRST_OF_ICMPV6: u32 = u32::from_ne_bytes([PROTO_ICMPV6, 0, 0, 0]);

#[inline(always)]
fn locate_v6(packet: Packet, l3: u64) -> Sort {
    let Some(ip) = packet.at::<Ipv6>(l3) else {
        return Sort::Short;
    };
    // SAFETY: `at` checked the length.
    let ip = unsafe { &*ip };
    let addresses = Addresses {
        source: ip.source,
        destination: ip.destination,
    };
    match ip.next_header {
        PROTO_UDP | PROTO_TCP => {}
        // Multicast listener reports come with a hop-by-hop header and from every neighbour.
        EXTENSION_HOP_BY_HOP if packet.read(l3 + IPV6_LEN as u64) == Some(PROTO_ICMPV6) => {
            return Sort::Foreign;
        }
        // Of fragments the first one alone says what they become together (RFC 8200, section 4.5).
        EXTENSION_FRAGMENT
            if packet
                .read::<u32>(l3 + IPV6_LEN as u64)
                .is_some_and(|start| start & FRAGMENT_START == FIRST_OF_ICMPV6) =>
        {
            return Sort::Foreign;
        }
        EXTENSION_HOP_BY_HOP
        | EXTENSION_ROUTING
        | EXTENSION_FRAGMENT
        | EXTENSION_AUTHENTICATION
        | EXTENSION_DESTINATION
        | EXTENSION_MOBILITY
        | EXTENSION_HIP
        | EXTENSION_SHIM6 => return Sort::Veiled(addresses),
        _ => return Sort::Foreign,
    }
    let l4 = l3 + IPV6_LEN as u64;
    let Some(ports) = packet.read(l4) else {
        return Sort::Veiled(addresses);
    };
    Sort::Plain(Headers {
        l3,
        l4,
        l4_len: u64::from(u16::from_be(ip.payload_length)),
        v6: true,
        udp: ip.next_header == PROTO_UDP,
        ports,
        addresses,
    })
}

/// IPv6 fragment header (RFC 8200, 4.5), fields in network byte order.
#[repr(C)]
#[derive(Clone, Copy)]
struct Fragment {
    next_header: u8,
    reserved: u8,
    offset: u16,
    id: u32,
}

/// Locates the UDP header of a datagram of which this is the first fragment, whatever IPv4 options precede it.
#[inline(always)]
pub fn locate_first_fragment(packet: Packet) -> Option<Headers> {
    /// The bits of an IPv4 header, or of an IPv6 fragment header, with the offset.
    const OFFSET_V4: u16 = 0x1fff;
    const OFFSET_V6: u16 = 0xfff8;
    let (ethertype, l3) = network(packet)?;
    let v6 = ethertype != ETHERTYPE_IPV4.to_be();
    let (l4, addresses) = if v6 {
        let ip = packet.read::<Ipv6>(l3)?;
        let at = l3 + IPV6_LEN as u64;
        let fragment = packet.read::<Fragment>(at)?;
        if ip.next_header != EXTENSION_FRAGMENT
            || fragment.next_header != PROTO_UDP
            || fragment.offset & OFFSET_V6.to_be() != 0
        {
            return None;
        }
        let addresses = Addresses {
            source: ip.source,
            destination: ip.destination,
        };
        (at + size_of::<Fragment>() as u64, addresses)
    } else {
        let ip = packet.read::<Ipv4>(l3)?;
        if ip.protocol != PROTO_UDP || ip.fragment & OFFSET_V4.to_be() != 0 {
            return None;
        }
        let addresses = Addresses {
            source: [0, 0, MAPPED_V4, ip.source],
            destination: [0, 0, MAPPED_V4, ip.destination],
        };
        let header_len = u64::from(ip.version_and_length & 0x0f) * 4;
        (l3 + header_len, addresses)
    };
    Some(Headers {
        l3,
        l4,
        l4_len: 0,
        v6,
        udp: true,
        ports: packet.read(l4)?,
        addresses,
    })
}

/// Start of an IPv6 hop-by-hop header that says the length of the packet (RFC 2675), in network byte order.
#[repr(C)]
#[derive(Clone, Copy)]
struct Jumbo {
    next_header: u8,
    header_len: u8,
    option: u8,
    option_len: u8,
    payload_length: u32,
}

/// The option of [`Jumbo`] (IANA registry "Destination Options and Hop-by-Hop Options").
const OPTION_JUMBO: u8 = 0xc2;

/// Locates the headers of a TCP segment of more than 64 KiB, in a frame of `len` bytes without tags: a
/// local stack puts such together ("BIG TCP"), and leaves the length out (IPv4), or says it in a header of
/// its own (IPv6).
#[inline(always)]
pub fn locate_long(packet: Packet, len: u64) -> Option<Headers> {
    let l3 = ETHERNET_LEN as u64;
    let (l4, v6, addresses) = if packet.read::<u16>(12)? == ETHERTYPE_IPV4.to_be() {
        let ip = packet.read::<Ipv4>(l3)?;
        if ip.total_length != 0
            || ip.protocol != PROTO_TCP
            || ip.version_and_length != 0x45
            || ip.fragment & IPV4_FRAGMENT.to_be() != 0
        {
            return None;
        }
        let addresses = Addresses {
            source: [0, 0, MAPPED_V4, ip.source],
            destination: [0, 0, MAPPED_V4, ip.destination],
        };
        (l3 + IPV4_LEN as u64, false, addresses)
    } else {
        let ip = packet.read::<Ipv6>(l3)?;
        let jumbo = packet.read::<Jumbo>(l3 + IPV6_LEN as u64)?;
        if ip.next_header != EXTENSION_HOP_BY_HOP
            || ip.payload_length != 0
            || jumbo.next_header != PROTO_TCP
            || jumbo.header_len != 0
            || jumbo.option != OPTION_JUMBO
        {
            return None;
        }
        let addresses = Addresses {
            source: ip.source,
            destination: ip.destination,
        };
        let header = size_of::<Jumbo>() as u64;
        (l3 + IPV6_LEN as u64 + header, true, addresses)
    };
    Some(Headers {
        l3,
        l4,
        l4_len: len.wrapping_sub(l4),
        v6,
        udp: false,
        ports: packet.read(l4)?,
        addresses,
    })
}
