//! Segments that are lost, repeated or out of order.

use super::connection::Connection;
use super::{assert_forgotten, assert_key_written, assert_untouched, filled, step};
use crate::packet::{ACK, FIN, RST, URG};

/// What the kernel has acknowledged has been executed, or will be as it came first.
#[test]
fn what_is_acknowledged_is_not_parsed_again() {
    let mut path = filled();
    let mut connection = Connection::open(&path, 1);
    let get = connection.send(&path, "get x\r\n");
    connection.reply(&path, "END\r\n");
    path.pass(&get);
    path.pass(&get.clone().payload("get y\r\n"));
    connection.send(&path, "get z\r\n");
    assert_untouched(&mut path);
    assert_eq!(path.stats().reparsed, 0);
    // One that goes on is taken from where it is new.
    connection.reply(&path, "END\r\n");
    let mut longer = connection.clone();
    longer.client -= 7;
    path.pass(&longer.segment(ACK, "get z\r\ndelete key\r\n"));
    assert_key_written(&mut path);
    assert_eq!(path.stats().doubted_requests, 0);
}

/// A segment may be dropped behind `rx` and be executed when it comes again.
#[test]
fn what_is_not_acknowledged_is_written_again() {
    for text in [
        "delete key\r\n",
        "delete key noreply\r\n",
        "set key 0 0 3\r\nnew\r\n",
    ] {
        let mut path = filled();
        let mut connection = Connection::open(&path, 1);
        connection.exchange(&path, "get x\r\n", "END\r\n");
        let write = connection.send(&path, text);
        assert_eq!(path.stats().invalidations, 1);
        path.pass(&write);
        path.pass(&write);
        assert_eq!(path.stats().invalidations, 3);
        assert_eq!(path.stats().reparsed, 2);
        assert_key_written(&mut path);
        // What follows is in order.
        connection.send(&path, "get other\r\n");
        assert_eq!(path.stats().doubted_requests, 0);
    }
}

/// The beginning of a command in the segment before is still known.
#[test]
fn the_rest_of_a_command_comes_again() {
    let mut path = filled();
    let mut connection = Connection::open(&path, 1);
    connection.send(&path, "get x\r\ndele");
    connection.acknowledge(&path);
    let rest = connection.send(&path, "te key\r\nget y\r\nge");
    path.pass(&rest);
    assert_eq!(path.stats().invalidations, 2);
    connection.send(&path, "t z\r\ndelete key\r\n");
    assert_eq!(path.stats().invalidations, 3);
    assert_key_written(&mut path);
    assert_eq!(path.stats().doubted_requests, 0);
}

/// Of copies that differ nobody knows which one memcached gets.
#[test]
fn copies_that_differ() {
    for other in ["delete key\r\nget y\r", "set other 0 0 3 \r\n\r\n"] {
        let mut path = filled();
        let mut connection = Connection::open(&path, 1);
        let first = connection.send(&path, "get key other x y\r\n");
        let mut other = other.to_owned();
        other.truncate(19);
        let copy = first.payload(&other);
        path.pass(&copy);
        assert_forgotten(&mut path);
    }
    // Two that leave the flow in one state both count.
    let mut path = filled();
    let mut connection = Connection::open(&path, 1);
    let first = connection.send(&path, "delete abc\r\n");
    path.pass(&first.payload("delete key\r\n"));
    assert_key_written(&mut path);
    assert!(!path.can_fill("abc", "value"));
    assert!(!path.can_fill("key", "value"));
}

/// Of several that are sent again in another way it cannot be told whether they are the same.
#[test]
fn what_was_unacknowledged_comes_again_in_part() {
    let mut path = filled();
    let mut connection = Connection::open(&path, 1);
    let first = connection.send(&path, "get x\r\n");
    connection.send(&path, "get y\r\n");
    path.pass(&first);
    assert_forgotten(&mut path);
    assert_eq!(path.stats().doubted_requests, 1);
}

/// Data that is missing hides no command.
#[test]
fn holes_in_data() {
    let value = "x".repeat(5000);
    let stream = format!("set key 0 0 5000\r\n{value}\r\ndelete third\r\n");
    for lost in [1, 2, 3] {
        let mut path = filled();
        let mut connection = Connection::open(&path, 1);
        let mut late = Vec::new();
        for (number, piece) in stream.as_bytes().chunks(1000).enumerate() {
            if number == lost {
                late.push(connection.lose(piece));
            } else {
                connection.send(&path, piece);
            }
        }
        for segment in late {
            path.pass(&segment);
        }
        assert_key_written(&mut path);
        assert_eq!(path.stats().invalidations, 2);
        assert_eq!(path.stats().doubted_requests, 0);
    }
}

/// Commands that come while some before them are missing wait for these.
#[test]
fn holes_in_commands() {
    let stream =
        "get x\r\nset third 0 0 14\r\ndelete other\r\n\r\nget y\r\ndelete key\r\nmn\r\nget z\r\n";
    for len in (1..30).step_by(step(9)) {
        let pieces: Vec<_> = stream.as_bytes().chunks(len).collect();
        for lost in 0..pieces.len() {
            for late in [1, 2, pieces.len()] {
                let mut path = filled();
                let mut connection = Connection::open(&path, 1);
                let mut missing = None;
                for (number, piece) in pieces.iter().enumerate() {
                    if number == lost {
                        missing = Some(connection.lose(piece));
                    } else {
                        connection.send(&path, piece);
                    }
                    if number == lost + late
                        && let Some(segment) = missing.take()
                    {
                        path.pass(&segment);
                    }
                }
                if let Some(segment) = missing {
                    path.pass(&segment);
                }
                let case = format!("pieces of {len}, {lost} lost, {late} late");
                assert_eq!(path.stats().doubted_requests, 0, "{case}");
                assert_eq!(path.stats().invalidations, 2, "{case}");
                assert_key_written(&mut path);
            }
        }
    }
}

