//! Replies to binary GETs.

use super::opcode::{GET, GETK, GETKQ, GETQ};
use super::{HEADER_LEN, RESPONSE, opcodes, short};
use crate::MAX_KEY;
use crate::window::Window;

const WITHOUT_KEY: u64 = opcodes(&[GET, GETQ]);
const WITH_KEY: u64 = opcodes(&[GETK, GETKQ]);
/// Bytes of the extras: the item's flags.
const EXTRAS: u64 = 4;
/// Where the key starts, if there is one.
pub const KEY_AT: u64 = HEADER_LEN + EXTRAS;

/// An item in a reply. Positions are those of the window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Value {
    /// The item's flags.
    pub flags: u32,
    /// The item's CAS number.
    pub cas: u64,
    /// Length of the key at [`KEY_AT`]; 0 in the reply to GET and GETQ, which has none.
    pub key_len: u64,
    /// Start of the data.
    pub data: u64,
    /// Length of the data.
    pub data_len: u64,
}

/// Parses a payload of `len` bytes (at most [`WINDOW`](crate::window::WINDOW)) at 0 that is one
/// successful response to GET, GETQ, GETK or GETKQ. `None` for everything else.
#[inline(always)]
pub fn value(window: &Window, len: u64) -> Option<Value> {
    let (first, second) = (window.word(0), window.word(8));
    if len < KEY_AT || first & 0xff != RESPONSE as u64 {
        return None;
    }
    // Length of the extras; data type and status 0.
    if first >> 32 != EXTRAS {
        return None;
    }
    let opcode = first >> 8 & 0xff;
    if opcode > 63 {
        return None;
    }
    let opcode = 1 << (opcode & 63);
    let key_len = short(first, 16);
    let is_key_right = if opcode & WITHOUT_KEY != 0 {
        key_len == 0
    } else {
        opcode & WITH_KEY != 0 && key_len > 0 && key_len <= MAX_KEY as u64
    };
    let body = short(second, 0) << 16 | short(second, 16);
    let data = KEY_AT + key_len;
    if !is_key_right || HEADER_LEN + body != len || data > len {
        return None;
    }
    Some(Value {
        flags: (window.word(HEADER_LEN) as u32).swap_bytes(),
        cas: window.word(16).swap_bytes(),
        key_len,
        data,
        data_len: len - data,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(bytes: &[u8]) -> Option<Value> {
        value(&Window::showing(bytes), bytes.len() as u64)
    }

    fn reply(opcode: u8, flags: u32, cas: u64, key: &[u8], data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x81, opcode];
        bytes.extend((key.len() as u16).to_be_bytes());
        bytes.extend([4, 0, 0, 0]);
        bytes.extend(((4 + key.len() + data.len()) as u32).to_be_bytes());
        bytes.extend([1, 2, 3, 4]);
        bytes.extend(cas.to_be_bytes());
        bytes.extend(flags.to_be_bytes());
        bytes.extend(key);
        bytes.extend(data);
        bytes
    }

    proptest! {
        #[test]
        fn items_are_found(
            is_quiet: bool,
            flags: u32,
            cas: u64,
            key in proptest::collection::vec(any::<u8>(), 0..=250),
            data in proptest::collection::vec(any::<u8>(), 0..1200),
            byte in 0usize..12,
            other: u8,
        ) {
            let opcode = match (key.is_empty(), is_quiet) {
                (true, false) => GET,
                (true, true) => GETQ,
                (false, false) => GETK,
                (false, true) => GETKQ,
            };
            let mut bytes = reply(opcode, flags, cas, &key, &data);
            let expected = Value {
                flags,
                cas,
                key_len: key.len() as u64,
                data: 28 + key.len() as u64,
                data_len: data.len() as u64,
            };
            prop_assert_eq!(parse(&bytes), Some(expected));
            prop_assert_eq!(parse(&bytes[..bytes.len() - 1]), None);
            bytes.push(0);
            prop_assert_eq!(parse(&bytes), None);
            bytes.pop();
            // Another first half of the header is another reply; GET and GETQ answer alike.
            let before = bytes[byte];
            bytes[byte] = other;
            let is_alike = byte == 1 && (before ^ other) & !if key.is_empty() { 9 } else { 1 } == 0
                && [GET, GETQ, GETK, GETKQ].contains(&other);
            let found = parse(&bytes);
            if other == before || is_alike {
                prop_assert_eq!(found, Some(expected));
            } else if byte != 2 && byte != 3 {
                prop_assert_eq!(found, None);
            }
        }

        #[test]
        fn arbitrary_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(bytes.first() == Some(&0x81) || parse(&bytes).is_none());
        }
    }

    #[test]
    fn keys_fit() {
        assert!(parse(&reply(GET, 0, 1, b"", b"")).is_some());
        assert!(parse(&reply(GETK, 0, 1, b"k", b"")).is_some());
        for odd in [
            reply(GET, 0, 1, b"k", b""),
            reply(GETK, 0, 1, b"", b"data"),
            reply(GETK, 0, 1, &[b'k'; 251], b""),
            reply(0x1d, 0, 1, b"", b"data"),
            reply(0x40, 0, 1, b"", b"data"),
            vec![],
        ] {
            assert_eq!(parse(&odd), None);
        }
        // A key that reaches behind the body.
        let mut long = reply(GETK, 0, 1, b"key", b"");
        long[3] = 4;
        assert_eq!(parse(&long), None);
    }
}
