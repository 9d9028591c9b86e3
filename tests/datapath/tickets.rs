//! Which replies fill the cache, and which are refused.

use std::net::Ipv6Addr;
use std::time::Duration;

use prestack_abi::time::{CLAIM_SHIFT, CLAIM_UNITS};

use crate::bytes::{get, hit, item, value_for_reply};
use crate::harness::{Datapath, Verdict, wait};
use crate::packet::{CLIENT_PORT, CLIENT6, Frame, PacketBuilder};

/// One of the datagrams of a long reply.
fn part(request: &PacketBuilder, id: u16, sequence: u16, payload: &[u8]) -> PacketBuilder {
    request.reply(payload).frame(Frame {
        id,
        sequence,
        count: 4,
        reserved: 0,
    })
}

/// memcached's reply to a `get` of `key` with a value of 5,000 bytes; `rest` is what follows.
fn long_reply(path: &Datapath, request: &PacketBuilder, id: u16, key: &str, rest: &[u8]) {
    let reply = [&item(key, 0, [b'x'; 5000])[..], rest].concat();
    for (sequence, payload) in reply.chunks(1392).enumerate() {
        path.tx(&part(request, id, sequence as u16, payload));
    }
}

/// Waits until an unanswered GET does not keep others from a ticket for its key any more.
fn wait_for_claims() {
    wait(Duration::from_nanos(
        u64::from(CLAIM_UNITS + 1) << CLAIM_SHIFT,
    ));
}

#[test]
fn a_reply_that_nobody_asked_for() {
    let mut path = Datapath::new();
    let request = path.get_of("key");
    path.tx(&request.reply(hit("key", "value")));
    assert_eq!(path.stats().fills, 0);
    path.assert_miss("key");
}

#[test]
fn a_reply_to_somebody_else() {
    let mut path = Datapath::new();
    let request = path.get_of("key");
    path.pass(&request);
    for other in [
        request.clone().id(9999),
        request.clone().client_port(1),
        request.clone().server_port(11212),
        request.clone().v6(),
    ] {
        path.tx(&other.reply(hit("key", "value")));
    }
    assert_eq!(path.stats().fills, 0);
    path.tx(&request.reply(hit("key", "value")));
    path.assert_hit("key", "value");
}

/// Addresses are told apart by each of their parts.
#[test]
fn a_reply_to_another_address() {
    let client = CLIENT6.segments();
    for part in 0..client.len() {
        let mut other = client;
        other[part] ^= 0x100;
        let mut path = Datapath::new();
        let request = path.get_of("key").v6();
        path.pass(&request);
        let other = request.clone().from((Ipv6Addr::from(other), CLIENT_PORT));
        path.tx(&other.reply(hit("key", "value")));
        assert_eq!(path.stats().fills, 0, "part {part}");
        path.tx(&request.reply(hit("key", "value")));
        path.assert_hit("key", "value");
    }
}

#[test]
fn a_reply_comes_once() {
    let mut path = Datapath::new();
    let request = path.get_of("key");
    path.pass(&request);
    path.tx(&request.reply(hit("key", "value")));
    path.exchange("delete key\r\n", "DELETED\r\n");
    path.tx(&request.reply(hit("key", "value")));
    path.assert_miss("key");
}

#[test]
fn a_write_in_between() {
    let mut path = Datapath::new();
    for (write, answer) in [
        ("set key 0 0 3\r\nnew\r\n", Some("STORED\r\n")),
        ("set key 0 0 3\r\nnew\r\n", None),
        ("delete key noreply\r\n", None),
    ] {
        let request = path.get_of("key");
        path.pass(&request);
        let write = path.request(write);
        path.pass(&write);
        if let Some(answer) = answer {
            path.tx(&write.reply(answer));
        }
        path.tx(&request.reply(hit("key", "old")));
        path.assert_miss("key");
    }
    assert_eq!(path.stats().fills, 0);
}

#[test]
fn a_get_while_a_write_is_under_way() {
    let mut path = Datapath::new();
    let write = path.request("set key 0 0 3\r\nnew\r\n");
    path.pass(&write);
    let request = path.get_of("key");
    path.pass(&request);
    path.tx(&write.reply("STORED\r\n"));
    path.tx(&request.reply(hit("key", "old")));
    path.assert_miss("key");
}

#[test]
fn an_epoch_in_between() {
    let mut path = Datapath::new();
    let request = path.get_of("key");
    path.pass(&request);
    path.kernel().controls.empty(0);
    path.tx(&request.reply(hit("key", "old")));
    path.assert_miss("key");
    path.fill("key", "new");
    path.assert_hit("key", "new");
    path.kernel().controls.empty(0);
    path.assert_miss("key");
}

