//! Replies to `mg`: what memcached's say, and the head of our own.

mod head;
#[cfg(test)]
mod tests;

use super::number::{decimal, decimal_u64};
use super::scan::{LineEnd, letter_bit, letters, line_end, skip_spaces, token_end};
use crate::window::{Source, Window};
use crate::{MAX_KEY, swar};

pub use head::{HeadCursor, Item, Step, head_end, head_start, head_token};

/// `VA ` as the first three bytes of a word.
const VALUE: u64 = u64::from_le_bytes(*b"VA \0\0\0\0\0");
/// Bytes of `VA `: the size follows.
const SIZE_AT: u64 = 3;
/// More tokens than memcached prints.
const MAX_TOKENS: usize = 12;
/// Words that a key with its letter, and the space behind it, span at most.
const TOKEN_WORDS: usize = (MAX_KEY + 2).div_ceil(8) + 1;
/// Tokens that are understood: what else there is may be a sign that the item is stale, is being
/// recomputed, or was recomputed by somebody (`W`, `X`, `Z`).
const UNDERSTOOD: u64 = letters(b"fckbsOthl");
const FLAGS: u64 = letters(b"f");
const CAS: u64 = letters(b"c");
const KEY: u64 = letters(b"k");
const BASE64: u64 = letters(b"b");

/// The item in a reply to `mg`. Positions are those of the window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MetaValue {
    /// Whether the item's flags are known.
    pub has_flags: bool,
    /// The flags; 0 if they are not known.
    pub flags: u32,
    /// Whether the item's CAS number is known.
    pub has_cas: bool,
    /// The CAS number; 0 if it is not known.
    pub cas: u64,
    /// Whether there is a key.
    pub has_key: bool,
    /// Whether the key is written in base64: the item was stored with such a key. Known only if
    /// there is a key.
    pub is_key_base64: bool,
    /// Whether the item may not be as it seems: it is stale or was given out to be recomputed, or
    /// the reply is not understood: what is said of its flags, CAS number and key is then void.
    pub is_stale: bool,
    /// Start of the data.
    pub data: u64,
    /// Length of the data.
    pub data_len: u64,
}

/// Parses a payload of `len` bytes (at most [`WINDOW`](crate::window::WINDOW)) at 0 that is
/// `VA <size> <flag>*\r\n<data>\r\n` and nothing else. `None` for everything else.
///
/// A key that memcached prints as it is, and that holds a space (the binary protocol stores such),
/// looks like a key and more flags: the caller knows from the request whether it may.
#[inline(always)]
pub fn value(window: &Window, len: u64) -> Option<MetaValue> {
    if swar::keep(window.word(0), SIZE_AT) != VALUE {
        return None;
    }
    let LineEnd::At { end, next } = line_end(window, 0, len) else {
        return None;
    };
    let size_end = token_end(window, SIZE_AT, end, 2);
    let size = decimal(window, SIZE_AT, size_end.wrapping_sub(SIZE_AT))?;
    let data_end = next + size;
    if data_end + 2 != len || window.byte(data_end) != b'\r' || window.byte(data_end + 1) != b'\n' {
        return None;
    }
    let tokens = Tokens::read(window, size_end, end);
    let flags = tokens.number(window, tokens.flags, FLAGS, u32::MAX as u64);
    let cas = tokens.number(window, tokens.cas, CAS, u64::MAX);
    let has = |letter| tokens.set & letter != 0;
    Some(MetaValue {
        has_flags: has(FLAGS),
        flags: flags.value as u32,
        has_cas: has(CAS),
        cas: cas.value,
        has_key: has(KEY),
        is_key_base64: has(BASE64),
        is_stale: tokens.set & !UNDERSTOOD | tokens.odd | flags.odd | cas.odd != 0,
        data: next,
        data_len: size,
    })
}

/// The flags that a reply line ends with.
struct Tokens {
    /// The letters.
    set: u64,
    /// Not 0 if something was not understood.
    odd: u64,
    /// Start and length of the number behind `f`.
    flags: (u64, u64),
    /// Start and length of the number behind `c`.
    cas: (u64, u64),
}

/// A number, 0 if there is none.
struct Number {
    value: u64,
    /// Not 0 if there should be one.
    odd: u64,
}

impl Tokens {
    #[inline(always)]
    fn read(window: &Window, at: u64, end: u64) -> Self {
        let zero = window.forgotten(0);
        let mut at = at;
        let (mut set, mut repeated) = (zero, zero);
        let (mut flags, mut cas) = ((zero, zero), (zero, zero));
        for _ in 0..MAX_TOKENS {
            let start = skip_spaces(window, at, end);
            if start >= end {
                break;
            }
            let stop = token_end(window, start, end, TOKEN_WORDS);
            let len = stop - start;
            // What is no letter, more spaces than are skipped, or a longer token than a key: the
            // loop ends before the line does.
            let Some(bit) = letter_bit(window.byte(start)) else {
                break;
            };
            if len > MAX_KEY as u64 + 1 {
                break;
            }
            at = stop;
            let number = (start + 1, len - 1);
            if bit == FLAGS {
                flags = number;
            }
            if bit == CAS {
                cas = number;
            }
            // Forgotten, so that the paths of all letters are one.
            flags = (window.forgotten(flags.0), window.forgotten(flags.1));
            cas = (window.forgotten(cas.0), window.forgotten(cas.1));
            repeated = window.forgotten(repeated | set & bit);
            set = window.forgotten(set | bit);
        }
        // Forgotten, so that the ways out of the loop are one.
        let (at, end) = (window.forgotten(at), window.forgotten(end));
        let is_whole = skip_spaces(window, at, end) >= end;
        Self {
            set,
            odd: window.forgotten(repeated | u64::from(!is_whole)),
            flags,
            cas,
        }
    }

    /// The number of the token with this letter, if there is one.
    #[inline(always)]
    fn number(&self, window: &Window, (at, len): (u64, u64), letter: u64, max: u64) -> Number {
        let mut number = Number { value: 0, odd: 0 };
        if self.set & letter != 0 {
            match decimal_u64(window, at, len) {
                Some(value) if value <= max => number.value = value,
                _ => number.odd = 1,
            }
        }
        Number {
            value: window.forgotten(number.value),
            odd: window.forgotten(number.odd),
        }
    }
}
