//! Commands and replies in a byte stream (TCP), where they may be cut anywhere.

use crate::binary::{self, HEADER_LEN, STATUS_NOT_FOUND, opcode, short};
use crate::command::{Command, Effect, Form};
use crate::text::number::decimal;
use crate::text::reply::{END, END_LEN, KEY_AT, is_value};
use crate::text::scan::{LineEnd, line_end, token_end};
use crate::window::{Source, Window};
use crate::{MAX_KEY, swar, text};

/// Parses the command that starts at `at`, in bytes before `limit`. It is [`Effect::Incomplete`] unless
/// its line, or its header, extras and key, are there; the data that follows may lie behind the limit,
/// and `next` of a binary request as well.
#[inline(always)]
pub fn command(window: &Window, at: u64, limit: u64) -> Command {
    if window.byte(at) != binary::REQUEST {
        return text::request::parse(window, at, limit);
    }
    let (first, second) = (window.word(at), window.word(at + 8));
    if at + HEADER_LEN > limit {
        return Command::of(Effect::Incomplete, Form::Binary);
    }
    let (key_len, extras) = (short(first, 16), first >> 32 & 0xff);
    let body = short(second, 0) << 16 | short(second, 16);
    if key_len + extras <= body && at + HEADER_LEN + extras + key_len > limit {
        return Command::of(Effect::Incomplete, Form::Binary);
    }
    binary::request::parse(window, at, at + HEADER_LEN + body)
}

/// What reply a text command is owed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Ask {
    /// `VALUE` blocks and `END`.
    Get = 0,
    /// One line.
    Line = 1,
    /// One line of the meta protocol, or `VA` with data.
    Meta = 2,
    /// `MN`.
    Noop = 3,
    /// Lines up to `END`, or one of a few.
    Stats = 4,
}

/// Bit of an ask: quiet text commands precede it, which may be answered by an error.
pub const QUIET_TEXT: u8 = 0x40;
/// Bit of an ask: quiet meta commands precede it, which may be answered in many ways.
pub const QUIET_META: u8 = 0x80;
const ASK: u8 = 0x0f;

/// The [`Ask`] of an ask, whatever precedes it.
#[inline(always)]
#[must_use]
pub const fn kind(ask: u8) -> u8 {
    ask & ASK
}

/// What the text command that starts with this word is owed if it is not quiet; `None` if its replies
/// cannot be told from those of others, or do not come. (`quit` is not answered: it counts as owed a line, and nothing
/// follows it.)
#[inline(always)]
#[must_use]
pub fn ask(first: u64, effect: Effect) -> Option<Ask> {
    let two = first & 0xffff;
    if two == word(b"mn") {
        Some(Ask::Noop)
    } else if first & 0xff == word(b"m") {
        Some(Ask::Meta)
    } else if first & 0xff == word(b"g") {
        Some(Ask::Get)
    } else if two == word(b"st") {
        Some(Ask::Stats)
    } else if first & 0xffff_ffff == word(b"quit") {
        // It owes nothing, and behind it nothing is done: nobody waits for its line in vain.
        Some(Ask::Line)
    } else if matches!(effect, Effect::LongRead) {
        None
    } else {
        Some(Ask::Line)
    }
}

/// What stands at a place of a stream of replies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Class {
    /// Not even its first line or header is there.
    Incomplete,
    /// Nothing that memcached sends.
    Odd,
    /// A `VALUE` line with data: part of a reply.
    Item,
    /// `END`.
    End,
    /// `ERROR`, `CLIENT_ERROR`, `SERVER_ERROR`.
    Error,
    /// A line that is none of the others.
    Line,
    /// `RESET` or `OK`: with these alone `stats` may be answered.
    Done,
    /// A line of the meta protocol, or `VA` with data.
    Meta,
    /// `MN`.
    Noop,
    /// A binary response.
    Binary,
}

/// One element of a stream of replies.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Element {
    /// What it is.
    pub class: Class,
    /// The opcode of a binary response.
    pub opcode: u32,
    /// Its length in bytes, data included, which may reach behind the limit.
    pub len: u64,
    /// Whether it carries an item's data.
    pub has_data: bool,
    /// Whether it is the last of the responses to a binary `STAT`.
    pub is_last: bool,
    /// Whether a binary response has another status than success and not found.
    pub is_refusal: bool,
}

const fn word(bytes: &[u8]) -> u64 {
    let mut word = 0;
    let mut i = bytes.len();
    while i > 0 {
        i -= 1;
        word = word << 8 | bytes[i] as u64;
    }
    word
}

