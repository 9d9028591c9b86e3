//! What is read of an entry beside its data: `VALUE <key> <flags> <bytes>\r\n`, and `\r\nEND\r\n` behind it.

use prestack_proto::checksum::{add_word, shifted, without};
use prestack_proto::swar;
use prestack_proto::text::reply::{END, KEY_AT, VALUE};
use prestack_proto::window::Source;

use crate::cache::entry::Entry;
use crate::cache::find::Found;

/// `\r\nEND\r\n` as the first bytes of a word.
const BEHIND_DATA: u64 = u64::from_le_bytes(*b"\r\nEND\r\n\0");

/// The sum of `len` bytes (at most 24) of an entry, behind which there are seven, the first of them the first
/// of a word; not folded.
#[inline(always)]
fn sum_of(entry: Entry, at: u64, len: u64) -> Option<u64> {
    let mut sum = add_word(0, swar::keep(entry.word(at)?, len));
    if len > 8 {
        sum = add_word(sum, swar::keep(entry.word(at + 8)?, len - 8));
    }
    if len > 16 {
        sum = add_word(sum, swar::keep(entry.word(at + 16)?, len - 16));
    }
    Some(sum)
}

/// The sum of what an entry has before position `end`, which is behind the key of `key_len` bytes; `key` is
/// the key's sum.
#[inline(always)]
pub fn sum_before(entry: Entry, key_len: u64, key: u64, end: u64) -> Option<u64> {
    let key_end = KEY_AT + key_len;
    let rest = sum_of(entry, key_end, end - key_end)?;
    Some(add_word(key, VALUE) + shifted(rest, key_end))
}

/// The sum of a found entry's `\r\n<data>\r\n` when it is moved to position `to`.
#[inline(always)]
pub fn sum_of_block(found: &Found, key_len: u64, key: u64, to: u64) -> Option<u64> {
    let from = found.data - 2;
    let others = sum_before(found.entry, key_len, key, from)? + sum_of_end(found);
    Some(shifted(without(found.sum.into(), others), from ^ to))
}

/// The sum of a found entry's data when it is moved to position `to`.
#[inline(always)]
pub fn sum_of_data(found: &Found, key_len: u64, key: u64, to: u64) -> Option<u64> {
    let behind = shifted(add_word(0, BEHIND_DATA), found.data + found.data_len());
    let others = sum_before(found.entry, key_len, key, found.data)? + behind;
    Some(shifted(without(found.sum.into(), others), found.data ^ to))
}

/// The sum of a found entry's `END\r\n`, where it stands.
#[inline(always)]
pub fn sum_of_end(found: &Found) -> u64 {
    shifted(add_word(0, END), found.data + found.data_len())
}

/// The numbers of a line.
#[derive(Clone, Copy)]
pub struct Numbers {
    /// Position of the flags, and how many digits they have: 1 to 10.
    pub flags: u64,
    pub flags_len: u64,
    /// The digits of the data's length, and how many these are: 1 to 4.
    pub size: u64,
    pub size_len: u64,
}

impl Numbers {
    /// `None` if they are not written as memcached does.
    #[inline(always)]
    pub fn of(found: &Found, key_len: u64) -> Option<Self> {
        let len = found.data_len();
        let size_len = 1 + u64::from(len >= 10) + u64::from(len >= 100) + u64::from(len >= 1000);
        // With the space before it.
        let size_at = found.data - 3 - size_len;
        let size = found.entry.word(size_at)?;
        let flags = KEY_AT + key_len + 1;
        let flags_len = size_at - flags;
        if size & 0xff != u64::from(b' ') || flags_len.wrapping_sub(1) > 9 {
            return None;
        }
        Some(Self {
            flags,
            flags_len,
            size: swar::keep(size >> 8, size_len),
            size_len,
        })
    }
}
