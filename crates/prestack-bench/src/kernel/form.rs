//! Forms of GET, and memcached's answers to them.

use std::fmt;

use prestack_proto::binary::opcode::{GET, GETK};
use prestack_proto::binary::{REQUEST, RESPONSE, STATUS_NOT_FOUND, STATUS_SUCCESS};

use crate::dataset::{Dataset, digits};

/// The CAS number of item 0; the others count on from it.
const FIRST_CAS: u64 = 1_000_000;
/// What a client tells its binary requests apart by.
const OPAQUE: u32 = 0x0123_4567;

/// How a key is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spelling {
    /// As it is, with its number in hexadecimal digits at its end.
    Plain,
    /// 16 bytes in base64, of which the number's digits happen to be letters. Below number 4,096 none
    /// is a control character: such keys are not learnt from `mg`.
    Base64,
}

impl Spelling {
    fn key(self, dataset: &Dataset, n: u32) -> Vec<u8> {
        match self {
            Self::Plain => dataset.key(n),
            Self::Base64 => [b"a2tra2tra2t", &digits(n)[..], b"raw=="].concat(),
        }
    }

    /// A request after whose answer all is known of item `n` that any form of GET shows, and that
    /// answer.
    pub(super) fn lesson(self, dataset: &Dataset, n: u32) -> [Vec<u8>; 2] {
        let flag = match self {
            Self::Plain => "",
            Self::Base64 => " b",
        };
        let key = self.key(dataset, n);
        let value = dataset.value(n);
        let request = [b"mg ", &key[..], flag.as_bytes(), b" k v f c\r\n"].concat();
        let size = format!("VA {} k", value.len());
        let numbers = format!("{flag} f0 c{}\r\n", cas(n));
        let reply = [
            size.as_bytes(),
            &key,
            numbers.as_bytes(),
            &value[..],
            b"\r\n",
        ];
        [request, reply.concat()]
    }
}

/// A form of GET.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Text `get` of so many keys.
    Get(usize),
    /// Text `gets` of one key.
    Gets,
    /// `mg` that asks for the value alone.
    Meta,
    /// `mg` with every flag that is answered but `b`.
    MetaFull,
    /// The same with the key in base64.
    MetaBase64,
    /// Binary GET.
    Binary,
    /// Binary GETK.
    BinaryKey,
}

/// The flags of [`Form::MetaFull`].
const FULL: &str = "k v f s c q O1234";

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Get(1) => f.write_str("get"),
            Self::Get(keys) => write!(f, "get of {keys} keys"),
            Self::Gets => f.write_str("gets"),
            Self::Meta => f.write_str("mg v"),
            Self::MetaFull => write!(f, "mg {FULL}"),
            Self::MetaBase64 => write!(f, "mg b {FULL}"),
            Self::Binary => f.write_str("binary GET"),
            Self::BinaryKey => f.write_str("binary GETK"),
        }
    }
}

impl Form {
    /// How many keys a request has.
    pub(super) fn keys(self) -> usize {
        match self {
            Self::Get(keys) => keys,
            _ => 1,
        }
    }

    /// How it writes them.
    pub(super) fn spelling(self) -> Spelling {
        match self {
            Self::MetaBase64 => Spelling::Base64,
            _ => Spelling::Plain,
        }
    }

    /// A request for these items.
    pub(super) fn request(self, dataset: &Dataset, items: &[u32]) -> Vec<u8> {
        let keys: Vec<_> = items
            .iter()
            .map(|&n| self.spelling().key(dataset, n))
            .collect();
        let command = |name: &str, flags: &str| {
            let keys = keys.join(&b' ');
            [name.as_bytes(), b" ", &keys, flags.as_bytes(), b"\r\n"].concat()
        };
        match self {
            Self::Get(_) => command("get", ""),
            Self::Gets => command("gets", ""),
            Self::Meta => command("mg", " v"),
            Self::MetaFull => command("mg", &format!(" {FULL}")),
            Self::MetaBase64 => command("mg", &format!(" b {FULL}")),
            Self::Binary => frame([REQUEST, GET], 0, [b"", &keys[0], b""], 0),
            Self::BinaryKey => frame([REQUEST, GETK], 0, [b"", &keys[0], b""], 0),
        }
    }