/// The element of a stream of replies that starts at `at`, in bytes before `limit`.
#[inline(always)]
pub fn element(window: &Window, at: u64, limit: u64) -> Element {
    let mut element = Element {
        class: Class::Incomplete,
        opcode: 0,
        len: 0,
        has_data: false,
        is_last: false,
        is_refusal: false,
    };
    let first = window.word(at);
    if first & 0xff == binary::RESPONSE as u64 {
        if at + HEADER_LEN > limit {
            return element;
        }
        let second = window.word(at + 8);
        let body = short(second, 0) << 16 | short(second, 16);
        element.class = Class::Binary;
        element.opcode = (first >> 8 & 0xff) as u32;
        element.len = HEADER_LEN + body;
        element.has_data = first >> 48 == 0;
        element.is_last = short(first, 16) == 0;
        element.is_refusal = short(first, 48) > u64::from(STATUS_NOT_FOUND);
        return element;
    }
    let (end, next) = match line_end(window, at, limit) {
        LineEnd::At { end, next } => (end, next),
        LineEnd::Missing => return element,
        LineEnd::Odd => {
            element.class = Class::Odd;
            return element;
        }
    };
    element.len = next - at;
    let is_value = is_value(window, at);
    if is_value || swar::keep(first, 3) == word(b"VA ") {
        let mut from = at + 3;
        if is_value {
            let key_end = token_end(window, at + KEY_AT, end, (MAX_KEY + 1).div_ceil(8) + 1);
            from = token_end(window, key_end + 1, end, 2) + 1;
        }
        let from = window.forgotten(from);
        let to = token_end(window, from, end, 2);
        let Some(bytes) = decimal(window, from, to.wrapping_sub(from)) else {
            element.class = Class::Odd;
            return element;
        };
        element.class = if window.forgotten(u64::from(is_value)) != 0 {
            Class::Item
        } else {
            Class::Meta
        };
        element.len += bytes + 2;
        element.has_data = true;
        return element;
    }
    element.class = line(first, end - at);
    element
}

/// The class of a line of `len` bytes that starts with this word.
#[inline(always)]
fn line(first: u64, len: u64) -> Class {
    let three = swar::keep(first, 3);
    if len == END_LEN - 2 && three == swar::keep(END, 3) {
        return Class::End;
    }
    if swar::keep(first, 5) == word(b"ERROR")
        || swar::keep(first, 7) == word(b"CLIENT_")
        || swar::keep(first, 7) == word(b"SERVER_")
    {
        return Class::Error;
    }
    if (len == 5 && swar::keep(first, 5) == word(b"RESET"))
        || (len == 2 && swar::keep(first, 2) == word(b"OK"))
    {
        return Class::Done;
    }
    let two = first & 0xffff;
    if len == 2 && two == word(b"MN") {
        return Class::Noop;
    }
    let is_meta = two == word(b"HD")
        || two == word(b"EN")
        || two == word(b"NS")
        || two == word(b"EX")
        || two == word(b"NF")
        || two == word(b"ME");
    if is_meta && (len == 2 || three >> 16 == u64::from(b' ')) {
        return Class::Meta;
    }
    Class::Line
}

/// To whom an element belongs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// It is the end of the reply to the command whose turn it is.
    Ends,
    /// It is part of that reply, and more is to come.
    Part,
    /// It answers a quiet command.
    Quiet,
    /// That cannot be said.
    Unknown,
}

/// To whom an element of text replies belongs, when the next command that is owed a reply has this ask
/// and the quiet commands before it; with no such command, `ask` is `None`.
#[inline(always)]
#[must_use]
pub fn text_owner(ask: Option<u8>, class: Class) -> Owner {
    const fn bit(class: Class) -> u32 {
        1 << class as u32
    }
    const ERROR: u32 = bit(Class::Error);
    const META: u32 = bit(Class::Meta);
    let class = bit(class);
    let Some(ask) = ask else {
        // Nothing is owed, so it can only be for a quiet command.
        return if class & (ERROR | META) != 0 {
            Owner::Quiet
        } else {
            Owner::Unknown
        };
    };
    let mut theirs = 0;
    if ask & QUIET_TEXT != 0 {
        theirs |= ERROR;
    }
    if ask & QUIET_META != 0 {
        theirs |= ERROR | META;
    }
    let kind = kind(ask);
    let mut part = 0;
    let mine = if kind == Ask::Get as u8 {
        part = bit(Class::Item);
        bit(Class::End)
    } else if kind == Ask::Line as u8 {
        bit(Class::Line) | bit(Class::Done)
    } else if kind == Ask::Meta as u8 {
        META
    } else if kind == Ask::Noop as u8 {
        bit(Class::Noop)
    } else {
        part = bit(Class::Line);
        bit(Class::End) | bit(Class::Done)
    } | ERROR;
    let (is_mine, is_theirs) = (class & (mine | part) != 0, class & theirs != 0);
    if is_mine && !is_theirs {
        if class & part != 0 {
            Owner::Part
        } else {
            Owner::Ends
        }
    } else if is_theirs && !is_mine {
        Owner::Quiet
    } else {
        Owner::Unknown
    }
}

