//! Packets that the host sends to itself: writes are heeded as anywhere, and nobody is answered.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::binary;
use crate::bytes::{get, hit};
use crate::harness::{Datapath, Setup, doors_of_wildcard, wait, wait_to_settle};
use crate::kernel::BUCKETS;
use crate::packet::{ACK, FIN, PORT, PSH, PacketBuilder, SERVER4, SERVER6, SYN};
use crate::tcp::connection::Connection;
use crate::tcp::requests::writes;
use crate::tcp::{assert_forgotten, assert_key_written, assert_untouched, filled, step};

/// An address of the loopback interface, where a memcached that listens on all addresses has no door of
/// its own, and those of the interface that is served.
const ADDRESSES: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
    IpAddr::V4(SERVER4),
    IpAddr::V6(SERVER6),
];

/// A port of a client.
const CLIENT: u16 = 40_001;

/// A datagram that the host sends itself.
fn datagram(address: IpAddr, id: u16, payload: impl AsRef<[u8]>) -> PacketBuilder {
    let datagram = PacketBuilder::udp(payload).id(id);
    datagram.from((address, CLIENT)).to((address, PORT))
}

#[test]
fn tcp_writes_are_outstanding_until_they_are_answered() {
    for address in ADDRESSES {
        for write in writes() {
            let mut path = filled();
            let mut connection = Connection::open_locally(&path, 1, address);
            connection.send(&path, &write);
            assert_key_written(&mut path);
            assert!(!path.can_fill("key", "old"), "{}", write.escape_ascii());
            let stats = path.stats();
            assert_eq!((stats.doubted_requests, stats.strays), (0, 0));
        }
        let mut path = filled();
        let mut connection = Connection::open_locally(&path, 1, address);
        connection.send(&path, "get x\r\nset key 0 0 3\r\nnew\r\ndelete other\r\n");
        connection.reply(&path, "END\r\n");
        assert!(!path.can_fill("key", "old"));
        connection.reply(&path, "STORED\r\n");
        assert!(path.can_fill("key", "new"));
        assert!(!path.can_fill("other", "old"));
        connection.reply(&path, "DELETED\r\n");
        assert!(path.can_fill("other", "new"));
        assert_eq!(path.epoch(), 0);
    }
}

#[test]
fn tcp_writes_are_seen_however_they_are_cut() {
    let writes = [
        b"get x\r\nset key 0 0 3\r\nnew\r\nget y\r\n".to_vec(),
        binary::request(0x01, &[0; 8], b"key", b"new", 1),
    ];
    for write in writes {
        for cut in (1..write.len()).step_by(step(5)) {
            let mut path = filled();
            let mut connection = Connection::open_locally(&path, 1, Ipv4Addr::LOCALHOST);
            connection.send(&path, &write[..cut]);
            connection.send(&path, &write[cut..]);
            assert_key_written(&mut path);
        }
    }
}

/// One that comes while what is before it is missing waits.
#[test]
fn segments_out_of_order_are_put_in_order() {
    let mut path = filled();
    let mut connection = Connection::open_locally(&path, 1, Ipv4Addr::LOCALHOST);
    let first = connection.lose("set key 0 0 3\r\nn");
    connection.send(&path, "ew\r\nget x\r\n");
    connection.arrives(&path, &first);
    assert_key_written(&mut path);
    connection.reply(&path, "STORED\r\nEND\r\n");
    assert!(path.can_fill("key", "new"));
    assert_eq!(path.stats().holes_closed, 1);
}

#[test]
fn quiet_tcp_writes_settle_from_their_acknowledgement() {
    let settle = Duration::from_millis(100);
    let mut path = Datapath::with(&Setup {
        settle,
        remember: settle,
        ..Setup::default()
    });
    path.fill("key", "value");
    let mut connection = Connection::open_locally(&path, 1, Ipv4Addr::LOCALHOST);
    connection.send(&path, "set key 0 0 3 noreply\r\nnew\r\n");
    wait_to_settle(settle);
    assert!(!path.can_fill("key", "old"));
    connection.acknowledge(&path);
    wait_to_settle(settle);
    assert!(path.can_fill("key", "new"));
}

