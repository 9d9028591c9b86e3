//! Decimal numbers.

use crate::swar;
use crate::window::Window;

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
    // '0' to '9' are 0x30 to 0x39: the upper half is 3, also after adding 6.
    const UPPER: u64 = swar::repeat(0xf0);
    if word & UPPER != swar::repeat(0x30) || (word + swar::repeat(6)) & UPPER != swar::repeat(0x30)
    {
        return None;
    }
    // Pairs of digits, then of pairs, then of fours (the least significant byte comes first).
    let digits = word & swar::repeat(0x0f);
    let pairs = (digits * 10 + (digits >> 8)) & 0x00ff_00ff_00ff_00ff;
    let fours = (pairs * 100 + (pairs >> 16)) & 0x0000_ffff_0000_ffff;
    Some((fours * 10_000 + (fours >> 32)) & 0xffff_ffff)
}

/// Whether there are `len` digits at `at`, 1 to 18: a number that memcached cannot refuse for its
/// size.
#[inline(always)]
pub fn is_digits(window: &Window, at: u64, len: u64) -> bool {
    const UPPER: u64 = swar::repeat(0xf0);
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
        if word & UPPER != swar::repeat(0x30)
            || (word + swar::repeat(6)) & UPPER != swar::repeat(0x30)
        {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
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
