//! Random segments of TCP.

use fastrand::Rng;

use super::both::Both;
use super::series::{
    SECOND_PORT, SERIES, compare_at_random, garble, is_rare, one_of, set_of, some_value,
};
use crate::bytes::{get, hit, item};
use crate::packet::{ACK, FIN, PSH, PacketBuilder, RST, SERVER4, SYN, Transport, URG, VLAN};
use crate::tcp::connection::Connection;

/// Congestion flags of TCP (RFC 3168).
const ECE: u8 = 0x40;
const CWR: u8 = 0x80;

/// A command, and what memcached answers.
fn some_command(random: &mut Rng, key: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let value = some_value(random);
    let stored = b"STORED\r\n".to_vec();
    match random.u8(..24) {
        0 => (b"version\r\n".to_vec(), b"VERSION 1.6.18\r\n".to_vec()),
        1 => ([b"delete ", key, b"\r\n"].concat(), b"DELETED\r\n".to_vec()),
        2 => ([b"mg ", key, b" v\r\n"].concat(), b"EN\r\n".to_vec()),
        3 => {
            let line = format!(" 0 {} 77\r\n", value.len());
            let reply = [b"VALUE ", key, line.as_bytes(), &value, b"\r\nEND\r\n"].concat();
            ([b"gets ", key, b"\r\n"].concat(), reply)
        }
        4 => (
            get(&[key, b"other"]),
            [item(key, 0, &value), hit("other", "x")].concat(),
        ),
        5 => {
            let numbers = *one_of(
                random,
                &[
                    "00 0",
                    "0 -1",
                    "4294967295 0",
                    "1234567 1",
                    "0  0",
                    "+1 0",
                    "0 1234567",
                ],
            );
            (set_of(key, numbers, &value, ""), stored)
        }
        6 => {
            let more = *one_of(random, &[" ", " noreply ", " noreplx", " 0", "  noreply"]);
            (set_of(key, "0 0", &value, more), stored)
        }
        7 => ([b"get ", key, b" \r\n"].concat(), hit(key, &value)),
        8 => (b"mn\r\n".to_vec(), b"MN\r\n".to_vec()),
        9 => (
            set_of(key, "0 0", &value, ""),
            b"SERVER_ERROR out\r\n".to_vec(),
        ),
        10..13 => (set_of(key, "0 0", &value, " noreply"), Vec::new()),
        13..18 => (set_of(key, "0 0", &value, ""), stored),
        18 | 19 => (get(&[key]), b"END\r\n".to_vec()),
        _ => (get(&[key]), hit(key, &value)),
    }
}

/// Both ends of a connection.
struct Ends {
    connection: Connection,
    /// What memcached has not answered yet.
    owed: Vec<Vec<u8>>,
    /// The client's latest segments.
    sent: Vec<PacketBuilder>,
}

impl Ends {
    fn open(random: &mut Rng, both: &mut Both, port: u16) -> Self {
        let mut connection = Connection::new(port);
        connection.client = *one_of(random, &[1000, 0xffff_ff80, 0x7fff_ff80]);
        both.rx(&connection.segment(SYN, "").build());
        connection.client = connection.client.wrapping_add(1);
        connection.acked = connection.client;
        let scale = *one_of(random, &[0, 7, 14]);
        let agreed = connection
            .answer(SYN | ACK, "")
            .tcp_options(&[1, 3, 3, scale]);
        both.tx(&agreed.build());
        connection.server = connection.server.wrapping_add(1);
        if random.bool() {
            both.rx(&connection.segment(ACK, "").build());
        }
        Self {
            connection,
            owed: Vec::new(),
            sent: Vec::new(),
        }
    }

    fn step(&mut self, random: &mut Rng, both: &mut Both, keys: &[Vec<u8>]) {
        match random.u8(..20) {
            0..9 => {
                let key: &Vec<u8> = one_of(random, keys);
                let (mut text, reply) = some_command(random, key);
                garble(random, &mut text);
                if is_rare(random) {
                    let (second, other) = some_command(random, key);
                    text.extend(second);
                    self.owed.push(other);
                }
                if !reply.is_empty() {
                    self.owed.push(reply);
                }
                let size = if random.u8(..4) == 0 {
                    random.usize(1..1000)
                } else {
                    1448
                };
                for piece in text.chunks(size) {
                    self.send(random, both, piece);
                }
            }
            9 => self.send_again(random, both),
            10 => {
                self.connection.acked = self.connection.client;
                self.leave(random, both, b"");
            }
            _ => {
                if self.owed.is_empty() {
                    return;
                }
                let mut reply = self.owed.remove(0);
                if is_rare(random) && !self.owed.is_empty() {
                    reply.extend(self.owed.remove(0));
                }
                garble(random, &mut reply);
                if random.u8(..8) != 0 {
                    self.connection.acked = self.connection.client;
                }
                let size = if is_rare(random) {
                    random.usize(1..1000)
                } else {
                    4000
                };
                for piece in reply.chunks(size) {
                    self.leave(random, both, piece);
                }
            }
        }
    }

