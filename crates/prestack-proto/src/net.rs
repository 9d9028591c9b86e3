//! Constants of the layers below memcached.

/// Bytes of an Ethernet header without tags (IEEE 802.3).
pub const ETHERNET_LEN: usize = 14;
/// The bit of a MAC address's first byte that says that it is a group's (IEEE 802).
pub const MAC_GROUP: u8 = 1;
/// Bytes of a VLAN tag (IEEE 802.1Q).
pub const VLAN_LEN: usize = 4;
/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// EtherType of a customer VLAN tag (802.1Q).
pub const ETHERTYPE_VLAN: u16 = 0x8100;
/// EtherType of a service VLAN tag (802.1ad).
pub const ETHERTYPE_QINQ: u16 = 0x88a8;

/// Bytes of an IPv4 header without options (RFC 791).
pub const IPV4_LEN: usize = 20;
/// Bytes of the fixed IPv6 header (RFC 8200).
pub const IPV6_LEN: usize = 40;
/// "More fragments" and the fragment offset in the IPv4 header's fragment word.
pub const IPV4_FRAGMENT: u16 = 0x3fff;
/// "Don't fragment" in the IPv4 header's fragment word.
pub const IPV4_DONT_FRAGMENT: u16 = 0x4000;

/// IP protocol number of ICMP.
pub const PROTO_ICMP: u8 = 1;
/// IP protocol number of TCP.
pub const PROTO_TCP: u8 = 6;
/// IP protocol number of UDP.
pub const PROTO_UDP: u8 = 17;
/// IP protocol number of ICMPv6.
pub const PROTO_ICMPV6: u8 = 58;

/// IPv6 hop-by-hop options (RFC 8200; the numbers of all extension headers are in IANA's registry
/// "IPv6 Extension Header Types").
pub const EXTENSION_HOP_BY_HOP: u8 = 0;
/// IPv6 routing header.
pub const EXTENSION_ROUTING: u8 = 43;
/// IPv6 fragment header.
pub const EXTENSION_FRAGMENT: u8 = 44;
/// Authentication header (RFC 4302).
pub const EXTENSION_AUTHENTICATION: u8 = 51;
/// IPv6 destination options.
pub const EXTENSION_DESTINATION: u8 = 60;
/// Mobility header (RFC 6275).
pub const EXTENSION_MOBILITY: u8 = 135;
/// Host Identity Protocol (RFC 7401).
pub const EXTENSION_HIP: u8 = 139;
/// Shim6 (RFC 5533).
pub const EXTENSION_SHIM6: u8 = 140;

/// Bytes of the header of an ICMP error, behind which is what it is about (RFC 792, RFC 4443).
pub const ICMP_LEN: usize = 8;
/// Bytes of a UDP header (RFC 768).
pub const UDP_LEN: usize = 8;
/// Ports below this one are servers' (RFC 6335, system ports).
pub const RESERVED_PORTS: u16 = 1024;
/// The port that is registered for memcached.
pub const MEMCACHED_PORT: u16 = 11211;
/// Bytes of a TCP header without options (RFC 9293).
pub const TCP_LEN: usize = 20;
/// FIN in the TCP flags.
pub const TCP_FIN: u8 = 0x01;
/// SYN in the TCP flags.
pub const TCP_SYN: u8 = 0x02;
/// RST in the TCP flags.
pub const TCP_RST: u8 = 0x04;
/// PSH in the TCP flags.
pub const TCP_PSH: u8 = 0x08;
/// URG in the TCP flags.
pub const TCP_URG: u8 = 0x20;
/// ACK in the TCP flags.
pub const TCP_ACK: u8 = 0x10;

/// Hop limit (TTL) of replies: the kernel's default (`IPDEFTTL` in include/uapi/linux/ip.h).
pub const HOP_LIMIT: u8 = 64;
