//! Keys that replies show.

use prestack_proto::text::scan::{letters, skip_spaces};
use prestack_proto::window::WINDOW;

use crate::rx::command;
use crate::scratch::scratch;

/// Verbs whose replies may show a key that the request does not, as their first letters.
const META_GET: u64 = u16::from_le_bytes(*b"mg") as u64;
const META_DEBUG: u64 = u16::from_le_bytes(*b"me") as u64;
const STATS: u64 = u64::from_le_bytes(*b"stats \0\0");
const STATS_LEN: u64 = 6;
/// What `stats` may be asked for, likewise.
const CACHEDUMP: u64 = u16::from_le_bytes(*b"ca") as u64;
const DETAIL: u64 = u16::from_le_bytes(*b"de") as u64;

/// Whether there may be line ends in a key that the reply to the text command at `at` of the window shows: then it cannot
/// be told where the reply ends. The command has been parsed.
///
/// The binary protocol stores any bytes, and memcached shows them as they are.
#[inline(always)]
pub fn may_break(at: u64, seed: u64) -> bool {
    prestack_may_break(at, seed) != 0
}

/// A global function (by its unmangled name): the verifier checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_may_break(at: u64, seed: u64) -> u64 {
    u64::from(breaks(at, seed).unwrap_or(true))
}

#[inline(always)]
fn breaks(at: u64, seed: u64) -> Option<bool> {
    let scratch = scratch()?;
    // SAFETY: this CPU's scratch.
    let (window, command) = unsafe {
        (
            &(*scratch).window,
            (&raw const (*scratch).command).read_volatile(),
        )
    };
    let first = window.word(at);
    if first << 16 == STATS << 16 {
        if command.line_end > WINDOW as u64 {
            return None;
        }
        // `cachedump`, and `detail` with the beginnings of keys.
        let argument = skip_spaces(window, at + STATS_LEN, command.line_end);
        return Some(matches!(window.word(argument) & 0xffff, CACHEDUMP | DETAIL));
    }
    let verb = first & 0xffff;
    let is_shown = verb == META_DEBUG || verb == META_GET && command.letters & letters(b"k") != 0;
    if !is_shown || !command.is_base64 {
        return Some(false);
    }
    command::key(seed)?;
    // SAFETY: as above.
    Some(unsafe { (&raw const (*scratch).item.has_line_end).read_volatile() } != 0)
}
