//! Writes are outstanding from their arrival until their own reply leaves.

use std::time::{Duration, Instant};

use super::connection::Connection;
use super::{filled, step};
use crate::bytes::hit;
use crate::harness::{Datapath, Setup, wait};
use crate::packet::{ACK, FIN, RST};

fn settling_in(settle: Duration) -> Datapath {
    Datapath::with(&Setup {
        settle,
        remember: settle,
        ..Setup::default()
    })
}

/// The unit in which writes settle is 67 ms.
const SETTLE: Duration = Duration::from_millis(200);
const SETTLED: Duration = Duration::from_millis(600);

#[test]
fn its_reply_ends_a_write() {
    for (write, reply) in [
        ("set key 0 0 3\r\nnew\r\n", "STORED\r\n"),
        ("set key 0 0 3\r\nnew\r\n", "SERVER_ERROR out of memory\r\n"),
        ("add key 0 0 3\r\nnew\r\n", "NOT_STORED\r\n"),
        ("cas key 0 0 3 1\r\nnew\r\n", "EXISTS\r\n"),
        ("delete key\r\n", "NOT_FOUND\r\n"),
        ("incr key 1\r\n", "17\r\n"),
        ("touch key 0\r\n", "TOUCHED\r\n"),
        ("gat 0 key\r\n", "VALUE key 0 3\r\nnew\r\nEND\r\n"),
        ("gat 0 key\r\n", "END\r\n"),
        ("ms key 3\r\nnew\r\n", "HD\r\n"),
        ("ms key 3 c\r\nnew\r\n", "HD c17\r\n"),
        ("md key\r\n", "NF\r\n"),
        ("mg key v T0\r\n", "VA 3\r\nnew\r\n"),
        ("ma key v\r\n", "VA 2\r\n17\r\n"),
    ] {
        for cut in (1..=reply.len()).step_by(step(4)) {
            let mut path = filled();
            let mut connection = Connection::open(&path, 1);
            connection.send(&path, write);
            connection.acknowledge(&path);
            assert!(!path.can_fill("key", "old"), "{write:?} is under way");
            connection.send_back(&path, &reply[..cut]);
            if cut < reply.len() {
                // It has been carried out when the first line of its reply leaves.
                if !reply[..cut].ends_with('\n') && !reply[..cut].contains("\r\n") {
                    assert!(!path.can_fill("key", "old"), "{write:?} {reply:?} at {cut}");
                }
                connection.send_back(&path, &reply[cut..]);
            }
            assert!(path.can_fill("key", "new"), "{write:?} {reply:?} at {cut}");
            let stats = path.stats();
            assert_eq!(stats.doubted_requests + stats.doubted_replies, 0);
        }
    }
}

/// Replies come in the order of their commands.
#[test]
fn every_reply_ends_its_own_write() {
    let mut path = filled();
    let mut connection = Connection::open(&path, 1);
    connection.send(
        &path,
        "get x\r\ndelete key\r\nget y z\r\ndelete other\r\nmg x v\r\n",
    );
    connection.reply(&path, hit("x", "DELETED\r\n"));
    assert!(!path.can_fill("key", "old"));
    connection.reply(&path, "DELETED\r\n");
    assert!(path.can_fill("key", "new"));
    assert!(!path.can_fill("other", "old"));
    let both = "VALUE y 0 9\r\nDELETED\r\n\r\nVALUE z 0 5\r\nEND\r\n\r\nEND\r\n";
    connection.reply(&path, both);
    assert!(!path.can_fill("other", "old"));
    connection.reply(&path, "NOT_FOUND\r\n");
    assert!(path.can_fill("other", "new"));
}

