//! Replies over TCP fill the cache.

use prestack_tests::base64::base64;

use super::connection::Connection;
use super::filled;
use crate::binary::{self, GET, GETK};
use crate::bytes::{hit, item};
use crate::harness::{Datapath, Verdict};
use crate::packet::{ACK, PSH};

#[test]
fn a_key_that_is_read_over_tcp_is_served_over_udp() {
    let reply = hit("new", "value");
    for cut in 1..=reply.len() {
        let mut path = Datapath::new();
        path.fill("seen", "answering over UDP");
        let mut connection = Connection::open(&path, 1);
        connection.exchange(&path, "get x\r\n", "END\r\n");
        connection.send(&path, "get new\r\n");
        connection.reply(&path, &reply[..cut]);
        connection.reply(&path, &reply[cut..]);
        let is_item_whole =
            !(item("new", 0, "value").len() > cut && cut > b"VALUE new 0 5\r\n".len() - 1);
        if is_item_whole {
            path.assert_hit("new", "value");
        }
        assert_eq!(path.stats().doubted_replies, 0, "cut at {cut}");
    }
}

#[test]
fn several_keys_and_several_commands() {
    let mut path = filled();
    let mut connection = Connection::open(&path, 1);
    connection.send(&path, "get a b c\r\ngets d\r\nget e\r\n");
    let long = "x".repeat(300);
    let reply = [
        item("a", 0, "one"),
        item("c", 0, &long),
        b"END\r\n".to_vec(),
        b"VALUE d 0 4 99\r\nfour\r\nEND\r\n".to_vec(),
        hit("e", "five"),
    ];
    connection.reply(&path, reply.concat());
    path.assert_hit("a", "one");
    path.assert_miss("b");
    path.assert_hit("c", &long);
    path.assert_hit("d", "four");
    path.assert_hit("e", "five");
    let gets = path.request("gets d\r\n");
    let expected = b"VALUE d 0 4 99\r\nfour\r\nEND\r\n".to_vec();
    assert_eq!(path.rx(&gets), Verdict::Served(expected));
    assert_eq!(path.stats().doubted_replies, 0);
}

#[test]
fn meta_and_binary_replies() {
    let mut path = filled();
    let mut connection = Connection::open(&path, 1);
    connection.exchange(&path, "mg new v f c\r\n", "VA 5 f7 c99\r\nvalue\r\n");
    let mg = path.request("mg new c v f\r\n");
    assert_eq!(
        path.rx(&mg),
        Verdict::Served(b"VA 5 c99 f7\r\nvalue\r\n".to_vec())
    );
    let mut connection = Connection::open(&path, 2);
    for (opcode, key) in [(GET, &b"one"[..]), (GETK, b"two")] {
        let reply = binary::hit(opcode, key, 3, 8, b"value", 5);
        connection.exchange(&path, binary::get(opcode, key, 5), reply);
        let get = path.request(binary::get(GET, key, 1));
        let expected = binary::hit(GET, key, 3, 8, b"value", 1);
        assert_eq!(path.rx(&get), Verdict::Served(expected));
    }
}

/// A key that a reply does not show is that of the command it belongs to: none may be counted that memcached
/// does not answer, though it refuses it.
#[test]
fn refused_commands_that_are_quiet_are_owed_nothing() {
    let long = "k".repeat(251);
    for refused in [
        format!("delete {long} noreply\r\n"),
        format!("delete {long} noreply  \r\n"),
        format!("incr {long} 1 noreply\r\n"),
        format!("touch {long} noreply\r\n"),
        "incr other noreply\r\n".into(),
        "decr other noreply \r\n".into(),
        "touch other noreply\r\n".into(),
    ] {
        let mut path = filled();
        let mut connection = Connection::open(&path, 1);
        connection.send(&path, &refused);
        connection.acknowledge(&path);
        let error = "CLIENT_ERROR cannot increment or decrement non-numeric value\r\n";
        connection.exchange(&path, "ma text\r\n", error);
        connection.exchange(&path, "mg a v f\r\n", "VA 3 f0\r\nAAA\r\n");
        connection.exchange(&path, "mg b v f\r\n", "VA 3 f0\r\nBBB\r\n");
        let get = path.request("mg a v f\r\n");
        assert_ne!(
            path.rx(&get),
            Verdict::Served(b"VA 3 f0\r\nBBB\r\n".to_vec()),
            "{refused:?}"
        );
    }
}