/// A segment as offloads put it together, as far as a test run takes it: more commands than fit a chunk.
#[test]
fn long_segments_are_followed_to_their_end() {
    let mut path = filled();
    let mut connection = Connection::open_locally(&path, 1, Ipv4Addr::LOCALHOST);
    let gets = "get nothing\r\n".repeat(240);
    connection.send(&path, gets.clone() + "delete key\r\nget x\r\n");
    assert_key_written(&mut path);
    connection.reply(&path, "END\r\n".repeat(240));
    assert!(!path.can_fill("key", "old"));
    connection.reply(&path, "DELETED\r\nEND\r\n");
    assert!(path.can_fill("key", "new"));
    assert_eq!(path.stats().doubted_requests, 0);
}

#[test]
fn tcp_replies_fill_the_cache() {
    for address in ADDRESSES {
        let mut path = Datapath::new();
        path.exchange(get(&["x"]), "END\r\n");
        let mut connection = Connection::open_locally(&path, 1, address);
        connection.exchange(&path, "get key\r\n", hit("key", "value"));
        path.assert_hit("key", "value");
    }
}

/// A connection that was there before, to a wildcard's door: its data empties the cache, unless the host
/// has no such socket.
#[test]
fn strays_cost_nothing() {
    let mut path = filled();
    let mut connection = Connection::new(1);
    connection.local = Some(Ipv4Addr::LOCALHOST.into());
    connection.send(&path, "delete key\r\n");
    connection.arrives(&path, &connection.segment(ACK | FIN, ""));
    assert_untouched(&mut path);
    assert_eq!(path.stats().strays, 1);
}

/// Attempts that come to nothing do not take the places of connections, over `lo` either.
#[test]
fn half_open_flows_give_way() {
    let mut path = Datapath::with(&Setup {
        buckets: BUCKETS,
        ..Setup::default()
    });
    path.fill("key", "value");
    let mut connection = Connection::open_locally(&path, 1, Ipv4Addr::LOCALHOST);
    connection.send(&path, "get x\r\n");
    for port in 20_000..50_000 {
        let attempt = Connection {
            local: connection.local,
            ..Connection::new(port)
        };
        path.lo(&attempt.answer(SYN | ACK, ""));
    }
    let stats = path.stats();
    assert_eq!(stats.flows_refused, 0);
    assert!(stats.flows_displaced > 10_000, "{stats:?}");
    connection.reply(&path, "END\r\n");
    let mut late = Connection::open_locally(&path, 2, Ipv4Addr::LOCALHOST);
    for connection in [&mut connection, &mut late] {
        let key = format!("key-{}", connection.port);
        connection.send(&path, format!("delete {key}\r\n"));
        assert!(!path.can_fill(&key, "old"));
        connection.reply(&path, "DELETED\r\n");
    }
    wait(Duration::from_millis(30));
    assert!(path.can_fill("key-1", "new"));
    assert!(path.can_fill("key-2", "new"));
    path.assert_hit("key", "value");
}

#[test]
fn udp_writes_are_outstanding_until_they_are_answered() {
    for address in ADDRESSES {
        let mut path = filled();
        let write = datagram(address, 7, "set key 0 0 3\r\nnew\r\n");
        path.lo(&write);
        assert_key_written(&mut path);
        assert!(!path.can_fill("key", "old"));
        path.lo(&write.reply("STORED\r\n"));
        assert!(path.can_fill("key", "new"));

        let write = datagram(address, 8, binary::request(0x04, b"", b"key", b"", 1));
        path.lo(&write);
        assert!(!path.can_fill("key", "old"));
        path.lo(&write.reply(binary::done(0x04, 1)));
        assert!(path.can_fill("key", "new"));
    }
}

/// memcached may answer from another of the host's addresses.
#[test]
fn udp_writes_end_whatever_address_answers() {
    let mut path = filled();
    let write = datagram(Ipv4Addr::LOCALHOST.into(), 7, "delete key\r\n");
    path.lo(&write.clone().to((SERVER4, PORT)));
    path.lo(&write.reply("DELETED\r\n"));
    assert!(path.can_fill("key", "new"));
}

