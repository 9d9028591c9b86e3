//! Commands of memcached's protocols, and its answers.

use std::fmt;
use std::ops::Range;

use prestack_proto::binary::opcode::{GET, SET, SETQ};
use prestack_proto::binary::{REQUEST, RESPONSE, STATUS_NOT_FOUND, STATUS_SUCCESS};

use crate::dataset::Dataset;

/// Bytes of a binary header.
const HEADER_LEN: usize = prestack_proto::binary::HEADER_LEN as usize;

/// The flags of all items, as a binary answer has them.
const FLAGS: [u8; 4] = [0; 4];

/// A protocol of memcached's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Protocol {
    /// `get` and `set`
    #[default]
    Text,
    /// `mg` and `ms`
    Meta,
    /// Binary GET and SET
    Binary,
    /// Text `get`, of which anything is an answer: for a server that sends requests back
    #[value(skip)]
    Echo,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Meta => "meta",
            Self::Binary => "binary",
            Self::Echo => "echo",
        })
    }
}

/// What an answer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The item has a value, which stands here.
    Value(Range<usize>),
    /// There is no such item.
    Missing,
    /// The value was stored.
    Stored,
    /// memcached could not do it (out of memory).
    Refused,
}

/// The start of some bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// An answer of so many bytes.
    Whole(usize, Answer),
    /// More must come.
    Partial,
    /// Not an answer to what was asked.
    Wrong,
}

impl Protocol {
    /// Appends a request for item `n`.
    pub(crate) fn get(self, dataset: &Dataset, n: u32, to: &mut Vec<u8>) {
        match self {
            Self::Text | Self::Echo => {
                to.extend(b"get ");
                dataset.write_key(n, to);
                to.extend(b"\r\n");
            }
            Self::Meta => {
                to.extend(b"mg ");
                dataset.write_key(n, to);
                to.extend(b" v\r\n");
            }
            Self::Binary => {
                header(to, GET, dataset.key_len(n), 0, 0);
                dataset.write_key(n, to);
            }
        }
    }

    /// Appends a command that gives item `n` its `version`-th value; nothing answers a quiet one.
    pub(crate) fn set(
        self,
        dataset: &Dataset,
        n: u32,
        version: u32,
        is_quiet: bool,
        to: &mut Vec<u8>,
    ) {
        let len = dataset.value_len(n);
        match self {
            Self::Text | Self::Echo => {
                to.extend(b"set ");
                dataset.write_key(n, to);
                to.extend(b" 0 0 ");
                decimal(len, to);
                to.extend(if is_quiet {
                    &b" noreply\r\n"[..]
                } else {
                    b"\r\n"
                });
            }
            Self::Meta => {
                to.extend(b"ms ");
                dataset.write_key(n, to);
                to.extend(b" ");
                decimal(len, to);
                to.extend(if is_quiet { &b" q\r\n"[..] } else { b"\r\n" });
            }
            Self::Binary => {
                let opcode = if is_quiet { SETQ } else { SET };
                header(to, opcode, dataset.key_len(n), 8, len);
                to.extend([0; 8]);
                dataset.write_key(n, to);
            }
        }
        dataset.write_value(n, version, to);
        if self != Self::Binary {
            to.extend(b"\r\n");
        }
    }

    /// Reads the answer to [`get`](Self::get) at the start of `bytes`.
    pub(crate) fn read_get(self, dataset: &Dataset, n: u32, bytes: &[u8]) -> Start {
        let len = dataset.value_len(n);
        let mut head = Head::default();
        let end: &[u8] = match self {
            Self::Text => {
                head.push(b"VALUE ");
                head.key(dataset, n);
                head.push(b" 0 ");
                head.decimal(len);
                head.push(b"\r\n");
                b"\r\nEND\r\n"
            }
            Self::Meta => {
                head.push(b"VA ");
                head.decimal(len);
                head.push(b"\r\n");
                b"\r\n"
            }
            Self::Binary => return read_frame(GET, bytes),
            Self::Echo => return Start::Whole(bytes.len(), Answer::Stored),
        };
        let head = head.bytes();
        let compared = bytes.len().min(head.len());
        if bytes[..compared] == head[..compared] {
            let whole = head.len() + len + end.len();
            if bytes.len() < whole {
                return Start::Partial;
            }
            if &bytes[whole - end.len()..whole] != end {
                return Start::Wrong;
            }
            return Start::Whole(whole, Answer::Value(head.len()..head.len() + len));
        }
        let missing: &[u8] = if self == Self::Text {
            b"END\r\n"
        } else {
            b"EN\r\n"
        };
        line(bytes, missing, Answer::Missing)
    }