/// The binary protocol can store a key with line ends, which memcached shows in text as it is: what it shows is no
/// reply to others.
#[test]
fn keys_that_look_like_replies() {
    // The forged reply takes what follows the key, and the reply to the next command, for its data.
    let next = "VA 4 f0\r\ngood";
    let key = |start: &str, behind: &str| {
        let len = "BAD".len() + behind.len() + next.len();
        format!("{start}\r\nVA {len} f0\r\nBAD")
    };
    let line = key("x", "\r\n");
    let value = key("x\r\nval", "\r\nval\r\n");
    let marked = key("x\r\nval", " b\r\nval\r\n");
    let debug = key("x", " exp=-1 la=0 cas=1 fetch=no cls=1 size=64\r\n");
    let dump = key("x\r\nEND", " [1 b; 0 s]\r\nEND\r\n");
    let of = |flags: &str, key: &str| format!("mg {} {flags}\r\n", base64(key));
    for (command, reply) in [
        (of("b k", &line), format!("HD k{line}\r\n")),
        (of("b k q v", &value), format!("VA 3 k{value}\r\nval\r\n")),
        (of("v k b", &marked), format!("VA 3 k{marked} b\r\nval\r\n")),
        (
            format!("mg {}!!!! b k\r\n", base64(&line)),
            format!("HD k{line}\r\n"),
        ),
        (
            format!("me {} b\r\n", base64(&debug)),
            format!("ME {debug} exp=-1 la=0 cas=1 fetch=no cls=1 size=64\r\n"),
        ),
        (
            "stats  cachedump 1 0\r\n".into(),
            format!("ITEM {dump} [1 b; 0 s]\r\nEND\r\n"),
        ),
        (
            "stats detail dump\r\n".into(),
            format!("PREFIX {dump} [1 b; 0 s]\r\nEND\r\n"),
        ),
    ] {
        let mut path = filled();
        let mut connection = Connection::open(&path, 1);
        connection.exchange(&path, "mg other v f\r\n", "VA 3 f0\r\nold\r\n");
        connection.send(&path, format!("{command}mg victim v f\r\n"));
        connection.reply(&path, format!("{reply}{next}\r\n"));
        connection.exchange(&path, "mg a v f\r\n", "VA 1 f0\r\na\r\n");
        for name in ["victim", "a"] {
            let get = path.request(format!("mg {name} v f\r\n"));
            assert_eq!(path.rx(&get), Verdict::Passed, "{command:?}, {name}");
        }
        assert_eq!(path.stats().doubted_replies, 1, "{command:?}");
    }
    // What has no line end in its key, or does not show it, puts nothing in doubt.
    let mut path = filled();
    let mut connection = Connection::open(&path, 1);
    for (command, reply) in [
        ("mg eCB5 b k v\r\n".to_owned(), "VA 3 kx y\r\nval\r\n"),
        (of("b v", &line), "VA 3\r\nval\r\n"),
        (
            format!("ms {} 3 b k\r\nnew\r\n", base64(&line)),
            "HD k... b\r\n",
        ),
        ("stats items\r\n".into(), "END\r\n"),
        ("stats conns\r\n".into(), "END\r\n"),
    ] {
        connection.exchange(&path, command, reply);
    }
    let stats = path.stats();
    assert_eq!(stats.doubted_requests + stats.doubted_replies, 0);
    connection.exchange(&path, "mg a v f\r\n", "VA 1 f0\r\na\r\n");
    let get = path.request("mg a v f\r\n");
    assert_eq!(path.rx(&get), Verdict::Served(b"VA 1 f0\r\na\r\n".to_vec()));
}

