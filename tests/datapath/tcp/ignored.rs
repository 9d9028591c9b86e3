//! While nobody reads over UDP, TCP may be ignored; or its replies are followed, but not learnt from.

use std::net::Ipv4Addr;
use std::time::Duration;

use prestack_abi::config::Tcp;

use super::assert_untouched;
use super::connection::Connection;
use crate::harness::{Datapath, Setup, wait};
use crate::packet::{ACK, FIN, PSH, PacketBuilder, RST};

const SETTLE: Duration = Duration::from_millis(1);

fn setup(tcp: Tcp) -> Setup {
    Setup {
        tcp,
        settle: SETTLE,
        ..Setup::default()
    }
}

fn filled(tcp: Tcp) -> Datapath {
    let mut path = Datapath::with(&setup(tcp));
    path.fill("key", "value");
    path.fill("other", "value");
    path
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
    let local = Connection {
        local: Some(Ipv4Addr::LOCALHOST.into()),
        ..Connection::new(4003)
    };
    vec![plain, v6, tagged, local]
}

#[test]
fn what_is_ignored_leaves_no_trace() {
    for mut connection in connections() {
        let mut path = filled(Tcp::Ignored);
        let before = path.stats();
        connection.shake_hands(&path);
        let commands = [
            "set key 0 0 1\r\nx\r\n",
            "delete key\r\n",
            "get key\r\n",
            "mn\r\n",
            "nonsense\r\n",
        ];
        for command in commands {
            connection.exchange(&path, command, "ERROR\r\n");
        }
        // Neither does a segment of another connection that the host may have, or the end of one.
        connection.arrives(&path, &connection.segment(ACK | FIN, ""));
        connection.arrives(&path, &connection.segment(RST, ""));
        assert_untouched(&mut path);
        let after = path.stats();
        assert_eq!(after.tcp_ignored, commands.len() as u64, "{connection:?}");
        assert_eq!(after.tcp_passed, after.tcp_ignored);
        assert_eq!(after.invalidations, before.invalidations);
        assert_eq!((after.strays, after.flows_adopted), (0, 0));
    }
}

/// It would take effect when TCP is followed again.
#[test]
fn a_delayed_flush_is_heeded_all_the_same() {
    let binary = |opcode| {
        let mut bytes = vec![0x80, opcode, 0, 0, 4, 0, 0, 0, 0, 0, 0, 4];
        bytes.resize(24, 0);
        bytes.extend(10u32.to_be_bytes());
        bytes
    };
    let commands = [
        b"flush_all 10\r\n".to_vec(),
        b"flush_all 10 noreply\r\n".to_vec(),
        b"flush_all 10\r\nget key\r\n".to_vec(),
        binary(0x08),
        binary(0x18),
    ];
    for command in &commands {
        for connection in connections() {
            let path = Datapath::with(&setup(Tcp::Ignored));
            connection.arrives(&path, &connection.segment(ACK | PSH, command));
            let flushes = path.kernel().flushes().len();
            assert_eq!(flushes, 1, "{}", command.escape_ascii());
        }
    }
    // At once, or of another host: there is nothing to be kept.
    let path = Datapath::with(&setup(Tcp::Ignored));
    let connection = Connection::new(4000);
    connection.arrives(&path, &connection.segment(ACK | PSH, "flush_all\r\n"));
    let elsewhere = PacketBuilder::tcp(1, ACK | PSH, "flush_all 10\r\n");
    path.pass(&elsewhere.to((Ipv4Addr::new(10, 0, 0, 77), 80)));
    assert!(path.kernel().flushes().is_empty());
}

/// UDP goes on as ever.
#[test]
fn udp_is_heeded_while_tcp_is_not() {
    let mut path = filled(Tcp::Ignored);
    path.exchange("delete key\r\n", "DELETED\r\n");
    wait(2 * SETTLE);
    path.assert_miss("key");
    path.fill("key", "new");
    path.assert_hit("key", "new");
}

/// With no reader, what replies show is not stored, and writes are heeded.
#[test]
fn what_is_followed_only_is_not_learnt() {
    for (tcp, fills) in [(Tcp::Learnt, true), (Tcp::Followed, false)] {
        let mut path = filled(tcp);
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
    }
}
