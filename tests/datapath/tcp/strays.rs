//! Segments that cannot reach memcached cost nothing.

use super::connection::Connection;
use super::{assert_forgotten, assert_untouched, filled};
use crate::packet::{ACK, FIN, PORT, PacketBuilder, RST, SYN};

/// No socket of this host has such a connection.
#[test]
fn flows_that_are_not_known() {
    for segment in [
        PacketBuilder::tcp(1, ACK, "flush_all\r\n"),
        PacketBuilder::tcp(1, ACK | FIN, "flush_all\r\n"),
        PacketBuilder::tcp(1, RST, "flush_all\r\n"),
        PacketBuilder::tcp(1, 0, "flush_all\r\n"),
        PacketBuilder::tcp(1, SYN, "flush_all\r\n"),
        PacketBuilder::tcp(1, SYN | ACK, "flush_all\r\n"),
        PacketBuilder::tcp(1, SYN | ACK, ""),
        PacketBuilder::tcp(1, FIN, ""),
    ] {
        let mut path = filled();
        path.pass(&segment);
        path.pass(&segment.clone().v6());
        path.pass(&segment.to(([10, 0, 0, 77], PORT)));
        assert_untouched(&mut path);
    }
}

/// Who does not know a flow's numbers cannot disturb it.
#[test]
fn segments_outside_the_window() {
    let mut path = filled();
    let mut connection = Connection::open(&path, 1);
    connection.exchange(&path, "get x\r\n", "END\r\n");
    // The window is 65,535 units of 128 bytes wide.
    for off in [8_388_481, 10_000_000, 1 << 30, (1 << 31) + 1, u32::MAX - 20] {
        let mut forged = connection.clone();
        forged.client = forged.client.wrapping_add(off);
        path.pass(&forged.segment(ACK, "flush_all\r\n"));
        path.pass(&forged.segment(RST, ""));
    }
    // What acknowledges what was never sent is dropped.
    for off in [65_537, 10_000_000, 1 << 30] {
        let mut forged = connection.clone();
        forged.server = forged.server.wrapping_add(off);
        path.pass(&forged.segment(ACK, "flush_all\r\n"));
    }
    connection.exchange(&path, "get y\r\n", "END\r\n");
    assert_untouched(&mut path);
    assert!(path.stats().strays >= 8);
    // Within it, it may be the connection's, and waits for what is before it.
    let mut forged = connection.clone();
    forged.client = forged.client.wrapping_add(8_000_000);
    path.pass(&forged.segment(ACK, "flush_all\r\n"));
    connection.exchange(&path, "get z\r\n", "END\r\n");
    assert_untouched(&mut path);
}

/// A filter of this host answers a segment that it does not take for one of the connection's (`REJECT` with a reset). The
/// client does not heed it, and goes on.
#[test]
fn resets_that_a_filter_has_sent() {
    for off in [1_u32, 1000, 1 << 30, 0_u32.wrapping_sub(1)] {
        let mut path = filled();
        let mut connection = Connection::open(&path, 1);
        connection.exchange(&path, "get x\r\n", "END\r\n");
        let mut elsewhere = connection.clone();
        elsewhere.server = elsewhere.server.wrapping_add(off);
        path.tx(&elsewhere.answer(RST, ""));
        path.assert_hit("key", "value");
        connection.send(&path, "set key 0 0 3 noreply\r\nnew\r\n");
        path.assert_miss("key");
    }
}

#[test]
fn acknowledgements_change_nothing() {
    let mut path = filled();
    let mut connection = Connection::open(&path, 1);
    path.pass(&connection.segment(ACK, ""));
    path.pass(&PacketBuilder::tcp(77, ACK, "").client_port(2));
    let stamps = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
    path.pass(&PacketBuilder::tcp(77, ACK, "").tcp_options(&stamps));
    path.pass(&PacketBuilder::tcp(77, ACK, "").padding([0; 6]));
    connection.send(&path, "get key\r\n");
    assert_untouched(&mut path);
}

/// The kernel drops them.
#[test]
fn headers_that_lie() {
    // A data offset below five words, and one behind the end.
    for offset in [0x00, 0x40, 0xf0] {
        let mut path = filled();
        let connection = Connection::open(&path, 1);
        let mut packet = connection.segment(ACK, "flush_all\r\n").build();
        packet[14 + 20 + 12] = offset;
        path.rx_bytes(&packet);
        assert_untouched(&mut path);
    }
    // A segment that is cut within its header.
    let mut path = filled();
    let packet = PacketBuilder::tcp(1, ACK, "").build();
    path.rx_bytes(&packet[..14 + 20 + 12]);
    assert_untouched(&mut path);
}

/// Data that the packet does not have, which the kernel would drop: on a connection it is safer to
/// forget.
#[test]
fn data_that_is_not_there() {
    let mut path = filled();
    let connection = Connection::open(&path, 1);
    path.pass(&connection.segment(ACK, "get key\r\n").ip_length_lie(10));
    assert_forgotten(&mut path);
}

/// A forged one cannot make the next bytes the first of a connection, and costs nothing.
#[test]
fn a_syn_on_a_flow_that_is_known() {
    let mut path = filled();
    let mut flow = Connection::open(&path, 1);
    flow.send(&path, "set key 0 0 20\r\n");
    let mut forged = flow.clone();
    forged.client = forged.client.wrapping_add(77);
    path.pass(&forged.segment(SYN, ""));
    flow.send(&path, "delete other\r\n123456\r\n");
    assert_eq!(path.epoch(), 0);
    path.assert_miss("key");
    path.assert_hit("other", "value");
    flow.send(&path, "delete other\r\n");
    path.assert_miss("other");
}
