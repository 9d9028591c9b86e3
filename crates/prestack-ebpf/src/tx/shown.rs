//! Items as replies show them, and as they are stored.

use prestack_abi::cache::{EntryHeader, MAX_REPLY};
use prestack_proto::binary;
use prestack_proto::text::meta;
use prestack_proto::text::number::render as render_number;
use prestack_proto::text::reply::{END, END_LEN, KEY_AT, VALUE, is_end, is_value, value};
use prestack_proto::window::{Source, WINDOW, Window};

use crate::cache::fill;
use crate::cache::find::BEHIND_DATA;
use crate::scratch::{Item, Scratch, copy_key, scratch};

/// Line end, `END` and line end as the first seven bytes of a word.
const CLOSING: u64 = u64::from_le_bytes(*b"\r\nEND\r\n\0");
const _: () = assert!(CLOSING >> 16 == END && BEHIND_DATA == END_LEN + 2);

/// Parses the reply in the first `len` bytes of the window; the item it shows is in the scratch's
/// `item`. Returns whether the reply ends the answer to a text `get` of several keys.
///
/// memcached answers such a GET with one message for each hit; the last one, or one of its own, ends
/// in `END`. Only a message in one datagram shows that: data may end in `END` too.
#[inline(always)]
pub fn parse(len: u64) -> bool {
    prestack_parse_reply(len) != 0
}

/// A global function (by its unmangled name): the verifier checks it once, for all arguments.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_parse_reply(len: u64) -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    // SAFETY: this CPU's scratch.
    let (window, item) = unsafe { (&(*scratch).window, &mut (*scratch).item) };
    item.shown = Item::NONE;
    if len == 0 || len > WINDOW as u64 {
        return 0;
    }
    if window.byte(0) == binary::RESPONSE {
        parse_binary(window, len, item);
        0
    } else if is_value(window, 0) {
        u64::from(parse_text(window, len, item))
    } else {
        parse_meta(window, len, item);
        1
    }
}

#[inline(always)]
fn parse_text(window: &Window, len: u64, item: &mut Item) -> bool {
    let Some(value) = value(window, 0, len) else {
        return false;
    };
    let ends = is_end(window, value.next, len);
    if ends || value.next == len {
        item.shown = Item::TEXT;
        item.key = value.key;
        item.key_len = value.key_len;
        item.data = value.data;
        item.data_len = value.data_len;
        item.flags = u64::from(value.flags);
        item.cas = value.cas;
        item.knows = u64::from(EntryHeader::FLAGS)
            | if value.has_cas {
                u64::from(EntryHeader::CAS)
            } else {
                0
            };
    }
    ends
}

#[inline(always)]
fn parse_meta(window: &Window, len: u64, item: &mut Item) {
    let Some(value) = meta::value(window, len) else {
        return;
    };
    if value.is_stale {
        return;
    }
    item.shown = Item::META;
    item.data = value.data;
    item.data_len = value.data_len;
    item.flags = u64::from(value.flags);
    item.cas = value.cas;
    let mut knows = EntryHeader::META;
    if value.has_flags {
        knows |= EntryHeader::FLAGS;
    }
    if value.has_cas {
        knows |= EntryHeader::CAS;
    }
    if value.has_key {
        knows |= if value.is_key_base64 {
            EntryHeader::KEY_BASE64
        } else {
            EntryHeader::KEY_PLAIN
        };
    }
    item.knows = u64::from(knows);
}

#[inline(always)]
fn parse_binary(window: &Window, len: u64, item: &mut Item) {
    let Some(value) = binary::reply::value(window, len) else {
        return;
    };
    item.shown = Item::BINARY;
    item.data = value.data;
    item.data_len = value.data_len;
    item.flags = u64::from(value.flags);
    item.cas = value.cas;
    item.knows = u64::from(EntryHeader::FLAGS | EntryHeader::CAS);
}

/// Writes the reply to a text `get` of the item, whose key is in the scratch's `key`, to the
/// scratch's `reply`. Flags that are not known stand as 0.
#[inline(always)]
pub fn render(scratch: *mut Scratch, item: &Item, new: &mut fill::Item) {
    // SAFETY: this CPU's scratch.
    let (window, key, reply) =
        unsafe { (&(*scratch).window, &(*scratch).key, &mut (*scratch).reply) };
    reply.set_word(0, VALUE);
    copy_key(key, 0, new.key_len, reply, KEY_AT);
    let mut at = KEY_AT + reply.forgotten(new.key_len);
    reply.set_word(at, u64::from(b' '));
    at += 1;
    at += render_number(reply, at, u64::from(new.flags));
    reply.set_word(at, u64::from(b' '));
    at += 1;
    at += render_number(reply, at, item.data_len);
    reply.set_word(at, u64::from(u16::from_le_bytes(*b"\r\n")));
    at = reply.forgotten(at + 2);
    new.data = at;
    let (from, len) = (window.forgotten(item.data), window.forgotten(item.data_len));
    for i in 0..(MAX_REPLY / 8) as u64 {
        if 8 * i >= len {
            break;
        }
        reply.set_word(at + 8 * i, window.word(from + 8 * i));
    }
    reply.set_word(at + len, CLOSING);
    new.reply_len = reply.forgotten(at + len + BEHIND_DATA);
}
