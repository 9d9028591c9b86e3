//! While the datapath stands aside everything passes and nothing is noted; or requests are followed, and replies
//! over TCP not learnt from.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use prestack_abi::config::Attention;
use prestack_abi::stats::Stats;

use crate::bytes::{get, hit};
use crate::harness::{Datapath, Setup, Verdict, wait, wait_to_settle};
use crate::packet::{ACK, FIN, PORT, PSH, PacketBuilder, RST};
use crate::tcp::assert_untouched;
use crate::tcp::connection::Connection;
use crate::translated;
use crate::translated::connection::Ready;

const SETTLE: Duration = Duration::from_millis(1);

fn setup(attention: Attention) -> Setup {
    Setup {
        attention,
        settle: SETTLE,
        ..Setup::default()
    }
}

/// Stands aside, with two keys in its cache.
fn filled() -> Datapath {
    let mut path = Datapath::with(&setup(Attention::Learning));
    path.fill("key", "value");
    path.fill("other", "value");
    path.configure(&setup(Attention::Aside));
    path
}

/// Attends again, as if nothing had to be forgotten.
fn attend(path: &mut Datapath) {
    path.configure(&setup(Attention::Learning));
}

/// Connections of every kind.
fn connections() -> Vec<Connection> {
    let plain = Connection::new(4000);
    let v6 = Connection {
        v6: true,
        ..Connection::new(4001)
    };
    let tagged = Connection {
        tags: vec![(0x8100, 5)],
        ..Connection::new(4002)
    };
    let local = |address: IpAddr| Connection {
        local: Some(address),
        ..Connection::new(4003)
    };
    vec![
        plain,
        v6,
        tagged,
        local(Ipv4Addr::LOCALHOST.into()),
        local(Ipv6Addr::LOCALHOST.into()),
    ]
}

