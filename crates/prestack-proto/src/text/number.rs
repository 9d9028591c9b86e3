//! Decimal numbers.

use crate::swar;
use crate::window::{Source, Window};

const E4: u64 = 10_000;
const E8: u64 = E4 * E4;
const E16: u64 = E8 * E8;

/// The number written in `len` digits at `at`; `None` unless there are 1 to 8 digits and nothing
/// else.
#[inline(always)]
pub fn decimal(window: &Window, at: u64, len: u64) -> Option<u64> {
    if len == 0 || len > 8 {
        return None;
    }
    // Leading zeros take the place of bytes behind the number; all eight are digits then.
    let word = if len < 8 {
        window.word(at) << (8 * (8 - len)) | swar::repeat(b'0') >> (8 * len)
    } else {
        window.word(at)
    };
    eight(word)
}

/// The number of up to seven digits at the start of a word, and how many these are; anything else may
/// follow. `None` if there is no digit, or there are eight.
#[inline(always)]
#[must_use]
pub const fn leading(word: u64) -> Option<(u64, u64)> {
    let others = !swar::in_range(word, b'0', 10) & swar::repeat(0x80);
    let len = if others == 0 { 0 } else { swar::first(others) };
    if len == 0 {
        return None;
    }
    // Leading zeros take the place of what follows, which is shifted out.
    let digits = (word << (8 * (8 - len))) & swar::repeat(0x0f);
    Some((of_digits(digits), len))
}

/// Whether the eight bytes of a word are digits.
#[inline(always)]
fn are_digits(word: u64) -> bool {
    // '0' to '9' are 0x30 to 0x39: the upper half is 3, also after adding 6.
    const UPPER: u64 = swar::repeat(0xf0);
    word & UPPER == swar::repeat(0x30)
        && word.wrapping_add(swar::repeat(6)) & UPPER == swar::repeat(0x30)
}

/// The number that the eight bytes of a word are the digits of.
#[inline(always)]
fn eight(word: u64) -> Option<u64> {
    if !are_digits(word) {
        return None;
    }
    Some(of_digits(word & swar::repeat(0x0f)))
}

/// The number whose eight decimal digits are the bytes of a word.
#[inline(always)]
const fn of_digits(digits: u64) -> u64 {
    // Pairs of digits, then of pairs, then of fours (the least significant byte comes first).
    let pairs = (digits.wrapping_mul(10).wrapping_add(digits >> 8)) & 0x00ff_00ff_00ff_00ff;
    let fours = (pairs.wrapping_mul(100).wrapping_add(pairs >> 16)) & 0x0000_ffff_0000_ffff;
    fours.wrapping_mul(E4).wrapping_add(fours >> 32) & 0xffff_ffff
}

/// The number written in `len` digits at `at`; `None` unless there are 1 to 20 digits and nothing
/// else, and the number fits 64 bits.
#[inline(always)]
pub fn decimal_u64(window: &Window, at: u64, len: u64) -> Option<u64> {
    if len <= 8 {
        return decimal(window, at, len);
    }
    if len > 20 {
        return None;
    }
    // Eight digits at a time, backwards from the end.
    let low = eight(window.word(at + len - 8))?;
    if len <= 16 {
        return Some(decimal(window, at, len - 8)? * E8 + low);
    }
    let rest = eight(window.word(at + len - 16))? * E8 + low;
    let top = decimal(window, at, len - 16)?;
    if top > u64::MAX / E16 {
        return None;
    }
    if top == u64::MAX / E16 && rest > u64::MAX % E16 {
        return None;
    }
    Some(top * E16 + rest)
}

/// Whether there are `len` digits at `at`, 1 to 18: a number that memcached cannot refuse for its
/// size.
#[inline(always)]
pub fn is_digits(window: &Window, at: u64, len: u64) -> bool {
    if len == 0 || len > 18 {
        return false;
    }
    for i in 0..3 {
        if len <= 8 * i {
            break;
        }
        let here = len - 8 * i;
        let filler = if here < 8 {
            swar::repeat(b'0') << (8 * here)
        } else {
            0
        };
        let word = swar::keep(window.word(at + 8 * i), here) | filler;
        if !are_digits(word) {
            return false;
        }
    }
    true
}

