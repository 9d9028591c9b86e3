//! Tests on the eight bytes of a word at once; the byte at the lowest address is the least
//! significant.

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = 0x8080_8080_8080_8080;

/// The byte repeated eight times.
#[inline(always)]
#[must_use]
pub const fn repeat(byte: u8) -> u64 {
    ONES * byte as u64
}

/// Non-zero if some byte of `word` is below `limit` (1 to 128); the lowest bit set is then the top
/// bit of the first such byte.
#[inline(always)]
#[must_use]
pub const fn below(word: u64, limit: u8) -> u64 {
    word.wrapping_sub(repeat(limit)) & !word & HIGH
}

/// Non-zero if some byte of `word` equals `byte`; the lowest bit set is then the top bit of the
/// first such byte.
#[inline(always)]
#[must_use]
pub const fn equal(word: u64, byte: u8) -> u64 {
    below(word ^ repeat(byte), 1)
}

/// Top bit of every byte of `word` that equals `byte`, exactly.
#[inline(always)]
#[must_use]
pub const fn equal_all(word: u64, byte: u8) -> u64 {
    let x = word ^ repeat(byte);
    !(((x & !HIGH) + !HIGH) | x) & HIGH
}

/// Top bit of every byte `b` of `word` for which `b - start`, modulo 256, is below `len` (1 to
/// 127), exactly.
#[inline(always)]
#[must_use]
pub const fn in_range(word: u64, start: u8, len: u8) -> u64 {
    let s = repeat(start);
    let distance = ((word | HIGH) - (s & !HIGH)) ^ ((word ^ !s) & HIGH);
    let reached = (distance & !HIGH) + repeat(0x80 - len);
    !(reached | distance) & HIGH
}

/// Index (0 to 7) of the byte in which the lowest set bit of a non-zero `mask` lies.
///
/// Only bytes' top bits may be set. BPF has no instruction that counts zeros, so a multiplication
/// gathers the answer.
#[inline(always)]
#[must_use]
pub const fn first(mask: u64) -> u64 {
    // Below the first top bit every byte becomes 0xff, whose lowest bits are added up.
    let before = (mask & mask.wrapping_neg()).wrapping_sub(1) >> 7;
    (before & ONES).wrapping_mul(ONES) >> 56
}

/// How many bytes have their top bit set in `mask`, which has no other bits.
#[inline(always)]
#[must_use]
pub const fn count(mask: u64) -> u64 {
    (mask >> 7).wrapping_mul(ONES) >> 56
}

/// All bits of every byte whose top bit is set in `mask`, which has no other bits.
#[inline(always)]
#[must_use]
pub const fn widen(mask: u64) -> u64 {
    (mask >> 7).wrapping_mul(0xff)
}

/// The first `len` (0 to 8) bytes of a word, the others zero.
#[inline(always)]
#[must_use]
pub const fn keep(word: u64, len: u64) -> u64 {
    if len >= 8 {
        word
    } else {
        word & ((1 << (8 * len)) - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn top_bits(word: u64, test: impl Fn(u8) -> bool) -> u64 {
        let bits = word.to_le_bytes().map(|b| if test(b) { 0x80 } else { 0 });
        u64::from_le_bytes(bits)
    }

    proptest! {
        #[test]
        fn below_finds_the_first(word: u64, limit in 1u8..=128) {
            let exact = top_bits(word, |b| b < limit);
            let mask = below(word, limit);
            prop_assert_eq!(mask != 0, exact != 0);
            if exact != 0 {
                prop_assert_eq!(first(mask), u64::from(exact.trailing_zeros() / 8));
            }
        }

        #[test]
        fn equality_is_exact(word: u64, pick in 0usize..8, other: u8) {
            for byte in [word.to_le_bytes()[pick], other] {
                prop_assert_eq!(equal_all(word, byte), top_bits(word, |b| b == byte));
                prop_assert_eq!(equal(word, byte) != 0, equal_all(word, byte) != 0);
            }
        }

        #[test]
        fn range_is_exact(word: u64, start: u8, len in 1u8..=127) {
            prop_assert_eq!(in_range(word, start, len), top_bits(word, |b| b.wrapping_sub(start) < len));
        }

        #[test]
        fn keep_and_widen(word: u64, len in 0u64..=8) {
            let mut bytes = word.to_le_bytes();
            bytes[len as usize..].fill(0);
            prop_assert_eq!(keep(word, len), u64::from_le_bytes(bytes));
            let mask = word & 0x8080_8080_8080_8080;
            prop_assert_eq!(count(mask), u64::from(mask.count_ones()));
            prop_assert_eq!(widen(mask).to_le_bytes(), mask.to_le_bytes().map(|b| if b != 0 { 0xff } else { 0 }));
        }
    }
}