/// The reply is that of either.
#[test]
fn a_udp_write_settles_whose_name_is_used_again() {
    let settle = Duration::from_millis(100);
    let address = IpAddr::from(Ipv4Addr::LOCALHOST);
    let write = datagram(address, 7, "delete key\r\n");
    let odd = datagram(address, 7, "get other\r\n").udp_length_lie(-1);
    for second in [&write, &odd] {
        let mut path = Datapath::with(&Setup {
            settle,
            ..Setup::default()
        });
        path.lo(&write);
        path.lo(second);
        // Nothing comes meanwhile that might bring it about.
        wait_to_settle(settle);
        assert!(path.can_fill("key", "new"), "{second:?}");
    }
}

#[test]
fn udp_writes_without_reply_settle() {
    let settle = Duration::from_millis(100);
    let mut path = Datapath::with(&Setup {
        settle,
        ..Setup::default()
    });
    path.fill("key", "value");
    path.lo(&datagram(
        SERVER4.into(),
        7,
        "set key 0 0 3 noreply\r\nnew\r\n",
    ));
    assert!(!path.can_fill("key", "old"));
    wait_to_settle(settle);
    assert!(path.can_fill("key", "new"));
}

/// Several commands in one datagram are heeded each.
#[test]
fn udp_datagrams_of_several_commands() {
    let mut path = filled();
    path.lo(&datagram(
        SERVER4.into(),
        7,
        "get x\r\ndelete key\r\nget y\r\n",
    ));
    assert_key_written(&mut path);
}

/// The reply to a GET does not end a write that has the same id, whichever came first.
#[test]
fn gets_are_remembered_under_their_names() {
    let asked: [(&[u8], &[u8]); 4] = [
        (b"get z\r\n", b"END\r\n"),
        (b"get z key\r\n", b"END\r\n"),
        (b"mg z v\r\n", b"EN\r\n"),
        (&binary::get(0, b"z", 1), &binary::not_found(0, 1)),
    ];
    for (ask, answer) in asked {
        for is_write_first in [false, true] {
            let mut path = filled();
            let read = datagram(SERVER4.into(), 7, ask);
            let write = read.clone().payload("set key 0 0 3\r\nnew\r\n");
            let both = [&read, &write];
            path.lo(both[usize::from(is_write_first)]);
            path.lo(both[usize::from(!is_write_first)]);
            path.lo(&read.reply(answer));
            assert!(!path.can_fill("key", "old"), "{}", ask.escape_ascii());
        }
        // One that was answered is forgotten.
        let mut path = filled();
        let read = datagram(SERVER4.into(), 7, ask);
        let write = read.clone().payload("set key 0 0 3\r\nnew\r\n");
        path.lo(&read);
        path.lo(&read.reply(answer));
        path.lo(&write);
        path.lo(&write.reply("STORED\r\n"));
        assert!(path.can_fill("key", "new"), "{}", ask.escape_ascii());
    }
}

/// The parts of a long answer to one key, and to several.
#[test]
fn answers_in_parts_end_gets() {
    for (ask, ends) in [("get z\r\n", true), ("get z y\r\n", false)] {
        let mut path = filled();
        let read = datagram(SERVER4.into(), 7, ask);
        path.lo(&read);
        path.lo(&read.reply("VALUE z 0 1\r\nx\r\n"));
        path.lo(&read.reply("END\r\n"));
        let write = read.payload("delete key\r\n");
        path.lo(&write);
        path.lo(&write.reply("DELETED\r\n"));
        assert!(path.can_fill("key", "new"), "{ask:?} {ends}");
    }
}