/// A reply that is sent again ends nothing more.
#[test]
fn replies_are_counted_once() {
    let mut path = filled();
    let mut connection = Connection::open(&path, 1);
    connection.send(&path, "delete key\r\ndelete other\r\n");
    connection.acked = connection.client;
    let reply = connection.answer(ACK, "DELETED\r\n");
    connection.reply(&path, "DELETED\r\n");
    path.tx(&reply);
    path.tx(&reply);
    assert!(path.can_fill("key", "new"));
    assert!(!path.can_fill("other", "old"));
    connection.reply(&path, "DELETED\r\n");
    assert!(path.can_fill("other", "new"));
}

/// However long memcached takes.
#[test]
fn a_write_that_is_owed_a_reply_does_not_settle() {
    let mut path = settling_in(SETTLE);
    let mut connection = Connection::open(&path, 1);
    connection.send(&path, "delete key\r\n");
    connection.acknowledge(&path);
    wait(SETTLED);
    assert!(!path.can_fill("key", "old"));
    connection.reply(&path, "DELETED\r\n");
    assert!(path.can_fill("key", "new"));
}

/// But after the end of its connection it does.
#[test]
fn the_end_of_a_connection_lets_writes_settle() {
    for end in ["FIN", "RST", "client's RST", "its RST without ACK"] {
        let mut path = settling_in(SETTLE);
        let mut connection = Connection::open(&path, 1);
        connection.send(&path, "delete key\r\n");
        connection.acknowledge(&path);
        match end {
            "FIN" => path.tx(&connection.answer(ACK | FIN, "")),
            "RST" => path.tx(&connection.answer(RST, "")),
            "client's RST" => path.pass(&connection.segment(RST | ACK, "")),
            _ => path.pass(&connection.segment(RST, "").acknowledging(0)),
        }
        assert!(!path.can_fill("key", "old"), "{end}");
        wait(SETTLED);
        assert!(path.can_fill("key", "new"), "{end}");
    }
}

/// If its client goes on the kernel has not heeded its reset: what follows is a write as any other.
#[test]
fn a_write_behind_a_reset_does_not_settle() {
    let mut path = settling_in(SETTLE);
    let mut connection = Connection::open(&path, 1);
    connection.exchange(&path, "get x\r\n", "END\r\n");
    path.pass(&connection.segment(RST, ""));
    connection.send(&path, "delete key\r\n");
    wait(SETTLED);
    assert!(!path.can_fill("key", "old"));
    connection.reply(&path, "DELETED\r\n");
    assert!(path.can_fill("key", "new"));
}

#[test]
fn the_reply_to_a_later_command_ends_a_quiet_write() {
    for quiet in [
        "set key 0 0 3 noreply\r\nnew\r\n",
        "delete key noreply\r\n",
        "ms key 3 q\r\nnew\r\n",
    ] {
        let mut path = filled();
        let mut connection = Connection::open(&path, 1);
        connection.send(&path, format!("get x\r\n{quiet}get y\r\n"));
        connection.reply(&path, "END\r\n");
        assert!(!path.can_fill("key", "old"), "{quiet:?}");
        connection.reply(&path, "END\r\n");
        assert!(path.can_fill("key", "new"), "{quiet:?}");
    }
}

#[test]
fn a_quiet_write_settles_after_it_was_acknowledged() {
    let mut path = settling_in(SETTLE);
    let mut connection = Connection::open(&path, 1);
    connection.exchange(&path, "get x\r\n", "END\r\n");
    connection.send(&path, "delete key noreply\r\n");
    wait(SETTLED);
    assert!(!path.can_fill("key", "old"), "it may not even have arrived");
    connection.acknowledge(&path);
    assert!(!path.can_fill("key", "old"), "it was acknowledged only now");
    wait(SETTLED);
    assert!(path.can_fill("key", "new"));
    // The usual course of things.
    connection.send(&path, "delete key noreply\r\n");
    connection.acknowledge(&path);
    assert!(!path.can_fill("key", "old"));
    wait(SETTLED);
    assert!(path.can_fill("key", "new"));
}