    /// Reads the answer to [`set`](Self::set) at the start of `bytes`.
    pub(crate) fn read_set(self, bytes: &[u8]) -> Start {
        match self {
            Self::Text | Self::Echo => line(bytes, b"STORED\r\n", Answer::Stored),
            Self::Meta => line(bytes, b"HD\r\n", Answer::Stored),
            Self::Binary => read_frame(SET, bytes),
        }
    }
}

/// Reads a line that is `wanted`, or an error of memcached's.
fn line(bytes: &[u8], wanted: &[u8], answer: Answer) -> Start {
    if bytes.starts_with(wanted) {
        return Start::Whole(wanted.len(), answer);
    }
    match bytes.windows(2).position(|pair| pair == b"\r\n") {
        Some(end) if bytes.starts_with(b"SERVER_ERROR") => Start::Whole(end + 2, Answer::Refused),
        None if bytes.len() < 512 => Start::Partial,
        _ => Start::Wrong,
    }
}

/// Reads a binary answer to a request with this opcode.
fn read_frame(opcode: u8, bytes: &[u8]) -> Start {
    let Some((header, body)) = bytes.split_at_checked(HEADER_LEN) else {
        return Start::Partial;
    };
    let half = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let len = u32::from_be_bytes([header[8], header[9], header[10], header[11]]) as usize;
    if header[..2] != [RESPONSE, opcode] {
        return Start::Wrong;
    }
    if body.len() < len {
        return Start::Partial;
    }
    let whole = HEADER_LEN + len;
    let answer = match half(6) {
        STATUS_SUCCESS if opcode == GET => {
            let (key, extras) = (half(2), usize::from(header[4]));
            if key != 0 || extras != FLAGS.len() || !body[..len].starts_with(&FLAGS) {
                return Start::Wrong;
            }
            Answer::Value(HEADER_LEN + extras..whole)
        }
        STATUS_SUCCESS => Answer::Stored,
        STATUS_NOT_FOUND => Answer::Missing,
        _ => Answer::Refused,
    };
    Start::Whole(whole, answer)
}

/// Appends the header of a binary request.
fn header(to: &mut Vec<u8>, opcode: u8, key: usize, extras: u8, value: usize) {
    to.extend([REQUEST, opcode]);
    to.extend((key as u16).to_be_bytes());
    to.extend([extras, 0, 0, 0]);
    to.extend(((usize::from(extras) + key + value) as u32).to_be_bytes());
    to.extend([0; 12]);
}

/// The first line of an answer, on the stack.
struct Head {
    bytes: [u8; 300],
    len: usize,
}

impl Default for Head {
    fn default() -> Self {
        Self {
            bytes: [0; 300],
            len: 0,
        }
    }
}