/// Writes a number in decimal at `at`, without leading zeros, and returns its length (1 to 20).
/// Up to seven bytes behind it become garbage.
#[inline(always)]
pub fn render(window: &mut Window, at: u64, value: u64) -> u64 {
    let (high, low) = (value / E8, value % E8);
    if high == 0 {
        return first(window, at, low);
    }
    let (top, middle) = (high / E8, high % E8);
    let mut len = if top == 0 {
        first(window, at, middle)
    } else {
        let len = first(window, at, top);
        window.set_word(at + len, digits(middle) | swar::repeat(b'0'));
        len + 8
    };
    len = window.forgotten(len);
    window.set_word(at + len, digits(low) | swar::repeat(b'0'));
    window.forgotten(len + 8)
}

/// A number below 10^16 in decimal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Digits {
    /// Its last digits, with zeros before them: eight in each word, the last ones in the second.
    pub words: [u64; 2],
    /// How many digits it has without leading zeros: 1 to 16.
    pub len: u64,
}

impl Digits {
    /// `None` if the number is too large.
    #[inline(always)]
    #[must_use]
    pub const fn of(value: u64) -> Option<Self> {
        const ZEROS: u64 = swar::repeat(b'0');
        if value < E8 {
            let low = digits(value);
            return Some(Self {
                words: [ZEROS, low | ZEROS],
                len: 8 - leading_zeros(low),
            });
        }
        if value >= E16 {
            return None;
        }
        let (high, low) = (digits(value / E8), digits(value % E8));
        Some(Self {
            words: [high | ZEROS, low | ZEROS],
            len: 16 - leading_zeros(high),
        })
    }
}

/// How many of eight digits, as bytes 0 to 9, precede the first that is not 0; at most 7.
#[inline(always)]
const fn leading_zeros(digits: u64) -> u64 {
    // Top bits of the bytes that are not 0, and of the last one.
    let set = (digits + swar::repeat(0x7f)) & swar::repeat(0x80) | 1 << 63;
    swar::first(set)
}

/// The eight decimal digits of a number below 10^8 as bytes 0 to 9, the most significant one first.
#[inline(always)]
const fn digits(value: u64) -> u64 {
    // Two fours, then pairs, then digits: a division is a multiplication by the rounded inverse, exact for
    // numbers this small, and one for all parts at once.
    let upper = (value * 0xd1b7_1759) >> 45;
    let fours = upper | ((value - E4 * upper) << 32);
    let hundreds = ((fours * 10_486) >> 20) & 0x0000_007f_0000_007f;
    let pairs = hundreds | (fours - 100 * hundreds) << 16;
    let tens = ((pairs * 103) >> 10) & 0x000f_000f_000f_000f;
    tens | (pairs - 10 * tens) << 8
}

