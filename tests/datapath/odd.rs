//! Packets that are never answered, and which of them empty the cache.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use prestack::doors::{DoorSpec, Transports};

use crate::bytes::{get, hit, key_of};
use crate::harness::{Datapath, Setup, Verdict, wait};
use crate::packet::{
    ACK, CLIENT_PORT, CLIENT6, Checksum, Frame, PORT, PacketBuilder, SERVER4, SERVER6,
    SERVICE_VLAN, VLAN,
};

/// A GET of the key that is cached.
fn ask() -> PacketBuilder {
    PacketBuilder::udp(get(&["key"])).id(9)
}

fn filled(setup: &Setup) -> Datapath {
    let usual = Setup::default();
    let mut path = Datapath::with(&Setup {
        allow: usual.allow,
        ..setup.clone()
    });
    path.fill("key", "value");
    path.configure(setup);
    path
}

/// The packet is passed, and what is cached stays.
fn assert_harmless(packet: &PacketBuilder) {
    let mut path = filled(&Setup::default());
    path.pass(packet);
    assert_eq!(path.epoch(), 0, "{packet:?}");
    path.assert_hit("key", "value");
}

/// The packet is passed, but may change anything: the cache is empty, and stays so.
fn assert_forgets(packet: &PacketBuilder) {
    let mut path = filled(&Setup::default());
    path.pass(packet);
    assert!(path.epoch() > 0, "{packet:?} is not understood");
    assert!(!path.can_fill("key", "value"), "{packet:?}");
    assert!(!path.can_fill("other", "value"), "{packet:?}");
    path.assert_miss("key");
}

#[test]
fn the_packet_that_the_others_are_compared_with_is_answered() {
    let path = filled(&Setup::default());
    let served = Verdict::Served(hit("key", "value"));
    assert_eq!(path.rx(&ask()), served);
    assert_eq!(path.rx(&ask().v6()), served);
}

#[test]
fn sources_outside_the_allow_list() {
    for source in [
        Ipv4Addr::new(10, 0, 1, 2),
        Ipv4Addr::new(9, 255, 255, 255),
        Ipv4Addr::new(127, 0, 0, 1),
        Ipv4Addr::new(8, 8, 8, 8),
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::BROADCAST,
    ] {
        assert_harmless(&ask().from((source, CLIENT_PORT)));
    }
    for source in [
        Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 2),
        Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 2),
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2),
        Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0x0a00, 0x0002),
        Ipv6Addr::UNSPECIFIED,
    ] {
        assert_harmless(&ask().v6().from((source, CLIENT_PORT)));
    }
    let mut path = filled(&Setup::default());
    let stranger = (Ipv4Addr::new(10, 0, 1, 2), CLIENT_PORT);
    path.pass(&ask().from(stranger));
    assert_eq!(path.stats().not_allowed, 1);
    // Also where nothing is there that it could get: else nobody would learn why there never is.
    for other in ["get other\r\n", "gets key other\r\n", "mg key v\r\n"] {
        path.pass(&PacketBuilder::udp(other).from(stranger));
    }
    assert_eq!(path.stats().not_allowed, 4);
    // Its writes count.
    path.pass(&PacketBuilder::udp("delete key\r\n").from(stranger));
    assert_eq!(path.stats().invalidations, 1);
    path.assert_miss("key");
}

#[test]
fn an_empty_allow_list_allows_nobody() {
    let setup = Setup {
        allow: Vec::new(),
        ..Setup::default()
    };
    let path = filled(&setup);
    path.pass(&ask());
    path.pass(&ask().v6());
}

#[test]
fn the_last_of_many_networks_is_allowed() {
    let mut setup = Setup {
        allow: (0..31)
            .map(|i| format!("172.16.{}.0/24", 2 * i))
            .chain((0..31).map(|i| format!("fd01:0:0:{:x}::/64", 2 * i)))
            .map(|net| net.parse().expect("a network"))
            .collect(),
        ..Setup::default()
    };
    setup.allow.push("223.1.2.3/32".parse().expect("a network"));
    setup.allow.push("fdff::7/128".parse().expect("a network"));
    let path = filled(&setup);
    let served = Verdict::Served(hit("key", "value"));
    let from = |source: [u8; 4]| ask().from((Ipv4Addr::from(source), CLIENT_PORT));
    assert_eq!(path.rx(&from([223, 1, 2, 3])), served);
    path.pass(&from([223, 1, 2, 4]));
    path.pass(&from([10, 0, 0, 2]));
    let from = |last: u16| {
        let source = Ipv6Addr::new(0xfdff, 0, 0, 0, 0, 0, 0, last);
        ask().v6().from((source, CLIENT_PORT))
    };
    assert_eq!(path.rx(&from(7)), served);
    path.pass(&from(8));
    for part in 0..8 {
        let mut other = [0xfdff, 0, 0, 0, 0, 0, 0, 7];
        other[part] ^= 0x100;
        path.pass(&ask().v6().from((Ipv6Addr::from(other), CLIENT_PORT)));
    }
}