/// Anybody can send himself datagrams: nothing is learnt from them, and nobody is served for them.
#[test]
fn udp_replies_teach_nothing() {
    for address in ADDRESSES {
        let mut path = Datapath::new();
        let ask = datagram(address, 7, get(&["key"]));
        path.lo(&ask);
        path.lo(&ask.reply(hit("key", "forged")));
        path.assert_miss("key");
        let stats = path.stats();
        assert_eq!((stats.fills, stats.udp_hits), (0, 0));
    }
    // memcached was not seen answering over UDP: otherwise this would be served.
    let mut path = Datapath::new();
    let mut connection = Connection::open_locally(&path, 1, SERVER4);
    let ask = datagram(SERVER4.into(), 7, get(&["x"]));
    path.lo(&ask);
    path.lo(&ask.reply("END\r\n"));
    connection.exchange(&path, "get key\r\n", hit("key", "value"));
    let ask = path.get_of("key");
    path.pass(&ask);
    path.tx(&ask.reply(hit("key", "value")));
    path.assert_hit("key", "value");
}

/// What is not understood empties the cache, as anywhere.
#[test]
fn what_is_not_understood_empties_the_cache() {
    let address = IpAddr::from(SERVER4);
    let odd = [
        datagram(address, 7, "set key 0 0 30\r\nnew\r\n"),
        datagram(address, 7, "nonsense\r\n"),
        datagram(address, 7, "flush_all\r\n"),
        datagram(address, 7, "delete key\r\n").udp_length_lie(-1),
        datagram(address, 7, "delete key\r\n").ip_options(&[1; 4]),
        datagram(address, 7, "delete key\r\n").fragment(0, true),
        datagram(SERVER6.into(), 7, "delete key\r\n").extension_header(60),
    ];
    for packet in odd {
        let mut path = filled();
        path.lo(&packet);
        assert_forgotten(&mut path);
    }
    let mut path = filled();
    let mut connection = Connection::open_locally(&path, 1, address);
    connection.send(&path, "nonsense\r\n");
    assert_forgotten(&mut path);
}

/// Several datagrams that are sent as one (`UDP_SEGMENT`): what looks like data is the next command.
#[test]
fn a_series_of_datagrams_is_not_understood() {
    let series = datagram(
        SERVER4.into(),
        7,
        "set other 0 0 30\r\n12345678delete key\r\n0123456789\r\n",
    );
    let mut path = filled();
    path.lo_segments(&series, 26);
    assert_forgotten(&mut path);
    let path = filled();
    path.lo(&series);
    assert_eq!(path.epoch(), 0);
}

/// Other local traffic, whatever it is.
#[test]
fn other_ports_are_left_alone() {
    let mut path = filled();
    let before = path.stats();
    for address in ADDRESSES {
        for port in [1, PORT - 1, PORT + 1, u16::MAX] {
            let to = (address, port);
            for packet in [
                datagram(address, 7, "delete key\r\n").to(to),
                datagram(address, 7, "flush_all\r\n")
                    .to(to)
                    .udp_length_lie(5),
                PacketBuilder::tcp(1, ACK | PSH, "delete key\r\n")
                    .from((address, CLIENT))
                    .to(to),
            ] {
                path.lo(&packet);
                path.lo(&packet.reversed());
            }
        }
    }
    assert_eq!(path.stats(), before);
    assert_untouched(&mut path);
}

/// A port is another's at an address where memcached does not listen.
#[test]
fn other_addresses_are_left_alone() {
    let mut doors = doors_of_wildcard(PORT, 0);
    doors.retain(|door| door.address.is_some());
    let mut path = Datapath::with(&Setup {
        doors,
        ..Setup::default()
    });
    path.fill("key", "value");
    path.fill("other", "value");
    path.lo(&datagram(Ipv4Addr::LOCALHOST.into(), 7, "delete key\r\n"));
    let mut connection = Connection::open_locally(&path, 1, Ipv4Addr::LOCALHOST);
    connection.send(&path, "delete key\r\n");
    assert_untouched(&mut path);
    let stats = path.stats();
    assert_eq!((stats.tcp_passed, stats.strays), (0, 0));
    // It is heeded at its own.
    path.lo(&datagram(SERVER4.into(), 7, "delete key\r\n"));
    assert_key_written(&mut path);
}
