//! Doubt about a flow, and how it ends.

use std::time::Duration;

use super::connection::Connection;
use super::filled;
use crate::bytes::hit;
use crate::harness::{Datapath, Setup, wait};

const SETTLE: Duration = Duration::from_millis(100);
const SETTLED: Duration = Duration::from_millis(300);

fn doubtful() -> (Datapath, Connection) {
    let path = Datapath::with(&Setup {
        settle: SETTLE,
        remember: SETTLE,
        ..Setup::default()
    });
    let mut connection = Connection::open(&path, 1);
    connection.send(&path, "noise\r\n");
    assert_eq!(path.stats().doubted_requests, 1);
    (path, connection)
}

/// No tickets until memcached goes on, however long that takes.
#[test]
fn the_backend_waits_for_a_flow_in_doubt() {
    let (mut path, mut connection) = doubtful();
    wait(SETTLED);
    assert!(!path.can_fill("key", "old"));
    connection.reply(&path, "ERROR\r\n");
    assert!(!path.can_fill("key", "old"), "it has to settle");
    wait(SETTLED);
    assert!(path.can_fill("key", "new"));
    // Its data empties the cache.
    connection.send(&path, "get x\r\n");
    path.assert_miss("key");
}

#[test]
fn exchanges_end_doubt() {
    let (mut path, mut connection) = doubtful();
    connection.reply(&path, "ERROR\r\n");
    wait(SETTLED);
    for number in 0..2 {
        assert_eq!(path.stats().regained, 0, "after {number} exchanges");
        connection.exchange(&path, "get x\r\nset y 0 0 1\r\nx\r\n", "END\r\nSTORED\r\n");
    }
    assert_eq!(path.stats().regained, 1);
    wait(SETTLED);
    path.fill("key", "value");
    path.fill("other", "value");
    let before = path.epoch();
    connection.exchange(&path, "delete key\r\n", "DELETED\r\n");
    assert_eq!(path.epoch(), before);
    path.assert_miss("key");
    path.assert_hit("other", "value");
}

/// Not before the settle time: what was asked before may still be answered.
#[test]
fn doubt_lasts_as_long_as_writes_settle() {
    let doubt = std::time::Instant::now();
    let (path, mut connection) = doubtful();
    connection.reply(&path, "ERROR\r\n");
    while path.stats().regained == 0 {
        connection.exchange(&path, "get x\r\n", "END\r\n");
        assert!(doubt.elapsed() < Duration::from_secs(10));
    }
    assert!(doubt.elapsed() > SETTLE - Duration::from_millis(10));
}

/// In a data block memcached answers nothing, and what it answers then is something else.
#[test]
fn what_is_no_exchange() {
    let (path, mut connection) = doubtful();
    connection.reply(&path, "ERROR\r\n");
    wait(SETTLED);
    connection.exchange(&path, "get x\r\n", "END\r\n");
    for (request, reply) in [
        // Nothing comes.
        ("get x\r\n", ""),
        // The reply to something else.
        ("get x\r\n", "STORED\r\n"),
        ("set x 0 0 1\r\nx\r\n", "END\r\n"),
        ("get x\r\n", "END\r\nEND\r\n"),
        ("get x\r\nget y\r\n", "END\r\n"),
        ("noise\r\n", "ERROR\r\n"),
    ] {
        connection.send(&path, request);
        connection.acknowledge(&path);
        if !reply.is_empty() {
            connection.reply(&path, reply);
        }
        connection.exchange(&path, "get x\r\n", "END\r\n");
        assert_eq!(path.stats().regained, 0, "{request:?} {reply:?}");
    }
    // The noise has renewed it.
    wait(SETTLED);
    connection.exchange(&path, "get x\r\n", "END\r\n");
    assert_eq!(path.stats().regained, 1);
}

/// Replies alone in doubt: the cache stays, but no write of the flow ends.
#[test]
fn replies_that_cannot_be_told_apart() {
    for (request, reply) in [
        ("watch fetchers\r\n", "OK\r\n"),
        ("lru_crawler metadump all\r\n", "key=x exp=-1\r\nEND\r\n"),
        ("get x\r\n", "STORED\r\n"),
        ("get x\r\n", "noise\r\n"),
    ] {
        let mut path = Datapath::with(&Setup {
            settle: SETTLE,
            remember: SETTLE,
            ..Setup::default()
        });
        path.fill("key", "value");
        path.fill("other", "value");
        let mut connection = Connection::open(&path, 1);
        connection.exchange(&path, request, reply);
        connection.exchange(&path, "delete key\r\n", "DELETED\r\n");
        path.assert_miss("key");
        path.assert_hit("other", "value");
        wait(SETTLED);
        assert!(!path.can_fill("key", "old"), "{request:?}");
        for _ in 0..2 {
            connection.exchange(&path, "get x\r\n", hit("x", "value"));
        }
        assert_eq!(path.stats().regained, 1, "{request:?}");
        assert!(path.can_fill("key", "new"), "{request:?}");
        assert_eq!(path.epoch(), 0);
    }
}

/// `stats` ends.
#[test]
fn statistics_are_counted() {
    let mut path = filled();
    let mut connection = Connection::open(&path, 1);
    connection.exchange(&path, "stats\r\n", "STAT pid 1\r\nSTAT x END\r\nEND\r\n");
    connection.exchange(&path, "stats reset\r\n", "RESET\r\n");
    connection.exchange(&path, "delete key\r\n", "DELETED\r\n");
    assert!(path.can_fill("key", "new"));
    assert_eq!(path.stats().doubted_replies, 0);
}