/// Writes a number below 10^8 without leading zeros, and returns its length.
#[inline(always)]
fn first(window: &mut Window, at: u64, value: u64) -> u64 {
    let digits = digits(value);
    let zeros = leading_zeros(digits);
    window.set_word(at, (digits | swar::repeat(b'0')) >> (8 * zeros));
    8 - zeros
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Numbers of every length.
    fn number() -> impl Strategy<Value = u64> {
        (any::<u64>(), 0u32..64).prop_map(|(value, shift)| value >> shift)
    }

    fn check_render(value: u64, at: u64) {
        let mut window = Window::showing(&[b'#'; 200]);
        let text = value.to_string();
        assert_eq!(render(&mut window, at, value), text.len() as u64);
        let end = at + text.len() as u64;
        let written: Vec<u8> = (at..end).map(|at| window.byte(at)).collect();
        assert_eq!(written, text.as_bytes());
        assert!(
            (0..at)
                .chain(end + 7..200)
                .all(|at| window.byte(at) == b'#')
        );
    }

    #[test]
    fn limits_are_kept() {
        let parse =
            |text: &str| decimal_u64(&Window::showing(text.as_bytes()), 0, text.len() as u64);
        assert_eq!(parse("18446744073709551615"), Some(u64::MAX));
        assert_eq!(parse("18446744073709551616"), None);
        assert_eq!(parse("18450000000000000000"), None);
        assert_eq!(parse("99999999999999999999"), None);
        assert_eq!(parse("00000000000000000007"), Some(7));
        assert_eq!(parse("000000000000000000007"), None);
        for power in 0..20 {
            let value = 10u64.pow(power);
            check_render(value - 1, 9);
            check_render(value, 9);
        }
        check_render(u64::MAX, 9);
    }

    #[test]
    fn the_digits_of_limits() {
        for power in 1..17 {
            let value = 10u64.pow(power);
            check_digits(value - 1);
            check_digits(value);
        }
        check_digits(0);
    }

    fn check_digits(value: u64) {
        let text = format!("{value:016}");
        let expected = (value < E16).then(|| Digits {
            words: [0, 8].map(|at| {
                u64::from_le_bytes(text.as_bytes()[at..at + 8].try_into().expect("eight bytes"))
            }),
            len: value.to_string().len() as u64,
        });
        assert_eq!(Digits::of(value), expected);
    }

    proptest! {
        #[test]
        fn digits_are_those_of_the_number(value in number()) {
            check_digits(value);
        }

        #[test]
        fn leading_digits_are_a_number(number in 0u64..10_000_000, zeros in 0usize..3, rest in "[^0-9]{8}") {
            let digits = format!("{}{number}", "0".repeat(zeros));
            prop_assume!(digits.len() < 8);
            let text = [digits.as_bytes(), rest.as_bytes()].concat();
            let word = u64::from_le_bytes(text[..8].try_into().expect("eight bytes"));
            prop_assert_eq!(leading(word), Some((number, digits.len() as u64)));
        }

        #[test]
        fn only_up_to_seven_digits_lead(word: u64) {
            let bytes = word.to_le_bytes();
            let len = bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
            prop_assert_eq!(leading(word).map(|(_, len)| len), (1..8).contains(&len).then_some(len as u64));
        }

        #[test]
        fn long_numbers_agree_with_std(text in "[0-9]{0,21}|1844674407[0-9]{10}|[0-9 /:a-]{1,20}") {
            let window = Window::showing(text.as_bytes());
            let expected = (text.len() <= 20 && text.bytes().all(|b| b.is_ascii_digit()))
                .then(|| text.parse().ok())
                .flatten();
            prop_assert_eq!(decimal_u64(&window, 0, text.len() as u64), expected);
        }

        #[test]
        fn what_is_rendered_reads_back(value in number(), at in 0u64..100) {
            check_render(value, at);
            let mut window = Window::showing(&[]);
            let len = render(&mut window, at, value);
            prop_assert_eq!(decimal_u64(&window, at, len), Some(value));
        }

        #[test]
        fn any_length(bytes: [u8; 32], at: u64, len: u64) {
            let window = Window::showing(&bytes);
            prop_assert!(len <= 20 || decimal_u64(&window, at, len).is_none());
        }

        #[test]
        fn agrees_with_std(text in "[0-9]{0,10}|[0-9 /:a-]{1,8}") {
            let window = Window::showing(text.as_bytes());
            let expected = (text.len() <= 8 && text.bytes().all(|b| b.is_ascii_digit()))
                .then(|| text.parse().ok())
                .flatten();
            prop_assert_eq!(decimal(&window, 0, text.len() as u64), expected);
        }

        #[test]
        fn digits_are_digits(text in "[0-9]{0,22}|[0-9/:a-]{1,20}") {
            let window = Window::showing(text.as_bytes());
            let expected = (1..=18).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
            prop_assert_eq!(is_digits(&window, 0, text.len() as u64), expected);
        }
    }
}
