//! What memcached comes to later than it was sent: its connection has ended, or a reply before it waits for its client.

use std::time::Duration;

use super::connection::Connection;
use crate::harness::{Datapath, Setup, wait};
use crate::packet::{ACK, FIN, RST};

fn settling_in(settle: Duration) -> Datapath {
    Datapath::with(&Setup {
        settle,
        ..Setup::default()
    })
}

/// memcached reads what came before a reset. A client may connect again from the same port at once.
#[test]
fn a_write_settles_though_its_client_connects_again() {
    for write in ["delete key\r\n", "delete key noreply\r\n", "noise\r\n"] {
        for end in [RST | ACK, FIN | ACK] {
            let mut path = settling_in(Duration::from_secs(2));
            let mut old = Connection::open(&path, 1);
            old.exchange(&path, "get x\r\n", "END\r\n");
            old.send(&path, write);
            old.acknowledge(&path);
            if end & RST != 0 {
                path.pass(&old.segment(end, ""));
            } else {
                path.tx(&old.answer(end, ""));
            }
            let mut new = Connection::new(1);
            (new.client, new.server) = (77_000_000, 99_000_000);
            new.shake_hands(&path);
            assert!(!path.can_fill("key", "old"), "{write:?}");
            wait(Duration::from_millis(2_200));
            assert!(path.can_fill("key", "new"), "{write:?}");
        }
    }
    // Where nothing was under way nothing is waited for.
    let mut path = settling_in(Duration::from_secs(20));
    let mut old = Connection::open(&path, 1);
    old.exchange(&path, "delete other\r\n", "DELETED\r\n");
    path.pass(&old.segment(RST | ACK, ""));
    Connection::open(&path, 1);
    assert!(path.can_fill("key", "value"));
}

/// It takes effect that much later.
#[test]
fn a_delayed_quiet_flush_that_memcached_comes_to_late() {
    // Behind a reply that its client does not take in; the same, where it is in doubt which have left; behind what the
    // kernel has not got; in doubt, behind the rest of a reply.
    let mut paths = [(); 4].map(|()| settling_in(Duration::from_millis(100)));
    let mut connections = paths.each_ref().map(|path| Connection::open(path, 1));
    let flush = "flush_all 1 noreply\r\n";
    connections[0].send(&paths[0], format!("get x\r\n{flush}"));
    connections[0].acknowledge(&paths[0]);
    connections[1].exchange(&paths[1], "verbosity 1\r\n", "OK\r\n");
    connections[1].send(&paths[1], format!("get x\r\n{flush}"));
    connections[1].acknowledge(&paths[1]);
    let lost = connections[2].send(&paths[2], "get x\r\n");
    connections[2].send(&paths[2], flush);
    connections[3].exchange(&paths[3], "verbosity 1\r\n", "OK\r\n");
    connections[3].send(&paths[3], format!("get x\r\n{flush}"));
    connections[3].acknowledge(&paths[3]);
    connections[3].reply(&paths[3], "VALUE x 0 5\r\nhello\r\n");
    // When it would have taken effect otherwise is over.
    wait(Duration::from_millis(3_500));
    assert!(!paths[0].can_fill("key", "old"));
    assert!(!paths[1].can_fill("key", "old"));
    paths[2].pass(&lost);
    for (path, connection) in paths.iter().zip(&mut connections) {
        connection.reply(path, "END\r\n");
    }
    wait(Duration::from_millis(400));
    for (case, path) in paths.iter_mut().enumerate() {
        assert!(!path.can_fill("key", "old"), "{case}");
    }
}

/// One that memcached comes to in time does not.
#[test]
fn a_delayed_quiet_flush_that_is_not_late() {
    let mut path = settling_in(Duration::from_millis(100));
    let mut connection = Connection::open(&path, 1);
    connection.send(&path, "flush_all 1 noreply\r\n");
    connection.acknowledge(&path);
    wait(Duration::from_millis(3_500));
    connection.exchange(&path, "get x\r\n", "END\r\n");
    assert!(path.can_fill("key", "new"));
}
