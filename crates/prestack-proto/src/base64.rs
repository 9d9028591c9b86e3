//! Base64 with the standard alphabet and padding (RFC 4648, section 4): keys of meta commands.

use crate::swar;
use crate::window::{Source, Window};

/// Longest text that is decoded: no key token is longer, and only whole groups are.
pub const MAX_LEN: u64 = 248;

/// What was decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decoded {
    /// Bytes that the text stands for: 1 to 186.
    pub len: u64,
    /// Whether the bytes, encoded again, give the same text: the bits of the last digit that stand
    /// for nothing are 0.
    pub is_canonical: bool,
    /// Whether there is a line feed among the bytes.
    pub has_line_end: bool,
}

/// Decodes the `len` characters at `at` of `source` to position 0 of `target`, where up to seven
/// bytes behind them become garbage.
///
/// `None`, the target being garbage, unless there are 4 to [`MAX_LEN`] characters, a multiple of 4,
/// at most two `=` at the end, and digits else. memcached also accepts other texts: it skips what
/// is no digit, and what follows a group with a `=`.
#[inline(always)]
pub fn decode(source: &Window, at: u64, len: u64, target: &mut Window) -> Option<Decoded> {
    if len == 0 || len & 3 != 0 {
        return None;
    }
    if len > MAX_LEN {
        return None;
    }
    let padding = padding(source, at + len);
    let at = source.forgotten(at);
    let digits = source.forgotten(len - padding);
    let (mut done, mut out, mut line_ends) = (0, 0, 0);
    for _ in 0..MAX_LEN / 8 {
        // Forgotten, or the verifier follows every length to the end.
        if done >= source.forgotten(digits) {
            break;
        }
        let word = source.word(at + done);
        // Behind the end the digits are 0.
        let here = source.forgotten(digits - done);
        let word = if here < 8 {
            word ^ (word ^ swar::repeat(b'A')) & u64::MAX << (8 * (here & 7))
        } else {
            word
        };
        let values = values(source.forgotten(word))?;
        let bytes = join(values);
        line_ends |= swar::equal(bytes, b'\n');
        target.set_word(out, bytes);
        done += 8;
        out += 6;
    }
    let last = values(swar::repeat(source.byte(at + digits - 1)))?;
    // Two bits of the last digit are not used for each `=`.
    let unused = last & ((1 << (2 * padding)) - 1);
    Some(Decoded {
        len: source.forgotten((len >> 2) * 3 - padding),
        is_canonical: unused == 0,
        has_line_end: source.forgotten(line_ends) != 0,
    })
}

/// The number of `=`, at most two, before `end`.
#[inline(always)]
fn padding(source: &Window, end: u64) -> u64 {
    // Without comparisons, whose outcomes the verifier would follow.
    let equal = swar::equal_all(source.word(end.wrapping_sub(8)), b'=');
    let (last, before) = (equal >> 63, equal >> 55 & 1);
    source.forgotten(last + (last & before))
}

/// The values (0 to 63) of eight digits.
#[inline(always)]
fn values(word: u64) -> Option<u64> {
    let upper = swar::in_range(word, b'A', 26);
    let lower = swar::in_range(word, b'a', 26);
    let number = swar::in_range(word, b'0', 10);
    let plus = swar::equal_all(word, b'+');
    let slash = swar::equal_all(word, b'/');
    if upper | lower | number | plus | slash != swar::repeat(0x80) {
        return None;
    }
    // What is added is the value less the character, modulo 64; both are below 128, so that no sum
    // carries into the next byte.
    let offset = swar::widen(upper) & swar::repeat(128 - b'A')
        | swar::widen(lower) & swar::repeat(128 + 26 - b'a')
        | swar::widen(number) & swar::repeat(52 - b'0')
        | swar::widen(plus) & swar::repeat(62 - b'+')
        | swar::widen(slash) & swar::repeat(63 - b'/');
    Some((word + offset) & swar::repeat(0x3f))
}

