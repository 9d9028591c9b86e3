//! Streams of TCP that are odd in one way each.

use std::ops::Range;

use super::both::Both;
use super::series::set_of;
use crate::bytes::{get, hit, key_of};
use crate::harness::Setup;
use crate::packet::{ACK, PSH, PacketBuilder, SYN};
use crate::tcp::connection::Connection;
use crate::tcp::step;

/// What one end of a connection does.
enum Act {
    /// The client sends this.
    Send(Vec<u8>),
    /// The client sends this, and it is lost.
    Lose(Vec<u8>),
    /// The client sends these bytes of its segment of this number again.
    Again(usize, Range<usize>),
    /// memcached sends this, having got all.
    Reply(Vec<u8>),
}

fn send(text: impl AsRef<[u8]>) -> Act {
    Act::Send(text.as_ref().to_vec())
}

fn reply(text: impl AsRef<[u8]>) -> Act {
    Act::Reply(text.as_ref().to_vec())
}

/// An exchange, by which a connection is established.
fn opened() -> impl Iterator<Item = Act> {
    [send("get first\r\n"), reply("END\r\n")].into_iter()
}

/// A connection on which this is done, and then a `set` and a `get`.
fn play(setup: &Setup, acts: Vec<Act>) {
    let mut both = Both::with(setup);
    both.fill(1, b"key");
    let mut connection = Connection::new(50_000);
    both.rx(&connection.segment(SYN, "").build());
    connection.client += 1;
    connection.acked = connection.client;
    both.tx(&connection.answer(SYN | ACK, "").build());
    connection.server += 1;
    let last = [
        send("set last 0 0 4\r\nlast\r\n"),
        reply("STORED\r\n"),
        send("get key\r\n"),
        reply(hit("key", "value")),
    ];
    let mut sent = Vec::new();
    let is_long = acts.len() > 50;
    for act in acts.into_iter().chain(last) {
        match act {
            Act::Send(text) => {
                let segment = connection.segment(ACK | PSH, &text);
                both.rx(&segment.build());
                connection.client += text.len() as u32;
                sent.push(segment);
            }
            Act::Lose(text) => {
                sent.push(connection.segment(ACK | PSH, &text));
                connection.client += text.len() as u32;
            }
            Act::Again(number, part) => {
                let segment: PacketBuilder = sent[number].clone();
                let sequence = segment.numbers().0 + part.start as u32;
                let bytes = segment.payload[part].to_vec();
                both.rx(&segment.sequence(sequence).payload(bytes).build());
            }
            Act::Reply(text) => {
                connection.acked = connection.client;
                both.tx(&connection.answer(ACK | PSH, &text).build());
                connection.server = connection.server.wrapping_add(text.len() as u32);
            }
        }
        if !is_long {
            both.compare(&[]);
        }
    }
    both.compare(&[b"key".to_vec(), b"last".to_vec(), b"first".to_vec()]);
    assert!(both.differences.is_empty(), "{}", both.differences[0]);
}

#[test]
fn odd_streams_are_followed_alike() {
    let setup = Setup::default();
    let long = set_of(b"key", "0 0", &[b'x'; 1200], "");
    let many_keys = format!("get {}", "abcdefgh ".repeat(90));
    let streams = vec![
        // A part of a line, or of its keys, precedes.
        vec![send("get k"), send("get key\r\n"), reply("END\r\n")],
        vec![send(many_keys), send("get key\r\n"), reply("END\r\n")],
        // What was lost comes behind what follows it.
        vec![
            Act::Lose(b"get key\r\n".to_vec()),
            send("set key 0 0 1\r\nx\r\n"),
            Act::Again(1, 0..9),
            reply("END\r\nSTORED\r\n"),
        ],
        // A block that ends wrongly, and lines that do.
        vec![send("set key 0 0 8\r\nabcdefgh.."), send("get key\r\n")],
        vec![send("set key 0 0 8\n\nabcdefgh\r\n"), reply("STORED\r\n")],
        vec![send("set key 0 0 8\r\rabcdefgh\r\n"), reply("STORED\r\n")],
        vec![send("set key 0,0 8\r\nabcdefgh\r\n"), reply("ERROR\r\n")],
        vec![send("get keyname\n\n"), reply("ERROR\r\n")],
        // A part of a block is sent again.
        vec![send(&long), Act::Again(1, 500..900), reply("STORED\r\n")],
        // More than are remembered.
        (0..600).map(|_| send("get key\r\n")).collect(),
        // What looks like a reply is a part of one.
        vec![
            send("get key\r\n"),
            reply("VALUE key 0 9\r\nxx"),
            reply("END\r\n"),
            reply("yy\r\nEND\r\n"),
        ],
        vec![
            send("set key 0 0 1\r\nx\r\n"),
            reply("NOT_"),
            reply("STORED\r\n"),
        ],
        vec![
            send("get key\r\n"),
            reply("VALUE key 0 3\r\nabc\r\nENX\r\n"),
        ],
        vec![send("get key\r\n"), reply("STORED\r\n")],
        // A number of bytes that is none, or not only one.
        vec![send("get key\r\n"), reply("VALUE key 0 \r\n\r\nEND\r\n")],
        vec![send("get key\r\n"), reply("VALUE key 0 x\r\n\r\nEND\r\n")],
        vec![
            send("get key\r\n"),
            reply("VALUE key 0 x3\r\nabc\r\nEND\r\n"),
        ],
    ];
    for stream in streams {
        play(&setup, opened().chain(stream).collect());
    }
    // The other protocol.
    let binary_noop = [&[0x80, 0x0a][..], &[0; 22]].concat();
    play(&setup, vec![send(binary_noop), send("get key\r\n")]);
    // A block is cut at each of its last bytes, and ends as it should or not.
    for (end, cut) in (0..6)
        .map(|cut| ("\r\n", cut))
        .chain((0..6).map(|cut| ("..", cut)))
    {
        let set = format!("set key 0 0 20\r\n{}{end}", "x".repeat(20));
        let (one, two) = set.split_at(set.len() - cut);
        let [early, late] = [&one[..20], &one[20..]];
        let stream = [send(early), send(late), send(two), reply("STORED\r\n")];
        play(&setup, opened().chain(stream).collect());
    }
    // First lines of every length.
    for len in (40..60).step_by(step(7)) {
        let key = key_of(len);
        for value in ["", "abcdefg\n", "0123456789"] {
            let stream = vec![
                send(get(&[&key])),
                reply(hit(&key, value)),
                send(get(&[&key])),
                reply(hit(&key, value)),
            ];
            play(&setup, stream);
        }
    }
    // More writes than a bucket tells apart.
    let crowded = Setup {
        buckets: 1,
        ..Setup::default()
    };
    let writes = (0..9).map(|i| send(format!("set key{i} 0 0 1\r\nx\r\n")));
    let replies = (0..9).map(|_| reply("STORED\r\n"));
    play(&crowded, opened().chain(writes).chain(replies).collect());
}
