//! What a hostile or unlucky client can send that memcached understands in another way than it
//! seems, checked against memcached 1.6.18.

use crate::binary::{GETK, get as binary_get, hit as binary_hit, request as frame};
use crate::bytes::{get, hit};
use crate::harness::{Datapath, Verdict};
use crate::packet::{ACK, PSH, PacketBuilder, SYN};

const SET: u8 = 0x01;
const APPEND: u8 = 0x0e;
const SETQ: u8 = 0x11;
const STAT: u8 = 0x10;
const TOUCH: u8 = 0x1c;
const GAT: u8 = 0x1d;
const VERBOSITY: u8 = 0x1b;

fn hidden() -> Vec<u8> {
    frame(SETQ, &[0; 8], b"key", b"new", 0)
}

/// A request whose body is longer than extras and key.
fn hiding(opcode: u8, extras: &[u8], key: &[u8]) -> Vec<u8> {
    frame(opcode, extras, key, &hidden(), 0)
}

fn is_seen(path: &mut Datapath, what: &str) {
    let request = path.get_of("key");
    assert_eq!(
        path.rx(&request),
        Verdict::Passed,
        "{what}: served old value"
    );
}

#[test]
fn a_write_in_the_body_of_stat() {
    let mut path = Datapath::new();
    path.fill("key", "old");
    path.only_pass(hiding(STAT, b"", b""));
    is_seen(&mut path, "stat");
}

#[test]
fn a_write_in_the_body_of_touch() {
    let mut path = Datapath::new();
    path.fill("key", "old");
    path.only_pass(hiding(TOUCH, &[0; 4], b"k"));
    is_seen(&mut path, "touch");
}

#[test]
fn a_write_in_the_body_of_gat() {
    let mut path = Datapath::new();
    path.fill("key", "old");
    path.only_pass(hiding(GAT, &[0; 4], b"k"));
    is_seen(&mut path, "gat");
}

fn open(path: &Datapath) -> u32 {
    path.accept(&PacketBuilder::tcp(1001, ACK, "").client_port(5));
    1001
}

fn send(path: &Datapath, next: &mut u32, data: impl AsRef<[u8]>) {
    path.pass(&PacketBuilder::tcp(*next, ACK | PSH, &data).client_port(5));
    *next += data.as_ref().len() as u32;
}

#[test]
fn a_write_in_the_body_of_touch_over_tcp() {
    let mut path = Datapath::new();
    path.fill("key", "old");
    let mut next = open(&path);
    send(&path, &mut next, hiding(TOUCH, &[0; 4], b"k"));
    is_seen(&mut path, "touch");
}

/// memcached skips the body's length once more than it should.
#[test]
fn a_write_behind_verbosity() {
    let mut path = Datapath::new();
    path.fill("key", "old");
    let mut next = open(&path);
    send(&path, &mut next, frame(VERBOSITY, &[0; 4], b"", b"", 0));
    // NOOP to us; from byte 4 on a DELETE of `key` to memcached.
    let mut body = vec![0; 4];
    body.extend(b"key");
    body.resize(0x80, 0);
    let mut noop = vec![0x80, 0x0a, 0, 0, 0x80, 0x04, 0, 3];
    noop.extend((body.len() as u32).to_be_bytes());
    noop.extend(3u32.to_be_bytes());
    noop.extend([0; 8]);
    noop.extend(body);
    send(&path, &mut next, noop);
    is_seen(&mut path, "verbosity");
}

/// A body of 2 GiB or more is a negative length to memcached, which refuses the request and skips nothing.
#[test]
fn a_write_behind_a_request_with_an_endless_body() {
    for opcode in [SET, APPEND] {
        let mut path = Datapath::new();
        path.fill("key", "old");
        let mut next = open(&path);
        let extras: &[u8] = if opcode == SET { &[0; 8] } else { &[] };
        let mut endless = frame(opcode, extras, b"other", b"", 0);
        endless[8..12].copy_from_slice(&0xf000_0000_u32.to_be_bytes());
        send(&path, &mut next, endless);
        send(&path, &mut next, hidden());
        is_seen(&mut path, "write in an endless body");
    }
}

/// A reply from another host behind this one, at the same port and to the same name.
#[test]
fn a_reply_of_another_host_before_the_backends() {
    let mut path = Datapath::new();
    let one = path.get_of("key");
    let elsewhere = one
        .clone()
        .to((std::net::Ipv4Addr::new(10, 9, 9, 9), 11211));
    path.pass(&one);
    path.pass(&elsewhere);
    path.tx(&elsewhere.reply(hit("key", "of another host")));
    path.tx(&one.reply(hit("key", "mine")));
    let request = path.get_of("key");
    assert_ne!(
        path.rx(&request),
        Verdict::Served(hit("key", "of another host"))
    );
}

