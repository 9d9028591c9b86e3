//! Doubt about a flow, and how it ends.

use std::time::Duration;

use prestack_abi::flow::Finding;

use super::connection::Connection;
use super::filled;
use crate::bytes::hit;
use crate::harness::{Datapath, Setup, wait};
use crate::packet::{ACK, PSH, SYN};

const SETTLE: Duration = Duration::from_millis(200);
const SETTLED: Duration = Duration::from_millis(600);

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

/// Not unless both ends were silent for the settle time: what was asked before may still be answered.
#[test]
fn exchanges_without_a_pause() {
    let doubt = std::time::Instant::now();
    let (path, mut connection) = doubtful();
    connection.reply(&path, "ERROR\r\n");
    while doubt.elapsed() < 3 * SETTLE {
        connection.exchange(&path, "get x\r\n", "END\r\n");
    }
    assert_eq!(path.stats().regained, 0);
    wait(SETTLED);
    for number in 0..2 {
        assert_eq!(path.stats().regained, 0, "after {number} exchanges");
        connection.exchange(&path, "get x\r\n", "END\r\n");
    }
    assert_eq!(path.stats().regained, 1);
}

/// All is acknowledged at times, and yet a command is always owed its reply.
#[test]
fn a_client_that_is_always_one_command_ahead() {
    // The last is the reply to one that was sent before the doubt, or in it.
    for doubtful in ["verbosity 1\r\n", "noise\r\n"] {
        let mut path = Datapath::with(&Setup {
            settle: SETTLE,
            remember: SETTLE,
            ..Setup::default()
        });
        let mut connection = Connection::open(&path, 1);
        connection.exchange(&path, doubtful, "OK\r\n");
        wait(SETTLED);
        connection.send(&path, "delete third\r\n");
        connection.acknowledge(&path);
        for _ in 0..4 {
            connection.send(&path, "delete other\r\n");
            connection.reply(&path, "DELETED\r\n");
        }
        connection.send(&path, "set key 0 0 3\r\nnew\r\n");
        connection.reply(&path, "DELETED\r\n");
        assert!(!path.can_fill("key", "old"), "after {doubtful:?}");
        connection.reply(&path, "STORED\r\n");
        assert_eq!(path.stats().regained, 0, "after {doubtful:?}");
        // It waits, and that shows.
        wait(SETTLED);
        for _ in 0..2 {
            connection.exchange(&path, "get x\r\n", "END\r\n");
        }
        assert_eq!(path.stats().regained, 1, "after {doubtful:?}");
    }
}

/// memcached has read what came, and waits for more: it has done what it does with it, once that has settled. More is
/// waited for again.
#[test]
fn an_idle_flow_is_not_waited_for() {
    let (mut path, mut connection) = doubtful();
    let look = |path: &Datapath| {
        let open = prestack::maps::open_flows(&path.kernel().programs.ids).expect("the maps");
        let [flow] = open[..] else {
            panic!("{open:?}");
        };
        assert!(flow.is_waited_for);
        Finding {
            what: Finding::IDLE,
            ..flow.found
        }
    };
    let before = look(&path);
    wait(SETTLED);
    connection.send(&path, "more noise");
    assert!(!path.kernel().end_flow(&before), "more has come since");
    assert_eq!(path.kernel().backend().waits, 1);
    let idle = look(&path);
    assert!(path.kernel().end_flow(&idle));
    assert_eq!(path.kernel().backend().waits, 0);
    assert!(!path.kernel().end_flow(&idle), "nothing is waited for");
    assert!(!path.can_fill("key", "old"), "it has to settle");
    wait(SETTLED);
    path.fill("key", "value");
    connection.send(&path, "\r\n");
    path.assert_miss("key");
    assert!(!path.can_fill("key", "old"));
    assert_eq!(path.kernel().backend().waits, 1);
    connection.reply(&path, "ERROR\r\n");
    assert_eq!(path.kernel().backend().waits, 0);
}