/// More is missing than is kept, or it is too long to be kept.
#[test]
fn holes_that_cannot_be_closed() {
    let mut path = filled();
    let mut connection = Connection::open(&path, 1);
    connection.lose("get x\r\n");
    connection.send(&path, "get y\r\n");
    assert_untouched(&mut path);
    connection.lose("get x\r\n");
    connection.send(&path, "get z\r\n");
    assert_forgotten(&mut path);

    let mut path = filled();
    let mut connection = Connection::open(&path, 1);
    let lost = connection.lose("get x\r\n");
    for _ in 0..8 {
        connection.send(&path, "get y\r\n".repeat(146));
    }
    assert_untouched(&mut path);
    connection.send(&path, "get y\r\n".repeat(146));
    assert_forgotten(&mut path);
    let before = path.epoch();
    path.pass(&lost);
    connection.send(&path, "get z\r\n");
    assert!(path.epoch() > before);
}

/// What is sent again together with what was missing is not parsed twice.
#[test]
fn what_waits_is_sent_again() {
    let mut path = filled();
    let mut connection = Connection::open(&path, 1);
    let lost = connection.lose("get x\r\ndele");
    connection.send(&path, "te key\r\nget y\r\ndelete third\r\n");
    path.pass(&lost.payload("get x\r\ndelete key\r\n"));
    assert_eq!(path.stats().invalidations, 2);
    assert_eq!(path.stats().doubted_requests, 0);
    connection.send(&path, "delete fourth\r\n");
    assert_eq!(path.stats().invalidations, 3);
    assert_key_written(&mut path);
}

/// Places are shared, but one flow does not see another's bytes.
#[test]
fn many_flows_have_holes() {
    let mut path = filled();
    let mut lost = Vec::new();
    for port in 1..200 {
        let mut connection = Connection::open(&path, port);
        lost.push((connection.lose("get x\r\n"), port));
        connection.send(&path, format!("delete key-{port}\r\n"));
    }
    let doubted = path.stats().doubted_requests;
    assert!((100..190).contains(&doubted), "{doubted}");
    for (segment, _) in &lost {
        path.pass(segment);
    }
    assert_eq!(path.stats().holes_closed, 199 - doubted);
    assert_eq!(path.stats().invalidations, 199 - doubted);
    assert!(!path.can_fill("key", "value"));
}

/// Data that the stack may treat in another way than what comes in order.
#[test]
fn urgent_data() {
    let mut path = filled();
    let connection = Connection::open(&path, 1);
    path.pass(&connection.segment(ACK | URG, "get key\r\n"));
    assert_forgotten(&mut path);
}

#[test]
fn the_end_of_a_flow() {
    for flags in [FIN | ACK, RST, RST | ACK] {
        let mut path = filled();
        let mut connection = Connection::open(&path, 1);
        connection.exchange(&path, "get x\r\n", "END\r\n");
        path.pass(&connection.segment(flags, ""));
        assert_untouched(&mut path);
    }
    // With data.
    let mut path = filled();
    let mut connection = Connection::open(&path, 1);
    path.pass(&connection.segment(ACK | FIN, "delete key\r\n"));
    connection.client += 13;
    connection.reply(&path, "DELETED\r\n");
    path.tx(&connection.answer(ACK | FIN, ""));
    connection.server = connection.server.wrapping_add(1);
    path.pass(&connection.segment(ACK, ""));
    assert_key_written(&mut path);
    assert_eq!(
        path.stats().doubted_requests + path.stats().doubted_replies,
        0
    );
}

/// What memcached has closed takes no more commands, and a reset that the kernel did not heed, or that has
/// crossed a reply, leaves the flow as it was.
#[test]
fn what_comes_after_the_end() {
    let mut path = filled();
    let mut connection = Connection::open(&path, 1);
    connection.exchange(&path, "get x\r\n", "END\r\n");
    path.tx(&connection.answer(ACK | FIN, ""));
    connection.send(&path, "flush_all\r\nnoise\r\n");
    path.pass(&connection.segment(ACK | FIN, ""));
    connection.client += 1;
    connection.server += 1;
    connection.acknowledge(&path);
    assert_untouched(&mut path);

    let mut path = filled();
    let mut connection = Connection::open(&path, 1);
    connection.send(&path, "get x\r\nset key 0 0 14\r\n");
    path.pass(&connection.segment(RST, ""));
    connection.reply(&path, "END\r\n");
    connection.send(&path, "delete other\r\n\r\n");
    assert_key_written(&mut path);
    assert_eq!(path.stats().doubted_requests, 0);
}

/// It leaves by another way, or the kernel has taken in what was not seen.
#[test]
fn acknowledgements_of_what_was_not_seen() {
    let mut path = filled();
    let mut connection = Connection::open(&path, 1);
    connection.lose("delete key\r\n");
    connection.reply(&path, "DELETED\r\n");
    assert_forgotten(&mut path);
}
