//! Segments that are lost, repeated or out of order.

use prestack_abi::flow::{Flow, HOLE_REACH};

use super::connection::Connection;
use super::{assert_forgotten, assert_key_written, assert_untouched, filled, step};
use crate::harness::{Datapath, random, volume};
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

/// Segments that are not the latest are parsed again where they were, up to where the next begins.
#[test]
fn what_was_unacknowledged_comes_again_in_part() {
    let mut path = filled();
    let mut connection = Connection::open(&path, 1);
    let pieces = [
        "get x\r\ndelete third\r\n",
        "delete key noreply\r\nget z\r\n",
        "mn\r\ndele",
        "te fourth\r\n",
    ];
    let segments = pieces.map(|piece| connection.send(&path, piece));
    for (again, writes) in [(0, 4), (1, 5), (2, 5), (0, 6), (3, 7), (1, 8)] {
        path.pass(&segments[again]);
        assert_eq!(path.stats().invalidations, writes, "{again}");
    }
    assert_eq!(path.stats().doubted_requests, 0);
    // All is counted once.
    connection.reply(&path, "END\r\nDELETED\r\nEND\r\nMN\r\nDELETED\r\n");
    assert_key_written(&mut path);
    assert!(path.can_fill("third", "new"));
    assert!(path.can_fill("fourth", "new"));
    assert_eq!(path.stats().doubted_replies, 0);
}

/// Of copies that differ, or are cut in another way, it cannot be told what memcached gets.
#[test]
fn what_comes_again_in_part_and_differs() {
    for (again, copy) in [
        // One command more, and one less.
        (0, "get x\r\nget yy\r\nmn\r\n"),
        (0, "get x y z other key\r\n"),
        // The beginning of another command.
        (1, "mn\r\nget "),
        (2, "te fifth\r\n\n"),
        // Other pieces.
        (0, "get x\r\n"),
        (0, "get x\r\ndelete third\r\nmn\r\n"),
        // It ends within a data block, behind another number of commands.
        (3, "set a 0 0 16 \r\nab"),
        (3, "get b\r\nget c\r\nab"),
    ] {
        let mut path = filled();
        let mut connection = Connection::open(&path, 1);
        let pieces = [
            "get x\r\ndelete third\r\n",
            "mn\r\ndele",
            "te fourth\r\n",
            "set a 0 0 16\r\nabc",
            "0123456789",
            "xyz\r\nmn\r\n",
        ];
        let segments = pieces.map(|piece| connection.send(&path, piece));
        assert_untouched(&mut path);
        path.pass(&segments[again].clone().payload(copy));
        assert_forgotten(&mut path);
        assert_eq!(path.stats().doubted_requests, 1, "{copy:?}");
    }
}

/// Within the latest data block, and at its end.
#[test]
fn data_comes_again() {
    let pieces = [
        "get x\r\nset key 0 0 30\r\nab",
        "cdef",
        "ghij",
        "0123456789abcdefgh",
        "ij\r\nmn\r\n",
    ];
    for again in 0..pieces.len() {
        let mut path = filled();
        let mut connection = Connection::open(&path, 1);
        let segments = pieces.map(|piece| connection.send(&path, piece));
        path.pass(&segments[again]);
        connection.send(&path, "delete third\r\n");
        connection.reply(&path, "END\r\nSTORED\r\nMN\r\nDELETED\r\n");
        assert_key_written(&mut path);
        assert!(path.can_fill("third", "new"));
        let stats = path.stats();
        assert_eq!(stats.doubted_requests + stats.doubted_replies, 0, "{again}");
    }
}

