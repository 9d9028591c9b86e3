//! Finding the ends of lines and tokens.

use crate::swar;
use crate::window::{Source, WINDOW, Window};

/// Most spaces in a row that are understood.
const MAX_SPACES: usize = 32;

/// Where a line ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LineEnd {
    /// The line's content ends at `end`, the next line starts at `next`.
    At {
        /// Position behind the last byte before `\r\n` or `\n`.
        end: u64,
        /// Position behind the `\n`.
        next: u64,
    },
    /// There is no `\n` before the limit.
    Missing,
    /// A control character comes first: memcached may see something else here than we do.
    Odd,
}

/// Finds the end of the line that starts at `at`, in bytes before `limit` (at most [`WINDOW`]).
#[inline(always)]
pub fn line_end(window: &Window, at: u64, limit: u64) -> LineEnd {
    let mut at = window.forgotten(at);
    for _ in 0..WINDOW / 8 {
        if at >= limit {
            break;
        }
        let control = swar::below(window.word(at), 0x20);
        if control != 0 {
            at = window.forgotten(at + swar::first(control));
            // A `\r` may be the last byte that is there.
            if at >= limit {
                return LineEnd::Missing;
            }
            return match window.byte(at) {
                b'\n' => LineEnd::At {
                    end: at,
                    next: at + 1,
                },
                b'\r' if at + 1 >= limit => LineEnd::Missing,
                b'\r' if window.byte(at + 1) == b'\n' => LineEnd::At {
                    end: at,
                    next: at + 2,
                },
                _ => LineEnd::Odd,
            };
        }
        at = window.forgotten(at + 8);
    }
    LineEnd::Missing
}

/// The first position at or after `at` that holds no space, at most `end`.
#[inline(always)]
pub fn skip_spaces(window: &Window, at: u64, end: u64) -> u64 {
    let mut at = window.forgotten(at);
    for _ in 0..MAX_SPACES / 8 {
        let others = !swar::equal_all(window.word(at), b' ') & swar::repeat(0x80);
        if others != 0 {
            at += swar::first(others);
            break;
        }
        at = window.forgotten(at + 8);
    }
    window.forgotten(if at < end { at } else { end })
}

/// The position of the first space at or after `at` among `max_words` words, else `end`.
#[inline(always)]
pub fn token_end(window: &Window, at: u64, end: u64, max_words: usize) -> u64 {
    let mut at = window.forgotten(at);
    for _ in 0..max_words {
        if at >= end {
            break;
        }
        let spaces = swar::equal(window.word(at), b' ');
        if spaces != 0 {
            at += swar::first(spaces);
            break;
        }
        at = window.forgotten(at + 8);
    }
    window.forgotten(if at < end { at } else { end })
}

/// A set of letters, the flags of meta commands.
#[must_use]
pub const fn letters(names: &[u8]) -> u64 {
    let mut set = 0;
    let mut i = 0;
    while i < names.len() {
        set |= 1 << (names[i] & 0x3f);
        i += 1;
    }
    set
}

/// The set of one letter; `None` for what is none. `A` to `Z` and `a` to `z` have distinct low six
/// bits. (Two tests, not a range: the verifier of Linux 6.1 loses the bounds of a fused one.)
#[inline(always)]
pub(super) fn letter_bit(letter: u8) -> Option<u64> {
    if letter < b'A' {
        return None;
    }
    if letter > b'z' {
        return None;
    }
    Some(1 << (letter & 0x3f))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn slow_line_end(bytes: &[u8]) -> LineEnd {
        match bytes.iter().position(|&b| b < 0x20) {
            None => LineEnd::Missing,
            Some(at) => match &bytes[at..] {
                [b'\n', ..] => LineEnd::At {
                    end: at as u64,
                    next: at as u64 + 1,
                },
                [b'\r', b'\n', ..] => LineEnd::At {
                    end: at as u64,
                    next: at as u64 + 2,
                },
                [b'\r'] => LineEnd::Missing,
                _ => LineEnd::Odd,
            },
        }
    }

    proptest! {
        #[test]
        fn lines_end_where_they_end(bytes in "[a-c \r\n\u{1}]{0,60}") {
            let window = Window::showing(bytes.as_bytes());
            prop_assert_eq!(line_end(&window, 0, bytes.len() as u64), slow_line_end(bytes.as_bytes()));
        }

        #[test]
        fn tokens_are_split_at_spaces(line in "[a-c ]{0,60}", at: prop::sample::Index) {
            let window = Window::showing(line.as_bytes());
            let at = at.index(line.len() + 1);
            let end = line.len();
            let spaces = line.as_bytes()[at..].iter().take_while(|&&b| b == b' ').count();
            prop_assert_eq!(skip_spaces(&window, at as u64, end as u64), (at + spaces) as u64);
            let token = line.as_bytes()[at..].iter().take_while(|&&b| b != b' ').count();
            prop_assert_eq!(token_end(&window, at as u64, end as u64, 32), (at + token) as u64);
        }
    }
}
