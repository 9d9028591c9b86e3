//! Text and meta requests: what a command can do to the items in memcached.
//!
//! The parser is strict about reads: whatever it does not know in full is [`Effect::Unknown`],
//! and the caller then assumes that any item may change.

use super::number::{decimal, is_digits};
use super::scan::{LineEnd, line_end, skip_spaces, token_end};
use crate::window::{Source, Window};
use crate::{MAX_KEY, swar};

/// What a command does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Effect {
    /// `get` with at least one key.
    Get,
    /// Changes nothing; every reply to it is one UDP datagram, or one per hit and one with
    /// `END\r\n` (`gets`).
    Read,
    /// Changes nothing; its replies cannot be counted (`stats`).
    LongRead,
    /// Changes the item with the command's key, and nothing else.
    Write,
    /// Changes every item (`flush_all`), now or later.
    Flush,
    /// The command is not complete within the limit.
    Incomplete,
    /// Anything else.
    Unknown,
}

/// A command of the text protocol. Positions are those of the window.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Command {
    /// What it does.
    pub effect: Effect,
    /// Start of the first key (`Get`) or of the key (`Write`).
    pub key: u64,
    /// Length of that key.
    pub key_len: u64,
    /// End of the line's content.
    pub line_end: u64,
    /// Bytes of the data block that follows the line, its `\r\n` included; 0 without one.
    pub data: u64,
    /// Position behind the line.
    pub next: u64,
    /// Whether memcached may not answer (`noreply`, `q`), or answers in a way not understood.
    pub quiet: bool,
}

impl Command {
    const fn of(effect: Effect) -> Self {
        Self {
            effect,
            key: 0,
            key_len: 0,
            line_end: 0,
            data: 0,
            next: 0,
            quiet: false,
        }
    }
}

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
const FLUSH_AL: u64 = verb(b"flush_al");

/// A set of flag letters of a meta command.
const fn letters(names: &[u8]) -> u64 {
    let mut set = 0;
    let mut i = 0;
    while i < names.len() {
        set |= 1 << (names[i] & 0x3f);
        i += 1;
    }
    set
}

/// Flags with which `mg` reads and no more. `A` to `Z` and `a` to `z` have distinct low six bits.
const META_READS: u64 = letters(b"vfksctOqhlb");
const META_QUIET: u64 = letters(b"q");
const META_BASE64: u64 = letters(b"b");
/// More arguments than are looked at.
const MAX_ARGUMENTS: usize = 12;
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

    /// The first letters of all remaining arguments; every letter if there are too many or one is
    /// no letter. (Two tests, not a range: the verifier of Linux 6.1 loses the bounds of a fused one.)
    #[inline(always)]
    fn flags(&mut self) -> u64 {
        let mut set = 0;
        for _ in 0..MAX_ARGUMENTS {
            let (start, len) = self.next(ARGUMENT_WORDS);
            if len == 0 {
                return set;
            }
            let letter = self.window.byte(start);
            if letter < b'A' {
                return u64::MAX;
            }
            if letter > b'z' {
                return u64::MAX;
            }
            set |= 1 << (letter & 0x3f);
        }
        u64::MAX
    }
}