#[test]
fn checksums_that_do_not_hold() {
    for off in [1, 0x100, 0x8000, 0xfffe] {
        assert_harmless(&ask().ip_checksum_lie(off));
    }
    assert_harmless(&ask().checksum(Checksum::Wrong));
    assert_harmless(&ask().v6().checksum(Checksum::Wrong));
    // IPv6 wants one (RFC 8200, 8.1).
    assert_harmless(&ask().v6().checksum(Checksum::None));
    let mut path = filled(&Setup::default());
    path.pass(&ask().checksum(Checksum::Wrong));
    path.pass(&ask().ip_checksum_lie(1));
    path.pass(&ask().v6().checksum(Checksum::None));
    assert_eq!(path.stats().bad_checksums, 3);
    path.fill("other", "value");
    let two = PacketBuilder::udp(get(&["key", "other"])).id(10);
    path.pass(&two.clone().checksum(Checksum::Wrong));
    path.pass(&two.clone().ip_checksum_lie(1));
    assert!(matches!(path.rx(&two), Verdict::Served(_)));
}

/// What was flipped on the way is found, wherever it was in the datagram or its addresses.
#[test]
fn every_flipped_bit_is_found() {
    for (request, addresses) in [(ask(), 14 + 12), (ask().v6(), 14 + 8)] {
        let packet = request.build();
        let mut path = filled(&Setup::default());
        for at in addresses..packet.len() {
            for bit in 0..8 {
                let mut flipped = packet.clone();
                flipped[at] ^= 1 << bit;
                let verdict = path.rx_bytes(&flipped);
                assert_eq!(verdict, Verdict::Passed, "byte {at} bit {bit}");
                // It may have been taken for something that empties the cache.
                if path.epoch() > 0 {
                    path = filled(&Setup::default());
                }
                assert_ne!(path.rx(&request), Verdict::Passed, "byte {at} bit {bit}");
            }
        }
    }
}

#[test]
fn fragments() {
    for packet in [
        ask().fragment(0, true),
        ask().fragment(185, true),
        ask().fragment(185, false),
        ask().fragment(0x1fff, false),
        PacketBuilder::tcp(7, ACK, "set key 0 0 1\r\nx\r\n").fragment(0, true),
        PacketBuilder::tcp(7, ACK, "x").fragment(1, false),
        ask().v6().extension_header(44),
    ] {
        assert_forgets(&packet);
    }
}

/// Whatever such a datagram writes: should memcached come to it late, what was stored meanwhile is too old.
#[test]
fn the_reply_to_what_cannot_be_read_empties_the_cache_again() {
    let settle = Duration::from_millis(10);
    let long = ask()
        .payload("set key 0 0 1600\r\nthe first part")
        .udp_length_lie(1500);
    let mut long_v6 = long.clone().v6().extension_header(44);
    // The first one, with more to come.
    long_v6.extra[2..4].copy_from_slice(&[0, 1]);
    for (write, is_known) in [
        (long.clone().fragment(0, true), true),
        (long.clone().tag(VLAN, 5).fragment(0, true), true),
        (long.clone().ip_options(&[1; 4]).fragment(0, true), true),
        (long_v6, true),
        (ask().payload("delete key\r\n").ip_options(&[1; 40]), true),
        // What is not of UDP, and what does not show whose it is.
        (long.clone().fragment(0, true).ip_protocol(51), false),
        (long.clone().fragment(1, true), false),
        (long.clone().v6().extension_header(44), false),
        (long.clone().v6().extension_header(60), false),
    ] {
        let mut path = filled(&Setup {
            settle,
            ..Setup::default()
        });
        path.pass(&write);
        assert_eq!(path.epoch(), 1, "{write:?}");
        wait(settle);
        path.fill("key", "old");
        path.tx(&write.reply("STORED\r\n"));
        assert_eq!(path.epoch(), 1 + u64::from(is_known), "{write:?}");

        let path = filled(&Setup::default());
        path.lo(&write);
        path.lo(&write.reply("STORED\r\n"));
        assert_eq!(path.epoch(), 1 + u64::from(is_known), "lo: {write:?}");
    }
}

