//! Parsing a command, and its key, in scratch memory.

use prestack_proto::hash::{hash_key, scan_key};
use prestack_proto::text::request::{Effect, Form};
use prestack_proto::window::{Source, WINDOW};
use prestack_proto::{MAX_KEY, base64, binary, stream, text};

use crate::scratch::{copy_key, scratch};

/// Parses the command at `at` of the window, before `limit`; the result is in the scratch's
/// `command`.
#[inline(always)]
pub fn parse(at: u64, limit: u64) {
    prestack_parse_command(at, limit);
}

/// [`parse`] for a byte stream, where the data of the command may lie behind the limit.
#[inline(always)]
pub fn parse_in_stream(at: u64, limit: u64) {
    prestack_parse_in_stream(at, limit);
}

/// A global function, like [`prestack_parse_command`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_parse_in_stream(at: u64, limit: u64) -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    if limit > WINDOW as u64 {
        return 0;
    }
    // SAFETY: this CPU's scratch.
    unsafe {
        let command = stream::command(&(*scratch).window, at, limit);
        (&raw mut (*scratch).command).write_volatile(command);
    }
    0
}

/// A global function (by its unmangled name): the verifier checks it once, for all arguments, and
/// not again for each call.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_parse_command(at: u64, limit: u64) -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    if limit > WINDOW as u64 {
        return 0;
    }
    // SAFETY: this CPU's scratch.
    unsafe {
        let window = &(*scratch).window;
        let command = if window.byte(at) == binary::REQUEST {
            binary::request::parse(window, at, limit)
        } else {
            text::request::parse(window, at, limit)
        };
        (&raw mut (*scratch).command).write_volatile(command);
    }
    0
}

/// The hash of the key of the command that was parsed, for the backend with this seed; `None` if
/// memcached would not take it for a key. The key of a GET in the meta or binary protocol is then
/// also in the scratch's `key`, and its length in `item`.
#[inline(always)]
pub fn key(seed: u64) -> Option<u64> {
    match prestack_key(seed) {
        0 => None,
        hash => Some(hash),
    }
}

/// A global function, like [`prestack_parse_command`]. 0 if there is no key.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_key(seed: u64) -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    // SAFETY: this CPU's scratch.
    let (window, key, command, item) = unsafe {
        (
            &(*scratch).window,
            &mut (*scratch).key,
            (&raw const (*scratch).command).read_volatile(),
            &mut (*scratch).item,
        )
    };
    let (at, len) = (
        window.forgotten(command.key),
        window.forgotten(command.key_len),
    );
    if len == 0 || len > MAX_KEY as u64 {
        return 0;
    }
    item.key_len = len;
    if command.is_base64 {
        let Some(decoded) = base64::decode(window, at, len, key) else {
            return 0;
        };
        item.key_len = decoded.len;
        item.is_canonical = u64::from(decoded.is_canonical);
        item.has_line_end = u64::from(decoded.has_line_end);
        return hash_key(&*key, 0, decoded.len, seed).unwrap_or(0);
    }
    item.is_canonical = 0;
    if command.effect == Effect::Get && command.form == Form::Meta {
        copy_key(window, at, len, key, 0);
    }
    if command.form == Form::Binary {
        copy_key(window, at, len, key, 0);
        hash_key(window, at, len, seed).unwrap_or(0)
    } else {
        scan_key(window, at, len, seed).unwrap_or(0)
    }
}
