//! The commands of a byte stream, cut anywhere.

use super::connection::Connection;
use super::{assert_forgotten, assert_key_written, assert_untouched, filled, step};
use crate::binary;
use crate::packet::VLAN;

#[test]
fn reads_change_nothing() {
    let mut path = filled();
    let mut connection = Connection::open(&path, 1);
    connection.send(&path, "get key\r\n");
    connection.send(&path, "get key other\r\ngets key\r\nget x\r\n");
    connection.send(&path, "mg key v\r\nmn\r\nversion\r\nstats\r\n");
    connection.send(&path, "lru_crawler metadump all\r\n");
    connection.send(&path, "watch fetchers\r\n");
    connection.send(&path, "verbosity 1\r\n");
    assert_untouched(&mut path);
    assert_eq!(path.stats().doubted_requests, 0);
}

/// Every command that changes one item, in text, meta and binary.
pub fn writes() -> Vec<Vec<u8>> {
    let text = [
        "set key 0 0 3\r\nnew\r\n",
        "set key 0 0 3 noreply\r\nnew\r\n",
        "set key 0 0 0\r\n\r\n",
        "add key 0 0 3\r\nnew\r\n",
        "replace key 0 0 3\r\nnew\r\n",
        "append key 0 0 3\r\nnew\r\n",
        "prepend key 0 0 3\r\nnew\r\n",
        "cas key 0 0 3 17\r\nnew\r\n",
        "delete key\r\n",
        "delete key noreply\r\n",
        "delete key 0\r\n",
        "delete key 0 noreply\r\n",
        "incr key 1\r\n",
        "decr key 1\r\n",
        "incr key 1 noreply\r\n",
        "touch key 100\r\n",
        "touch key 100 noreply\r\n",
        "gat 100 key\r\n",
        "gats 100 key\r\n",
        "ms key 3\r\nnew\r\n",
        "ms key 3 q\r\nnew\r\n",
        "ms a2V5 3 b\r\nnew\r\n",
        "md key\r\n",
        "md key q\r\n",
        "ma key\r\n",
        "mg key v T30\r\n",
    ];
    let opcodes = [
        0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x0e, 0x0f, 0x11, 0x14, 0x15, 0x19, 0x1c, 0x1d, 0x23,
    ];
    let mut all: Vec<Vec<u8>> = text.iter().map(|text| text.as_bytes().to_vec()).collect();
    all.extend(opcodes.map(|opcode| write(opcode, b"key", b"new")));
    all
}

/// A binary write of a key, with extras as its opcode wants them.
fn write(opcode: u8, key: &[u8], value: &[u8]) -> Vec<u8> {
    let (extras, value): (usize, &[u8]) = match opcode {
        0x01..=0x03 | 0x11 => (8, value),
        0x05 | 0x06 | 0x15 => (20, b""),
        0x0e | 0x0f | 0x19 => (0, value),
        0x1c | 0x1d | 0x23 => (4, b""),
        _ => (0, b""),
    };
    binary::request(opcode, &vec![0; extras], key, value, 5)
}

#[test]
fn writes_kill_their_key_alone() {
    for text in writes() {
        let mut path = filled();
        let mut connection = Connection::open(&path, 1);
        connection.send(&path, &text);
        assert_key_written(&mut path);
        assert!(
            !path.can_fill("key", "value"),
            "{:?} may be under way",
            text.escape_ascii()
        );
        path.fill("new", "value");
        assert_eq!(path.stats().doubted_requests, 0);
    }
}

/// Wherever it is cut in two, before or behind other commands.
#[test]
fn writes_cut_anywhere() {
    for text in writes() {
        let around: [&[u8]; 2] = if text[0] == 0x80 {
            let noop = b"\x80\x0a\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
            [noop, noop]
        } else {
            [b"get other\r\n", b"mn\r\n"]
        };
        let stream = [around[0], &text, around[1]].concat();
        for cut in (1..stream.len()).step_by(step(7)) {
            let mut path = filled();
            let mut connection = Connection::open(&path, 1);
            connection.send(&path, &stream[..cut]);
            connection.send(&path, &stream[cut..]);
            assert_key_written(&mut path);
            assert_eq!(
                path.stats().invalidations,
                1,
                "{:?} at {cut}",
                text.escape_ascii()
            );
        }
    }
}

/// Data that looks like commands, in pieces of every size.
#[test]
fn streams_in_pieces() {
    let hostile = "delete other\r\nset other 0 0 1\r\n";
    let stream = format!(
        "get key\r\nset key 0 0 {}\r\n{hostile}\r\nmn\r\nms third {} q\r\n{hostile}\r\n\
         cas key 0 0 0 5 noreply\r\n\r\nget other\r\ndelete third\r\n",
        hostile.len(),
        hostile.len(),
    );
    for len in (1..40).chain([stream.len() - 1, stream.len()]) {
        let mut path = filled();
        let mut connection = Connection::open(&path, 1);
        connection.send_in_pieces(&path, &stream, len);
        assert_key_written(&mut path);
        assert_eq!(path.stats().invalidations, 4, "in pieces of {len}");
    }
}

