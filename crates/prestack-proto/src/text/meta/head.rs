//! The first line of a reply to `mg`, written flag by flag.

use super::super::number::render;
use super::super::request::MAX_FLAG;
use super::super::scan::{letter_bit, letters, skip_spaces, token_end};
use super::{SIZE_AT, VALUE};
use crate::MAX_KEY;
use crate::window::{Source, Window};

/// Flags that print nothing.
const SILENT: u64 = letters(b"vqb");
const NUMBERS: u64 = letters(b"sfc");
const SIZE: u64 = letters(b"s");
const FLAGS: u64 = letters(b"f");
const KEY: u64 = letters(b"k");
const OPAQUE: u64 = letters(b"O");
/// Words that a flag and the space behind it span at most.
const FLAG_WORDS: usize = (MAX_FLAG as usize + 1).div_ceil(8);
/// Behind this position no flag is written: longer than any head of distinct flags.
const MAX_HEAD: u64 = 512;

/// What is known about the item that is asked for.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Item {
    /// Bytes of the value.
    pub size: u64,
    /// The flags, if `has_flags`.
    pub flags: u32,
    /// The CAS number, if `has_cas`.
    pub cas: u64,
    /// Length of the key (1 to 250), if `has_key` and not `is_key_base64`.
    pub key_len: u64,
    /// Start of the key in the request.
    pub token_at: u64,
    /// Length of the key in the request, if that is canonical base64; else 0.
    pub token_len: u64,
    /// Whether the flags are known.
    pub has_flags: bool,
    /// Whether the CAS number is known.
    pub has_cas: bool,
    /// Whether it is known how memcached prints the key.
    pub has_key: bool,
    /// Whether memcached prints the key in base64.
    pub is_key_base64: bool,
}

/// Where the writing of a head stands.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeadCursor {
    /// Position of the next flag in the request.
    pub at: u64,
    /// End of the request line.
    pub end: u64,
    /// Bytes written.
    pub out: u64,
}

/// What became of a flag.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Step {
    /// It was written, or prints nothing.
    More,
    /// There is none left.
    End,
    /// What it asks for is not known.
    Refused,
}

/// Writes `VA <size>` at 0; the flags of the request are from `flags_at` to `line_end`.
#[inline(always)]
pub fn head_start(flags_at: u64, line_end: u64, item: &Item, out: &mut Window) -> HeadCursor {
    out.set_word(0, VALUE);
    HeadCursor {
        at: flags_at,
        end: line_end,
        out: SIZE_AT + render(out, SIZE_AT, item.size),
    }
}

/// Writes what the next flag of the request asks for. The key is at 0 of `key`. Up to seven bytes
/// behind what is written become garbage.
#[inline(always)]
pub fn head_token(
    request: &Window,
    cursor: &mut HeadCursor,
    item: &Item,
    key: &Window,
    out: &mut Window,
) -> Step {
    let end = cursor.end;
    let start = skip_spaces(request, cursor.at, end);
    if start >= end {
        return Step::End;
    }
    let stop = token_end(request, start, end, FLAG_WORDS);
    let len = stop - start;
    if len == 0 || len > MAX_FLAG {
        return Step::Refused;
    }
    cursor.at = stop;
    let letter = request.byte(start);
    let Some(bit) = letter_bit(letter) else {
        return Step::Refused;
    };
    if bit & SILENT != 0 {
        return Step::More;
    }
    let mut to = cursor.out;
    if to > MAX_HEAD {
        return Step::Refused;
    }
    out.set_word(to, b' ' as u64 | (letter as u64) << 8);
    to += 2;
    if bit & NUMBERS != 0 {
        let (is_known, number) = if bit == SIZE {
            (true, item.size)
        } else if bit == FLAGS {
            (item.has_flags, item.flags as u64)
        } else {
            (item.has_cas, item.cas)
        };
        if !is_known {
            return Step::Refused;
        }
        let number = out.forgotten(number);
        to += render(out, to, number);
    } else if bit == OPAQUE {
        to = copy(request, start + 1, len - 1, out, to);
    } else if bit != KEY || !item.has_key {
        return Step::Refused;
    } else if item.is_key_base64 {
        if item.token_len == 0 || item.token_len > MAX_KEY as u64 {
            return Step::Refused;
        }
        to = copy(request, item.token_at, item.token_len, out, to);
        out.set_word(to, u64::from_le_bytes(*b" b\0\0\0\0\0\0"));
        to += 2;
    } else {
        if item.key_len == 0 || item.key_len > MAX_KEY as u64 {
            return Step::Refused;
        }
        to = copy(key, 0, item.key_len, out, to);
    }
    cursor.out = out.forgotten(to);
    Step::More
}

/// Ends the line, and returns its length: the value follows.
#[inline(always)]
pub fn head_end(cursor: &HeadCursor, out: &mut Window) -> u64 {
    out.set_word(cursor.out, u64::from_le_bytes(*b"\r\n\0\0\0\0\0\0"));
    cursor.out + 2
}

/// Copies `len` bytes (at most 250), and returns the position behind the copy.
#[inline(always)]
fn copy(source: &Window, from: u64, len: u64, out: &mut Window, to: u64) -> u64 {
    let from = source.forgotten(from);
    let len = source.forgotten(len);
    let mut done = 0;
    for _ in 0..MAX_KEY.div_ceil(8) {
        if done >= source.forgotten(len) {
            break;
        }
        out.set_word(to + done, source.word(from + done));
        done += 8;
    }
    out.forgotten(to + len)
}