#[test]
fn replies_that_are_not_what_was_asked_for() {
    let replies: [&[u8]; 15] = [
        b"VALUE kez 0 5\r\nvalue\r\nEND\r\n",
        b"VALUE keyy 0 5\r\nvalue\r\nEND\r\n",
        b"VALUE ke 0 5\r\nvalue\r\nEND\r\n",
        b"VALUE key 0 6\r\nvalue\r\nEND\r\n",
        b"VALUE key 0 4\r\nvalue\r\nEND\r\n",
        b"VALUE key 0 3\r\nvalueEND\r\n",
        b"VALUE key 0 5\r\nvalue\r\nEND",
        b"VALUE key 0 5\r\nvalue\r\nEND\r\n\r\n",
        b"VALUE key 0 5\r\nvalue\r\nEND\r\nEND\r\n",
        b"VALUE key 0 5\r\nvalue\r\nVALUE x 0 1\r\ny\r\nEND\r\n",
        b"VALUE key 0 5\r\nval",
        b"VALUE key 0",
        b"VA 5\r\nvalue\r\n",
        b"ERROR\r\n",
        b"\x81\0\0\0\0\0\0\0",
    ];
    for reply in replies {
        let mut path = Datapath::new();
        path.exchange(get(&["key"]), reply);
        assert_eq!(path.stats().fills, 0, "{}", reply.escape_ascii());
        path.assert_miss("key");
        path.assert_miss("kez");
    }
}

#[test]
fn a_reply_that_is_too_long() {
    let mut path = Datapath::new();
    for len in [1393, 1394, 1400, 1440] {
        let value = value_for_reply("key", len).expect("a length that can be had");
        path.offer("key", &value);
        assert_eq!(path.stats().fills, 0);
        path.assert_miss("key");
    }
}

#[test]
fn a_reply_in_several_datagrams() {
    let mut path = Datapath::new();
    let request = path.get_of("key").id(500);
    path.pass(&request);
    long_reply(&path, &request, 500, "key", b"END\r\n");
    assert_eq!(path.stats().fills, 0);
    path.assert_miss("key");
}

/// Whoever chose the value chose what its last datagram looks like.
#[test]
fn part_of_a_long_value_is_not_taken_for_a_reply() {
    for disguise in [
        "VALUE key 0 5\r\nfalse\r\nEND\r\n",
        "VALUE key 0 5\r\nfalse\r\n",
    ] {
        for sequence in 0..4 {
            let mut path = Datapath::new();
            let request = path.get_of("key").id(500);
            path.pass(&request);
            path.tx(&part(&request, 500, sequence, disguise.as_bytes()));
            assert_eq!(path.stats().fills, 0);
        }
    }
}

#[test]
fn memcached_no_longer_has_the_key() {
    let mut path = Datapath::new();
    path.fill("key", "value");
    let request = path.get_of("key");
    // Asked from a port that is not served.
    let request = request.client_port(53);
    path.pass(&request);
    path.tx(&request.reply("END\r\n"));
    path.assert_miss("key");
}

#[test]
fn an_old_reply_under_a_new_request_of_the_same_id() {
    let mut path = Datapath::new();
    let request = PacketBuilder::udp(get(&["key"])).id(7);
    path.pass(&request);
    path.exchange("set key 0 0 3\r\nnew\r\n", "STORED\r\n");
    // The client gives the first one up and asks again.
    wait_for_claims();
    path.pass(&request);
    path.tx(&request.reply(hit("key", "old")));
    path.assert_miss("key");
    path.tx(&request.reply(hit("key", "new")));
    path.fill("key", "new");
    path.assert_hit("key", "new");
}

/// Each hit of a GET of many keys comes in a message of its own: the end of a long one is not the
/// end of the answer.
#[test]
fn a_long_value_is_not_the_end_of_a_reply_to_many_keys() {
    let mut path = Datapath::new();
    let request = PacketBuilder::udp(get(&["long", "key"])).id(7);
    path.pass(&request);
    long_reply(&path, &request, 7, "long", b"");
    // Meanwhile the key changes, and the client uses the id again.
    path.exchange("set key 0 0 3\r\nnew\r\n", "STORED\r\n");
    wait_for_claims();
    let again = PacketBuilder::udp(get(&["key"])).id(7);
    path.pass(&again);
    // This is still the answer to the first.
    path.tx(&again.reply(hit("key", "old")));
    let last = path.get_of("key");
    assert_eq!(path.rx(&last), Verdict::Passed);
}

/// `gets` of many keys is answered like `get`: by one message for each hit.
#[test]
fn the_first_item_is_not_the_end_of_a_reply_to_gets() {
    let mut path = Datapath::new();
    path.pass(&PacketBuilder::udp("gets a b c\r\n").id(7));
    let request = PacketBuilder::udp("set key 0 0 3\r\nnew\r\n").id(7);
    path.tx(&request.reply("VALUE a 0 1 17\r\nx\r\n"));
    path.pass(&request);
    // Still the answer to the `gets`: memcached may not have seen the write yet.
    path.tx(&request.reply("VALUE b 0 1 17\r\nx\r\n"));
    assert!(!path.can_fill("key", "old"));
    path.tx(&request.reply("END\r\n"));
    assert!(!path.can_fill("key", "old"));
}