/// The six bytes that eight values stand for, and two bytes 0.
#[inline(always)]
const fn join(values: u64) -> u64 {
    // The first value is the least significant byte, but the most significant bits.
    let pairs = (values & 0x003f_003f_003f_003f) << 6 | values >> 8 & 0x003f_003f_003f_003f;
    let fours = (pairs & 0x0000_0fff_0000_0fff) << 12 | pairs >> 16 & 0x0000_0fff_0000_0fff;
    let all = (fours & 0x00ff_ffff) << 24 | fours >> 32;
    (all << 16).swap_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

    /// RFC 4648, section 4, bit by bit.
    fn slow_encode(bytes: &[u8]) -> String {
        let mut text = String::new();
        for group in bytes.chunks(3) {
            let bit = |i: usize| group.get(i / 8).is_some_and(|b| b >> (7 - i % 8) & 1 == 1);
            for digit in 0..4 {
                if digit > group.len() {
                    text.push('=');
                } else {
                    let value = (0..6).fold(0, |v, i| v << 1 | usize::from(bit(6 * digit + i)));
                    text.push(DIGITS[value] as char);
                }
            }
        }
        text
    }

    fn slow_decode(text: &[u8]) -> Option<(Vec<u8>, bool)> {
        if text.is_empty() || !text.len().is_multiple_of(4) || text.len() > 248 {
            return None;
        }
        let padding = text
            .iter()
            .rev()
            .take(2)
            .take_while(|&&b| b == b'=')
            .count();
        let mut bits = vec![];
        for digit in &text[..text.len() - padding] {
            let value = DIGITS.iter().position(|d| d == digit)?;
            bits.extend((0..6).rev().map(|i| value >> i & 1 == 1));
        }
        let (whole, rest) = bits.split_at(bits.len() / 8 * 8);
        let byte = |bits: &[bool]| bits.iter().fold(0, |byte, &bit| byte << 1 | u8::from(bit));
        Some((
            whole.chunks(8).map(byte).collect(),
            rest.iter().all(|bit| !bit),
        ))
    }

    fn fast_decode(text: &[u8], at: u64) -> Option<(Vec<u8>, bool)> {
        let mut shown = vec![b'='; at as usize];
        shown.extend(text);
        let mut target = Window::showing(&[b'#'; 300]);
        let decoded = decode(&Window::showing(&shown), at, text.len() as u64, &mut target)?;
        assert!((decoded.len + 7..300).all(|at| target.byte(at) == b'#'));
        let bytes: Vec<_> = (0..decoded.len).map(|at| target.byte(at)).collect();
        assert_eq!(decoded.has_line_end, bytes.contains(&b'\n'));
        Some((bytes, decoded.is_canonical))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn keys_come_back(key in proptest::collection::vec(any::<u8>(), 1..=186), at in 0u64..20) {
            let text = slow_encode(&key);
            prop_assert_eq!(slow_decode(text.as_bytes()), Some((key.clone(), true)));
            prop_assert_eq!(fast_decode(text.as_bytes(), at), Some((key, true)));
        }

        #[test]
        fn texts_like_base64(text in "[A-Za-z0-9+/]{0,60}={0,4}[a=]?", at in 0u64..20) {
            let decoded = fast_decode(text.as_bytes(), at);
            prop_assert_eq!(&decoded, &slow_decode(text.as_bytes()));
            if let Some((bytes, is_canonical)) = decoded {
                prop_assert_eq!(slow_encode(&bytes) == text, is_canonical);
            }
        }

        #[test]
        fn one_byte_changed(key in proptest::collection::vec(any::<u8>(), 1..=190), at: prop::sample::Index, byte: u8) {
            let mut text = slow_encode(&key).into_bytes();
            let at = at.index(text.len());
            text[at] = byte;
            prop_assert_eq!(fast_decode(&text, 0), slow_decode(&text));
        }

        #[test]
        fn arbitrary_bytes(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(fast_decode(&text, 0), slow_decode(&text));
        }
    }

    #[test]
    fn every_character() {
        for byte in 0..=u8::MAX {
            for place in 0..8 {
                let mut text = *b"AAAAAAAA";
                text[place] = byte;
                assert_eq!(
                    fast_decode(&text, 0),
                    slow_decode(&text),
                    "{byte} at {place}"
                );
            }
        }
    }

    #[test]
    fn padding_is_at_the_end() {
        assert_eq!(fast_decode(b"Zm9v", 0), Some((b"foo".to_vec(), true)));
        assert_eq!(fast_decode(b"Zg==", 0), Some((b"f".to_vec(), true)));
        assert_eq!(fast_decode(b"Zh==", 0), Some((b"f".to_vec(), false)));
        assert_eq!(fast_decode(b"Zm9=", 0), Some((b"fo".to_vec(), false)));
        for text in [
            "", "Zm9", "Z===", "====", "Zm=v", "Zg==Zm9v", "Zm9v ", "Zm9v~~~~", "Zm-v",
        ] {
            assert_eq!(fast_decode(text.as_bytes(), 0), None, "{text}");
        }
    }
}