/// Whether responses with this opcode answer quiet requests.
#[inline(always)]
#[must_use]
pub fn is_quiet(code: u32) -> bool {
    code <= 63 && 1u64 << (code & 63) & binary::request::QUIETS != 0
}

/// To whom a binary response belongs, when the next request that is owed one has this opcode.
#[inline(always)]
#[must_use]
pub fn binary_owner(ask: Option<u8>, code: u32, is_last: bool) -> Owner {
    if is_quiet(code) {
        return Owner::Quiet;
    }
    match ask {
        Some(ask) if u32::from(ask) == code => {
            if code == u32::from(opcode::STAT) && !is_last {
                Owner::Part
            } else {
                Owner::Ends
            }
        }
        _ => Owner::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(bytes: &[u8]) -> Element {
        element(&Window::showing(bytes), 0, bytes.len() as u64)
    }

    #[test]
    fn replies_are_told_apart() {
        for (text, class, len, has_data) in [
            ("VALUE a 0 5\r\nhel", Class::Item, 20, true),
            ("VALUE a 0 5 77\r\nhello\r\nEND\r\n", Class::Item, 23, true),
            ("VA 3 f0 ka\r\n", Class::Meta, 17, true),
            ("VA 3\r\nabc\r\n", Class::Meta, 11, true),
            ("END\r\nmore", Class::End, 5, false),
            ("END of it\r\n", Class::Line, 11, false),
            ("ERROR\r\n", Class::Error, 7, false),
            ("CLIENT_ERROR bad data chunk\r\n", Class::Error, 29, false),
            ("SERVER_ERROR out of memory\r\n", Class::Error, 28, false),
            ("STORED\r\n", Class::Line, 8, false),
            ("EXISTS\r\n", Class::Line, 8, false),
            ("NOT_FOUND\r\n", Class::Line, 11, false),
            ("17\r\n", Class::Line, 4, false),
            ("OK\r\n", Class::Done, 4, false),
            ("RESET\r\n", Class::Done, 7, false),
            ("HD\r\n", Class::Meta, 4, false),
            ("HD Oabc\r\n", Class::Meta, 9, false),
            ("EN\r\n", Class::Meta, 4, false),
            ("NS\r\n", Class::Meta, 4, false),
            ("EX\r\n", Class::Meta, 4, false),
            ("NF b\r\n", Class::Meta, 6, false),
            ("ME key size=1\r\n", Class::Meta, 15, false),
            ("MN\r\n", Class::Noop, 4, false),
            ("STAT pid 1\r\n", Class::Line, 12, false),
            ("", Class::Incomplete, 0, false),
            ("STORED", Class::Incomplete, 0, false),
            ("STORED\r", Class::Incomplete, 0, false),
            ("VALUE a 0 x\r\n", Class::Odd, 13, false),
            ("VALUE a\r\n", Class::Odd, 9, false),
            ("VA x\r\n", Class::Odd, 6, false),
            ("a\u{1}b\r\n", Class::Odd, 0, false),
        ] {
            let found = parse(text.as_bytes());
            assert_eq!(
                (found.class, found.len, found.has_data),
                (class, len, has_data),
                "{text:?}"
            );
        }
    }

    fn header(magic: u8, opcode: u8, key: u16, extras: u8, status: u16, body: u32) -> Vec<u8> {
        let mut bytes = vec![magic, opcode];
        bytes.extend(key.to_be_bytes());
        bytes.extend([extras, 0]);
        bytes.extend(status.to_be_bytes());
        bytes.extend(body.to_be_bytes());
        bytes.extend([0; 12]);
        bytes
    }

    #[test]
    fn binary_responses_have_headers() {
        let bytes = header(0x81, opcode::GET, 0, 4, 0, 104);
        let found = parse(&bytes);
        assert_eq!(
            (found.class, found.opcode, found.len, found.has_data),
            (Class::Binary, 0, 128, true)
        );
        assert_eq!(parse(&bytes[..23]).class, Class::Incomplete);
        let missed = parse(&header(0x81, opcode::GET, 0, 0, 1, 9));
        assert!(!missed.has_data && missed.len == 33 && !missed.is_refusal);
        assert!(!found.is_refusal);
        for status in [2, 0x20, 0x81, 0x100] {
            assert!(parse(&header(0x81, opcode::GET, 0, 0, status, 9)).is_refusal);
        }
        assert!(parse(&header(0x81, opcode::STAT, 0, 0, 0, 0)).is_last);
        assert!(!parse(&header(0x81, opcode::STAT, 3, 0, 0, 5)).is_last);
    }

    #[test]
    fn commands_may_have_data_behind_the_limit() {
        let window = Window::showing(b"set key 0 0 1000000\r\nabc");
        let set = command(&window, 0, 24);
        assert_eq!(
            (set.effect, set.next, set.data),
            (Effect::Write, 21, 1_000_002)
        );
        assert_eq!(command(&window, 0, 20).effect, Effect::Incomplete);

        let mut bytes = header(0x80, opcode::SET, 3, 8, 0, 1_000_011);
        bytes.extend([0; 8]);
        bytes.extend(b"key");
        let window = Window::showing(&bytes);
        let set = command(&window, 0, 35);
        assert_eq!(
            (set.effect, set.key, set.key_len, set.next),
            (Effect::Write, 32, 3, 1_000_035)
        );
        assert_eq!(command(&window, 0, 34).effect, Effect::Incomplete);
        assert_eq!(command(&window, 0, 23).effect, Effect::Incomplete);
    }

    #[test]
    fn every_command_is_owed_its_reply() {
        for (text, expected) in [
            ("get a\r\n", Some(Ask::Get)),
            ("gat 1 a\r\n", Some(Ask::Get)),
            ("mg a v\r\n", Some(Ask::Meta)),
            ("me a\r\n", Some(Ask::Meta)),
            ("ms a 1\r\nx\r\n", Some(Ask::Meta)),
            ("mn\r\n", Some(Ask::Noop)),
            ("stats\r\n", Some(Ask::Stats)),
            ("set a 0 0 1\r\nx\r\n", Some(Ask::Line)),
            ("delete a\r\n", Some(Ask::Line)),
            ("version\r\n", Some(Ask::Line)),
            ("flush_all\r\n", Some(Ask::Line)),
            ("quit\r\n", Some(Ask::Line)),
            ("watch\r\n", None),
        ] {
            let window = Window::showing(text.as_bytes());
            let effect = command(&window, 0, text.len() as u64).effect;
            assert_eq!(ask(window.word(0), effect), expected, "{text:?}");
        }
    }

    #[test]
    fn owners_are_certain_or_unknown() {
        use Owner::*;
        let get = Ask::Get as u8;
        let line = Ask::Line as u8;
        let meta = Ask::Meta as u8;
        let noop = Ask::Noop as u8;
        let stats = Ask::Stats as u8;
        for (ask, class, owner) in [
            (Some(get), Class::Item, Part),
            (Some(get), Class::End, Ends),
            (Some(get), Class::Error, Ends),
            (Some(get), Class::Line, Unknown),
            (Some(get | QUIET_TEXT), Class::End, Ends),
            (Some(get | QUIET_TEXT), Class::Error, Unknown),
            (Some(get | QUIET_META), Class::Meta, Quiet),
            (Some(line), Class::Line, Ends),
            (Some(line), Class::Done, Ends),
            (Some(line), Class::End, Unknown),
            (Some(line | QUIET_TEXT), Class::Line, Ends),
            (Some(line | QUIET_TEXT), Class::Error, Unknown),
            (Some(line | QUIET_META), Class::Error, Unknown),
            (Some(meta), Class::Meta, Ends),
            (Some(meta | QUIET_META), Class::Meta, Unknown),
            (Some(meta | QUIET_TEXT), Class::Meta, Ends),
            (Some(noop | QUIET_META), Class::Noop, Ends),
            (Some(noop | QUIET_META), Class::Meta, Quiet),
            (Some(noop), Class::Meta, Unknown),
            (Some(stats), Class::Line, Part),
            (Some(stats), Class::End, Ends),
            (Some(stats), Class::Done, Ends),
            (Some(stats), Class::Odd, Unknown),
            (None, Class::Error, Quiet),
            (None, Class::Meta, Quiet),
            (None, Class::Line, Unknown),
        ] {
            assert_eq!(text_owner(ask, class), owner, "{ask:?} {class:?}");
        }
        assert_eq!(binary_owner(Some(opcode::SET), 0x01, true), Ends);
        assert_eq!(binary_owner(Some(opcode::SET), 0x11, true), Quiet);
        assert_eq!(binary_owner(Some(opcode::SET), 0x00, true), Unknown);
        assert_eq!(binary_owner(None, 0x00, true), Unknown);
        assert_eq!(binary_owner(Some(opcode::STAT), 0x10, false), Part);
        assert_eq!(binary_owner(Some(opcode::STAT), 0x10, true), Ends);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes(bytes in proptest::collection::vec(any::<u8>(), 1..100)) {
            let found = parse(&bytes);
            if found.class != Class::Incomplete && found.class != Class::Odd {
                prop_assert!(found.len > 0);
            }
            let window = Window::showing(&bytes);
            let parsed = command(&window, 0, bytes.len() as u64);
            prop_assert!(parsed.effect != Effect::Write || parsed.next > 0);
        }
    }
}
