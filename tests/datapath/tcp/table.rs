//! The table of flows.

use std::time::Duration;

use super::connection::Connection;
use super::{assert_forgotten, assert_key_written, assert_untouched, filled};
use crate::harness::{Datapath, Setup, wait};
use crate::packet::{ACK, FIN, PORT, SYN};

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
#[test]
fn a_flood_of_attempts_does_not_harm_flows() {
    let mut path = filled();
    let mut connection = Connection::open(&path, 1);
    connection.exchange(&path, "get x\r\n", "END\r\n");
    for port in 2..30_000 {
        path.tx(&Connection::new(port).answer(SYN | ACK, ""));
    }
    assert!(path.stats().flows_refused > 10_000);
    connection.exchange(&path, "get x\r\n", "END\r\n");
    assert_untouched(&mut path);
    connection.send(&path, "delete key\r\n");
    assert_key_written(&mut path);
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
            .map(|(_, dead)| dead)
            .collect::<Vec<_>>()
    };
    let [dead] = open(&path)[..] else {
        panic!("{:?}", open(&path));
    };
    // Something has come since it was looked at.
    connection.send(&path, "mn\r\n");
    assert!(!path.kernel_mut().close_flow(&dead));
    let [dead] = open(&path)[..] else {
        panic!("{:?}", open(&path));
    };
    assert!(path.kernel_mut().close_flow(&dead));
    assert!(!path.kernel_mut().close_flow(&dead));
    assert!(open(&path).is_empty());
    assert_eq!(path.kernel().backend().waits, 0);
    wait(Duration::from_millis(2));
    path.fill("key", "value");
}