#[test]
fn a_reply_of_another_host_that_nobody_asked_for() {
    let mut path = Datapath::new();
    let one = path.get_of("key");
    path.pass(&one);
    let elsewhere = one
        .clone()
        .to((std::net::Ipv4Addr::new(10, 9, 9, 9), 11211));
    path.tx(&elsewhere.reply(hit("key", "poison")));
    let request = path.get_of("key");
    assert_ne!(path.rx(&request), Verdict::Served(hit("key", "poison")));
}

/// The item was replaced unseen (over loopback): no mixture of both must be served.
#[test]
fn an_item_that_was_replaced_unseen_is_not_mixed_with_the_new_one() {
    let mut path = Datapath::new();
    path.exchange("get key\r\n", "VALUE key 5 3\r\naaa\r\nEND\r\n");
    // Now it has other flags and data.
    path.exchange("mg key v\r\n", "VA 3\r\nbbb\r\n");
    let request = path.request("get key\r\n");
    let verdict = path.rx(&request);
    assert_ne!(
        verdict,
        Verdict::Served(b"VALUE key 5 3\r\nbbb\r\nEND\r\n".to_vec())
    );
}

#[test]
fn quit_costs_nothing() {
    let mut path = Datapath::new();
    path.fill("key", "value");
    let mut next = open(&path);
    send(&path, &mut next, "quit\r\n");
    assert_eq!(path.epoch(), 0);
}

/// A SYN in an established connection is ignored by the kernel.
#[test]
fn a_syn_in_an_established_connection() {
    let mut path = Datapath::new();
    path.fill("key", "old");
    let mut next = open(&path);
    send(&path, &mut next, "version\r\n");
    path.pass(&PacketBuilder::tcp(next - 1, SYN, "").client_port(5));
    // To memcached this is text: a line of garbage, then a set.
    send(
        &path,
        &mut next,
        binary_get(0, b"x\nset key 0 0 3\r\nnew\r\n", 1),
    );
    is_seen(&mut path, "syn");
}

/// A key with spaces whose end looks like flags of a reply.
#[test]
fn a_key_that_reads_like_flags() {
    let mut path = Datapath::new();
    let key = b"a f7 c5 b";
    // Stored by the binary protocol, with flags 0 and CAS number 99.
    path.exchange("mg YSBmNyBjNSBi v k b\r\n", "VA 3 ka f7 c5 b\r\nold\r\n");
    let request = path.request(binary_get(GETK, key, 3));
    assert_ne!(
        path.rx(&request),
        Verdict::Served(binary_hit(GETK, key, 7, 5, b"old", 3))
    );
}

#[test]
fn a_key_that_reads_like_base64() {
    let mut path = Datapath::new();
    path.exchange("mg YSBi v k b\r\n", "VA 3 ka b\r\nold\r\n");
    let request = path.request("mg YSBi v k b\r\n");
    assert_ne!(
        path.rx(&request),
        Verdict::Served(b"VA 3 kYSBi b\r\nold\r\n".to_vec())
    );
}

/// memcached waits for the rest of the data, which the next datagram of anybody brings.
#[test]
fn an_incomplete_set_that_ends_late() {
    let mut path = Datapath::with(&crate::harness::Setup {
        settle: std::time::Duration::from_millis(50),
        ..Default::default()
    });
    let set = path.request("set key 0 0 22\r\nabc");
    path.pass(&set);
    crate::harness::wait(std::time::Duration::from_millis(80));
    path.fill("key", "old");
    let swallowed = path.request(get(&["xxxxxxx"]));
    path.pass(&swallowed);
    path.tx(&set.reply("STORED\r\n"));
    is_seen(&mut path, "late set");
}

/// Of many commands in one datagram those behind the last that is looked at may be writes.
#[test]
fn a_write_at_the_end_of_a_datagram_of_many_commands() {
    let mut path = Datapath::new();
    path.fill("key", "old");
    let many = ["mn\r\n".repeat(140), "delete key\r\n".to_owned()];
    path.only_pass(many.concat());
    is_seen(&mut path, "many commands");
    assert_eq!(path.epoch(), 1);
}

/// memcached takes what is behind a block that does not end as it should for the next command.
#[test]
fn the_last_of_several_commands_is_not_as_long_as_it_says() {
    for last in [
        "set other 0 0 3\r\nnewxx",
        "set other 0 0 3\r\nnewx\n",
        "set other 0 0 3\r\nnew\rx",
        "set other 0 0 9\r\nnew\r\n",
        "set other 0 0 3\r\nnew",
    ] {
        for first in ["", "mn\r\n"] {
            let mut path = Datapath::new();
            path.fill("key", "old");
            path.only_pass([first, last].concat());
            assert_eq!(path.epoch(), 1, "{first:?} {last:?}");
            is_seen(&mut path, last);
        }
    }
}