/// memcached stops at a reply that its client does not take in, for as long as that likes.
#[test]
fn a_quiet_write_settles_after_what_precedes_it_was_answered() {
    for quiet in ["delete key noreply", "flush_all noreply"] {
        let mut path = settling_in(SETTLE);
        let mut connection = Connection::open(&path, 1);
        connection.send(&path, format!("get x\r\n{quiet}\r\n"));
        connection.acknowledge(&path);
        wait(SETTLED);
        let can_fill = path.can_fill("key", "old");
        assert!(!can_fill, "memcached has not come to {quiet:?}");
        connection.reply(&path, "END\r\n");
        let can_fill = path.can_fill("key", "old");
        assert!(!can_fill, "memcached comes to {quiet:?} only now");
        wait(SETTLED);
        assert!(path.can_fill("key", "new"), "{quiet:?}");
    }
}

/// Some replies are counted at their beginning, but memcached is at them to their end.
#[test]
fn a_quiet_write_settles_after_the_end_of_what_precedes_it() {
    for quiet in ["ms key 3 q\r\nnew", "flush_all noreply"] {
        let mut path = settling_in(SETTLE);
        let mut connection = Connection::open(&path, 1);
        connection.send(&path, format!("mg x v\r\n{quiet}\r\n"));
        connection.acknowledge(&path);
        connection.reply(&path, format!("VA 2000\r\n{}", "x".repeat(1_000)));
        wait(SETTLED);
        let can_fill = path.can_fill("key", "old");
        assert!(!can_fill, "memcached has not come to {quiet:?}");
        connection.reply(&path, format!("{}\r\n", "x".repeat(1_000)));
        let can_fill = path.can_fill("key", "old");
        assert!(!can_fill, "memcached comes to {quiet:?} only now");
        wait(SETTLED);
        assert!(path.can_fill("key", "new"), "{quiet:?}");
    }
}

/// What is parsed again is older than what has been seen since.
#[test]
fn a_write_that_comes_again_leaves_later_ones_outstanding() {
    for (write, reply) in [
        ("set key 0 0 3\r\nold\r\n", "STORED\r\n"),
        ("delete key noreply\r\nget x\r\n", "END\r\n"),
    ] {
        let mut path = filled();
        let mut connection = Connection::open(&path, 1);
        let first = connection.send(&path, write);
        connection.send(&path, write);
        // The kernel has dropped it.
        connection.arrives(&path, &first);
        connection.acknowledge(&path);
        connection.reply(&path, reply);
        assert!(!path.can_fill("key", "old"), "{write:?}");
        connection.reply(&path, reply);
        assert!(path.can_fill("key", "new"), "{write:?}");
    }
}

#[test]
fn doubt_does_not_keep_a_quiet_flush_waiting() {
    let mut path = settling_in(SETTLE);
    let mut connection = Connection::open(&path, 1);
    let quiet = "flush_all noreply\r\nset other 0 0 1 noreply\r\nx\r\n";
    connection.send(&path, format!("get x\r\n{quiet}get y\r\n"));
    connection.acknowledge(&path);
    connection.reply(&path, "END\r\nSERVER_ERROR out of memory\r\n");
    assert_eq!(path.stats().doubted_replies, 1);
    connection.reply(&path, "END\r\n");
    assert!(!path.can_fill("key", "old"));
    wait(SETTLED);
    assert!(path.can_fill("key", "new"));
}

/// A quiet flush behind a segment that the kernel has not got is executed when that has come.
#[test]
fn a_quiet_flush_that_was_held_up_empties_the_cache_again() {
    let mut path = settling_in(SETTLE);
    let mut connection = Connection::open(&path, 1);
    let first = connection.send(&path, "set other 0 0 1 noreply\r\nx\r\n");
    connection.send(&path, "flush_all noreply\r\n");
    wait(SETTLED);
    assert!(path.can_fill("key", "old"));
    connection.arrives(&path, &first);
    connection.acknowledge(&path);
    path.assert_miss("key");
}