/// Of the bytes of a part of a Multipath TCP connection is not known where memcached gets them.
#[test]
fn a_part_of_another_connection_stays_in_doubt() {
    let mut path = Datapath::with(&Setup {
        settle: SETTLE,
        remember: SETTLE,
        ..Setup::default()
    });
    let mut connection = Connection::new(1);
    path.pass(&connection.segment(SYN, ""));
    connection.client = connection.client.wrapping_add(1);
    connection.acked = connection.client;
    // MP_CAPABLE and a window scale (RFC 8684 3.1).
    let options = [
        2, 4, 5, 0xb4, 3, 3, 7, 1, 30, 12, 1, 0x81, 0, 0, 0, 0, 0, 0, 0, 1,
    ];
    path.tx(&connection.answer(SYN | ACK, "").tcp_options(&options));
    connection.server = connection.server.wrapping_add(1);
    path.fill("key", "value");
    assert_eq!(path.kernel().backend().waits, 0, "nothing has come");
    for _ in 0..4 {
        wait(SETTLED);
        connection.exchange(&path, "get x\r\n", "END\r\n");
        path.assert_miss("key");
    }
    assert_eq!(path.stats().regained, 0);
    // What memcached takes for data may not look so here, and the other way round.
    wait(SETTLED);
    path.fill("key", "value");
    connection.send(&path, "set x 0 0 1000\r\n");
    wait(SETTLED);
    connection.acknowledge(&path);
    connection.send(&path, "set key 0 0 3\r\nnew\r\n");
    path.assert_miss("key");
    assert!(!path.can_fill("key", "value"));
}

/// What memcached sends between exchanges answers something that was sent before them.
#[test]
fn a_reply_too_many() {
    let (path, mut connection) = doubtful();
    connection.reply(&path, "ERROR\r\n");
    wait(SETTLED);
    connection.exchange(&path, "get x\r\n", "END\r\n");
    connection.reply(&path, "END\r\n");
    connection.exchange(&path, "get x\r\n", "END\r\n");
    assert_eq!(path.stats().regained, 0);
}

/// Quiet commands alone are no exchange: what is answered to them shows nothing.
#[test]
fn an_error_without_a_question() {
    let (path, mut connection) = doubtful();
    connection.reply(&path, "ERROR\r\n");
    wait(SETTLED);
    for _ in 0..2 {
        let quiet = "set x 0 0 1 noreply\r\nx\r\n";
        connection.exchange(&path, quiet, "SERVER_ERROR out of memory\r\n");
    }
    assert_eq!(path.stats().regained, 0);
}

/// Without a window the client may have left an answer to take in, behind which memcached waits.
#[test]
fn a_client_that_takes_nothing_in() {
    let (path, mut connection) = doubtful();
    connection.reply(&path, "ERROR\r\n");
    wait(SETTLED);
    for _ in 0..2 {
        let segment = connection.segment(ACK | PSH, "get x\r\n").window(0);
        path.pass(&segment);
        connection.client = connection.client.wrapping_add(7);
        connection.reply(&path, "END\r\n");
    }
    assert_eq!(path.stats().regained, 0);
}

/// What an exchange starts with may be acknowledged before the rest of it comes.
#[test]
fn commands_in_pieces_that_are_acknowledged() {
    let (path, mut connection) = doubtful();
    connection.reply(&path, "ERROR\r\n");
    wait(SETTLED);
    for pieces in [
        ["set x 0 0 5\r\n", "abc", "de\r\n"],
        ["se", "t x 0 0 1", "\r\nx\r\n"],
    ] {
        assert_eq!(path.stats().regained, 0);
        for piece in pieces {
            connection.send(&path, piece);
            connection.acknowledge(&path);
        }
        connection.reply(&path, "STORED\r\n");
    }
    assert_eq!(path.stats().regained, 1);
    assert_eq!(path.stats().doubted_requests, 1);
}

