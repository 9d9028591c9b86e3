//! The express ways decide as the general steps do.
//!
//! The same packets go through two datapaths. To one an unrelated door was added, which comes first: the
//! express ways look at the first alone, so that the general steps decide everything there.

use std::cell::RefCell;
use std::mem::offset_of;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use prestack::doors::DoorSpec;
use prestack_abi::cache::{GROUPS, Group, Index};
use prestack_abi::flow::{Flow, MAX_ASKED, Mode};
use prestack_abi::requests::{Request, RequestSet};

use crate::bytes::{get, hit, item, key_of, value_for_reply};
use crate::harness::{Datapath, Setup, Verdict, random, random_v4};
use crate::kernel::{Programs, Ran};
use crate::packet::{
    ACK, Checksum, FIN, Frame, PORT, PSH, PacketBuilder, RST, SERVER4, SYN, Transport, URG, VLAN,
};
use crate::tcp::connection::Connection;
use crate::tcp::step;

/// For how long random packets are compared.
const SPAN: Duration = Duration::from_secs(2);
/// Packets of one series.
const SERIES: usize = 120;
/// A difference that shows so often is none of the clock, which may advance between two runs.
const REPETITIONS: usize = 4;

/// Another memcached's.
const SECOND_PORT: u16 = 11311;

/// Congestion flags of TCP (RFC 3168).
const ECE: u8 = 0x40;
const CWR: u8 = 0x80;

/// Two datapaths that are to do the same.
struct Both {
    express: Datapath,
    general: Datapath,
    /// What they have done differently.
    differences: Vec<String>,
}

impl Both {
    fn with(setup: &Setup) -> Self {
        let mut other = setup.clone();
        other.doors.insert(
            0,
            DoorSpec {
                address: Some([10, 0, 0, 77].into()),
                port: 11999,
                backend: 7,
                serve_udp: true,
            },
        );
        Self {
            express: Datapath::with(setup),
            general: Datapath::with(&other),
            differences: Vec::new(),
        }
    }

    fn run(&mut self, name: &str, program: fn(&Programs, &[u8]) -> Ran, packet: &[u8]) -> bool {
        let [express, general] = [&self.express, &self.general].map(|path| {
            let ran = program(&path.kernel().programs, packet);
            (ran.action, ran.packet, path.stats())
        });
        let passed = express.1 == packet;
        if express != general {
            self.differences.push(format!(
                "{name} \"{}\":\nexpress {:?}\ngeneral {:?}",
                packet.escape_ascii(),
                (express.0, express.1.escape_ascii().to_string(), express.2),
                (general.0, general.1.escape_ascii().to_string(), general.2),
            ));
        }
        passed
    }

    /// A packet arrives. Whether it is passed.
    fn rx(&mut self, packet: &[u8]) -> bool {
        self.run("rx", Programs::rx, packet)
    }

    /// A packet leaves.
    fn tx(&mut self, packet: &[u8]) {
        self.run("tx", Programs::tx, packet);
    }

    /// memcached answers a GET.
    fn fill(&mut self, id: u16, key: &[u8]) {
        let ask = PacketBuilder::udp(get(&[key])).id(id);
        if self.rx(&ask.build()) {
            self.tx(&ask.reply(hit(key, "value")).build());
        }
    }

    /// Compares what is known of the flows and of requests, and what is cached and may be.
    fn compare(&mut self, keys: &[Vec<u8>]) {
        let [express, general] = [&mut self.express, &mut self.general].map(|path| {
            let requests = RefCell::new(Vec::new());
            path.kernel_mut()
                .alter_requests(|set| requests.borrow_mut().push(remembered(set)));
            requests.into_inner()
        });
        for (express, general) in express.iter().zip(&general) {
            if express != general {
                self.differences
                    .push(format!("express {express}\ngeneral {general}"));
            }
        }
        let mut flows = [Vec::new(), Vec::new()];
        for (path, flows) in [&mut self.express, &mut self.general]
            .into_iter()
            .zip(&mut flows)
        {
            path.kernel_mut().used_flows(|flow| flows.push(known(flow)));
        }
        for (express, general) in flows[0].iter().zip(&flows[1]) {
            if express != general {
                self.differences
                    .push(format!("express {express}\ngeneral {general}"));
            }
        }
        for (i, key) in keys.iter().enumerate() {
            for id in [1, 2] {
                let ask = PacketBuilder::udp(get(&[key])).id(60_000 + 2 * i as u16 + id);
                if self.rx(&ask.build()) {
                    self.tx(&ask.reply(hit(key, "probe")).build());
                }
            }
        }
    }
}