/// Which replies have left is in doubt then, but not that memcached is still at them.
#[test]
fn a_quiet_write_settles_after_the_last_reply_in_doubt() {
    let mut path = settling_in(SETTLE);
    let mut connection = Connection::open(&path, 1);
    connection.send(
        &path,
        "set other 0 0 1 noreply\r\nx\r\nget x\r\ndelete key noreply\r\n",
    );
    connection.acknowledge(&path);
    // To which of the two?
    connection.reply(&path, "SERVER_ERROR out of memory\r\n");
    assert_eq!(path.stats().doubted_replies, 1);
    wait(SETTLED);
    connection.reply(&path, "END\r\n");
    assert!(
        !path.can_fill("key", "old"),
        "memcached comes to it only now"
    );
    wait(SETTLED);
    assert!(path.can_fill("key", "new"));
}

/// A client that writes quietly and reads in turns.
#[test]
fn quiet_writes_that_fail_end_nothing() {
    let mut path = filled();
    let mut connection = Connection::open(&path, 1);
    connection.send(&path, "set other 0 0 1 noreply\r\nx\r\ndelete key\r\n");
    // To which of the two?
    connection.reply(&path, "SERVER_ERROR out of memory\r\n");
    assert!(!path.can_fill("key", "old"));
    assert_eq!(path.stats().doubted_replies, 1);
    assert_eq!(path.stats().doubted_requests, 0);
    assert_eq!(path.epoch(), 0);

    let mut path = filled();
    let mut connection = Connection::open(&path, 1);
    connection.send(&path, "md x q\r\nms other 1 q\r\nx\r\ndelete key\r\n");
    connection.reply(&path, "NF\r\nNS\r\n");
    assert!(!path.can_fill("key", "old"));
    connection.reply(&path, "DELETED\r\n");
    assert!(path.can_fill("key", "new"));
    assert_eq!(path.stats().doubted_replies, 0);
}

/// A written key does not shut its neighbours out, and two flows that write one key both count.
#[test]
fn flows_that_write_one_key() {
    let mut path = filled();
    let mut connections: Vec<_> = (1..4).map(|port| Connection::open(&path, port)).collect();
    for connection in &mut connections {
        connection.send(&path, "delete key\r\n");
    }
    assert!(path.can_fill("third", "value"));
    for connection in &mut connections {
        assert!(!path.can_fill("key", "old"));
        connection.reply(&path, "DELETED\r\n");
    }
    assert!(path.can_fill("key", "new"));
}

/// More flows than there are marks in a bucket.
#[test]
fn a_key_that_is_written_by_many() {
    let mut path = filled();
    let mut connections: Vec<_> = (1..40).map(|port| Connection::open(&path, port)).collect();
    for connection in &mut connections {
        connection.send(&path, "incr key 1\r\n");
    }
    for connection in connections.iter_mut().rev() {
        assert!(!path.can_fill("key", "old"));
        connection.reply(&path, "5\r\n");
    }
    assert!(path.can_fill("key", "new"));
    assert_eq!(path.epoch(), 0);
}

/// The whole backend waits for a flush.
#[test]
fn a_flush_is_outstanding_until_its_reply() {
    let mut path = settling_in(SETTLE);
    let mut connection = Connection::open(&path, 1);
    connection.send(&path, "get x\r\nflush_all\r\n");
    connection.acknowledge(&path);
    wait(SETTLED);
    assert!(!path.can_fill("key", "old"));
    connection.reply(&path, "END\r\n");
    assert!(!path.can_fill("key", "old"));
    connection.reply(&path, "OK\r\n");
    assert!(path.can_fill("key", "new"));
}