#[test]
fn fragments_to_other_hosts_are_harmless_without_a_wildcard() {
    let mut setup = Setup::default();
    setup.doors.retain(|door| door.address.is_some());
    let mut path = filled(&setup);
    let other = (Ipv4Addr::new(10, 0, 0, 77), PORT);
    path.pass(&ask().to(other).fragment(3, true));
    let other = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 77);
    path.pass(&ask().v6().to((other, PORT)).extension_header(44));
    assert_eq!(path.epoch(), 0);
    path.assert_hit("key", "value");
}

#[test]
fn ip_options() {
    for options in [
        &[1, 1, 1, 0][..],
        &[0x94, 4, 0, 0],
        &[7, 7, 4, 0, 0, 0, 0, 0],
        &[1; 40],
    ] {
        assert_forgets(&ask().ip_options(options));
        let segment = PacketBuilder::tcp(7, ACK, "get key\r\n");
        assert_forgets(&segment.ip_options(options));
    }
    // Not for memcached.
    assert_harmless(&ask().server_port(PORT + 1).ip_options(&[1; 8]));
}

#[test]
fn extension_headers() {
    for kind in [0, 43, 44, 51, 60, 135, 139, 140] {
        assert_forgets(&ask().v6().extension_header(kind));
        let segment = PacketBuilder::tcp(7, ACK, "get key\r\n");
        assert_forgets(&segment.v6().extension_header(kind));
    }
    // IPv4 has but one such header.
    for packet in [ask(), PacketBuilder::tcp(7, ACK, "get key\r\n")] {
        assert_forgets(&packet.ip_protocol(51));
    }
    // What every neighbour sends: a multicast listener report.
    let mut report = ask().v6().extension_header(0).build();
    report[14 + 40] = 58;
    let mut path = filled(&Setup::default());
    assert_eq!(path.rx_bytes(&report), Verdict::Passed);
    path.assert_hit("key", "value");
}

/// A fragment of a ping, with this offset in bytes and these lower bits.
fn fragment_of_ping(offset: u16, low: u16) -> Vec<u8> {
    const HEADER: usize = 14 + 40;
    let mut packet = ask().v6().extension_header(44).build();
    packet[HEADER] = 58;
    packet[HEADER + 2..HEADER + 4].copy_from_slice(&(offset | low).to_be_bytes());
    packet
}

/// What the fragments of a packet are together is what the first one says: Linux hands this to a socket if the
/// other one says UDP.
#[test]
fn later_fragments_that_claim_to_be_of_a_ping() {
    // The lowest bit says that more follow, the next ones are reserved.
    for low in [0, 1, 6, 7] {
        let mut path = filled(&Setup::default());
        let first = fragment_of_ping(0, low);
        assert_eq!(path.rx_bytes(&first), Verdict::Passed);
        assert_eq!(path.epoch(), 0);
        path.assert_hit("key", "value");
        for offset in [8, 0x100, 0x8000, 0xfff8] {
            let mut path = filled(&Setup::default());
            let later = fragment_of_ping(offset, low);
            assert_eq!(path.rx_bytes(&later), Verdict::Passed);
            assert_eq!(path.epoch(), 1, "{offset}");
            path.assert_miss("key");
        }
    }
}

#[test]
fn lengths_that_lie() {
    // The stack drops what is longer than it is, but only because it checks.
    for lie in [1, 8, 1000] {
        assert_eq!(
            filled(&Setup::default()).rx(&ask().udp_length_lie(lie)),
            Verdict::Passed
        );
        assert_eq!(
            filled(&Setup::default()).rx(&ask().ip_length_lie(lie)),
            Verdict::Passed
        );
    }
    for packet in [ask(), ask().v6()] {
        // Trailing bytes inside the IP packet, and a datagram that ends before its command does.
        assert_forgets(&packet.clone().udp_length_lie(-1));
        assert_forgets(&packet.clone().udp_length_lie(-5));
        assert_forgets(&packet.clone().ip_length_lie(-1));
        // Too short for a payload: memcached ignores it.
        assert_harmless(&packet.clone().payload(""));
        assert_harmless(&packet.clone().no_frame().payload("get"));
        assert_harmless(&packet.clone().no_frame().payload(""));
    }
}

/// In IPv6 a length of zero stands for "up to the end of the packet" (RFC 2675, 4), and Linux
/// delivers such a datagram (`__udp6_lib_rcv` in net/ipv6/udp.c).
#[test]
fn a_udp_length_of_zero_over_ipv6() {
    for text in ["delete key\r\n", "set key 0 0 1\r\nx\r\n"] {
        let len = 16 + text.len() as i32;
        let write = PacketBuilder::udp(text).v6().udp_length_lie(-len);
        let mut path = filled(&Setup::default());
        path.pass(&write);
        path.assert_miss("key");
        assert!(!path.can_fill("key", "value"));
    }
}