/// What is known of requests, but for times, and for versions: how often one was raised depends on whether
/// the clock has moved on between a write and its end.
fn remembered(set: &RequestSet) -> String {
    if set.serial == 0 {
        return String::new();
    }
    let requests = set.requests.map(|request| {
        let Request {
            key,
            epoch,
            kind,
            unanswered,
            tickets,
            backend,
            ..
        } = request;
        (key, epoch, kind, unanswered, tickets, backend)
    });
    let stamps: Vec<_> = set
        .stamps
        .iter()
        .map(|stamps| [stamps.lost, stamps.unsure, stamps.strange].map(|stamp| stamp != 0))
        .collect();
    format!("{} {:?} {requests:?} {stamps:?}", set.serial, set.names)
}

/// What is known of a flow, but for times.
fn known(flow: &Flow) -> String {
    let unanswered: Vec<u8> = (flow.counted..flow.asked)
        .map(|number| flow.asks[number as usize & (MAX_ASKED - 1)])
        .collect();
    let tickets = flow.tickets.map(|ticket| {
        let Some(_) = (ticket.key != 0).then_some(()) else {
            return (0, 0, 0, 0);
        };
        (ticket.key, ticket.number, ticket.version, ticket.epoch)
    });
    let snapshots: Vec<_> = (0..flow.snapshots_taken.min(8))
        .map(|i| flow.snapshots[(flow.snapshots_taken - 1 - i) as usize & 7])
        .map(|s| (s.asked, s.sequence, s.mode, s.carried, s.protocol, s.quiets))
        .collect();
    let data = (flow.mode == Mode::Data as u32).then_some((flow.data_from, flow.data_until));
    format!(
        "asked {} counted {} answered {} busy {} owes {} owed {} crowding {} next {} acked {} repeat {} \
         edge {} sent {} doubt {} exchanges {} tentative {} state {} mode {} data {data:?} protocol {} \
         carried {} quiets {} hole {} given {} reply carried {} reply data {} over {} all acked {} \
         unacked {} quiet {} due {}\nunanswered {unanswered:?}\ntickets {tickets:?}\n\
         snapshots {snapshots:?}",
        flow.asked,
        flow.counted,
        flow.answered,
        flow.busy,
        flow.owes,
        flow.owed_number,
        flow.is_crowding,
        flow.next,
        flow.acked,
        flow.is_repeat,
        flow.edge,
        flow.sent,
        flow.doubt,
        flow.exchanges,
        flow.is_tentative,
        flow.state,
        flow.mode,
        flow.protocol,
        flow.carried,
        flow.quiets,
        flow.has_hole,
        flow.tickets_given,
        flow.reply_carried,
        flow.is_reply_data,
        flow.over_at != 0,
        flow.acked_before == u64::MAX,
        flow.unacked_since != 0,
        flow.quiet_at != 0,
        flow.flush_due != 0,
    )
}

/// Runs series of random packets through two datapaths, each from a seed of its own.
fn compare_at_random(series: fn(&mut Rng, &mut Both, &[Vec<u8>])) {
    let mut seeds = random();
    // The programs have to be loaded first.
    let mut start = None;
    let mut count = 0;
    while start.is_none_or(|start: Instant| start.elapsed() < SPAN) {
        let seed = seeds.u64(..);
        let mut last = Vec::new();
        for _ in 0..REPETITIONS {
            let mut random = Rng::with_seed(seed);
            let keys = some_keys(&mut random);
            let mut both = Both::with(&some_setup(&mut random));
            series(&mut random, &mut both, &keys);
            both.compare(&keys);
            last = both.differences;
            if last.is_empty() {
                break;
            }
        }
        assert!(last.is_empty(), "series {seed}: {}", last[0]);
        start.get_or_insert_with(Instant::now);
        count += 1;
    }
    println!("{count} series");
}