/// Which replies have left is in doubt, but memcached does not sit on a flush for good.
#[test]
fn a_flush_in_doubt_does_not_keep_the_backend_waiting() {
    let mut path = settling_in(SETTLE);
    let mut connection = Connection::open(&path, 1);
    connection.exchange(&path, "verbosity 1\r\n", "OK\r\n");
    assert_eq!(path.stats().doubted_replies, 1);
    connection.send(&path, "get x\r\nflush_all\r\n");
    connection.acknowledge(&path);
    wait(SETTLED);
    assert!(!path.can_fill("key", "old"));
    connection.reply(&path, "END\r\nOK\r\n");
    assert!(!path.can_fill("key", "old"), "it has to settle");
    wait(SETTLED);
    assert!(path.can_fill("key", "new"));
}

/// memcached has read it together with what it answers first, and comes to it when its client takes that in.
#[test]
fn a_flush_in_doubt_empties_the_cache_when_it_is_answered() {
    let mut path = settling_in(SETTLE);
    let mut connection = Connection::open(&path, 1);
    connection.exchange(&path, "verbosity 1\r\n", "OK\r\n");
    connection.send(&path, "get x\r\nflush_all\r\n");
    connection.acknowledge(&path);
    connection.reply(&path, "VALUE x 0 5\r\nhel");
    wait(SETTLED);
    assert!(path.can_fill("key", "old"));
    connection.reply(&path, "lo\r\nEND\r\nOK\r\n");
    path.assert_miss("key");
}

/// As many quiet writes as there is no room for in any control.
fn crowd(path: &Datapath, connection: &mut Connection) {
    let writes: Vec<_> = (0..2_000)
        .map(|i| format!("delete k{i} noreply\r\n"))
        .collect();
    for some in writes.chunks(50) {
        connection.send(path, some.concat());
    }
}

/// Even if nothing else comes.
#[test]
fn quiet_writes_of_many_keys_settle() {
    for before in ["", "get x\r\n"] {
        let mut path = settling_in(SETTLE);
        let mut connection = Connection::open(&path, 1);
        connection.send(&path, before);
        crowd(&path, &mut connection);
        wait(SETTLED);
        assert!(!path.can_fill("key", "old"), "they have not arrived");
        connection.acknowledge(&path);
        if !before.is_empty() {
            wait(SETTLED);
            assert!(
                !path.can_fill("key", "old"),
                "memcached has not come to them"
            );
            connection.reply(&path, "END\r\n");
        }
        assert!(!path.can_fill("key", "old"), "it comes to them only now");
        wait(SETTLED);
        assert!(path.can_fill("key", "new"));
    }
}

/// But not what is owed a reply among them.
#[test]
fn a_write_among_many_quiet_ones_does_not_settle() {
    let mut path = settling_in(SETTLE);
    let mut connection = Connection::open(&path, 1);
    crowd(&path, &mut connection);
    connection.send(&path, "delete key\r\n");
    connection.acknowledge(&path);
    wait(SETTLED);
    assert!(!path.can_fill("key", "old"));
    connection.reply(&path, "DELETED\r\n");
    wait(SETTLED);
    assert!(path.can_fill("key", "new"));
}

/// A short settle time begins with the acknowledgement as well.
#[test]
fn a_quiet_write_that_was_held_up_for_a_moment() {
    let mut path = settling_in(SETTLE);
    let mut connection = Connection::open(&path, 1);
    let first = connection.send(&path, "set other 0 0 1 noreply\r\nx\r\n");
    connection.send(&path, "delete key noreply\r\n");
    // More than it takes to settle, less than an acknowledgement may be delayed.
    wait(SETTLE * 2);
    connection.arrives(&path, &first);
    connection.acknowledge(&path);
    assert!(!path.can_fill("key", "old"));
    wait(SETTLED);
    assert!(path.can_fill("key", "new"));
}