    /// The answer when memcached has all of them.
    pub(super) fn hit(self, dataset: &Dataset, items: &[u32]) -> Vec<u8> {
        let key = self.spelling().key(dataset, items[0]);
        let value = dataset.value(items[0]);
        let cas = cas(items[0]);
        match self {
            Self::Get(_) | Self::Gets => {
                let mut reply = Vec::new();
                for &n in items {
                    reply.extend(b"VALUE ");
                    reply.extend(dataset.key(n));
                    reply.extend(format!(" 0 {}", value.len()).as_bytes());
                    if self == Self::Gets {
                        reply.extend(format!(" {cas}").as_bytes());
                    }
                    reply.extend([b"\r\n", &dataset.value(n)[..], b"\r\n"].concat());
                }
                reply.extend(b"END\r\n");
                reply
            }
            Self::Meta => meta_hit("", &value),
            Self::MetaFull | Self::MetaBase64 => {
                let flag = if self == Self::MetaBase64 { " b" } else { "" };
                let key = key.escape_ascii();
                let size = value.len();
                meta_hit(&format!(" k{key}{flag} f0 s{size} c{cas} O1234"), &value)
            }
            Self::Binary => frame([RESPONSE, GET], STATUS_SUCCESS, [&[0; 4], b"", &value], cas),
            Self::BinaryKey => {
                let body = [&[0; 4], &key[..], &value];
                frame([RESPONSE, GETK], STATUS_SUCCESS, body, cas)
            }
        }
    }

    /// The answer when memcached has none.
    pub(super) fn miss(self) -> Vec<u8> {
        let not_found = |opcode| {
            frame(
                [RESPONSE, opcode],
                STATUS_NOT_FOUND,
                [b"", b"", b"Not found"],
                0,
            )
        };
        match self {
            Self::Get(_) | Self::Gets => b"END\r\n".to_vec(),
            Self::Meta | Self::MetaFull | Self::MetaBase64 => b"EN\r\n".to_vec(),
            Self::Binary => not_found(GET),
            Self::BinaryKey => not_found(GETK),
        }
    }

    /// Where in a request the eight digits of each item's number stand.
    pub(super) fn digits_at(self, dataset: &Dataset) -> Vec<usize> {
        let [low, high] = [0, u32::MAX].map(|n| self.request(dataset, &vec![n; self.keys()]));
        let mut places = Vec::new();
        let mut at = 0;
        while at < low.len() {
            if low[at] == high[at] {
                at += 1;
            } else {
                places.push(at);
                at += digits(0).len();
            }
        }
        places
    }
}

fn cas(n: u32) -> u64 {
    FIRST_CAS + u64::from(n)
}

fn meta_hit(tokens: &str, value: &[u8]) -> Vec<u8> {
    let line = format!("VA {}{tokens}\r\n", value.len());
    [line.as_bytes(), value, b"\r\n"].concat()
}

/// A binary frame: magic and opcode, status, and extras, key and value.
fn frame(start: [u8; 2], status: u16, [extras, key, value]: [&[u8]; 3], cas: u64) -> Vec<u8> {
    let mut frame = start.to_vec();
    frame.extend((key.len() as u16).to_be_bytes());
    frame.extend([extras.len() as u8, 0]);
    frame.extend(status.to_be_bytes());
    frame.extend(((extras.len() + key.len() + value.len()) as u32).to_be_bytes());
    frame.extend(OPAQUE.to_be_bytes());
    frame.extend(cas.to_be_bytes());
    frame.extend([extras, key, value].concat());
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Answer, Protocol, Start};

    #[test]
    fn the_text_forms_are_the_load_generators() {
        let dataset = Dataset::new(10, 16, 32).unwrap();
        let mut request = Vec::new();
        Protocol::Text.get(&dataset, 7, &mut request);
        assert_eq!(Form::Get(1).request(&dataset, &[7]), request);
        let reply = Form::Get(1).hit(&dataset, &[7]);
        let Start::Whole(len, Answer::Value(value)) = Protocol::Text.read_get(&dataset, 7, &reply)
        else {
            panic!("not an answer: {}", reply.escape_ascii());
        };
        assert!(len == reply.len() && dataset.is_value(7, 0..=0, &reply[value]));
    }

    #[test]
    fn digits_are_found_behind_one_another() {
        let dataset = Dataset::new(10, 16, 32).unwrap();
        assert_eq!(Form::Get(2).digits_at(&dataset), [12, 29]);
        assert_eq!(Form::Gets.digits_at(&dataset), [13]);
        assert_eq!(Form::MetaBase64.digits_at(&dataset), [14]);
        assert_eq!(Form::Binary.digits_at(&dataset), [32]);
    }
}