impl Head {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes[self.len..][..bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    fn key(&mut self, dataset: &Dataset, n: u32) {
        let (padding, digits) = dataset.key_parts(n);
        self.push(padding);
        self.push(&digits);
    }

    fn decimal(&mut self, number: usize) {
        let (digits, len) = decimal_digits(number);
        self.push(&digits[20 - len..]);
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

fn decimal(number: usize, to: &mut Vec<u8>) {
    let (digits, len) = decimal_digits(number);
    to.extend(&digits[20 - len..]);
}

/// The digits of a number at the end of 20 bytes, and how many they are.
fn decimal_digits(mut number: usize) -> ([u8; 20], usize) {
    let mut digits = [0; 20];
    let mut len = 0;
    loop {
        len += 1;
        digits[20 - len] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return (digits, len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Protocol; 3] = [Protocol::Text, Protocol::Meta, Protocol::Binary];

    fn dataset() -> Dataset {
        Dataset::new(100, 10, 12).unwrap()
    }

    /// A hit for item 7, and where its value stands.
    fn hit(protocol: Protocol) -> (Vec<u8>, Range<usize>) {
        let set = dataset();
        let mut reply = match protocol {
            Protocol::Text | Protocol::Echo => b"VALUE kk00000007 0 12\r\n".to_vec(),
            Protocol::Meta => b"VA 12\r\n".to_vec(),
            Protocol::Binary => {
                let mut header = vec![RESPONSE, GET, 0, 0, 4, 0, 0, 0, 0, 0, 0, 16];
                header.extend([0; 12 + 4]);
                header
            }
        };
        let at = reply.len();
        set.write_value(7, 3, &mut reply);
        reply.extend(match protocol {
            Protocol::Text | Protocol::Echo => &b"\r\nEND\r\n"[..],
            Protocol::Meta => b"\r\n",
            Protocol::Binary => b"",
        });
        (reply, at..at + 12)
    }

    #[test]
    fn commands_are_memcacheds() {
        let set = dataset();
        let mut bytes = Vec::new();
        Protocol::Text.get(&set, 7, &mut bytes);
        Protocol::Meta.get(&set, 7, &mut bytes);
        assert_eq!(bytes, b"get kk00000007\r\nmg kk00000007 v\r\n");
        let mut value = Vec::new();
        set.write_value(7, 5, &mut value);
        for (protocol, is_quiet, line) in [
            (Protocol::Text, false, "set kk00000007 0 0 12\r\n"),
            (Protocol::Text, true, "set kk00000007 0 0 12 noreply\r\n"),
            (Protocol::Meta, false, "ms kk00000007 12\r\n"),
            (Protocol::Meta, true, "ms kk00000007 12 q\r\n"),
        ] {
            bytes.clear();
            protocol.set(&set, 7, 5, is_quiet, &mut bytes);
            assert_eq!(bytes, [line.as_bytes(), &value, b"\r\n"].concat());
        }
        bytes.clear();
        Protocol::Binary.set(&set, 7, 5, false, &mut bytes);
        assert_eq!(bytes[..12], [0x80, 1, 0, 10, 8, 0, 0, 0, 0, 0, 0, 30]);
        assert_eq!(bytes[24..], [&[0; 8], &b"kk00000007"[..], &value].concat());
    }

    #[test]
    fn answers_are_read_however_they_are_cut() {
        for protocol in ALL {
            let (reply, value) = hit(protocol);
            for cut in 0..reply.len() {
                let start = protocol.read_get(&dataset(), 7, &reply[..cut]);
                assert_eq!(start, Start::Partial, "{protocol} cut at {cut}");
            }
            let more = [&reply[..], b"more"].concat();
            assert_eq!(
                protocol.read_get(&dataset(), 7, &more),
                Start::Whole(reply.len(), Answer::Value(value)),
                "{protocol}"
            );
        }
    }

    #[test]
    fn a_binary_hit_has_the_flags_and_no_key() {
        let (reply, _) = hit(Protocol::Binary);
        for (what, at, byte) in [
            ("flags", 27, 1),
            ("a key", 3, 1),
            ("a key that is longer than its body", 2, 1),
            ("no extras", 4, 0),
            ("no body", 11, 0),
        ] {
            let mut changed = reply.clone();
            changed[at] = byte;
            let start = Protocol::Binary.read_get(&dataset(), 7, &changed);
            assert_eq!(start, Start::Wrong, "{what}");
        }
    }

    #[test]
    fn other_answers_are_told_apart() {
        let whole = |len, answer| Start::Whole(len, answer);
        let text = |bytes: &[u8]| Protocol::Text.read_get(&dataset(), 7, bytes);
        assert_eq!(text(b"END\r\n"), whole(5, Answer::Missing));
        assert_eq!(text(b"VALUE kk00000008 0 12\r\n"), Start::Wrong);
        assert_eq!(text(b"VALUE kk00000007 0 13\r\n"), Start::Wrong);
        assert_eq!(text(b"ERROR\r\n"), Start::Wrong);
        let error = b"SERVER_ERROR out of memory\r\n";
        assert_eq!(text(error), whole(error.len(), Answer::Refused));
        let set = |protocol: Protocol, bytes: &[u8]| protocol.read_set(bytes);
        assert_eq!(
            set(Protocol::Text, b"STORED\r\nx"),
            whole(8, Answer::Stored)
        );
        assert_eq!(set(Protocol::Text, b"NOT_STORED\r\n"), Start::Wrong);
        assert_eq!(set(Protocol::Meta, b"HD\r\n"), whole(4, Answer::Stored));
        assert_eq!(set(Protocol::Meta, b"H"), Start::Partial);
        let mut frame = vec![RESPONSE, GET, 0, 0, 0, 0, 0, 1, 0, 0, 0, 9];
        frame.extend([0; 12]);
        frame.extend(b"Not found");
        assert_eq!(
            Protocol::Binary.read_get(&dataset(), 7, &frame),
            whole(33, Answer::Missing)
        );
    }
}
