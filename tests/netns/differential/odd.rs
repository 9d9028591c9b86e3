//! What memcached answers with an error, or in a way of its own, or not at all.

use super::command::{Comparison, Datagram};
use super::source::Source;
use super::{binary, meta, text};

/// A line that is not as it should be, over any transport.
pub fn line(source: &mut Source) -> Vec<u8> {
    let hot = source.hot_key();
    let long = vec![b'L'; 251 + source.below(100)];
    let control = [1, 9, 11, 27, 127][source.below(5)];
    match source.below(26) {
        0 => b"get\r\n".to_vec(),
        1 => b"get \r\n".to_vec(),
        2 => b"gets  \n".to_vec(),
        3 => [b"get ", &long[..], b"\r\n"].concat(),
        4 => [b"get ", &hot[..], b" ", &long, b"\r\n"].concat(),
        5 => [b"get ", &hot[..], &[control], b"\r\n"].concat(),
        6 => [b"get ", &[control][..], &hot, b"\r\n"].concat(),
        7 => [b"get ", &hot[..], b" \r\n"].concat(),
        8 => [b"GET ", &hot[..], b"\r\n"].concat(),
        9 => [b" get ", &hot[..], b"\r\n"].concat(),
        10 => [b"get ", &hot[..], b"\r\r\n"].concat(),
        11 => [b"get\t", &hot[..], b"\r\n"].concat(),
        12 => [b"get ", &hot[..], b"\0\r\n"].concat(),
        13 => [b"set ", &hot[..], b" 0 0\r\n"].concat(),
        14 => [b"set ", &hot[..], b" x 0 1\r\ny\r\n"].concat(),
        15 => [b"set ", &hot[..], b" 0 0 3\r\nlonger than that\r\n"].concat(),
        16 => [b"delete ", &hot[..], b" 1\r\n"].concat(),
        17 => [b"incr ", &hot[..], b" x\r\n"].concat(),
        18 => [b"touch ", &hot[..], b"\r\n"].concat(),
        19 => [b"mg ", &hot[..], b" v v\r\n"].concat(),
        20 => [b"mg ", &hot[..], b" v !\r\n"].concat(),
        21 => [b"mg ", &long[..], b" v\r\n"].concat(),
        22 => source
            .pick(&[
                &b"\r\n"[..],
                b"\n",
                b"mg\r\n",
                b"version\r\n",
                b"verbosity 0\r\n",
                b"nonsense\r\n",
                b"getx a\r\n",
                b"mgv a\r\n",
                b"gat 0\r\n",
            ])
            .to_vec(),
        23 => quiet(source, &long),
        24 => quiet(source, &hot),
        _ => [b"gat x ", &hot[..], b"\r\n"].concat(),
    }
}

/// A line to which memcached says nothing although it may refuse it.
fn quiet(source: &mut Source, key: &[u8]) -> Vec<u8> {
    let verb = source.pick(&[&b"delete "[..], b"incr ", b"decr ", b"touch "]);
    let number: &[u8] = source.pick(&[&b""[..], b" 1", b" x"]);
    let number = if verb == b"delete " { b"" } else { number };
    let end = source.pick(&[&b" noreply\r\n"[..], b" noreply\n", b" noreply \r\n"]);
    [verb, key, number, end].concat()
}

/// A datagram that is not as it should be.
pub fn datagram(source: &mut Source) -> Datagram {
    match source.below(10) {
        0..4 => Datagram::new(line(source)),
        4 => strange_frame(source),
        5 => several(source),
        6 => several_frames(source),
        7 => cut(source),
        8 => strange_binary(source),
        _ => {
            let bytes = (0..source.below(40)).map(|_| source.number() as u8 | 1);
            let mut bytes: Vec<u8> = bytes.collect();
            // Binary magic could ask for data that never comes.
            if let Some(first @ 0x80) = bytes.first_mut() {
                *first = 0x82;
            }
            Datagram::new(bytes)
        }
    }
}

/// A good GET in a frame that is not: memcached drops what claims several datagrams, and ignores
/// the rest.
fn strange_frame(source: &mut Source) -> Datagram {
    let frame = match source.below(5) {
        0 => [0, 2, 0],
        1 => [0, 0, 0],
        2 => [1, 1, 0],
        3 => [0, 257, 0],
        _ => [0, 1, 1 + source.below(65_535) as u16],
    };
    let good = match source.below(3) {
        0 => text::plain_get(source, "get"),
        1 => meta::plain_get(source, &["v", "k"]),
        _ => binary::plain_get(source, 0x00),
    };
    Datagram { frame, ..good }
}

/// Several lines in one datagram.
fn several(source: &mut Source) -> Datagram {
    let count = 2 + source.below(3);
    let mut payload = Vec::new();
    for _ in 0..count {
        payload.extend(match source.below(5) {
            0 => text::read(source, false).payload,
            1 => text::write(source, false),
            2 => meta::read(source, false).payload,
            3 => meta::write(source, false),
            _ => line(source),
        });
    }
    Datagram {
        answers: 60,
        comparison: Comparison::Exact,
        ..Datagram::new(payload)
    }
}

/// Several frames of the binary protocol in one datagram.
fn several_frames(source: &mut Source) -> Datagram {
    let count = 2 + source.below(4);
    let mut payload = Vec::new();
    for _ in 0..count {
        payload.extend(match source.below(3) {
            0 => binary::write(source, false),
            _ => binary::read(source),
        });
    }
    Datagram {
        answers: count * 4,
        ..Datagram::new(payload)
    }
}

/// A GET that ends too early: memcached forgets it. (A storage command that does so would take the
/// datagrams that follow, frames and all, for its data.)
fn cut(source: &mut Source) -> Datagram {
    let mut datagram = match source.below(3) {
        0 => text::read(source, false),
        1 => meta::read(source, false),
        _ => Datagram::new(binary::read(source)),
    };
    let len = datagram.payload.len();
    // What lacks more than its last byte may lack a whole key, which is another command.
    datagram
        .payload
        .truncate(len - 1 - source.below(len.min(20) - 1));
    datagram
}

/// A frame whose lengths are wrong.
fn strange_binary(source: &mut Source) -> Datagram {
    let key = source.hot_key();
    let long = [b'L'; 251];
    let opcode = binary::GETS[source.below(4)];
    Datagram::new(match source.below(5) {
        0 => binary::frame(opcode, 1, 0, [b"", b"", b""]),
        1 => binary::frame(opcode, 2, 0, [b"", &long, b""]),
        2 => binary::frame(opcode, 3, 0, [b"1234", &key, b""]),
        3 => binary::frame(opcode, 4, 0, [b"", &key, b"value"]),
        _ => binary::frame(0x0a, 5, 0, [b"", &key, b""]),
    })
}
