//! Random datagrams.

use fastrand::Rng;

use super::both::Both;
use super::series::{SECOND_PORT, SERIES, compare_at_random, garble, one_of, set_of, some_value};
use crate::bytes::{get, hit};
use crate::harness::{Datapath, random_v4};
use crate::packet::{ACK, Checksum, Frame, PORT, PSH, PacketBuilder, VLAN};

pub(super) fn vary_datagram(random: &mut Rng, packet: PacketBuilder) -> PacketBuilder {
    if random.bool() {
        return packet;
    }
    let id = random.u16(..);
    match random.u8(..24) {
        0 => packet.v6(),
        1 => packet.tag(VLAN, 5),
        2 => packet.padding(vec![0; random.usize(1..20)]),
        3 => packet.checksum(Checksum::None),
        4 => packet.checksum(Checksum::Partial),
        5 => packet.checksum(Checksum::Wrong),
        6 => packet.udp_length_lie(random.i32(-12..12)),
        7 => packet.ip_length_lie(random.i32(-12..12)),
        8 => packet.ip_checksum_lie(1),
        9 => packet.fragment(random.u16(..2), random.bool()),
        10 => packet.ip_options(&[1; 4]),
        11 => packet.from((random_v4(random), 40_000)),
        12 => packet.from(([10, 0, 0, *one_of(random, &[0, 1, 130, 255])], 40_000)),
        13 => packet.client_port(*one_of(random, &[80, 1023, 1024, PORT, 11999])),
        14 => packet.to(([10, 0, 0, *one_of(random, &[77, 78])], PORT)),
        15 => packet.server_port(SECOND_PORT),
        16 => packet.destined([2, 0, 0, 0, 0, 9]),
        17 => packet.destined([0xff; 6]),
        18 => packet.frame(Frame {
            id,
            sequence: random.u16(..2),
            count: random.u16(..3),
            reserved: random.u16(..2),
        }),
        19 => packet.no_frame(),
        20 => packet.ip_protocol(*one_of(random, &[1, 6, 51])),
        21 => {
            let mut packet = packet;
            packet.traffic_class = random.u8(..);
            packet.hop_limit = random.u8(..);
            packet.identification = random.u16(..);
            packet
        }
        22 => {
            let mut packet = packet;
            packet.source_mac[0] |= 1;
            packet
        }
        _ => packet,
    }
}

fn datagrams(random: &mut Rng, both: &mut Both, keys: &[Vec<u8>]) {
    for (key, id) in keys.iter().zip(1000..) {
        both.fill(id, key);
    }
    for id in 0..SERIES {
        let key = one_of(random, keys);
        let value = some_value(random);
        let (mut text, reply) = match random.u8(..16) {
            0 => (b"set ".to_vec(), b"STORED\r\n".to_vec()),
            1 => (get(&[key, one_of(random, keys)]), b"END\r\n".to_vec()),
            2 => ([b"mg ", &key[..], b" v\r\n"].concat(), b"EN\r\n".to_vec()),
            3 => (get(&[key]), b"END\r\n".to_vec()),
            _ => (get(&[key]), hit(key, &value)),
        };
        if text == b"set " {
            text = set_of(key, "0 0", &value, "");
        }
        garble(random, &mut text);
        let packet = PacketBuilder::udp(&text).id(id as u16);
        let packet = vary_datagram(random, packet);
        let mut bytes = packet.build();
        garble(random, &mut bytes);
        let passed = both.rx(&bytes);
        if passed && packet.source.is_ipv4() && random.u8(..8) != 0 && reply.len() < 1400 {
            both.tx(&packet.reply(reply).build());
        }
    }
}

#[test]
fn datagrams_are_answered_alike() {
    compare_at_random(datagrams);
}

/// A packet to a port that is nobody's ends where its port is seen, unless that may not be its port.
#[test]
fn what_may_be_for_somebody_is_heeded() {
    let path = Datapath::new();
    let packet = || PacketBuilder::udp(get(&["key"])).server_port(9);
    let total = i32::try_from(packet().build().len() - 14).expect("a length");
    let with_total = |len: i32| packet().ip_length_lie(len - total);
    let nobodys = [
        packet(),
        packet().to(([10, 0, 0, 78], 9)),
        packet().v6(),
        packet().tag(VLAN, 5),
        packet().ip_options(&[1; 4]),
        packet().ip_protocol(1),
        packet().ip_protocol(6),
        with_total(10),
        with_total(28),
        PacketBuilder::tcp(1, PSH | ACK, get(&["key"])).server_port(9),
    ];
    for packet in nobodys {
        path.pass(&packet);
        assert_eq!(path.stats().forgets, 0, "{packet:?}");
    }
    let heeded = [
        packet().fragment(0, true),
        packet().fragment(1, false),
        packet().ip_protocol(51),
        with_total(0),
    ];
    for (packet, count) in heeded.iter().zip(1..) {
        path.pass(packet);
        assert_eq!(path.stats().forgets, count, "{packet:?}");
    }
}