/// A value of a megabyte, all of it commands.
#[test]
fn long_values() {
    let value = "delete other\r\n".repeat(75_000);
    for around in [1, 2, 3] {
        let mut path = filled();
        let mut connection = Connection::open(&path, 1);
        let stream = format!("set key 0 0 {}\r\n{value}\r\ndelete third\r\n", value.len());
        for part in stream.as_bytes().chunks(40_000) {
            connection.send_in_pieces(&path, part, 1448 + around);
            connection.acknowledge(&path);
        }
        assert_key_written(&mut path);
        assert_eq!(path.stats().invalidations, 2);
    }
    let mut path = filled();
    let mut connection = Connection::open(&path, 1);
    let stream = [
        write(0x01, b"key", value.as_bytes()),
        write(0x04, b"third", b""),
    ]
    .concat();
    for part in stream.chunks(40_000) {
        connection.send_in_pieces(&path, part, 1447);
        connection.acknowledge(&path);
    }
    assert_key_written(&mut path);
    assert_eq!(path.stats().invalidations, 2);
}

/// Hundreds of commands in one segment.
#[test]
fn many_commands_in_one_segment() {
    let mut path = filled();
    let mut connection = Connection::open(&path, 1);
    connection.send(&path, "mn\r\n".repeat(360));
    connection.reply(&path, "MN\r\n".repeat(360));
    let writes: String = (0..70)
        .map(|i| format!("delete k{i} noreply\r\n"))
        .collect();
    connection.send(&path, format!("{writes}delete key\r\n"));
    assert_key_written(&mut path);
    assert_eq!(path.stats().invalidations, 71);
    assert_eq!(
        path.stats().doubted_requests + path.stats().doubted_replies,
        0
    );
}

/// A `get` of more keys than can be carried from one segment to the next.
#[test]
fn gets_of_many_keys() {
    let keys: String = (0..200).map(|i| format!(" delete-{i:030}")).collect();
    for len in [100, 600, 1000, 1448] {
        let mut path = filled();
        let mut connection = Connection::open(&path, 1);
        connection.send_in_pieces(&path, format!("get{keys}\r\ndelete key\r\n"), len);
        assert_key_written(&mut path);
    }
}

#[test]
fn sequence_numbers_wrap_around() {
    let mut path = filled();
    let mut connection = Connection::new(1);
    connection.client = u32::MAX - 8;
    connection.shake_hands(&path);
    for _ in 0..3 {
        connection.exchange(&path, "get x\r\n", "END\r\n");
    }
    connection.send(&path, "delete key\r\n");
    assert_key_written(&mut path);
    assert_eq!(
        path.stats().doubted_requests + path.stats().doubted_replies,
        0
    );
}

#[test]
fn over_ipv6_and_tagged() {
    let mut path = filled();
    let mut connection = Connection::new(1);
    connection.v6 = true;
    connection.tags.push((VLAN, 9));
    connection.shake_hands(&path);
    connection.send(&path, "delete key\r\n");
    assert_key_written(&mut path);
}

#[test]
fn what_is_not_understood_empties_the_cache() {
    for text in [
        &b"set key 0 0 3\r\nnewer\r\n"[..],
        b"set key 0 0 3\r\nnew\rx",
        b"set key 0 0 -1\r\n",
        b"set key 0 0 99999999999\r\nx\r\n",
        b"GET key\r\n",
        b"touch key\r\n",
        b"gat 0 key other\r\n",
        b"md Zm9 b\r\n",
        b"ms key x\r\n",
        b"noise\r\n",
        b"\r\n",
        b"delete key 1\r\n",
        b"set key 0 0 3 nopreply\r\nnew\r\n",
        b"\x80\x01\0\x03\x08\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0",
        b"get key\r\n\x80\x04\0\x03\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\0\0\0\0\0key",
    ] {
        for is_whole in [true, false] {
            let mut path = filled();
            let mut connection = Connection::open(&path, 1);
            if is_whole {
                connection.send(&path, text);
            } else {
                connection.send_in_pieces(&path, text, text.len().div_ceil(2));
            }
            assert!(path.epoch() > 0, "{}", text.escape_ascii());
            assert_forgotten(&mut path);
            // Nobody knows where in its commands the flow is.
            let before = path.epoch();
            connection.send(&path, "get key\r\n");
            assert!(path.epoch() > before, "{}", text.escape_ascii());
        }
    }
}

#[test]
fn a_flush_empties_the_cache_and_is_understood() {
    for text in ["flush_all\r\n", "flush_all noreply\r\n", "flush_all 0\r\n"] {
        let mut path = filled();
        let mut connection = Connection::open(&path, 1);
        connection.send(&path, text);
        assert_forgotten(&mut path);
        let before = path.epoch();
        connection.send(&path, "get key\r\n");
        assert_eq!(path.epoch(), before, "{text:?}");
    }
}

/// A line of which memcached would not make much either.
#[test]
fn lines_that_are_too_long() {
    let mut path = filled();
    let mut connection = Connection::open(&path, 1);
    connection.send(&path, "delete ".repeat(100));
    assert_forgotten(&mut path);
}