    fn send(&mut self, random: &mut Rng, both: &mut Both, data: &[u8]) {
        let segment = vary_segment(random, self.connection.segment(ACK | PSH, data));
        self.connection.client = self.connection.client.wrapping_add(data.len() as u32);
        self.sent.push(segment.clone());
        if is_rare(random) {
            return;
        }
        let mut bytes = segment.build();
        if is_rare(random) {
            garble(random, &mut bytes);
        }
        both.rx(&bytes);
    }

    /// One of the latest segments, or a part of it.
    fn send_again(&mut self, random: &mut Rng, both: &mut Both) {
        let back = random.usize(1..4);
        let Some(at) = self.sent.len().checked_sub(back) else {
            return;
        };
        let segment = self.sent[at].clone();
        let (sequence, _) = segment.numbers();
        let from = if random.bool() {
            0
        } else {
            random.usize(..=segment.payload.len())
        };
        let part = segment.payload[from..].to_vec();
        let segment = segment
            .sequence(sequence.wrapping_add(from as u32))
            .acknowledging(self.connection.server)
            .payload(part);
        both.rx(&segment.build());
    }

    fn leave(&mut self, random: &mut Rng, both: &mut Both, data: &[u8]) {
        let segment = vary_segment(random, self.connection.answer(ACK | PSH, data));
        both.tx(&segment.build());
        if is_rare(random) {
            both.tx(&segment.build());
        }
        self.connection.server = self.connection.server.wrapping_add(data.len() as u32);
    }
}

fn with_window(random: &mut Rng, mut packet: PacketBuilder) -> PacketBuilder {
    if let Transport::Tcp { window, .. } = &mut packet.transport {
        *window = *one_of(random, &[0, 1, 500, 0xffff]);
    }
    packet
}

fn vary_segment(random: &mut Rng, packet: PacketBuilder) -> PacketBuilder {
    let packet = if random.bool() {
        packet.tcp_options(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 1])
    } else {
        packet
    };
    if random.u8(..6) != 0 {
        return packet;
    }
    let (sequence, acknowledgement) = packet.numbers();
    let by = *one_of(random, &[1, 5, 100, 70_000]);
    match random.u8(..32) {
        0 => packet.sequence(sequence.wrapping_add(by)),
        1 => packet.sequence(sequence.wrapping_sub(by)),
        2 => packet.acknowledging(acknowledgement.wrapping_add(by)),
        3 | 4 => packet.acknowledging(acknowledgement.wrapping_sub(by)),
        5 => packet.flags(ACK | *one_of(random, &[FIN, RST, URG, SYN])),
        6 => packet.flags(PSH),
        7..10 => packet.flags(ACK | ECE | CWR),
        10..13 => packet.padding(b"\r\nnot the segment's"),
        13 => packet.ip_length_lie(random.i32(-12..12)),
        14 => packet.fragment(0, true),
        15 => packet.ip_options(&[1; 4]),
        16 => packet.tag(VLAN, 5),
        17 => packet.from(([10, 0, 0, 9], 40_000)),
        18 => packet.to((SERVER4, SECOND_PORT)),
        19..24 => with_window(random, packet),
        _ => packet,
    }
}

fn segments(random: &mut Rng, both: &mut Both, keys: &[Vec<u8>]) {
    let mut ports = 50_000..;
    let mut open =
        |random: &mut Rng, both: &mut Both| Ends::open(random, both, ports.next().expect("a port"));
    let mut ends: Vec<_> = (0..3).map(|_| open(random, both)).collect();
    for _ in 0..SERIES {
        let which = random.usize(..ends.len());
        if random.u8(..12) == 0 {
            ends[which] = open(random, both);
        }
        ends[which].step(random, both, keys);
    }
}

#[test]
fn segments_are_followed_alike() {
    compare_at_random(segments);
}