/// Between the question and its answer.
#[test]
fn a_write_voids_the_tickets() {
    let mut path = filled();
    let mut connection = Connection::open(&path, 1);
    connection.send(&path, "get new\r\n");
    path.exchange("set new 0 0 3\r\nnew\r\n", "STORED\r\n");
    connection.reply(&path, hit("new", "old"));
    path.assert_miss("new");
    // And the same connection's, pipelined.
    connection.send(&path, "get new\r\ndelete new\r\n");
    connection.reply(&path, [hit("new", "old"), b"DELETED\r\n".to_vec()].concat());
    path.assert_miss("new");
}

/// Of two that ask for one key on one flow the first reply is the first one's.
#[test]
fn an_old_reply_does_not_fill_under_a_newer_ticket() {
    let mut path = filled();
    let mut connection = Connection::open(&path, 1);
    connection.send(&path, "get new\r\n");
    path.exchange("set new 0 0 3\r\nnew\r\n", "STORED\r\n");
    connection.send(&path, "get new\r\n");
    connection.reply(&path, hit("new", "old"));
    path.assert_miss("new");
    connection.reply(&path, hit("new", "new"));
}

/// What is parsed again may have been asked long before.
#[test]
fn a_get_that_comes_again_gets_no_ticket() {
    let mut path = filled();
    let mut connection = Connection::open(&path, 1);
    let get = connection.send(&path, "get new\r\n");
    path.exchange("set new 0 0 3\r\nnew\r\n", "STORED\r\n");
    path.pass(&get);
    connection.reply(&path, hit("new", "old"));
    path.assert_miss("new");
}

/// A segment that is damaged on its way to the kernel asks for another key than that which is sent again.
#[test]
fn a_reply_without_key_fills_nothing_after_another_was_asked_for() {
    for is_binary in [false, true] {
        let mut path = filled();
        let mut connection = Connection::open(&path, 1);
        let ask = |key: &str| match is_binary {
            true => binary::get(GET, key.as_bytes(), 1),
            false => format!("mg {key} v f\r\n").into_bytes(),
        };
        let reply = match is_binary {
            true => binary::hit(GET, b"aaa", 0, 8, b"value", 1),
            false => b"VA 5 f0\r\nvalue\r\n".to_vec(),
        };
        path.pass(&connection.segment(ACK | PSH, ask("aab")));
        connection.exchange(&path, ask("aaa"), &reply);
        for key in ["aaa", "aab"] {
            let asked = path.request(ask(key));
            assert_eq!(path.rx(&asked), Verdict::Passed, "{key}");
        }
        // Later ones fill.
        connection.exchange(&path, ask("aac"), &reply);
        let asked = path.request(ask("aac"));
        assert_eq!(path.rx(&asked), Verdict::Served(reply));
    }
}

/// memcached has lost what is cached.
#[test]
fn a_miss_drops_the_entry() {
    let mut path = filled();
    let mut connection = Connection::open(&path, 1);
    connection.send(&path, "get new\r\n");
    path.offer("new", "value");
    connection.reply(&path, "END\r\n");
    path.assert_miss("new");
}

/// Replies of many kilobytes, as offloads put them together.
#[test]
fn long_packets() {
    let mut path = filled();
    let mut connection = Connection::open(&path, 1);
    let long = "VALUE a 0 1\r\n".repeat(2000);
    connection.send(&path, "get long\r\nget a b\r\nget c\r\n");
    let reply = hit("long", &long);
    let (first, last) = reply.split_at(reply.len() - 100);
    for piece in first.chunks(3500) {
        connection.reply(&path, piece);
    }
    let rest = [
        last,
        &item("a", 0, "x".repeat(1200)),
        &item("b", 0, "y".repeat(1200)),
        b"END\r\n",
    ];
    connection.reply(&path, rest.concat());
    path.assert_hit("a", "x".repeat(1200));
    path.assert_hit("b", "y".repeat(1200));
    connection.reply(&path, hit("c", "value"));
    path.assert_hit("c", "value");
    assert_eq!(path.stats().doubted_replies, 0);
}
