//! Which requests are answered, and which pass whole.

use prestack_proto::binary::opcode::NOOP;

use super::connection::Ready;
use super::filled;
use crate::binary::{GET, GETK, GETKQ, GETQ, done, get, hit as item, not_found, request};
use crate::bytes::hit;
use crate::harness::Datapath;
use crate::packet::ACK;
use crate::tcp::connection::Connection;

const KEY: &str = "VALUE key 0 5\r\nvalue\r\n";
const OTHER: &str = "VALUE other 0 5\r\nvalue\r\n";

/// `mg` is answered only from what it has shown.
fn show(path: &mut Datapath) {
    path.exchange("mg key v k\r\n", "VA 5 kkey\r\nvalue\r\n");
    path.exchange("mg a v k\r\n", "VA 1 ka\r\n1\r\n");
}

#[test]
fn text_requests_that_hit_are_answered() {
    let mut path = filled();
    show(&mut path);
    let mut ready = Ready::open(&mut path, 4200);
    let both = format!("{KEY}{OTHER}END\r\n");
    let twice = format!("{KEY}END\r\n{OTHER}END\r\n");
    let many = "mg a v\r\n".repeat(16);
    for (request, answer) in [
        ("get key\r\n", format!("{KEY}END\r\n")),
        ("get  key \r\n", format!("{KEY}END\r\n")),
        ("get key\n", format!("{KEY}END\r\n")),
        ("get key other\r\n", both.clone()),
        ("get key\r\nget other\r\n", twice.clone()),
        (
            "get key other\r\nmg key v\r\n",
            format!("{both}VA 5\r\nvalue\r\n"),
        ),
        ("mg key v\r\n", "VA 5\r\nvalue\r\n".into()),
        ("mg key v k Oabc\r\n", "VA 5 kkey Oabc\r\nvalue\r\n".into()),
        (&many, "VA 1\r\n1\r\n".repeat(16)),
    ] {
        ready.served(&path, request, answer);
    }
    assert_eq!(path.stats().tcp_hits, 9);
    // All of it is known to the connection that follows.
    ready.sends(&path, "version\r\n");
    ready.replies(&path, "VERSION 1.6.18\r\n");
    ready.served(&path, "get key\r\n", hit("key", "value"));
}

/// Keys whose unique numbers are known.
fn numbered() -> Datapath {
    let mut path = filled();
    path.exchange("gets one\r\n", "VALUE one 3 5 77\r\nvalue\r\nEND\r\n");
    path.exchange("gets two\r\n", "VALUE two 0 1 78\r\n2\r\nEND\r\n");
    path
}

#[test]
fn requests_for_unique_numbers_are_answered() {
    const ONE: &str = "VALUE one 3 5 77\r\nvalue\r\n";
    const TWO: &str = "VALUE two 0 1 78\r\n2\r\n";
    let mut path = numbered();
    let mut ready = Ready::open(&mut path, 4204);
    for (request, answer) in [
        ("gets one\r\n", format!("{ONE}END\r\n")),
        ("gets one two\r\n", format!("{ONE}{TWO}END\r\n")),
        (
            "gets two\r\nget key\r\n",
            format!("{TWO}END\r\n{KEY}END\r\n"),
        ),
    ] {
        ready.served(&path, request, answer);
    }
    // One whose number is not known passes with the others.
    ready.sends(&path, "gets one key\r\n");
    ready.replies(&path, format!("{ONE}VALUE key 0 5 7\r\nvalue\r\nEND\r\n"));
    ready.served(&path, "gets one\r\n", format!("{ONE}END\r\n"));
    assert_eq!(path.stats().tcp_hits, 4);
}

/// The data passes as it came, and memcached answers it; then the connection is answered on again.
fn passes(path: &Datapath, ready: &mut Ready, request: &str, reply: &str) {
    ready.sends(path, request);
    ready.replies(path, reply);
    ready.served(path, "get key\r\n", hit("key", "value"));
}

#[test]
fn what_does_not_hit_as_a_whole_passes_whole() {
    let mut path = filled();
    show(&mut path);
    let mut ready = Ready::open(&mut path, 4201);
    ready.served(&path, "get key\r\n", hit("key", "value"));
    let seventeen = "mg a v\r\n".repeat(17);
    for (request, reply) in [
        ("get none\r\n", "END\r\n".to_string()),
        ("get key none\r\n", format!("{KEY}END\r\n")),
        ("get key\r\nget none\r\n", format!("{KEY}END\r\nEND\r\n")),
        ("get none\r\nget key\r\n", format!("END\r\n{KEY}END\r\n")),
        (
            "get key\r\nversion\r\n",
            format!("{KEY}END\r\nVERSION 1\r\n"),
        ),
        ("mg key v\r\nmn\r\n", "VA 5\r\nvalue\r\nMN\r\n".into()),
        ("mg key\r\n", "HD\r\n".into()),
        ("gets key\r\n", "VALUE key 0 5 7\r\nvalue\r\nEND\r\n".into()),
        (
            "get key\r\nset new 0 0 1 noreply\r\na\r\nget key\r\n",
            format!("{KEY}END\r\n{KEY}END\r\n"),
        ),
        (&seventeen, "VA 1\r\n1\r\n".repeat(17)),
    ] {
        passes(&path, &mut ready, request, &reply);
    }
}

