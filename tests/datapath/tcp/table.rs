//! The table of flows.

use std::time::Duration;

use prestack::maps::OpenFlow;

use super::connection::Connection;
use super::{assert_forgotten, assert_key_written, assert_untouched, filled};
use crate::harness::{Datapath, Setup, wait};
use crate::kernel::BUCKETS;
use crate::packet::{ACK, FIN, PORT, RST, SYN};

#[test]
fn flows_are_told_apart() {
    let mut path = filled();
    let mut one = Connection::open(&path, 1);
    let mut two = Connection::open(&path, 2);
    one.send(&path, "set key 0 0 14\r\n");
    two.send(&path, "get key\r\n");
    one.send(&path, "delete other\r\n\r\n");
    two.send(&path, "get key\r\nget other\r\n");
    assert_key_written(&mut path);
    // The same numbers from elsewhere are another flow.
    for other in [
        two.segment(ACK, "flush_all\r\n").client_port(3),
        two.segment(ACK, "flush_all\r\n").from(([10, 0, 0, 3], 2)),
        two.segment(ACK, "flush_all\r\n").to(([10, 0, 0, 77], PORT)),
        two.segment(ACK, "flush_all\r\n").server_port(PORT + 1),
    ] {
        path.pass(&other);
        assert_eq!(path.epoch(), 0);
    }
}

/// Answers to connection attempts from everywhere, none of which comes about.
fn flood(path: &Datapath) {
    let port = Connection::new(0).answer(SYN | ACK, "");
    let mut packet = port.build();
    for port in 20_000..50_000_u16 {
        packet[14 + 20 + 2..][..2].copy_from_slice(&port.to_be_bytes());
        path.tx_bytes(&packet);
    }
}

#[test]
fn a_flood_of_attempts_does_not_harm_flows() {
    let mut path = Datapath::with(&Setup {
        buckets: BUCKETS,
        ..Setup::default()
    });
    path.fill("key", "value");
    path.fill("other", "value");
    let mut connection = Connection::open(&path, 1);
    connection.exchange(&path, "get x\r\n", "END\r\n");
    let mut writers: Vec<_> = (100..200)
        .map(|port| Connection::open(&path, port))
        .collect();
    for writer in &mut writers {
        writer.send(&path, format!("delete key-{}\r\n", writer.port));
    }
    flood(&path);
    assert_eq!(path.stats().flows_refused, 0);
    assert!(path.stats().flows_displaced > 10_000);
    connection.exchange(&path, "get x\r\n", "END\r\n");
    assert_untouched(&mut path);
    // One that connects now finds a place, and no fill is held up.
    let mut late = Connection::open(&path, 2);
    late.send(&path, "delete other\r\n");
    late.reply(&path, "DELETED\r\n");
    assert!(path.can_fill("other", "value"));
    for writer in &mut writers {
        let key = format!("key-{}", writer.port);
        assert!(!path.can_fill(&key, "old"), "its write is outstanding");
        writer.reply(&path, "DELETED\r\n");
    }
    wait(Duration::from_millis(30));
    for writer in &writers {
        assert!(path.can_fill(format!("key-{}", writer.port), "new"));
    }
    connection.send(&path, "delete key\r\n");
    assert_key_written(&mut path);
}

/// Half-open flows give way to established ones, and these to nobody.
#[test]
fn places_for_established_flows_alone() {
    let mut path = filled();
    let mut all: Vec<_> = (1..=20_000)
        .map(|port| {
            let mut connection = Connection::open(&path, port);
            connection.send(&path, "get x\r\n");
            connection
        })
        .collect();
    let stats = path.stats();
    // No socket of this host has those for which there was no room.
    assert!(stats.flows_refused > 5_000, "{stats:?}");
    assert_eq!(stats.flows_displaced, 0);
    assert_eq!(stats.strays, stats.flows_refused);
    for connection in &mut all {
        connection.reply(&path, "END\r\n");
    }
    assert_untouched(&mut path);
}

/// What the host answers to somebody who has not got the SYN-ACK does not keep a half-open flow in its place,
/// nor does what that one sends.
#[test]
fn who_does_not_know_the_numbers_keeps_no_place() {
    let mut path = filled();
    let connection = Connection::open(&path, 1);
    let mut forged = connection.clone();
    forged.server = forged.server.wrapping_add(1);
    path.pass(&forged.segment(ACK, "flush_all\r\n"));
    forged.server = connection.server.wrapping_sub(1);
    path.pass(&forged.segment(ACK, "flush_all\r\n"));
    path.pass(&connection.segment(0, "flush_all\r\n"));
    path.pass(&connection.segment(RST, ""));
    path.pass(&connection.segment(RST | ACK, "flush_all\r\n"));
    path.tx(&connection.answer(ACK, ""));
    path.tx(&connection.answer(RST, ""));
    path.tx(&connection.answer(RST | ACK, ""));
    let strays = path.stats().strays;
    flood(&path);
    path.pass(&connection.segment(ACK, "flush_all\r\n"));
    assert_eq!(path.stats().strays, strays + 1, "the flow is not known");
    assert_untouched(&mut path);
}