/// A line in single bytes, some of which come twice.
#[test]
fn pieces_of_a_line_come_again() {
    let line = "delete key\r\n";
    for again in 0..line.len() {
        for late in 0..line.len() - again {
            for differs in [false, true] {
                let mut path = filled();
                let mut connection = Connection::open(&path, 1);
                let mut copy = None;
                for (number, byte) in line.bytes().enumerate() {
                    let segment = connection.send(&path, [byte]);
                    if number == again {
                        let byte = if differs { [byte ^ 1] } else { [byte] };
                        copy = Some(segment.payload(byte));
                    }
                    if number == again + late
                        && let Some(copy) = copy.take()
                    {
                        path.pass(&copy);
                    }
                }
                let case = format!("{again}, {late} late, {differs}");
                assert_eq!(path.stats().doubted_requests, u64::from(differs), "{case}");
                if !differs {
                    connection.reply(&path, "DELETED\r\n");
                    assert!(path.can_fill("key", "new"), "{case}");
                }
            }
        }
    }
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

/// Several stretches are missing; what waits comes twice.
#[test]
fn several_holes() {
    let mut path = filled();
    let mut connection = Connection::open(&path, 1);
    let pieces = [
        "get x\r\n",
        "dele",
        "te third\r\n",
        "mn\r\n",
        "get y\r\nde",
        "lete ke",
        "y\r\n",
    ];
    let mut late = Vec::new();
    for (number, piece) in pieces.iter().enumerate() {
        let segment = connection.lose(piece);
        if number % 2 == 1 {
            path.pass(&segment);
            path.pass(&segment);
        } else {
            late.push(segment);
        }
    }
    assert_untouched(&mut path);
    for segment in late.iter().rev() {
        path.pass(segment);
    }
    assert_eq!(path.stats().holes_closed, 6);
    connection.reply(&path, "END\r\nDELETED\r\nMN\r\nEND\r\nDELETED\r\n");
    assert_key_written(&mut path);
    assert!(path.can_fill("key", "new"));
    assert!(path.can_fill("third", "new"));
    let stats = path.stats();
    assert_eq!(stats.doubted_requests + stats.doubted_replies, 0);
}

/// Copies of what waits that differ, or overlap.
#[test]
fn what_waits_comes_again_and_differs() {
    for copy in [
        "get key\r\n",
        "get yyy\r\nget other\r\n",
        "et yyy\r\nmn\r\n",
    ] {
        let mut path = filled();
        let mut connection = Connection::open(&path, 1);
        let lost = connection.lose("get x\r\n");
        let start = connection.clone();
        connection.send(&path, "get yyy\r\n");
        let mut segment = start.segment(ACK, copy);
        if copy.starts_with('e') {
            segment = Connection {
                client: start.client + 1,
                ..start
            }
            .segment(ACK, copy);
        }
        path.pass(&segment);
        path.pass(&lost);
        assert_forgotten(&mut path);
    }
}

/// Segments in any order, some of which come several times. It is in doubt at times whether these are the same: of the
/// beginnings of commands the last two are kept.
#[test]
fn any_order() {
    let stream = "get x\r\nset third 0 0 24\r\ndelete other\r\nget a\r\n...\r\nmn\r\ndelete key\r\nset b 0 0 1\r\n1\r\n";
    let replies = "END\r\nSTORED\r\nMN\r\nDELETED\r\nSTORED\r\n";
    let mut random = random();
    let mut doubted = 0;
    let rounds = volume(400);
    for round in 0..rounds {
        let mut path = filled();
        let mut connection = Connection::open(&path, 1);
        let len = random.usize(10..30);
        let segments: Vec<_> = stream
            .as_bytes()
            .chunks(len)
            .map(|piece| connection.lose(piece))
            .collect();
        let mut order: Vec<usize> = (0..segments.len()).collect();
        for _ in 0..random.usize(0..4) {
            order.push(random.usize(..segments.len()));
        }
        random.shuffle(&mut order);
        for at in &order {
            path.pass(&segments[*at]);
        }
        let case = format!("round {round}, pieces of {len}, {order:?}");
        if path.stats().doubted_requests != 0 {
            doubted += 1;
            assert_forgotten(&mut path);
            continue;
        }
        connection.reply(&path, replies);
        assert_eq!(path.stats().doubted_replies, 0, "{case}");
        assert_key_written(&mut path);
        for key in ["key", "third", "b"] {
            assert!(path.can_fill(key, "new"), "{case}");
        }
    }
    // About one in 16 is; of few rounds that may be several.
    assert!(doubted <= rounds / 8 + 5, "{doubted} of {rounds}");
}

/// What is too far ahead is not kept, which shows when memcached may get it.
#[test]
fn what_is_too_far_ahead() {
    let gets = "get y\r\n".repeat(146);
    let mut path = filled();
    let mut connection = Connection::open(&path, 1);
    let lost = connection.lose("get x\r\n");
    for _ in 0..9 {
        connection.send(&path, &gets);
    }
    assert_untouched(&mut path);
    path.pass(&lost);
    assert_forgotten(&mut path);
    let before = path.epoch();
    connection.send(&path, "get z\r\n");
    assert!(path.epoch() > before);
}

/// Of a long value only the line matters.
#[test]
fn a_long_value_whose_line_is_missing() {
    for len in [3_000, 12_000, 40_000] {
        for behind in ["", "get y\r\n", "delete other\r\n"] {
            let mut path = filled();
            let mut connection = Connection::open(&path, 1);
            let value = "x".repeat(len);
            let stream = format!("set key 0 0 {len}\r\n{value}\r\n");
            let mut pieces = stream.as_bytes().chunks(1_000);
            let lost = connection.lose(pieces.next().expect("a line"));
            let mut last = Vec::new();
            for piece in pieces {
                let is_last = piece.ends_with(b"\r\n");
                let segment = connection.lose(piece);
                if is_last {
                    last.push(segment)
                } else {
                    path.pass(&segment)
                }
            }
            assert_untouched(&mut path);
            path.pass(&lost);
            for segment in last {
                path.pass(&segment);
            }
            connection.send(&path, behind);
            let case = format!("{len}, {behind:?}");
            assert_eq!(path.stats().doubted_requests, 0, "{case}");
            path.assert_miss("key");
            if behind.starts_with("delete") {
                path.assert_miss("other");
            } else {
                path.assert_hit("other", "value");
            }
        }
    }
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
    assert_untouched(&mut path);
    for (segment, _) in &lost {
        path.pass(segment);
    }
    let (doubted, closed) = (path.stats().doubted_requests, path.stats().holes_closed);
    assert!((71..150).contains(&doubted), "{doubted}");
    assert_eq!(closed, 199 - doubted);
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

/// A flow has kept something, and is not the owner of the place where that was any more.
#[test]
fn what_was_kept_is_lost() {
    let mut path = filled();
    // Of other tests' flows it may still be the owner.
    let mut connection = Connection::open(&path, 4990);
    connection.send(&path, "get x\r\n");
    path.kernel_mut()
        .used_flows(|flow| flow.has_hole = Flow::KEPT);
    connection.send(&path, "get y\r\n");
    assert_forgotten(&mut path);
    assert_eq!(path.stats().doubted_requests, 1);
}

/// memcached gets what waited behind a hole also if the requests are in doubt from what closed it on: it is waited for.
#[test]
fn what_waited_is_waited_for() {
    // What is kept; what is too far ahead for that; both.
    for ahead in [
        vec![0],
        vec![HOLE_REACH],
        vec![0, HOLE_REACH],
        vec![HOLE_REACH, 0],
    ] {
        let path = filled();
        let mut connection = Connection::open(&path, 1);
        let lost = connection.segment(ACK, "noise\r\n");
        connection.client += 7;
        let start = connection.clone();
        let mut until = start.client;
        for ahead in &ahead {
            let early = Connection {
                client: start.client + *ahead as u32,
                ..start.clone()
            };
            let command = "delete key\r\n";
            path.pass(&early.segment(ACK, command));
            until = until.max(early.client + command.len() as u32);
        }
        path.pass(&lost);
        assert_eq!(path.stats().doubted_requests, 1, "{ahead:?}");
        let waits = |path: &Datapath| path.kernel().backend().waits;
        assert_eq!(waits(&path), 1, "{ahead:?}");
        // memcached has answered what closed the hole, and nothing behind it.
        connection.reply(&path, "ERROR\r\n");
        assert_eq!(waits(&path), 1, "{ahead:?}");
        connection.client = until;
        connection.reply(&path, "DELETED\r\n");
        assert_eq!(waits(&path), 0, "{ahead:?}");
    }
}
