//! What a connection has to show before GETs are answered on it.

use prestack_abi::translated::Translated;

use super::filled;
use crate::binary::{self, done, not_found};
use crate::harness::Datapath;
use crate::packet::{ACK, PSH};
use crate::tcp::connection::Connection;
use prestack_proto::binary::opcode::{GETK, NOOP};

/// What is said of the only flow.
fn state(path: &mut Datapath) -> u32 {
    let mut states = Vec::new();
    let kernel = path.kernel_mut();
    kernel.used_translations(|translated| states.push(translated.state));
    assert_eq!(states.len(), 1);
    states[0]
}

/// The state after one request and its reply. Without a socket, what has earned it is refused.
fn after(request: impl AsRef<[u8]>, reply: impl AsRef<[u8]>) -> u32 {
    let mut path = filled();
    let mut connection = Connection::open(&path, 4100);
    connection.exchange(&path, request, reply);
    state(&mut path)
}

#[test]
fn an_answered_get_earns_it() {
    for (request, reply) in [
        ("get key\r\n", "END\r\n"),
        ("get key\r\n", "VALUE key 0 1\r\na\r\nEND\r\n"),
        ("gets key more\r\n", "VALUE more 0 1 7\r\na\r\nEND\r\n"),
        ("mg key v\r\n", "VA 1\r\na\r\n"),
        ("mg key v\r\n", "EN\r\n"),
    ] {
        assert_eq!(after(request, reply), Translated::REFUSED, "{request}");
    }
    let get = binary::get(GETK, b"key", 1);
    assert_eq!(after(get, not_found(GETK, 1)), Translated::REFUSED);
    assert_eq!(
        after(binary::get(NOOP, b"", 1), done(NOOP, 1)),
        Translated::REFUSED
    );
}

#[test]
fn an_error_and_other_commands_do_not() {
    for (request, reply) in [
        ("get key\r\n", "CLIENT_ERROR unauthenticated\r\n"),
        ("gets key more\r\n", "CLIENT_ERROR unauthenticated\r\n"),
        ("mg key v\r\n", "CLIENT_ERROR unauthenticated\r\n"),
        ("get key\r\n", "SERVER_ERROR out of memory\r\n"),
        ("set key 0 0 3\r\nabc\r\n", "STORED\r\n"),
        ("version\r\n", "VERSION 1.6.18\r\n"),
    ] {
        assert_eq!(after(request, reply), Translated::NEW, "{request}");
    }
    // Not authenticated (`PROTOCOL_BINARY_RESPONSE_AUTH_ERROR`).
    for opcode in [GETK, NOOP] {
        let mut reply = not_found(opcode, 1);
        reply[7] = 0x20;
        let key: &[u8] = if opcode == NOOP { b"" } else { b"key" };
        assert_eq!(after(binary::get(opcode, key, 1), reply), Translated::NEW);
    }
}

#[test]
fn what_is_sent_again_does_not_say_what_was_sent() {
    let mut path = filled();
    let mut connection = Connection::open(&path, 4100);
    // While the first is answered, others are on their way: what was acknowledged is not all there is.
    connection.send(&path, "get one\r\n");
    let known = connection.client;
    connection.send(&path, "get two\r\n");
    let first = connection.server;
    connection.acked = known;
    connection.send_back(&path, "END\r\n");
    connection.send_back(&path, "END\r\n");
    assert_eq!(state(&mut path), Translated::EARNED);
    // Both are lost; the kernel sends the first again, and acknowledges everything.
    connection.acked = connection.client;
    let again = connection.answer(ACK | PSH, "END\r\n").sequence(first);
    path.tx(&again);
    assert_eq!(state(&mut path), Translated::EARNED);
    path.tx(&connection.answer(ACK, ""));
    assert_eq!(state(&mut path), Translated::REFUSED);
}