fn some_keys(random: &mut Rng) -> Vec<Vec<u8>> {
    let mut keys: Vec<_> = [1, 3, 8, 13, 250].map(key_of).into();
    for _ in 0..3 {
        let len = random.usize(1..=251);
        keys.push((0..len).map(|_| random.u8(0x21..)).collect());
    }
    keys
}

fn some_setup(random: &mut Rng) -> Setup {
    let mut setup = Setup {
        buckets: 1024,
        ..Setup::default()
    };
    if random.u8(..4) != 0 {
        // What is odd then does not keep all that follows from being cached.
        setup.settle = Duration::ZERO;
    }
    setup.doors.push(DoorSpec {
        address: Some(SERVER4.into()),
        port: SECOND_PORT,
        backend: 3,
        serve_udp: true,
    });
    match random.u8(..16) {
        0 => setup.mtu = random.u32(60..600),
        1 => setup.serve_for = Duration::ZERO,
        2 => setup
            .allow
            .insert(0, "10.0.0.128/25".parse().expect("a network")),
        3 => setup.allow.clear(),
        4 => setup.serve_reserved_ports = true,
        5 => {
            setup.rate_interval = Duration::from_secs(1);
            setup.rate_burst = Duration::from_secs(5);
        }
        6 => setup.links.clear(),
        7 => setup.links[0].allow = random.u64(..) & !1,
        8 => setup.links.swap(0, 1),
        9 => setup.doors.retain(|door| door.address.is_none()),
        10 => setup.doors[0].serve_udp = false,
        11 => setup.doors.swap(0, 1),
        _ => {}
    }
    setup
}

fn one_of<'a, T>(random: &mut Rng, all: &'a [T]) -> &'a T {
    &all[random.usize(..all.len())]
}

fn is_rare(random: &mut Rng) -> bool {
    random.u8(..24) == 0
}

/// Changes, adds or takes away a byte, at times.
fn garble(random: &mut Rng, bytes: &mut Vec<u8>) {
    const BYTES: &[u8] = b"\0\t\n\r !0129_gGs\x1f\x7f\x80\xff-+";
    if bytes.is_empty() || !is_rare(random) {
        return;
    }
    let at = random.usize(..bytes.len());
    let byte = *one_of(random, BYTES);
    match random.u8(..4) {
        0 => bytes.insert(at, byte),
        1 => drop(bytes.remove(at)),
        2 => bytes[at] ^= 1 << random.u8(..8),
        _ => bytes[at] = byte,
    }
}

fn some_value(random: &mut Rng) -> Vec<u8> {
    const ODD: [&[u8]; 7] = [
        b"",
        b"\r\n",
        b"END\r\n",
        b"\r\nEND\r\nVALUE a 0 1\r\nx",
        b"STORED\r\n",
        b"a\r\nEND",
        b"get a\r\n",
    ];
    if random.bool() {
        return one_of(random, &ODD).to_vec();
    }
    let len = *one_of(
        random,
        &[3, 9, 10, 50, 64, 99, 200, 990, 1000, 1024, 1300, 1400],
    );
    let len = len + random.usize(..8);
    (0..len).map(|_| random.u8(..)).collect()
}