/// A name, and what makes a datagram come so.
type Way = (&'static str, fn(PacketBuilder) -> PacketBuilder);

/// Ways on which datagrams arrive.
fn ways() -> Vec<Way> {
    vec![
        ("plain", |datagram| datagram),
        ("IPv6", PacketBuilder::v6),
        ("tagged", |datagram| datagram.tag(0x8100, 5)),
        ("local", |datagram| {
            let address = Ipv4Addr::LOCALHOST;
            datagram.from((address, 4004)).to((address, PORT))
        }),
        ("local, IPv6", |datagram| {
            let address = Ipv6Addr::LOCALHOST;
            datagram.from((address, 4004)).to((address, PORT))
        }),
    ]
}

/// A datagram arrives that came on this way.
fn arrives(path: &Datapath, way: &str, datagram: &PacketBuilder) {
    if way.starts_with("local") {
        path.lo(datagram);
    } else {
        path.pass(datagram);
    }
}

fn seen(stats: &Stats) -> [u64; 3] {
    [
        stats.aside_udp_gets,
        stats.aside_tcp_gets,
        stats.aside_others,
    ]
}

/// Everything else that is counted.
fn noted(stats: Stats) -> Stats {
    Stats {
        aside_udp_gets: 0,
        aside_tcp_gets: 0,
        aside_others: 0,
        ..stats
    }
}

#[test]
fn segments_leave_no_trace() {
    for mut connection in connections() {
        let mut path = filled();
        let before = path.stats();
        connection.shake_hands(&path);
        let commands = [
            "set key 0 0 1\r\nx\r\n",
            "delete key\r\n",
            "mn\r\n",
            "nonsense\r\n",
            "get key\r\n",
            "gets key other\r\n",
            "mg key v\r\n",
        ];
        for command in commands {
            connection.exchange(&path, command, "ERROR\r\n");
        }
        // Neither does a segment of another connection that the host may have, or the end of one.
        connection.arrives(&path, &connection.segment(ACK | FIN, ""));
        connection.arrives(&path, &connection.segment(RST, ""));
        let after = path.stats();
        assert_eq!(seen(&after), [0, 3, 4], "{connection:?}");
        assert_eq!(noted(after), noted(before));
        attend(&mut path);
        assert_untouched(&mut path);
    }
}

#[test]
fn datagrams_leave_no_trace() {
    let binary = |opcode, key: &str| {
        let mut bytes = vec![0x80, opcode, 0, key.len() as u8];
        bytes.resize(24, 0);
        bytes[11] = key.len() as u8;
        bytes.extend(key.as_bytes());
        bytes
    };
    let reads = [
        get(&["key"]),
        get(&["key", "other"]),
        b"get x\r\n".to_vec(),
        b"gets key\r\n".to_vec(),
        b"mg key v\r\n".to_vec(),
        binary(0x00, "key"),
        binary(0x0c, "key"),
    ];
    let others = [
        b"set key 0 0 1\r\nx\r\n".to_vec(),
        b"set key 0 0 1 noreply\r\nx\r\n".to_vec(),
        b"delete key\r\n".to_vec(),
        b"delete key\r\ndelete other\r\n".to_vec(),
        b"touch key 1\r\n".to_vec(),
        b"flush_all\r\n".to_vec(),
        b"nonsense".to_vec(),
        b"mn".to_vec(),
        binary(0x04, "key"),
    ];
    for (name, way) in ways() {
        let mut path = filled();
        let before = path.stats();
        for payload in reads.iter().chain(&others) {
            let datagram = way(path.request(payload));
            arrives(&path, name, &datagram);
            match name {
                "plain" | "IPv6" => path.tx(&datagram.reply("ERROR\r\n")),
                _ => {}
            }
        }
        let after = path.stats();
        let counts = [reads.len() as u64, 0, others.len() as u64];
        assert_eq!(seen(&after), counts, "{name}");
        assert_eq!(noted(after), noted(before), "{name}");
        attend(&mut path);
        assert_untouched(&mut path);
    }
}

/// Of which it is not known what they are, and which empty the cache otherwise.
#[test]
fn odd_packets_leave_no_trace() {
    let mut path = filled();
    let before = path.stats();
    let datagram = path.request("delete key\r\n");
    let odd = [
        datagram.clone().fragment(0, true),
        datagram.clone().fragment(100, false),
        datagram.clone().ip_options(&[1, 1, 1, 1]),
        datagram.clone().v6().extension_header(60),
        datagram.clone().udp_length_lie(-3),
        datagram.clone().no_frame().payload("x"),
        datagram.clone().server_port(80),
    ];
    for packet in &odd {
        path.pass(packet);
        path.tx(&packet.clone().reversed());
    }
    let bytes = datagram.build();
    for linear in [14, 20, 34, 42, 50, 54, 60] {
        assert_eq!(path.rx_in_pieces(&bytes, linear), Verdict::Passed);
    }
    assert_eq!(noted(path.stats()), noted(before));
    attend(&mut path);
    assert_untouched(&mut path);
}

fn delayed_flushes() -> [Vec<u8>; 5] {
    let binary = |opcode| {
        let mut bytes = vec![0x80, opcode, 0, 0, 4, 0, 0, 0, 0, 0, 0, 4];
        bytes.resize(24, 0);
        bytes.extend(10u32.to_be_bytes());
        bytes
    };
    [
        b"flush_all 10\r\n".to_vec(),
        b"flush_all 10 noreply\r\n".to_vec(),
        b"flush_all 10\r\nget key\r\n".to_vec(),
        binary(0x08),
        binary(0x18),
    ]
}

/// It would take effect when requests are followed again.
#[test]
fn a_delayed_flush_is_heeded_all_the_same() {
    for command in &delayed_flushes() {
        let text = command.escape_ascii();
        for connection in connections() {
            let path = Datapath::with(&setup(Attention::Aside));
            connection.arrives(&path, &connection.segment(ACK | PSH, command));
            assert_eq!(path.kernel().flushes().len(), 1, "{text} {connection:?}");
            assert_eq!(seen(&path.stats()), [0, 0, 1]);
        }
        for (name, way) in ways() {
            let mut path = Datapath::with(&setup(Attention::Aside));
            let datagram = way(path.request(command));
            arrives(&path, name, &datagram);
            assert_eq!(path.kernel().flushes().len(), 1, "{text} {name}");
            assert_eq!(seen(&path.stats()), [0, 0, 1]);
        }
        let mut path = Datapath::with(&setup(Attention::Aside));
        let datagram = path.request(command).build();
        assert_eq!(path.rx_in_pieces(&datagram, 54), Verdict::Passed);
        assert_eq!(path.kernel().flushes().len(), 1, "{text}, in pieces");
    }
    // At once, or of another host: there is nothing to be kept.
    let mut path = Datapath::with(&setup(Attention::Aside));
    let connection = Connection::new(4000);
    connection.arrives(&path, &connection.segment(ACK | PSH, "flush_all\r\n"));
    path.only_pass("flush_all\r\n");
    let elsewhere = PacketBuilder::tcp(1, ACK | PSH, "flush_all 10\r\n");
    path.pass(&elsewhere.to((Ipv4Addr::new(10, 0, 0, 77), 80)));
    assert!(path.kernel().flushes().is_empty());
}

/// What is forgotten when requests are followed again: see `prestack::attention`.
fn attend_and_forget(path: &mut Datapath) {
    attend(path);
    path.kernel().controls.empty_and_settle(0, SETTLE);
}

#[test]
fn an_answer_that_leaves_later_fills_nothing() {
    // To a GET of before.
    let mut path = filled();
    attend(&mut path);
    let asked = path.get_of("new");
    path.pass(&asked);
    path.configure(&setup(Attention::Aside));
    attend_and_forget(&mut path);
    wait_to_settle(SETTLE);
    path.tx(&asked.reply(hit("new", "value")));
    path.assert_miss("new");
    // To one that was not seen.
    let mut path = filled();
    let asked = path.get_of("new");
    path.pass(&asked);
    attend_and_forget(&mut path);
    wait_to_settle(SETTLE);
    path.tx(&asked.reply(hit("new", "value")));
    path.assert_miss("new");
    path.assert_miss("key");
    assert!(path.can_fill("key", "value"));
    assert_eq!(path.stats().fills, 3);
}

/// Its reply may have left meanwhile. That is not known.
#[test]
fn a_write_of_before_stays_outstanding() {
    let mut path = filled();
    attend(&mut path);
    let write = path.request("set key 0 0 1\r\nx\r\n");
    path.pass(&write);
    path.configure(&setup(Attention::Aside));
    path.tx(&write.reply("STORED\r\n"));
    attend_and_forget(&mut path);
    wait_to_settle(SETTLE);
    assert!(!path.can_fill("key", "x"));
    assert!(path.can_fill("other", "x"));
    // Another one of its name ends neither.
    path.pass(&write);
    path.tx(&write.reply("STORED\r\n"));
    assert!(!path.can_fill("key", "x"));
}

/// A write that was not seen may be under way.
#[test]
fn nothing_is_stored_until_what_was_not_seen_has_settled() {
    let mut path = filled();
    let long = Setup {
        settle: Duration::from_secs(60),
        ..setup(Attention::Learning)
    };
    path.only_pass("set key 0 0 1\r\nx\r\n");
    path.configure(&long);
    path.kernel().controls.empty_and_settle(0, long.settle);
    assert!(!path.can_fill("key", "old"));
    assert!(!path.can_fill("other", "old"));
}

#[test]
fn a_connection_on_which_gets_are_answered_is_not_answered() {
    let mut path = translated::filled();
    let mut ready = Ready::open(&mut path, 4000);
    path.configure(&Setup {
        attention: Attention::Aside,
        ..translated::setup()
    });
    ready.sends(&path, "get key\r\n");
    ready.replies(&path, hit("key", "value"));
    assert_eq!(path.stats().tcp_hits, 0);
    assert_eq!(seen(&path.stats()), [0, 1, 0]);
}

/// With no reader, what replies show is not stored, and writes are heeded.
#[test]
fn what_is_followed_only_is_not_learnt() {
    for (attention, fills) in [(Attention::Learning, true), (Attention::Following, false)] {
        let mut path = filled();
        path.configure(&setup(attention));
        let mut connection = Connection::open(&path, 4000);
        connection.exchange(&path, "get new\r\n", "VALUE new 0 1\r\nx\r\nEND\r\n");
        connection.exchange(&path, "delete key\r\n", "DELETED\r\n");
        path.assert_hit("other", "value");
        path.assert_miss("key");
        if fills {
            path.assert_hit("new", "x");
        } else {
            path.assert_miss("new");
        }
        wait(SETTLE);
    }
}
