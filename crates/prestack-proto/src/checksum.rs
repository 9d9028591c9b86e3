//! The Internet checksum (RFC 1071): one's-complement sums of 16-bit words.
//!
//! Words are taken in the order of the machine (little-endian); a sum so made, inverted and
//! stored in the same order, is right on the wire (RFC 1071, section 2(B)).

use crate::swar;
use crate::window::{Source, WINDOW, Window};

/// Folds a sum of any number of words to 16 bits.
#[inline(always)]
#[must_use]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    (sum + (sum >> 16)) as u16
}

/// Adds eight bytes to a running sum that [`fold`] accepts.
#[inline(always)]
#[must_use]
pub const fn add_word(sum: u64, word: u64) -> u64 {
    // Two halves, no carry: a carry is a branch, and up to 2^31 words do not overflow.
    sum + (word & 0xffff_ffff) + (word >> 32)
}

/// The sum, not folded, of bytes that are moved to a position: of an odd one the two bytes of each word
/// change places (RFC 1071, section 2(B)). Below 2^56.
#[inline(always)]
#[must_use]
pub const fn shifted(sum: u64, position: u64) -> u64 {
    sum << (8 * (position & 1))
}

/// The sum, not folded, of what is left of bytes without some of them, whose sum is below 2^48.
#[inline(always)]
#[must_use]
pub const fn without(sum: u64, part: u64) -> u64 {
    // A multiple of 2^16 - 1, which is zero to such sums.
    const ZERO: u64 = (1 << 48) - 1;
    sum + (ZERO - part)
}

/// The sum of the `len` bytes (at most [`WINDOW`]) at `at` of a window, folded. The first byte is
/// the first of a 16-bit word, whatever the position.
#[inline(always)]
pub fn window_sum_from(window: &Window, at: u64, len: u64) -> u16 {
    let at = window.forgotten(at);
    let len = window.forgotten(len);
    let mut sum = 0;
    let mut done = 0;
    for _ in 0..WINDOW / 8 {
        if done + 8 > len {
            break;
        }
        sum = add_word(sum, window.word(at + done));
        done += 8;
    }
    let last = window.word(at + done);
    fold(add_word(sum, swar::keep(last, len - done)))
}

/// The sum of some bytes, an odd last one padded with zero, not folded.
#[must_use]
pub fn sum(bytes: &[u8]) -> u64 {
    let mut chunks = bytes.chunks_exact(8);
    let mut total = 0;
    for chunk in &mut chunks {
        let mut word = [0; 8];
        word.copy_from_slice(chunk);
        total = add_word(total, u64::from_le_bytes(word));
    }
    let mut last = [0; 8];
    last[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
    add_word(total, u64::from_le_bytes(last))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071, section 4.1, word by word.
    fn reference(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) | u32::from(*pair.get(1).unwrap_or(&0)) << 8;
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    proptest! {
        #[test]
        fn agrees_with_the_rfc(bytes in proptest::collection::vec(any::<u8>(), 0..1500)) {
            prop_assert_eq!(fold(sum(&bytes)), reference(&bytes));
        }

        #[test]
        fn sums_start_anywhere(bytes in proptest::collection::vec(any::<u8>(), 0..1500), at: prop::sample::Index) {
            let at = at.index(bytes.len() + 1);
            let len = (bytes.len() - at) as u64;
            prop_assert_eq!(window_sum_from(&Window::showing(&bytes), at as u64, len), reference(&bytes[at..]));
        }

        #[test]
        fn sums_are_put_together_and_taken_apart(
            front in proptest::collection::vec(any::<u8>(), 1..300),
            back in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let whole = [&front[..], &back].concat();
            let moved = shifted(sum(&back), front.len() as u64);
            prop_assert_eq!(fold(sum(&front) + moved) % 0xffff, reference(&whole) % 0xffff);
            let left = without(u64::from(reference(&whole)), sum(&front));
            prop_assert_eq!(fold(shifted(left, front.len() as u64)) % 0xffff, reference(&back) % 0xffff);
        }

        #[test]
        fn folds_every_sum(value: u64) {
            let folded = fold(value);
            prop_assert_eq!(u64::from(folded) % 0xffff, value % 0xffff);
            prop_assert!(folded != 0 || value == 0);
        }
    }
}
