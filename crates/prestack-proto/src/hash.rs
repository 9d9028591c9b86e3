//! The hash of keys and of request names: one multiplication for eight bytes, seeded with a random
//! number at start.

use crate::checksum::add_word;
use crate::swar;
use crate::window::Source;

const K0: u64 = 0x9e37_79b9_7f4a_7c15;
const K1: u64 = 0xbf58_476d_1ce4_e5b9;

/// Adds eight bytes to a hash.
#[inline(always)]
#[must_use]
pub const fn mix(hash: u64, word: u64) -> u64 {
    let x = (hash ^ word).wrapping_mul(K0);
    x ^ (x >> 32)
}

/// Ends a hash over `len` bytes: every input bit reaches every output bit.
#[inline(always)]
#[must_use]
pub const fn finish(hash: u64, len: u64) -> u64 {
    let x = (hash ^ len).wrapping_mul(K1);
    let x = (x ^ (x >> 29)).wrapping_mul(K0);
    x ^ (x >> 32)
}

/// The seed for the keys of a backend, so that equal keys of two backends have unrelated hashes.
#[inline(always)]
#[must_use]
pub const fn backend_seed(seed: u64, backend: u8) -> u64 {
    mix(seed, backend as u64 + 1)
}

/// The hash of the key of `len` bytes (1 to 250) at `at`, for a [`backend_seed`].
///
/// `None` if a byte of the key is a space or a control character, or lies outside the source. At
/// least eight bytes precede the key in the source.
#[inline(always)]
pub fn scan_key<S: Source>(source: &S, at: u64, len: u64, seed: u64) -> Option<u64> {
    Some(scan(source, at, len, seed, TEXT)?.hash)
}

/// A key that was gone over once.
#[derive(Clone, Copy)]
pub struct Scan {
    /// Its hash.
    pub hash: u64,
    /// The one's-complement sum of its bytes, not folded (see [`checksum`](crate::checksum)).
    pub sum: u64,
}

/// [`scan_key`] and the sum of the key's bytes, in one pass.
#[inline(always)]
pub fn scan_and_sum_key<S: Source>(source: &S, at: u64, len: u64, seed: u64) -> Option<Scan> {
    scan(source, at, len, seed, TEXT)
}

/// The hash of the key of `len` bytes (1 to 250) at `at`, any bytes, for a [`backend_seed`].
///
/// `None` if a byte of the key lies outside the source. At least eight bytes precede the key in the
/// source.
#[inline(always)]
pub fn hash_key<S: Source>(source: &S, at: u64, len: u64, seed: u64) -> Option<u64> {
    Some(scan(source, at, len, seed, ANY)?.hash)
}

/// What [`scan`] takes for a key: no space or control character, or any byte.
pub const TEXT: u64 = u64::MAX;
/// See [`TEXT`].
pub const ANY: u64 = 0;

/// [`scan_and_sum_key`] for a key of the protocol that is given by [`TEXT`] or [`ANY`].
#[inline(always)]
pub fn scan<S: Source>(source: &S, at: u64, len: u64, seed: u64, protocol: u64) -> Option<Scan> {
    let len = source.forgotten(len);
    let mut hash = seed;
    let mut sum = 0;
    let mut done = 0;
    for _ in 0..crate::MAX_KEY / 8 {
        if done + 8 > len {
            break;
        }
        let word = source.word(at + done)?;
        if swar::below(word, 0x21) & protocol != 0 {
            return None;
        }
        hash = mix(hash, word);
        sum = add_word(sum, word);
        done += 8;
    }
    let rest = len - done;
    if rest >= 8 {
        return None;
    }
    if rest > 0 {
        // Read backwards from the key's end: what follows the key may lie outside the source.
        let word = source.word(at + len - 8)? >> (8 * (8 - rest));
        let padded = word | (swar::repeat(0x21) << (8 * rest));
        if swar::below(padded, 0x21) & protocol != 0 {
            return None;
        }
        hash = mix(hash, word);
        sum = add_word(sum, word);
    }
    Some(Scan {
        hash: finish(hash, len),
        sum,
    })
}

/// The hash of a key for a [`backend_seed`]; any bytes are accepted.
#[must_use]
pub fn key_hash(seed: u64, key: &[u8]) -> u64 {
    let hash = key.chunks(8).fold(seed, |hash, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        mix(hash, u64::from_le_bytes(word))
    });
    finish(hash, key.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::{fold, sum};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn scanning_agrees_with_hashing(seed: u64, key in proptest::collection::vec(0x21u8.., 1..=250), junk: [u8; 8]) {
            let mut bytes = junk.to_vec();
            bytes.extend(&key);
            prop_assert_eq!(scan_key(&bytes.as_slice(), 8, key.len() as u64, seed), Some(key_hash(seed, &key)));
            let scan = scan_and_sum_key(&bytes.as_slice(), 8, key.len() as u64, seed).expect("a key");
            prop_assert_eq!(scan.hash, key_hash(seed, &key));
            prop_assert_eq!(fold(scan.sum), fold(sum(&key)));
        }

        #[test]
        fn any_key_has_its_hash(seed: u64, key in proptest::collection::vec(any::<u8>(), 1..=250), junk: [u8; 8]) {
            let mut bytes = junk.to_vec();
            bytes.extend(&key);
            let (source, len) = (bytes.as_slice(), key.len() as u64);
            prop_assert_eq!(hash_key(&source, 8, len, seed), Some(key_hash(seed, &key)));
            if let Some(hash) = scan_key(&source, 8, len, seed) {
                prop_assert_eq!(hash_key(&source, 8, len, seed), Some(hash));
            }
            prop_assert_eq!(hash_key(&&source[..bytes.len() - 1], 8, len, seed), None);
        }

        #[test]
        fn control_characters_are_refused(mut key in proptest::collection::vec(0x21u8.., 1..=250), at: prop::sample::Index, bad in 0u8..=0x20) {
            let at = at.index(key.len());
            key[at] = bad;
            let mut bytes = vec![b'x'; 8];
            bytes.extend(&key);
            prop_assert_eq!(scan_key(&bytes.as_slice(), 8, key.len() as u64, 1), None);
        }

        #[test]
        fn outside_is_refused(key in proptest::collection::vec(0x21u8.., 1..=250)) {
            let mut bytes = vec![b'x'; 8];
            bytes.extend(&key);
            bytes.pop();
            prop_assert_eq!(scan_key(&bytes.as_slice(), 8, key.len() as u64, 1), None);
        }
    }

    #[test]
    fn lengths_and_backends_differ() {
        assert_ne!(key_hash(1, b"a"), key_hash(1, b"a\0"));
        assert_ne!(
            key_hash(backend_seed(1, 0), b"a"),
            key_hash(backend_seed(1, 1), b"a")
        );
    }
}