/// Parses the command that starts at `at`, in bytes before `limit` (at most
/// [`WINDOW`](crate::window::WINDOW)).
#[inline(always)]
pub fn parse(window: &Window, at: u64, limit: u64) -> Command {
    let (end, next) = match line_end(window, at, limit) {
        LineEnd::At { end, next } => (end, next),
        LineEnd::Missing => return Command::of(Effect::Incomplete),
        LineEnd::Odd => return Command::of(Effect::Unknown),
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
        ..Command::of(Effect::Unknown)
    };

    if verb_len > 8 {
        // `flush_all`: memcached answers at once, and with a delay acts later.
        if verb_len == 9 && first == FLUSH_AL && window.byte(at + 8) == b'l' {
            command.effect = Effect::Flush;
        }
        return command;
    }

    if verb == GAT || verb == GATS {
        arguments.next(ARGUMENT_WORDS);
    }
    let keyless = verb == META_NOOP || verb == VERSION || verb == STATS;
    if keyless {
        command.effect = if verb == STATS {
            Effect::LongRead
        } else {
            Effect::Read
        };
        return command;
    }

    let (key, key_len) = arguments.next(KEY_WORDS);
    command.key = key;
    command.key_len = key_len;
    if key_len == 0 || key_len > MAX_KEY as u64 {
        return command;
    }

    match verb {
        GET => command.effect = Effect::Get,
        GETS | META_DEBUG => command.effect = Effect::Read,
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
            if arguments.next(ARGUMENT_WORDS).1 == 0 {
                return command;
            }
            command.effect = Effect::Write;
            command.quiet = !arguments.is_at_end();
        }
        DELETE => {
            command.effect = Effect::Write;
            command.quiet = !arguments.is_at_end();
        }
        // With more keys than one all of them change.
        GAT | GATS if arguments.is_at_end() => {
            command.effect = Effect::Write;
            // A reply in several datagrams does not show which one ends it.
            command.quiet = true;
        }
        META_GET | META_SET | META_DELETE | META_ARITHMETIC => {
            let mut data = 0;
            if window.forgotten(verb) == META_SET {
                let (start, len) = arguments.next(ARGUMENT_WORDS);
                let Some(bytes) = decimal(window, start, len) else {
                    return command;
                };
                data = bytes + 2;
            }
            let flags = arguments.flags();
            command.quiet = flags & META_QUIET != 0;
            if window.forgotten(verb) == META_GET && flags & !META_READS == 0 {
                command.effect = Effect::Read;
            } else if flags & META_BASE64 == 0 {
                command.effect = Effect::Write;
                command.data = data;
            }
        }
        _ => {}
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What a reader of doc/protocol.txt would write without minding the time.
    fn slow_parse(text: &[u8]) -> Command {
        let Some(newline) = text.iter().position(|&b| b == b'\n') else {
            return match text.iter().position(|&b| b < 0x20) {
                Some(at) if at + 1 < text.len() || text[at] != b'\r' => {
                    Command::of(Effect::Unknown)
                }
                _ => Command::of(Effect::Incomplete),
            };
        };
        let line = text[..newline]
            .strip_suffix(b"\r")
            .unwrap_or(&text[..newline]);
        if line.iter().any(|&b| b < 0x20) {
            return Command::of(Effect::Unknown);
        }
        let mut command = Command {
            line_end: line.len() as u64,
            next: newline as u64 + 1,
            ..Command::of(Effect::Unknown)
        };
        if line.first() == Some(&b' ') || line.is_empty() {
            return command;
        }
        let mut words = vec![];
        let mut at = 0;
        for word in line.split(|&b| b == b' ') {
            if !word.is_empty() {
                words.push((at, word));
            }
            at += word.len() + 1;
        }
        let verb = std::str::from_utf8(words[0].1).unwrap_or("?");
        let argument = |i: usize| words.get(i).map(|w| w.1);
        let number = |i: usize| -> Option<u64> {
            let word = argument(i)?;
            (word.len() <= 8 && word.iter().all(u8::is_ascii_digit))
                .then(|| std::str::from_utf8(word).ok()?.parse().ok())?
        };
        match verb {
            "flush_all" => {
                return Command {
                    effect: Effect::Flush,
                    ..command
                };
            }
            "version" | "mn" => {
                return Command {
                    effect: Effect::Read,
                    ..command
                };
            }
            "stats" => {
                return Command {
                    effect: Effect::LongRead,
                    ..command
                };
            }
            _ => {}
        }
        let key = if matches!(verb, "gat" | "gats") { 2 } else { 1 };
        let Some(&(key_at, key_bytes)) = words.get(key) else {
            return command;
        };
        if key_bytes.len() > MAX_KEY {
            return command;
        }
        command.key = key_at as u64;
        command.key_len = key_bytes.len() as u64;
        // What is no letter may stand for any flag.
        let flags_from = |from: usize| {
            let flags: Vec<u8> = words[from.min(words.len())..]
                .iter()
                .map(|w| w.1[0])
                .collect();
            if flags.iter().all(|f| (b'A'..=b'z').contains(f)) {
                flags
            } else {
                (b'A'..=b'z').collect()
            }
        };
        match verb {
            "get" => command.effect = Effect::Get,
            "gets" | "me" => command.effect = Effect::Read,
            "set" | "add" | "replace" | "append" | "prepend" | "cas" => {
                let needed = if verb == "cas" { 6 } else { 5 };
                let digits = |word: &[u8]| {
                    (1..=18).contains(&word.len()) && word.iter().all(u8::is_ascii_digit)
                };
                let expiry = argument(3).map(|w| w.strip_prefix(b"-").unwrap_or(w));
                let fields = [
                    argument(2),
                    expiry,
                    if verb == "cas" {
                        argument(5)
                    } else {
                        Some(b"0".as_slice())
                    },
                ];
                command.quiet = words.len() > needed;
                if let (Some(bytes), true) = (
                    number(4),
                    words.len() == needed || words.len() == needed + 1,
                ) && fields.iter().all(|f| f.is_some_and(digits))
                {
                    command.effect = Effect::Write;
                    command.data = bytes + 2;
                }
            }
            "incr" | "decr" | "touch" if words.len() >= 3 => {
                command.effect = Effect::Write;
                command.quiet = words.len() > 3;
            }
            "delete" => {
                command.effect = Effect::Write;
                command.quiet = words.len() > 2;
            }
            "gat" | "gats" if words.len() == 3 => {
                command.effect = Effect::Write;
                command.quiet = true;
            }
            "mg" => {
                let flags = flags_from(2);
                command.quiet = flags.contains(&b'q');
                if flags.iter().all(|f| b"vfksctOqhlb".contains(f)) {
                    command.effect = Effect::Read;
                } else if !flags.contains(&b'b') {
                    command.effect = Effect::Write;
                }
            }
            "ms" => {
                if let Some(bytes) = number(2) {
                    let flags = flags_from(3);
                    command.quiet = flags.contains(&b'q');
                    if !flags.contains(&b'b') {
                        command.effect = Effect::Write;
                        command.data = bytes + 2;
                    }
                }
            }
            "md" | "ma" => {
                let flags = flags_from(2);
                command.quiet = flags.contains(&b'q');
                if !flags.contains(&b'b') {
                    command.effect = Effect::Write;
                }
            }
            _ => {}
        }
        command
    }

    fn fast_parse(text: &[u8]) -> Command {
        parse(&Window::showing(text), 0, text.len() as u64)
    }

    /// Equal where the slow parser is exact; the fast one may know less, never more.
    fn agree(text: &[u8]) -> Result<(), TestCaseError> {
        let (fast, slow) = (fast_parse(text), slow_parse(text));
        prop_assert_eq!(fast.effect, slow.effect);
        match fast.effect {
            Effect::Unknown | Effect::Incomplete => {}
            Effect::Get | Effect::Write => prop_assert_eq!(fast, slow),
            _ => prop_assert_eq!((fast.line_end, fast.next), (slow.line_end, slow.next)),
        }
        Ok(())
    }

    const VERBS: &str = "get|gets|gat|gats|set|add|replace|append|prepend|cas|delete|incr|decr|touch|\
                         flush_all|mg|ms|md|ma|mn|me|version|stats|verbosity|quit|GET|ge|sets|flush_alx|watch";

    fn command_line() -> impl Strategy<Value = String> {
        let arguments =
            "( {1,3}([a-z]{1,12}|[0-9]{1,9}|noreply|[vfkstqbTNREOI][a-z0-9]{0,3})){0,6}";
        let pattern = format!("({VERBS}){arguments} ?(\r?\n)?[a-z \r\n]{{0,9}}");
        proptest::string::string_regex(&pattern).expect("a valid pattern")
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn lines_like_commands(text in command_line()) {
            agree(text.as_bytes())?;
        }

        #[test]
        fn arbitrary_bytes(text in proptest::collection::vec(any::<u8>(), 0..400)) {
            let fast = fast_parse(&text);
            prop_assert_eq!(fast.effect, slow_parse(&text).effect);
        }

        #[test]
        fn long_keys(len in 240usize..260, verb in "get|set|delete|mg") {
            let rest = if verb == "set" { " 0 0 1" } else { "" };
            agree(format!("{verb} {}{rest}\r\n", "k".repeat(len)).as_bytes())?;
        }

        #[test]
        fn every_cut_is_incomplete(key in "[a-z]{1,20}", cut: prop::sample::Index) {
            let text = format!("set {key} 0 0 5\r\n");
            let cut = cut.index(text.len());
            prop_assert_eq!(fast_parse(&text.as_bytes()[..cut]).effect, Effect::Incomplete);
        }
    }

    #[test]
    fn writes_name_key_and_data() {
        let c = fast_parse(b"cas key 1 2 10 99 noreply\r\n");
        assert_eq!(
            (c.effect, c.key, c.key_len, c.data, c.next, c.quiet),
            (Effect::Write, 4, 3, 12, 27, true)
        );
        for refused in [
            "set k x 0 8",
            "set k 0 x 8",
            "set k 0 0 8 noreply extra",
            "cas k 0 0 8",
            "cas k 0 0 8 x",
            "set k -1 0 8",
            "set k 0000000000000000000 0 8",
        ] {
            assert_eq!(
                fast_parse(format!("{refused}\r\n").as_bytes()).effect,
                Effect::Unknown,
                "{refused}"
            );
        }
        assert_eq!(fast_parse(b"set k 0 -1 8\r\n").effect, Effect::Write);
        let c = fast_parse(b"ms key 10 T0 I\r\n");
        assert_eq!(
            (c.effect, c.key, c.key_len, c.data, c.quiet),
            (Effect::Write, 3, 3, 12, false)
        );
        let c = fast_parse(b"gat 100 key\r\n");
        assert_eq!(
            (c.effect, c.key, c.key_len, c.quiet),
            (Effect::Write, 8, 3, true)
        );
    }

    #[test]
    fn what_may_write_is_no_read() {
        for line in ["mg k v T30", "mg k N10", "mg k R5 v", "mg k E7", "mg k v x"] {
            assert_eq!(
                fast_parse(format!("{line}\r\n").as_bytes()).effect,
                Effect::Write,
                "{line}"
            );
        }
        for line in [
            "gat 1 a b",
            "md Zm9v b",
            "ms Zm9v 2 b",
            "mg Zm9v b N1",
            " set a 0 0 1",
            "set a 0 0 -1",
            "set a 0 0",
            "nonsense",
            "",
        ] {
            assert_eq!(
                fast_parse(format!("{line}\r\n").as_bytes()).effect,
                Effect::Unknown,
                "{line}"
            );
        }
        for line in [
            "mg k",
            "mg k v f k",
            "mg Zm9v b v",
            "gets a b",
            "mn",
            "version",
        ] {
            assert_eq!(
                fast_parse(format!("{line}\r\n").as_bytes()).effect,
                Effect::Read,
                "{line}"
            );
        }
    }
}