#[test]
fn replies_larger_than_the_mtu() {
    let len = hit("key", "value").len() as u32;
    for (headers, v6) in [(20 + 16, false), (40 + 16, true)] {
        let mut setup = Setup {
            mtu: headers + len,
            ..Setup::default()
        };
        let mut path = filled(&setup);
        let request = if v6 { ask().v6() } else { ask() };
        assert_eq!(path.rx(&request), Verdict::Served(hit("key", "value")));
        // Tags are not part of what the MTU limits.
        let tagged = request.clone().tag(SERVICE_VLAN, 1).tag(VLAN, 2);
        assert_eq!(path.rx(&tagged), Verdict::Served(hit("key", "value")));
        setup.mtu -= 1;
        path.configure(&setup);
        path.pass(&request);
        path.pass(&tagged);
        // What is there is not fetched again, only because it cannot be sent.
        let fills = path.stats().fills;
        path.pass(&request);
        path.tx(&request.reply(hit("key", "value")));
        assert_eq!(path.stats().fills, fills);
    }
}

#[test]
fn other_reads_are_passed_and_harmless() {
    for text in [
        "gets key\r\n",
        "gets key other\r\n",
        "mg key v\r\n",
        "mg key\r\n",
        "mg key s v f k O1 q\r\n",
        "me key\r\n",
        "mn\r\n",
        "version\r\n",
        "stats\r\n",
        "stats items\r\n",
    ] {
        assert_harmless(&PacketBuilder::udp(text).id(9));
        assert_harmless(&PacketBuilder::udp(text).id(9).v6());
    }
}

#[test]
fn what_is_not_understood_empties_the_cache() {
    for text in [
        &b"GET key\r\n"[..],
        b"Get key\r\n",
        b"get key\r\n\r\n",
        b"get key\n\n",
        b"\r\nget key\r\n",
        b" get key\r\n",
        b"get\tkey\r\n",
        b"get ke\x01y\r\n",
        b"get key\0\r\n",
        b"get key\x1f x\r\n",
        b"get key\rx\r\n",
        b"getkey\r\n",
        b"\r\n",
        b"\n",
        b"\0",
        &[0x80; 24],
        b"\x80\x50\x00\x03\x00\x00\x00\x00\x00\x00\x00\x03\0\0\0\0\0\0\0\0\0\0\0\0key",
        b"flush_all\r\n",
        b"flush_all 10\r\n",
        b"flush_all noreply\r\n",
        b"slab\r\n",
    ] {
        let packet = PacketBuilder::udp(text).id(9);
        assert_forgets(&packet);
        assert_forgets(&packet.v6());
    }
}

/// memcached answers with an error, and nothing changes.
#[test]
fn keys_that_are_missing_or_too_long() {
    let long = String::from_utf8(key_of(251)).expect("text");
    let commands = [
        "get", "gets", "mg", "md", "ma", "me", "delete", "incr", "decr", "touch",
    ];
    let lines = commands
        .iter()
        .flat_map(|verb| {
            [
                format!("{verb}\r\n"),
                format!("{verb} \r\n"),
                format!("{verb} {long}\r\n"),
                format!("{verb} {long} 1\r\n"),
            ]
        })
        .chain([format!("get key {long}\r\n"), format!("mg {long}a v b\r\n")]);
    for line in lines {
        assert_harmless(&PacketBuilder::udp(&line).id(9));
        let path = filled(&Setup::default());
        let segment = PacketBuilder::tcp(2, ACK, &line);
        path.accept(&segment);
        path.pass(&segment);
        assert_eq!(path.epoch(), 0, "{line:?}");
    }
}

#[test]
fn frames_that_are_not_those_of_a_request() {
    let frame = Frame::single(9);
    for frame in [
        Frame {
            sequence: 1,
            ..frame
        },
        Frame {
            sequence: 0x100,
            ..frame
        },
        Frame {
            reserved: 1,
            ..frame
        },
        Frame {
            reserved: 0x8000,
            ..frame
        },
    ] {
        assert_forgets(&ask().frame(frame));
        assert_forgets(&ask().v6().frame(frame));
    }
    // It drops what claims to be one of several.
    for count in [0, 2, 0x0101] {
        assert_harmless(&ask().frame(Frame { count, ..frame }));
    }
}

