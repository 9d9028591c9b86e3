//! IP headers that are wrong, cut off or almost right.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use prestack_abi::time::{CLAIM_SHIFT, CLAIM_UNITS};

use crate::bytes::{get, hit};
use crate::harness::{Datapath, Setup, Verdict, wait};
use crate::packet::{ACK, PORT, PacketBuilder, SERVER6};

/// Where the IP header starts.
const IP: usize = 14;

/// A GET of the key that is cached.
fn ask() -> PacketBuilder {
    PacketBuilder::udp(get(&["key"])).id(9)
}

fn filled() -> Datapath {
    let mut path = Datapath::new();
    path.fill("key", "value");
    path
}

/// The packet is passed; whether the cache is empty then.
fn empties(packet: &[u8]) -> bool {
    let path = filled();
    assert_eq!(path.rx_bytes(packet), Verdict::Passed);
    let is_empty = path.rx(&ask()) == Verdict::Passed;
    assert_eq!(is_empty, path.epoch() > 0);
    is_empty
}

/// What the packet has in the first byte of its IPv4 header, and the checksum that goes with it.
fn first_byte(packet: &PacketBuilder, byte: u8) -> Vec<u8> {
    let mut packet = packet.build();
    let old = packet[IP];
    packet[IP] = byte;
    // The sum changes by as much as the word that the byte is in.
    let sum = u16::from_be_bytes([packet[IP + 10], packet[IP + 11]]);
    let change = u16::from_be_bytes([old, 0]).wrapping_sub(u16::from_be_bytes([byte, 0]));
    let (sum, is_over) = sum.overflowing_add(change);
    let sum = sum.wrapping_add(u16::from(is_over));
    packet[IP + 10..IP + 12].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// The stack drops them, and so must not be answered for.
#[test]
fn other_versions_of_ip() {
    for version in [0, 3, 5, 6, 15] {
        assert!(!empties(&first_byte(&ask(), version << 4 | 5)));
    }
}

/// Linux leaves the length out of packets of more than 64 KiB that it has put together from
/// segments (`iph_totlen` in include/linux/ip.h).
#[test]
fn ipv4_without_a_length() {
    for packet in [ask(), PacketBuilder::tcp(1, ACK, "set key 0 0 1\r\nx\r\n")] {
        let len = packet.build().len() - IP;
        assert!(empties(&packet.ip_length_lie(-(len as i32)).build()));
    }
}

/// The ports may be in a part of the packet that cannot be seen.
#[test]
fn packets_that_end_before_their_ports() {
    for (packet, header) in [(ask(), 20), (ask().v6(), 40)] {
        let packet = packet.build();
        for ports in 0..4 {
            assert!(empties(&packet[..IP + header + ports]));
        }
    }
}

/// Behind a wildcard socket any address may be the server's.
#[test]
fn fragments_to_other_addresses_behind_a_wildcard() {
    let other = (Ipv4Addr::new(10, 0, 0, 77), PORT);
    assert!(empties(&ask().to(other).fragment(3, true).build()));
    let other = (Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 77), PORT);
    assert!(empties(&ask().v6().to(other).extension_header(44).build()));
}

/// Addresses are told apart by each of their parts.
#[test]
fn addresses_that_are_almost_the_servers() {
    let mut setup = Setup::default();
    setup.doors.retain(|door| door.address.is_some());
    let mut path = Datapath::with(&setup);
    path.fill("key", "value");
    let server = SERVER6.segments();
    for part in 0..server.len() {
        let mut other = server;
        other[part] ^= 0x100;
        let packet = ask().v6().to((Ipv6Addr::from(other), PORT));
        path.pass(&packet);
        path.pass(&packet.payload("delete key\r\n"));
        assert_eq!(path.rx(&ask()), Verdict::Served(hit("key", "value")));
    }
}

/// For how long one GET may keep others from fetching the same key.
fn claim() -> Duration {
    Duration::from_nanos(u64::from(CLAIM_UNITS + 1) << CLAIM_SHIFT)
}

/// At such an address another host may be behind this one: what it answers is its own.
#[test]
fn nothing_is_learned_at_an_address_that_only_a_wildcard_covers() {
    let elsewhere = (Ipv4Addr::new(10, 0, 0, 77), PORT);
    for text in ["get key\r\n", "get  key\r\n", "get key other\r\n"] {
        for refresh_age in [Duration::ZERO, Setup::default().refresh_age] {
            let mut path = Datapath::with(&Setup {
                refresh_age,
                ..Setup::default()
            });
            let request = ask().payload(text).to(elsewhere);
            path.pass(&request);
            path.tx(&request.reply(hit("key", "another")));
            assert_eq!(path.stats().fills, 0, "{text:?}");
            // Nor is there a reason to fetch what is old.
            wait(claim());
            path.fill("key", "value");
            path.fill("other", "value");
            wait(Duration::from_millis(1));
            let request = request.id(10);
            path.pass(&request);
            path.tx(&request.reply(hit("key", "another")));
            assert_eq!(path.stats().fills, 2, "{text:?}");
            assert_eq!(path.stats().refreshes, 0, "{text:?}");
        }
    }
}

/// Lengths that agree with each other, and not with the packet.
#[test]
fn datagrams_that_are_cut_off() {
    for text in ["get key\r\n", "gets key\r\n", "get key other\r\n"] {
        for whole in [ask().payload(text), ask().v6().payload(text)] {
            for missing in [1, 4, text.len() - 1] {
                let path = filled();
                // What was read last must not be taken for what is missing.
                path.rx(&whole);
                let lie = missing as i32;
                let cut = whole.clone().payload(&text[..text.len() - missing]);
                path.pass(&cut.ip_length_lie(lie).udp_length_lie(lie));
                assert_eq!(path.epoch(), 1, "{text:?} without {missing}");
            }
        }
    }
}

/// Longer than what is looked at, which ends as the command should.
#[test]
fn datagrams_that_are_too_long_to_be_read() {
    for len in [2040, 2050, 2100, 3000] {
        let text = [
            format!("set none 0 0 {len}\r\n"),
            "\r\n".repeat(len / 2 + 1),
        ]
        .concat();
        assert!(empties(&PacketBuilder::udp(&text).build()), "{len}");
    }
}
