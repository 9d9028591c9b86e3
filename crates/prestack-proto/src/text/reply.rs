//! Replies to text GETs.

use super::number::{decimal, decimal_u64};
use super::scan::{LineEnd, line_end, token_end};
use crate::MAX_KEY;
use crate::window::{Source, Window};

/// `VALUE ` as the first six bytes of a word.
pub const VALUE: u64 = u64::from_le_bytes(*b"VALUE \0\0");
/// `END\r\n` as the first five bytes of a word.
pub const END: u64 = u64::from_le_bytes(*b"END\r\n\0\0\0");
/// Bytes of `END\r\n`.
pub const END_LEN: u64 = 5;
/// Bytes of `VALUE `: the key follows.
pub const KEY_AT: u64 = 6;

/// One item in a reply. Positions are those of the window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Value {
    /// Start of the key.
    pub key: u64,
    /// Length of the key.
    pub key_len: u64,
    /// The item's flags.
    pub flags: u32,
    /// Whether the item's CAS number is known.
    pub has_cas: bool,
    /// The CAS number; 0 if it is not known.
    pub cas: u64,
    /// Start of the data.
    pub data: u64,
    /// Length of the data, without the `\r\n` behind it.
    pub data_len: u64,
    /// Position behind the `\r\n` that ends the data.
    pub next: u64,
}

/// Parses `VALUE <key> <flags> <bytes>[ <cas>]\r\n<data>\r\n` at `at`, all of it before `limit` (at
/// most [`WINDOW`](crate::window::WINDOW)). `<bytes>` alone says where the data ends. `None` for
/// everything else.
#[inline(always)]
pub fn value(window: &Window, at: u64, limit: u64) -> Option<Value> {
    if !is_value(window, at) {
        return None;
    }
    let LineEnd::At { end, next } = line_end(window, at, limit) else {
        return None;
    };
    let key = at + KEY_AT;
    let key_end = token_end(window, key, end, (MAX_KEY + 1).div_ceil(8) + 1);
    let key_len = key_end - key;
    if key_len == 0 || key_len > MAX_KEY as u64 {
        return None;
    }
    let flags_at = key_end + 1;
    let flags_end = token_end(window, flags_at, end, 2);
    let flags_len = flags_end.wrapping_sub(flags_at);
    if flags_len > 10 {
        return None;
    }
    let flags = window.forgotten(decimal_u64(window, flags_at, flags_len)?);
    if flags > u32::MAX as u64 {
        return None;
    }
    let bytes_at = flags_end + 1;
    let bytes_end = token_end(window, bytes_at, end, 2);
    let bytes = decimal(window, bytes_at, bytes_end.wrapping_sub(bytes_at))?;
    let has_cas = bytes_end < end;
    let cas = if has_cas {
        let at = bytes_end + 1;
        window.forgotten(decimal_u64(window, at, end - at)?)
    } else {
        0
    };
    let data_end = next + bytes;
    if data_end + 2 > limit || window.byte(data_end) != b'\r' || window.byte(data_end + 1) != b'\n'
    {
        return None;
    }
    Some(Value {
        key,
        key_len,
        flags: flags as u32,
        has_cas,
        cas,
        data: next,
        data_len: bytes,
        next: data_end + 2,
    })
}

/// Whether `VALUE ` stands at `at`.
#[inline(always)]
pub fn is_value(window: &Window, at: u64) -> bool {
    crate::swar::keep(window.word(at), KEY_AT) == VALUE
}

/// Whether `END\r\n` stands at `at` and ends at `limit`.
#[inline(always)]
pub fn is_end(window: &Window, at: u64, limit: u64) -> bool {
    at + END_LEN == limit && crate::swar::keep(window.word(at), END_LEN) == END
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &[u8]) -> Option<Value> {
        value(&Window::showing(text), 0, text.len() as u64)
    }

    proptest! {
        #[test]
        fn data_may_be_anything(
            key in "[!-~]{1,250}",
            flags: u32,
            cas: Option<u64>,
            data in proptest::collection::vec(prop_oneof![any::<u8>(), Just(b'\r'), Just(b'\n')], 0..1300),
            rest in "(END\r\n)?",
        ) {
            let unique = cas.map_or(String::new(), |cas| format!(" {cas}"));
            let mut text = format!("VALUE {key} {flags} {}{unique}\r\n", data.len()).into_bytes();
            let start = text.len() as u64;
            text.extend(&data);
            text.extend(b"\r\n");
            let next = text.len() as u64;
            text.extend(rest.as_bytes());
            let expected = Value {
                key: 6,
                key_len: key.len() as u64,
                flags,
                has_cas: cas.is_some(),
                cas: cas.unwrap_or(0),
                data: start,
                data_len: data.len() as u64,
                next,
            };
            prop_assert_eq!(parse(&text), Some(expected));
            prop_assert_eq!(is_end(&Window::showing(&text), next, text.len() as u64), !rest.is_empty());
            prop_assert_eq!(parse(&text[..next as usize - 1]), None);
        }

        #[test]
        fn arbitrary_bytes(text in proptest::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(text.starts_with(b"VALUE ") || parse(&text).is_none());
        }
    }

    #[test]
    fn other_replies_are_refused() {
        for text in [
            "END\r\n",
            "VALUE a 4294967296 3\r\nabc\r\n",
            "VALUE a 00000000001 3\r\nabc\r\n",
            "VALUE a  3\r\nabc\r\n",
            "VALUE a x 3\r\nabc\r\n",
            "VALUE a -1 3\r\nabc\r\n",
            "VALUE a 0 3 x\r\nabc\r\n",
            "VALUE a 0 3 \r\nabc\r\n",
            "VALUE a 0 3  7\r\nabc\r\n",
            "VALUE a 0 3 7 \r\nabc\r\n",
            "VALUE a 0 3 7 8\r\nabc\r\n",
            "VALUE a 0 3 18446744073709551616\r\nabc\r\n",
            "VALUE a 0 4\r\nabc\r\n",
            "VALUE a 0 2\r\nabc\r\n",
            "VALUE a 0\r\n\r\n",
            "VALUE  0 3\r\nabc\r\n",
            "VALUE a 0 3\r\nabc",
            "VALUE a 0 x\r\nabc\r\n",
            "value a 0 3\r\nabc\r\n",
            "ERROR\r\n",
            "",
        ] {
            assert_eq!(parse(text.as_bytes()), None, "{text:?}");
        }
    }
}