/// memcached drops a line that does not end in its datagram, and a header that does not.
#[test]
fn datagrams_that_are_cut_off() {
    for text in [
        &b"get key"[..],
        b"get key\r",
        b"delete key",
        b"noise",
        b"x",
        &[0x80; 23],
    ] {
        assert_harmless(&PacketBuilder::udp(text).id(9));
    }
    // For a body it waits, and says so when it has come.
    for text in [
        &b"set key 0 0 22\r\nabc"[..],
        &[
            0x80, 1, 0, 3, 8, 0, 0, 0, 0, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ][..],
    ] {
        assert_forgets(&PacketBuilder::udp(text).id(9));
    }
}

#[test]
fn other_ports_and_addresses_cost_nothing() {
    for port in [0, 1, 53, PORT - 1, PORT + 1, 0xcb2b, 65535] {
        assert_harmless(&ask().server_port(port));
        assert_harmless(&ask().v6().server_port(port));
        assert_harmless(&PacketBuilder::udp("flush_all\r\n").server_port(port));
        assert_harmless(&PacketBuilder::tcp(1, ACK, "flush_all\r\n").server_port(port));
    }
}

/// Behind a wildcard socket any address may be the server's: writes count, but only what was named
/// is served.
#[test]
fn an_address_that_only_a_wildcard_covers() {
    let packets = [
        ask().to((Ipv4Addr::new(10, 0, 0, 7), PORT)),
        ask().to((Ipv4Addr::new(224, 0, 0, 1), PORT)),
        ask()
            .v6()
            .to((Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 7), PORT)),
    ];
    for packet in packets {
        assert_harmless(&packet);
        let mut path = filled(&Setup::default());
        path.pass(&packet.payload("delete key\r\n"));
        path.assert_miss("key");
    }
}

/// The stack does not deliver IPv6 packets to the IPv4 addresses that they can name (RFC 4291,
/// 2.5.5.2).
#[test]
fn ipv4_addresses_in_ipv6_packets() {
    let setup = Setup {
        allow: vec!["::/0".parse().expect("a network")],
        ..Setup::default()
    };
    let path = filled(&setup);
    path.pass(&ask().v6().to((SERVER4.to_ipv6_mapped(), PORT)));
}

#[test]
fn tcp_without_udp_is_not_served_over_udp() {
    let door = |address, serve_udp| DoorSpec {
        address,
        port: PORT,
        backend: 0,
        serve_tcp: true,
        serve_udp,
        transports: Transports::all(address),
    };
    let setup = Setup {
        doors: vec![
            door(Some(SERVER4.into()), false),
            door(Some(SERVER6.into()), true),
        ],
        ..Setup::default()
    };
    // At an address that is not served nothing is learnt either.
    let mut path = filled(&Setup::default());
    path.configure(&setup);
    path.pass(&ask());
    assert_eq!(path.rx(&ask().v6()), Verdict::Served(hit("key", "value")));
}

#[test]
fn without_a_heartbeat_nothing_is_served() {
    let mut setup = Setup::default();
    let mut path = filled(&setup);
    path.fill("other", "value");
    setup.serve_for = Duration::ZERO;
    path.configure(&setup);
    path.pass(&ask());
    path.pass(&PacketBuilder::udp(get(&["key", "other"])).id(10));
    setup.serve_for = Duration::from_secs(60);
    path.configure(&setup);
    assert_eq!(path.rx(&ask()), Verdict::Served(hit("key", "value")));
}

#[test]
fn without_doors_nothing_happens() {
    let mut setup = Setup::default();
    let mut path = filled(&setup);
    setup.doors.clear();
    path.configure(&setup);
    path.pass(&ask());
    path.pass(&PacketBuilder::udp("flush_all\r\n").from((CLIENT6, 1)).v6());
    path.pass(&ask().fragment(1, true));
    assert_eq!(path.stats().forgets, 0);
}

#[test]
fn other_protocols_are_harmless() {
    let arp = [
        &[0xff; 6][..],
        &[2, 0, 0, 0, 0, 2, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
        &[0; 20],
    ]
    .concat();
    let mut icmp = ask().build();
    icmp[14 + 9] = 1;
    let mut icmp6 = ask().v6().build();
    icmp6[14 + 6] = 58;
    let mut gre = ask().build();
    gre[14 + 9] = 47;
    for packet in [arp, icmp, icmp6, gre] {
        let mut path = filled(&Setup::default());
        assert_eq!(path.rx_bytes(&packet), Verdict::Passed);
        assert_eq!(path.epoch(), 0);
        path.assert_hit("key", "value");
    }
}