fn vary_datagram(random: &mut Rng, packet: PacketBuilder) -> PacketBuilder {
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

fn set_of(key: &[u8], numbers: &str, value: &[u8], more: &str) -> Vec<u8> {
    let line = format!(" {numbers} {}{more}\r\n", value.len());
    [b"set ", key, line.as_bytes(), value, b"\r\n"].concat()
}

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

/// What one end of a connection does.
enum Act {
    /// The client sends this.
    Send(Vec<u8>),
    /// The client sends this, and it is lost.
    Lose(Vec<u8>),
    /// The client sends these bytes of its segment of this number again.
    Again(usize, Range<usize>),
    /// memcached sends this, having got all.
    Reply(Vec<u8>),
}

fn send(text: impl AsRef<[u8]>) -> Act {
    Act::Send(text.as_ref().to_vec())
}

fn reply(text: impl AsRef<[u8]>) -> Act {
    Act::Reply(text.as_ref().to_vec())
}

/// An exchange, by which a connection is established.
fn opened() -> impl Iterator<Item = Act> {
    [send("get first\r\n"), reply("END\r\n")].into_iter()
}

/// A connection on which this is done, and then a `set` and a `get`.
fn play(setup: &Setup, acts: Vec<Act>) {
    let mut both = Both::with(setup);
    both.fill(1, b"key");
    let mut connection = Connection::new(50_000);
    both.rx(&connection.segment(SYN, "").build());
    connection.client += 1;
    connection.acked = connection.client;
    both.tx(&connection.answer(SYN | ACK, "").build());
    connection.server += 1;
    let last = [
        send("set last 0 0 4\r\nlast\r\n"),
        reply("STORED\r\n"),
        send("get key\r\n"),
        reply(hit("key", "value")),
    ];
    let mut sent = Vec::new();
    let is_long = acts.len() > 50;
    for act in acts.into_iter().chain(last) {
        match act {
            Act::Send(text) => {
                let segment = connection.segment(ACK | PSH, &text);
                both.rx(&segment.build());
                connection.client += text.len() as u32;
                sent.push(segment);
            }
            Act::Lose(text) => {
                sent.push(connection.segment(ACK | PSH, &text));
                connection.client += text.len() as u32;
            }
            Act::Again(number, part) => {
                let segment: PacketBuilder = sent[number].clone();
                let sequence = segment.numbers().0 + part.start as u32;
                let bytes = segment.payload[part].to_vec();
                both.rx(&segment.sequence(sequence).payload(bytes).build());
            }
            Act::Reply(text) => {
                connection.acked = connection.client;
                both.tx(&connection.answer(ACK | PSH, &text).build());
                connection.server = connection.server.wrapping_add(text.len() as u32);
            }
        }
        if !is_long {
            both.compare(&[]);
        }
    }
    both.compare(&[b"key".to_vec(), b"last".to_vec(), b"first".to_vec()]);
    assert!(both.differences.is_empty(), "{}", both.differences[0]);
}

#[test]
fn odd_streams_are_followed_alike() {
    let setup = Setup::default();
    let long = set_of(b"key", "0 0", &[b'x'; 1200], "");
    let many_keys = format!("get {}", "abcdefgh ".repeat(90));
    let streams = vec![
        // A part of a line, or of its keys, precedes.
        vec![send("get k"), send("get key\r\n"), reply("END\r\n")],
        vec![send(many_keys), send("get key\r\n"), reply("END\r\n")],
        // What was lost comes behind what follows it.
        vec![
            Act::Lose(b"get key\r\n".to_vec()),
            send("set key 0 0 1\r\nx\r\n"),
            Act::Again(1, 0..9),
            reply("END\r\nSTORED\r\n"),
        ],
        // A block that ends wrongly, and lines that do.
        vec![send("set key 0 0 8\r\nabcdefgh.."), send("get key\r\n")],
        vec![send("set key 0 0 8\n\nabcdefgh\r\n"), reply("STORED\r\n")],
        vec![send("set key 0 0 8\r\rabcdefgh\r\n"), reply("STORED\r\n")],
        vec![send("set key 0,0 8\r\nabcdefgh\r\n"), reply("ERROR\r\n")],
        vec![send("get keyname\n\n"), reply("ERROR\r\n")],
        // A part of a block is sent again.
        vec![send(&long), Act::Again(1, 500..900), reply("STORED\r\n")],
        // More than are remembered.
        (0..600).map(|_| send("get key\r\n")).collect(),
        // What looks like a reply is a part of one.
        vec![
            send("get key\r\n"),
            reply("VALUE key 0 9\r\nxx"),
            reply("END\r\n"),
            reply("yy\r\nEND\r\n"),
        ],
        vec![
            send("set key 0 0 1\r\nx\r\n"),
            reply("NOT_"),
            reply("STORED\r\n"),
        ],
        vec![
            send("get key\r\n"),
            reply("VALUE key 0 3\r\nabc\r\nENX\r\n"),
        ],
        vec![send("get key\r\n"), reply("STORED\r\n")],
        // A number of bytes that is none, or not only one.
        vec![send("get key\r\n"), reply("VALUE key 0 \r\n\r\nEND\r\n")],
        vec![send("get key\r\n"), reply("VALUE key 0 x\r\n\r\nEND\r\n")],
        vec![
            send("get key\r\n"),
            reply("VALUE key 0 x3\r\nabc\r\nEND\r\n"),
        ],
    ];
    for stream in streams {
        play(&setup, opened().chain(stream).collect());
    }
    // The other protocol.
    let binary_noop = [&[0x80, 0x0a][..], &[0; 22]].concat();
    play(&setup, vec![send(binary_noop), send("get key\r\n")]);
    // A block is cut at each of its last bytes, and ends as it should or not.
    for (end, cut) in (0..6)
        .map(|cut| ("\r\n", cut))
        .chain((0..6).map(|cut| ("..", cut)))
    {
        let set = format!("set key 0 0 20\r\n{}{end}", "x".repeat(20));
        let (one, two) = set.split_at(set.len() - cut);
        let [early, late] = [&one[..20], &one[20..]];
        let stream = [send(early), send(late), send(two), reply("STORED\r\n")];
        play(&setup, opened().chain(stream).collect());
    }
    // First lines of every length.
    for len in (40..60).step_by(step(7)) {
        let key = key_of(len);
        for value in ["", "abcdefg\n", "0123456789"] {
            let stream = vec![
                send(get(&[&key])),
                reply(hit(&key, value)),
                send(get(&[&key])),
                reply(hit(&key, value)),
            ];
            play(&setup, stream);
        }
    }
    // More writes than a bucket tells apart.
    let crowded = Setup {
        buckets: 1,
        ..Setup::default()
    };
    let writes = (0..9).map(|i| send(format!("set key{i} 0 0 1\r\nx\r\n")));
    let replies = (0..9).map(|_| reply("STORED\r\n"));
    play(&crowded, opened().chain(writes).chain(replies).collect());
}

/// Who loses the race with a writer lets the request pass as it came, whatever its length and room.
#[test]
fn a_lost_race_leaves_the_request_as_it_was() {
    let setup = Setup {
        buckets: 1,
        ..Setup::default()
    };
    let mut path = Datapath::with(&setup);
    let keys: Vec<_> = (1..=20)
        .chain([63, 64, 65, 247, 248, 249, 250])
        .map(key_of)
        .collect();
    let mut random = random();
    let is_over = AtomicBool::new(false);
    let paddings = [0, 2, 80];
    for key in &keys {
        let value = value_for_reply(key, key.len() + random.usize(40..1000)).unwrap_or_default();
        path.fill(key, &value);
        let seqs: [_; GROUPS] = std::array::from_fn(|number| {
            let group = offset_of!(Index, groups) + number * size_of::<Group>();
            let at = group + offset_of!(Group, seq);
            path.kernel().cache.index.atomic_u32(0, at)
        });
        is_over.store(false, Ordering::SeqCst);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::SeqCst) {
                    // As if the entry had been written anew.
                    for seq in seqs {
                        seq.fetch_add(2, Ordering::SeqCst);
                    }
                }
            });
            for padding in paddings {
                let request = PacketBuilder::udp(get(&[key])).padding(vec![0xa5; padding]);
                for _ in 0..20 {
                    // Who is answered gets the value, and who is not has what was sent.
                    if let Verdict::Served(reply) = path.rx(&request) {
                        assert_eq!(reply, hit(key, &value));
                    }
                }
            }
            is_over.store(true, Ordering::SeqCst);
        });
        path.exchange([b"delete ", &key[..], b"\r\n"].concat(), "DELETED\r\n");
    }
    println!("{} races", path.stats().races);
}
