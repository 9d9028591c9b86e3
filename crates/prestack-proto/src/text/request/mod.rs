//! Text and meta requests: what a command can do to the items in memcached.
//!
//! The parser is strict about reads: whatever it does not know in full is [`Effect::Unknown`],
//! and the caller then assumes that any item may change.

mod meta;
#[cfg(test)]
mod tests;

pub(super) use meta::MAX_FLAG;

use super::number::{decimal, is_digits};
use super::scan::{LineEnd, line_end, skip_spaces, token_end};
pub use crate::command::{Command, Effect, Form};
use crate::window::{Source, Window};
use crate::{MAX_KEY, swar};

/// A verb as it is read: at most eight bytes in a word.
const fn verb(name: &[u8]) -> u64 {
    let mut word = 0;
    let mut i = name.len();
    while i > 0 {
        i -= 1;
        word = word << 8 | name[i] as u64;
    }
    word
}

const GET: u64 = verb(b"get");
const GETS: u64 = verb(b"gets");
const GAT: u64 = verb(b"gat");
const GATS: u64 = verb(b"gats");
const SET: u64 = verb(b"set");
const ADD: u64 = verb(b"add");
const REPLACE: u64 = verb(b"replace");
const APPEND: u64 = verb(b"append");
const PREPEND: u64 = verb(b"prepend");
const CAS: u64 = verb(b"cas");
const DELETE: u64 = verb(b"delete");
const INCR: u64 = verb(b"incr");
const DECR: u64 = verb(b"decr");
const TOUCH: u64 = verb(b"touch");
const META_GET: u64 = verb(b"mg");
const META_SET: u64 = verb(b"ms");
const META_DELETE: u64 = verb(b"md");
const META_ARITHMETIC: u64 = verb(b"ma");
const META_NOOP: u64 = verb(b"mn");
const META_DEBUG: u64 = verb(b"me");
const VERSION: u64 = verb(b"version");
const STATS: u64 = verb(b"stats");
const QUIT: u64 = verb(b"quit");
const WATCH: u64 = verb(b"watch");
const LRU: u64 = verb(b"lru");
const SLABS: u64 = verb(b"slabs");
const SHUTDOWN: u64 = verb(b"shutdown");
const FLUSH_AL: u64 = verb(b"flush_al");
const LRU_CRAW: u64 = verb(b"lru_craw");
const VERBOSIT: u64 = verb(b"verbosit");
const CACHE_ME: u64 = verb(b"cache_me");

/// Words that a key and the space behind it span at most.
const KEY_WORDS: usize = (MAX_KEY + 1).div_ceil(8) + 1;
/// Words that any other argument that is understood spans at most.
const ARGUMENT_WORDS: usize = 5;

/// The arguments of a line, one after the other.
struct Arguments<'a> {
    window: &'a Window,
    at: u64,
    end: u64,
}

impl Arguments<'_> {
    /// Start and length of the next argument, of length 0 at the end of the line. An argument
    /// that is longer than `max_words` words counts as several.
    #[inline(always)]
    fn next(&mut self, max_words: usize) -> (u64, u64) {
        let start = skip_spaces(self.window, self.at, self.end);
        self.at = token_end(self.window, start, self.end, max_words);
        (start, self.at - start)
    }

    #[inline(always)]
    fn is_at_end(&self) -> bool {
        skip_spaces(self.window, self.at, self.end) >= self.end
    }
}