/// Each of these shows that the client has got the SYN-ACK.
#[test]
fn who_knows_the_numbers_keeps_its_place() {
    type Deed = fn(&mut Connection, &Datapath);
    let deeds: [(&str, Deed); 4] = [
        ("data arrives", |connection, path| {
            connection.send(path, "get x\r\n");
        }),
        ("the end arrives", |connection, path| {
            path.pass(&connection.segment(ACK | FIN, ""));
        }),
        ("data leaves", |connection, path| {
            connection.send_back(path, "ERROR\r\n");
        }),
        (
            "data that was not seen is acknowledged",
            |connection, path| {
                connection.client = connection.client.wrapping_add(7);
                connection.acknowledge(path);
            },
        ),
    ];
    for (what, deed) in deeds {
        let path = filled();
        let mut connection = Connection::open(&path, 1);
        deed(&mut connection, &path);
        flood(&path);
        let strays = path.stats().strays;
        path.pass(&connection.segment(ACK, "get key\r\n"));
        assert_eq!(path.stats().strays, strays, "{what}");
    }
}

/// The kernel had no room for the first data, and sends its SYN-ACK again.
#[test]
fn a_syn_ack_that_is_sent_again() {
    let mut path = filled();
    let mut connection = Connection::open(&path, 1);
    let mut again = Connection::new(1);
    again.acked = connection.acked;
    connection.send(&path, "delete key\r\n");
    path.tx(&again.answer(SYN | ACK, ""));
    assert!(!path.can_fill("key", "old"), "the write is outstanding");
    connection.reply(&path, "DELETED\r\n");
    assert_key_written(&mut path);
    assert!(path.can_fill("key", "new"));
}

/// A place is free again when its flow has been over for a while.
#[test]
fn places_are_used_again() {
    let mut path = crate::harness::Datapath::with(&crate::harness::Setup {
        settle: std::time::Duration::ZERO,
        ..crate::harness::Setup::default()
    });
    path.fill("key", "value");
    path.fill("other", "value");
    for port in 2..20_000 {
        let mut connection = Connection::open(&path, port);
        connection.exchange(&path, "get x\r\n", "END\r\n");
        path.tx(&connection.answer(ACK | FIN, ""));
    }
    assert_eq!(path.stats().flows_refused, 0);
    assert_untouched(&mut path);
}

/// The same ports once more: the old connection's numbers do not count.
#[test]
fn a_connection_that_is_opened_anew() {
    let mut path = filled();
    let mut old = Connection::open(&path, 1);
    old.send(&path, "set key 0 0 1000\r\n");
    path.tx(&old.answer(ACK | FIN, ""));
    let mut new = Connection::new(1);
    new.client = 77_000_000;
    new.server = 99_000_000;
    new.shake_hands(&path);
    new.send(&path, "delete other\r\n");
    assert_eq!(path.epoch(), 0);
    path.assert_miss("other");
    new.send(&path, "noise\r\n");
    assert_forgotten(&mut path);
}

/// The client has vanished, and the kernel has given up: user space notices, and closes the flow once.
#[test]
fn a_flow_that_has_lost_its_socket() {
    let mut path = Datapath::with(&Setup {
        settle: Duration::from_millis(1),
        ..Setup::default()
    });
    let mut connection = Connection::open(&path, 1);
    connection.send(&path, "flush_all\r\n");
    wait(Duration::from_millis(2));
    assert!(!path.can_fill("key", "value"), "the flush is outstanding");
    assert_eq!(path.kernel().backend().waits, 1);
    let open = |path: &Datapath| {
        let open = prestack::maps::open_flows(&path.kernel().programs.ids);
        open.expect("the maps")
            .into_iter()
            .map(|flow| flow.found)
            .collect::<Vec<_>>()
    };
    let [dead] = open(&path)[..] else {
        panic!("{:?}", open(&path));
    };
    // Something has come since it was looked at.
    connection.send(&path, "mn\r\n");
    assert!(!path.kernel().end_flow(&dead));
    let [dead] = open(&path)[..] else {
        panic!("{:?}", open(&path));
    };
    assert!(path.kernel().end_flow(&dead));
    assert!(!path.kernel().end_flow(&dead));
    assert!(open(&path).is_empty());
    assert_eq!(path.kernel().backend().waits, 0);
    wait(Duration::from_millis(2));
    path.fill("key", "value");
}

/// One of which nothing has come has nothing that must settle: its place is free at once.
#[test]
fn a_half_open_flow_that_has_no_socket() {
    let path = Datapath::new();
    let connection = Connection::open(&path, 1);
    let open = prestack::maps::open_flows(&path.kernel().programs.ids).expect("the maps");
    let [OpenFlow { found, .. }] = open[..] else {
        panic!("{open:?}");
    };
    assert!(path.kernel().end_flow(&found));
    assert!(!path.kernel().end_flow(&found));
    path.pass(&connection.segment(ACK, "flush_all\r\n"));
    assert_eq!(path.stats().strays, 1);
}