#[test]
fn binary_runs_are_answered() {
    let mut path = numbered();
    let mut connection = Connection::open(&path, 4202);
    connection.exchange(&path, get(GETK, b"nothing", 1), not_found(GETK, 1));
    let mut ready = Ready::earned(&mut path, connection, None);
    let one = |opcode, opaque| item(opcode, b"one", 3, 77, b"value", opaque);
    let noop = |opaque| {
        let mut reply = done(NOOP, opaque);
        reply[16..].fill(0);
        reply
    };
    ready.served(&path, get(GETK, b"one", 9), one(GETK, 9));
    ready.served(&path, get(NOOP, b"", 7), noop(7));
    let run = [
        get(GETKQ, b"one", 1),
        get(GETKQ, b"one", 2),
        get(NOOP, b"", 3),
    ];
    ready.served(
        &path,
        run.concat(),
        [one(GETKQ, 1), one(GETKQ, 2), noop(3)].concat(),
    );
    // Without keys in the answers.
    let two = |opaque| item(GETQ, b"two", 0, 78, b"2", opaque);
    ready.served(&path, get(GET, b"one", 5), one(GET, 5));
    let run = [
        get(GETQ, b"one", 6),
        get(GETQ, b"two", 7),
        get(NOOP, b"", 8),
    ];
    ready.served(
        &path,
        run.concat(),
        [one(GETQ, 6), two(7), noop(8)].concat(),
    );
    // A miss in a run.
    ready.sends(
        &path,
        [
            get(GETKQ, b"one", 1),
            get(GETKQ, b"no", 2),
            get(NOOP, b"", 3),
        ]
        .concat(),
    );
    ready.replies(&path, [one(GETKQ, 1), noop(3)].concat());
    ready.served(&path, get(GETK, b"one", 4), one(GETK, 4));
    // With a body it is refused by memcached, which closes the connection.
    ready.sends(&path, request(NOOP, b"", b"", b"abc", 9));
}

/// By the express way, and over IPv6 by the steps for all.
#[test]
fn what_is_half_there_or_without_a_reply_is_waited_for() {
    for v6 in [false, true] {
        let path = filled();
        let mut connection = Connection::new(4203);
        connection.v6 = v6;
        connection.shake_hands(&path);
        are_waited_for(path, connection);
    }
}

fn are_waited_for(mut path: Datapath, connection: Connection) {
    let mut ready = Ready::of(&mut path, connection, None);
    ready.served(&path, "get key\r\n", hit("key", "value"));
    // Data that looks like a command.
    ready.sends(&path, "set new 0 0 9\r\n");
    acknowledged(&path, &mut ready);
    ready.sends(&path, "get key\r\n");
    acknowledged(&path, &mut ready);
    ready.sends(&path, "\r\n");
    ready.replies(&path, "STORED\r\n");
    ready.served(&path, "get key\r\n", hit("key", "value"));
    // Half a line.
    ready.sends(&path, "get key ");
    acknowledged(&path, &mut ready);
    ready.sends(&path, "get key\r\n");
    ready.replies(&path, format!("{KEY}{KEY}END\r\n"));
    ready.served(&path, "get key\r\n", hit("key", "value"));
    // A write without a reply.
    ready.sends(&path, "set new 0 0 1 noreply\r\na\r\n");
    acknowledged(&path, &mut ready);
    ready.sends(&path, "get key\r\n");
    ready.replies(&path, hit("key", "value"));
    ready.served(&path, "get key\r\n", hit("key", "value"));
    // Into a command that is not answered yet.
    ready.sends(&path, "get none\r\n");
    acknowledged(&path, &mut ready);
    ready.sends(&path, "get key\r\n");
    ready.replies(&path, format!("END\r\n{KEY}END\r\n"));
    ready.served(&path, "get key\r\n", hit("key", "value"));
    assert_eq!(path.stats().doubted_requests, 0);
}

/// The kernel acknowledges all that has come.
fn acknowledged(path: &Datapath, ready: &mut Ready) {
    // While an answer is unacknowledged that is held back, so the client has got it.
    let connection = &mut ready.connection;
    connection.acked = connection.client;
    let segment = connection.answer(ACK, "");
    let (_, acknowledgement) = segment.numbers();
    let left = ready.leaves(path, &segment);
    assert_eq!(
        left.acknowledgement,
        acknowledgement.wrapping_add(ready.taken)
    );
}