/// Parses the command that starts at `at`, in bytes before `limit` (at most
/// [`WINDOW`](crate::window::WINDOW)).
#[inline(always)]
pub fn parse(window: &Window, at: u64, limit: u64) -> Command {
    let (end, next) = match line_end(window, at, limit) {
        LineEnd::At { end, next } => (end, next),
        LineEnd::Missing => return Command::of(Effect::Incomplete, Form::Text),
        LineEnd::Odd => return Command::of(Effect::Unknown, Form::Text),
    };
    let first = window.word(at);
    let verb_end = token_end(window, at, end, 2);
    let verb_len = verb_end - at;
    let verb = swar::keep(first, verb_len);
    let mut arguments = Arguments {
        window,
        at: verb_end,
        end,
    };
    let mut command = Command {
        line_end: end,
        next,
        ..Command::of(Effect::Unknown, Form::Text)
    };

    if verb_len > 8 {
        // `flush_all`: memcached answers at once, and with a delay acts later.
        if verb_len == 9 && first == FLUSH_AL && window.byte(at + 8) == b'l' {
            command.effect = Effect::Flush;
            flush(&mut arguments, &mut command);
        }
        // `lru_crawler`, `verbosity` and `cache_memlimit` change no item; what begins alike is an error.
        if first == LRU_CRAW || first == VERBOSIT || first == CACHE_ME {
            command.effect = Effect::LongRead;
        }
        return command;
    }

    if verb == GAT || verb == GATS {
        arguments.next(ARGUMENT_WORDS);
    }
    if verb == META_NOOP || verb == VERSION {
        command.effect = Effect::Read;
        return command;
    }
    let is_long = matches!(verb, STATS | QUIT | WATCH | LRU | SLABS | SHUTDOWN);
    if is_long {
        command.effect = Effect::LongRead;
        return command;
    }

    let (key, key_len) = arguments.next(KEY_WORDS);
    if key_len == 0 || key_len > MAX_KEY as u64 {
        // memcached answers with an error and goes on behind the line. (More spaces than are skipped
        // at once may hide a key.)
        let is_harmless = (key_len != 0 || key >= end)
            && matches!(
                verb,
                GET | GETS
                    | META_GET
                    | META_DELETE
                    | META_ARITHMETIC
                    | META_DEBUG
                    | DELETE
                    | INCR
                    | DECR
                    | TOUCH
            );
        if is_harmless {
            command.effect = Effect::Read;
            // To these `noreply` counts before the key does.
            command.quiet = key_len != 0
                && matches!(verb, DELETE | INCR | DECR | TOUCH)
                && may_end_in_noreply(window, end);
        }
        return command;
    }
    command.key = key;
    command.key_len = key_len;

    match verb {
        GET => command.effect = Effect::Get,
        GETS => {
            command.effect = Effect::Get;
            command.form = Form::TextCas;
        }
        SET | ADD | REPLACE | APPEND | PREPEND | CAS => {
            // memcached skips the data block only if it understands the line: otherwise the data is
            // the next command.
            let (flags, flags_len) = arguments.next(ARGUMENT_WORDS);
            let (expiry, expiry_len) = arguments.next(ARGUMENT_WORDS);
            let (start, len) = arguments.next(ARGUMENT_WORDS);
            let minus = u64::from(window.byte(expiry) == b'-');
            let Some(bytes) = decimal(window, start, len) else {
                return command;
            };
            if !is_digits(window, flags, flags_len)
                || expiry_len <= minus
                || !is_digits(window, expiry + minus, expiry_len - minus)
            {
                return command;
            }
            // Forgotten, so that the paths of six verbs are one.
            if window.forgotten(verb) == CAS {
                let (cas, cas_len) = arguments.next(ARGUMENT_WORDS);
                if !is_digits(window, cas, cas_len) {
                    return command;
                }
            }
            command.quiet = !arguments.is_at_end();
            // One word more may be `noreply`; with two, memcached does not understand the line.
            arguments.next(ARGUMENT_WORDS);
            if arguments.is_at_end() {
                command.effect = Effect::Write;
                command.data = bytes + 2;
            }
        }
        INCR | DECR | TOUCH => {
            let number = arguments.next(ARGUMENT_WORDS);
            if number.1 == 0 {
                return command;
            }
            command.effect = Effect::Write;
            // Without a number memcached does nothing, and says nothing of it.
            command.quiet = !arguments.is_at_end() || is_noreply(window, number);
        }
        DELETE => {
            command.effect = Effect::Write;
            command.quiet = !arguments.is_at_end();
        }
        // With more keys than one all of them change.
        GAT | GATS if arguments.is_at_end() => {
            command.effect = Effect::Write;
        }
        META_GET | META_SET | META_DELETE | META_ARITHMETIC | META_DEBUG => {
            meta::parse(&mut arguments, verb, &mut command);
        }
        _ => {}
    }
    command
}

/// Whether the argument of this start and length is `noreply`.
#[inline(always)]
fn is_noreply(window: &Window, (start, len): (u64, u64)) -> bool {
    len == 7 && swar::keep(window.word(start), 7) == verb(b"noreply")
}

/// Whether the last word of a line may be `noreply`: spaces behind it are not skipped.
#[inline(always)]
fn may_end_in_noreply(window: &Window, end: u64) -> bool {
    let tail = window.word(end.wrapping_sub(8));
    tail == verb(b" noreply") || tail >> 56 == u64::from(b' ')
}

/// Reads the arguments of a `flush_all`: a delay, `noreply`, or both.
#[inline(always)]
fn flush(arguments: &mut Arguments<'_>, command: &mut Command) {
    let window = arguments.window;
    let mut first = arguments.next(ARGUMENT_WORDS);
    if first.1 == 0 {
        // Perhaps behind more spaces.
        first = arguments.next(ARGUMENT_WORDS);
    }
    let second = arguments.next(ARGUMENT_WORDS);
    // memcached takes no line with more.
    if !arguments.is_at_end() {
        return;
    }
    let last = if second.1 == 0 { first } else { second };
    command.quiet = is_noreply(window, last);
    if second.1 != 0 || !command.quiet {
        (command.key, command.key_len) = first;
    }
}
