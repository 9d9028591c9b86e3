//! When a `flush_all` takes effect.

use crate::command::{Command, Form};
use crate::swar;
use crate::text::number::decimal_u64;
use crate::window::{Source, Window};

/// A longer delay, in seconds, is a point in time (`REALTIME_MAXDELTA` in memcached.h).
const MAX_SPAN: u64 = 60 * 60 * 24 * 30;

/// The delay of a `flush_all`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Delay {
    /// At once, or never: the command is not one that memcached takes.
    None,
    /// After so many seconds.
    Span(u32),
    /// At this time, in seconds since 1970.
    Until(u32),
}

/// The delay of a command that is a [`Flush`](crate::command::Effect::Flush).
#[inline(always)]
#[must_use]
pub fn delay(window: &Window, command: &Command) -> Delay {
    let seconds = if command.form == Form::Binary {
        binary(window, command.key, command.key_len)
    } else {
        text(window, command.key, command.key_len)
    };
    match seconds {
        None | Some(0) => Delay::None,
        Some(seconds) if u64::from(seconds) <= MAX_SPAN => Delay::Span(seconds),
        Some(seconds) => Delay::Until(seconds),
    }
}

/// The four bytes of the extras.
#[inline(always)]
fn binary(window: &Window, at: u64, len: u64) -> Option<u32> {
    (len == 4).then(|| (window.word(at) as u32).swap_bytes())
}

/// A word of the line: a number of 64 bits, of which memcached takes the lower 32, with their sign. What
/// is negative is over.
#[inline(always)]
fn text(window: &Window, at: u64, len: u64) -> Option<u32> {
    if len == 0 {
        return None;
    }
    let sign = window.byte(at);
    let has_sign = u64::from(sign == b'-' || sign == b'+');
    let (at, len) = without_zeros(window, at + has_sign, len - has_sign);
    let number = decimal_u64(window, at, len)?;
    if number > i64::MAX as u64 {
        return None;
    }
    let seconds = number as i32;
    let seconds = if sign == b'-' {
        seconds.wrapping_neg()
    } else {
        seconds
    };
    u32::try_from(seconds).ok()
}

/// The same number without zeros before it, of which memcached (`strtol`) takes any count: without up to 39 of them.
#[inline(always)]
fn without_zeros(window: &Window, mut at: u64, mut len: u64) -> (u64, u64) {
    for zeros in [8, 8, 8, 8, 4, 2, 1] {
        if len > zeros && swar::keep(window.word(at) ^ swar::repeat(b'0'), zeros) == 0 {
            at = window.forgotten(at + zeros);
            len = window.forgotten(len - zeros);
        }
    }
    (at, len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{binary as binary_protocol, text as text_protocol};

    fn of_line(line: &str) -> (Delay, bool) {
        let text = format!("{line}\r\n");
        let window = Window::showing(text.as_bytes());
        let command = text_protocol::request::parse(&window, 0, text.len() as u64);
        assert_eq!(command.effect, crate::command::Effect::Flush, "{line}");
        (delay(&window, &command), command.quiet)
    }

    /// As memcached 1.6.18 takes these lines.
    #[test]
    fn lines() {
        let now = ["", " 0", " -1", " 4294967296", " 4294967295", " -0"];
        for line in now {
            assert_eq!(
                of_line(&format!("flush_all{line}")),
                (Delay::None, false),
                "{line}"
            );
        }
        for line in [" noreply", " 0 noreply", " -1 noreply", "  noreply "] {
            assert_eq!(
                of_line(&format!("flush_all{line}")),
                (Delay::None, true),
                "{line}"
            );
        }
        for line in [
            " 3",
            "  3",
            " +3",
            " 003",
            " 0000000000000000000003",
            " -00000000004294967293",
            " +000000000000000000000000000004294967299",
            "                                            3",
            " 3 ",
            " 3 4",
            " 4294967299",
            " -4294967293",
        ] {
            assert_eq!(
                of_line(&format!("flush_all{line}")),
                (Delay::Span(3), false),
                "{line}"
            );
        }
        assert_eq!(of_line("flush_all 3 noreply"), (Delay::Span(3), true));
        assert_eq!(
            of_line("flush_all 2592000"),
            (Delay::Span(2_592_000), false)
        );
        assert_eq!(
            of_line("flush_all 2592001"),
            (Delay::Until(2_592_001), false)
        );
        assert_eq!(
            of_line("flush_all 1795268222"),
            (Delay::Until(1_795_268_222), false)
        );
    }

    /// memcached answers these with an error, unless it is told to be quiet.
    #[test]
    fn refused_lines() {
        for line in [
            " x",
            " 1x",
            " 0x10",
            " NOREPLY",
            " 9223372036854775808",
            " 3 4 5",
            " 3 4 noreply",
        ] {
            assert_eq!(
                of_line(&format!("flush_all{line}")),
                (Delay::None, false),
                "{line}"
            );
        }
        assert_eq!(of_line("flush_all x noreply"), (Delay::None, true));
    }

    #[test]
    fn extras() {
        let ask = |opcode: u8, extras: &[u8]| {
            let mut bytes = vec![0; 24];
            bytes[0] = binary_protocol::REQUEST;
            bytes[1] = opcode;
            bytes[4] = extras.len() as u8;
            bytes[11] = extras.len() as u8;
            bytes.extend(extras);
            let window = Window::showing(&bytes);
            let command = binary_protocol::request::parse(&window, 0, bytes.len() as u64);
            assert_eq!(command.effect, crate::command::Effect::Flush);
            (delay(&window, &command), command.quiet)
        };
        assert_eq!(ask(8, &[]), (Delay::None, false));
        assert_eq!(ask(8, &[0; 4]), (Delay::None, false));
        assert_eq!(ask(8, &[0, 0, 1, 2]), (Delay::Span(258), false));
        assert_eq!(ask(0x18, &[0, 0, 0, 2]), (Delay::Span(2), true));
        assert_eq!(ask(8, &[0xff; 4]), (Delay::Until(u32::MAX), false));
        assert_eq!(ask(8, &[0, 2]), (Delay::None, false));
    }
}