/// What comes once more starts no exchange: memcached may have got the first copy, which was something else.
#[test]
fn a_copy_of_what_came_in_doubt() {
    let (path, mut connection) = doubtful();
    connection.reply(&path, "ERROR\r\n");
    for _ in 0..2 {
        wait(SETTLED);
        let first = connection.segment(ACK | PSH, "set x 0 0 100  ");
        path.pass(&first);
        let copy = connection.segment(ACK | PSH, "get xxxxxxxxx\r\n");
        path.pass(&copy);
        connection.client = connection.client.wrapping_add(15);
        connection.reply(&path, "END\r\n");
    }
    assert_eq!(path.stats().regained, 0);
    wait(SETTLED);
    for _ in 0..2 {
        connection.exchange(&path, "get x\r\n", "END\r\n");
    }
    assert_eq!(path.stats().regained, 1);
}

/// The first copy may have come before what precedes it, and wait behind `rx`.
#[test]
fn a_copy_of_what_came_early_in_doubt() {
    let (path, mut connection) = doubtful();
    connection.reply(&path, "ERROR\r\n");
    wait(SETTLED);
    let early = connection.segment(ACK | PSH, "get x\r\nset y 0 0 100");
    path.pass(&early.sequence(connection.client.wrapping_add(7)));
    wait(SETTLED);
    connection.exchange(&path, "get x\r\n", "END\r\n");
    connection.exchange(&path, "get x\r\nget yyyyyyyyy\r\n", "END\r\nEND\r\n");
    assert_eq!(path.stats().regained, 0);
    wait(SETTLED);
    for _ in 0..2 {
        connection.exchange(&path, "get x\r\n", "END\r\n");
    }
    assert_eq!(path.stats().regained, 1);
}

/// A part of a data block may look like a quiet write whose block is long. In one memcached would answer nothing.
#[test]
fn a_data_block_that_is_none() {
    let (path, mut connection) = doubtful();
    connection.reply(&path, "ERROR\r\n");
    wait(SETTLED);
    connection.exchange(&path, "ms x 99999999 q\r\n", "HD\r\n");
    wait(SETTLED);
    for _ in 0..3 {
        connection.exchange(&path, "md x\r\n", "HD\r\n");
    }
    assert_eq!(path.stats().regained, 1);
}

/// Behind the last reply of an exchange quiet commands may wait to be executed.
#[test]
fn an_exchange_that_ends_in_a_quiet_command() {
    let (path, mut connection) = doubtful();
    connection.reply(&path, "ERROR\r\n");
    wait(SETTLED);
    let quiet = "get x\r\nset key 0 0 1 noreply\r\nx\r\n";
    for _ in 0..3 {
        connection.exchange(&path, quiet, "END\r\n");
    }
    assert_eq!(path.stats().regained, 0);
    for _ in 0..2 {
        connection.exchange(&path, "get x\r\n", "END\r\n");
    }
    assert_eq!(path.stats().regained, 1);
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
    assert_eq!(path.stats().regained, 0);
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
        assert!(!path.can_fill("key", "old"), "{request:?}");
        wait(SETTLED);
        assert!(path.can_fill("key", "new"), "{request:?}");
        assert_eq!(path.epoch(), 0);
    }
}

/// What was taken for answered before was not, then.
#[test]
fn a_reply_for_which_nothing_is_owed() {
    for (reply, is_forgotten) in [
        ("DELETED\r\n", true),
        ("END\r\n", true),
        ("HD\r\n", true),
        // memcached turns clients away with one.
        ("ERROR Too many open connections\r\n", false),
    ] {
        let mut path = filled();
        let mut connection = Connection::open(&path, 1);
        connection.exchange(&path, "get x\r\n", "END\r\n");
        connection.reply(&path, reply);
        assert_eq!(path.stats().doubted_replies, 1, "{reply:?}");
        assert_eq!(path.epoch() != 0, is_forgotten, "{reply:?}");
        assert_eq!(path.can_fill("third", "old"), !is_forgotten, "{reply:?}");
    }
    let path = filled();
    let mut connection = Connection::open(&path, 1);
    let quiet = "set other 0 0 1 noreply\r\nx\r\n";
    connection.exchange(&path, quiet, "SERVER_ERROR out of memory\r\n");
    assert_eq!(path.stats().doubted_replies, 0);
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