/// What was sent again was something else, and shorter: numbers that were given before are not given again.
#[test]
fn numbers_outlive_a_flow() {
    for sent in ["delete key\r\n", "flush_all\r\n"] {
        let mut path = settling_in(SETTLE);
        let mut connection = Connection::open(&path, 1);
        let mut before = connection.clone();
        let commands = format!("mn\r\nmn\r\nmn\r\n{sent}");
        connection.send(&path, &commands);
        before.send(&path, format!("get {}\r\n", "x".repeat(commands.len() - 6)));
        assert_eq!(path.stats().doubted_requests, 1);
        path.tx(&connection.answer(RST, ""));
        let mut next = Connection::open(&path, 1);
        wait(SETTLED);
        assert!(path.can_fill("key", "new"), "after {sent:?}");
        next.exchange(&path, "flush_all\r\n", "OK\r\n");
        wait(SETTLED);
        assert!(path.can_fill("key", "newer"), "after {sent:?}");
    }
}

/// Of what was acknowledged on a connection before nothing is said of the next one.
#[test]
fn a_connection_of_which_something_is_always_unacknowledged() {
    let mut path = settling_in(SETTLE);
    let mut last = Connection::open(&path, 1);
    for _ in 0..100 {
        last.exchange(&path, format!("get {}\r\n", "x".repeat(200)), "END\r\n");
    }
    path.tx(&last.answer(RST, ""));
    let mut connection = Connection::open(&path, 1);
    connection.send(&path, "delete key noreply\r\n");
    let start = Instant::now();
    while !path.can_fill("key", "new") {
        let before = connection.client;
        connection.send(&path, "delete other noreply\r\n");
        connection.acked = before;
        path.tx(&connection.answer(ACK, ""));
        std::thread::sleep(Duration::from_millis(15));
        assert!(connection.client < last.client, "{:?}", start.elapsed());
    }
}

/// Binary responses name their opcode.
#[test]
fn binary_replies_end_their_writes() {
    use crate::binary::{done, get, not_found, request};
    let mut path = filled();
    let mut connection = Connection::open(&path, 1);
    let quiet = request(0x14, b"", b"other", b"", 1);
    let delete = request(0x04, b"", b"key", b"", 2);
    let noop = request(0x0a, b"", b"", b"", 3);
    connection.send(&path, [get(0, b"x", 0), quiet, delete, noop].concat());
    connection.reply(&path, not_found(0, 0));
    assert!(!path.can_fill("key", "old"));
    // The quiet one fails, which ends nothing.
    connection.reply(&path, not_found(0x14, 1));
    assert!(!path.can_fill("key", "old"));
    connection.reply(&path, done(0x04, 2));
    assert!(path.can_fill("key", "new"));
    assert!(path.can_fill("other", "new"));
    assert_eq!(path.stats().doubted_replies, 0);
}

/// A line answers no binary request, whatever number its kind has.
#[test]
fn a_line_ends_no_binary_write() {
    use crate::binary::{get, request};
    let mut path = filled();
    let mut reader = Connection::open(&path, 2);
    reader.send(&path, get(0, b"x", 1));
    reader.reply(&path, "OK\r\n");
    assert_eq!(path.stats().doubted_replies, 1);
    let mut connection = Connection::open(&path, 1);
    connection.send(&path, request(0x01, &[0; 8], b"key", b"new", 1));
    connection.reply(&path, "STORED\r\n");
    assert_eq!(path.stats().doubted_replies, 2);
    assert!(!path.can_fill("key", "old"));
}

/// A client that says farewell leaves no doubt about what was answered before.
#[test]
fn a_write_before_a_quit_ends_with_its_reply() {
    let mut path = filled();
    let mut connection = Connection::open(&path, 1);
    connection.send(&path, "set key 0 0 3\r\nnew\r\nquit\r\n");
    assert!(!path.can_fill("key", "old"));
    connection.reply(&path, "STORED\r\n");
    assert!(path.can_fill("key", "new"));
    path.tx(&connection.answer(ACK | FIN, ""));
    assert!(path.can_fill("another", "new"));
    assert_eq!(path.stats().doubted_replies, 0);
}
