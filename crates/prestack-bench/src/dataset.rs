//! The items that a benchmark stores and reads back: every byte follows from the key's number and the
//! value's version.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::ops::RangeInclusive;

use anyhow::{Context, Result, anyhow, ensure};
use prestack_testbed::{Namespace, TcpClient};

use crate::interrupt;
use crate::protocol::Protocol;
use crate::sizes::{Part, Sizes};

/// Keys end in their number, in hexadecimal digits.
const DIGITS: usize = 8;
/// Least and greatest length of a key.
const KEY_LEN: std::ops::RangeInclusive<u32> = DIGITS as u32..=250;
/// Greatest length of a value: what memcached takes unless told otherwise, with some room for the rest of
/// the item.
const MAX_VALUE: u32 = 1_000_000;
/// Commands are sent in pieces of about so many bytes when items are stored.
const PIECE: usize = 64 << 10;

/// A set of items.
#[derive(Clone, Debug)]
pub struct Dataset {
    keys: u32,
    key_sizes: Column,
    value_sizes: Column,
    /// A key as long as any, without its number.
    padding: Vec<u8>,
}

/// A size of each item.
#[derive(Clone, Debug)]
enum Column {
    Same(u32),
    Each(Vec<u32>),
}

impl Column {
    fn new(sizes: Sizes, keys: u32, part: Part) -> Self {
        let least = if part == Part::Key {
            *KEY_LEN.start()
        } else {
            1
        };
        let most = if part == Part::Key {
            *KEY_LEN.end()
        } else {
            MAX_VALUE
        };
        let each = 0..keys;
        match sizes {
            Sizes::Fixed(size) => Self::Same(size),
            Sizes::Uniform(..) => Self::Each(each.map(|n| sizes.of(n, part)).collect()),
            // What the models have beyond what memcached takes is brought into its range.
            Sizes::Etc | Sizes::Twitter => {
                let size = |n| sizes.of(n, part).clamp(least, most);
                Self::Each(each.map(size).collect())
            }
        }
    }

    fn of(&self, n: u32) -> usize {
        match self {
            Self::Same(size) => *size as usize,
            // What is beyond the items, to be asked for in vain, has a size too.
            Self::Each(sizes) => sizes[n as usize % sizes.len()] as usize,
        }
    }
}

impl Dataset {
    /// `keys` items with keys of `key_size` and values of `value_size` bytes.
    ///
    /// # Errors
    /// When a size is out of range.
    pub fn new(keys: u32, key_size: usize, value_size: usize) -> Result<Self> {
        let fixed = |size| Sizes::Fixed(u32::try_from(size).unwrap_or(u32::MAX));
        Self::with_sizes(keys, fixed(key_size), fixed(value_size))
    }

    /// `keys` items with keys and values of these sizes.
    ///
    /// # Errors
    /// When a size is out of range.
    pub fn with_sizes(keys: u32, key_sizes: Sizes, value_sizes: Sizes) -> Result<Self> {
        ensure!(keys > 0, "there must be at least one key");
        if let Some((first, last)) = key_sizes.range() {
            ensure!(
                KEY_LEN.contains(&first) && KEY_LEN.contains(&last),
                "the key size must be {} to {} bytes",
                KEY_LEN.start(),
                KEY_LEN.end()
            );
        }
        if let Some((_, last)) = value_sizes.range() {
            ensure!(
                last <= MAX_VALUE,
                "the value size must be at most {MAX_VALUE} bytes"
            );
        }
        let key_sizes = Column::new(key_sizes, keys, Part::Key);
        let value_sizes = Column::new(value_sizes, keys, Part::Value);
        Ok(Self::with_columns(keys, key_sizes, value_sizes))
    }

    /// Items with keys and values of these sizes, brought into the ranges that memcached takes.
    pub(crate) fn with_each(sizes: &[(u32, u32)]) -> Self {
        let key = |&(key, _): &(u32, u32)| key.clamp(*KEY_LEN.start(), *KEY_LEN.end());
        let value = |&(_, value): &(u32, u32)| value.min(MAX_VALUE);
        let key_sizes = Column::Each(sizes.iter().map(key).collect());
        let value_sizes = Column::Each(sizes.iter().map(value).collect());
        Self::with_columns(sizes.len() as u32, key_sizes, value_sizes)
    }

    fn with_columns(keys: u32, key_sizes: Column, value_sizes: Column) -> Self {
        Self {
            keys,
            key_sizes,
            value_sizes,
            padding: vec![b'k'; *KEY_LEN.end() as usize],
        }
    }

    /// Bytes of all keys and values.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let item = |n| (self.key_len(n) + self.value_len(n)) as u64;
        (0..self.keys).map(item).sum()
    }

    /// Bytes of key and value of the largest item.
    pub(crate) fn largest(&self) -> usize {
        let item = |n| self.key_len(n) + self.value_len(n);
        (0..self.keys).map(item).max().unwrap_or(0)
    }

    /// The number of items.
    #[must_use]
    pub fn keys(&self) -> u32 {
        self.keys
    }

    /// The key of item `n`.
    pub(crate) fn key(&self, n: u32) -> Vec<u8> {
        let (padding, digits) = self.key_parts(n);
        [padding, &digits].concat()
    }

    /// The first value of item `n`.
    pub(crate) fn value(&self, n: u32) -> Vec<u8> {
        let mut value = Vec::new();
        self.write_value(n, 0, &mut value);
        value
    }

    /// Bytes of the value of item `n`, whatever its version.
    pub(crate) fn value_len(&self, n: u32) -> usize {
        self.value_sizes.of(n)
    }

    /// Appends the `version`-th value of item `n`.
    pub(crate) fn write_value(&self, n: u32, version: u32, to: &mut Vec<u8>) {
        self.words(n, version)
            .for_each(|(word, len)| to.extend(&word[..len]));
    }

    /// Bytes of the key of item `n`.
    pub(crate) fn key_len(&self, n: u32) -> usize {
        self.key_sizes.of(n)
    }

    /// The key of item `n` in two pieces.
    pub(crate) fn key_parts(&self, n: u32) -> (&[u8], [u8; DIGITS]) {
        (&self.padding[..self.key_len(n) - DIGITS], digits(n))
    }

    /// Appends the key of item `n`.
    pub(crate) fn write_key(&self, n: u32, to: &mut Vec<u8>) {
        let (padding, digits) = self.key_parts(n);
        to.extend(padding);
        to.extend(digits);
    }

    /// Whether these bytes are, each of them, a value of item `n` with one of these versions. (Of
    /// values below four bytes, versions that agree in their last bytes are the same.)
    pub(crate) fn is_value(&self, n: u32, versions: RangeInclusive<u32>, value: &[u8]) -> bool {
        if value.len() != self.value_len(n) {
            return false;
        }
        let shown = value.len().min(4);
        let mut bytes = [0; 4];
        bytes[..shown].copy_from_slice(&value[..shown]);
        let mask = if shown == 4 {
            u32::MAX
        } else {
            (1 << (8 * shown)) - 1
        };
        let shown = u32::from_le_bytes(bytes) ^ mix(u64::from(n)) as u32;
        let (first, last) = versions.into_inner();
        let version = first.wrapping_add(shown.wrapping_sub(first) & mask);
        let mut rest = value;
        (first..=last).contains(&version)
            && self.words(n, version).all(|(word, len)| {
                let (start, end) = rest.split_at(len);
                rest = end;
                start == &word[..len]
            })
    }

    /// The value of item `n` in words of eight bytes and the used length of each. The version stands in
    /// the first four bytes, and all that follow depend on it.
    fn words(&self, n: u32, version: u32) -> impl Iterator<Item = ([u8; 8], usize)> {
        let size = self.value_len(n);
        let seed = mix(u64::from(n) << 32 | u64::from(version));
        let first = u64::from(mix(u64::from(n)) as u32 ^ version) | seed << 32;
        (0..size).step_by(8).map(move |at| {
            let word = if at == 0 {
                first
            } else {
                mix(seed.wrapping_add(at as u64))
            };
            (word.to_le_bytes(), (size - at).min(8))
        })
    }

    /// Stores all items in the memcached at `server`, over TCP from `namespace` or, without one, from where
    /// the caller is.
    ///
    /// # Errors
    /// When the connection fails, memcached refuses an item, or after Ctrl-C.
    pub fn load(&self, namespace: Option<&Namespace>, server: SocketAddr) -> Result<()> {
        let mut client = match namespace {
            Some(namespace) => TcpClient::connect(namespace, server)?,
            None => TcpClient::connect_here(server)?,
        };
        let mut commands = Vec::new();
        let mut sent = 0;
        for n in 0..self.keys {
            Protocol::Text.set(self, n, 0, false, &mut commands);
            if commands.len() < PIECE && n + 1 < self.keys {
                continue;
            }
            interrupt::check()?;
            client
                .send(&commands)
                .map_err(said)
                .context("storing the items")?;
            commands.clear();
            for n in sent..=n {
                let answer = client.line().map_err(said).context("storing the items")?;
                ensure!(
                    answer == b"STORED\r\n",
                    "item {n}: {}",
                    String::from_utf8_lossy(&answer)
                );
            }
            sent = n + 1;
        }
        Ok(())
    }
}

/// What has not come or gone in time is told as that, and not by the system's name for it.
fn said(error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref::<io::Error>().map(io::Error::kind) {
        Some(ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            anyhow!("no answer came in time: is memcached stopped or overloaded?")
        }
        _ => error,
    }
}

/// The number of an item as its key shows it.
pub(crate) fn digits(n: u32) -> [u8; DIGITS] {
    std::array::from_fn(|i| b"0123456789abcdef"[(n >> (4 * (DIGITS - 1 - i))) as usize & 15])
}

/// A number whose every bit depends on every bit of `n` (the finisher of SplitMix64).
pub(crate) fn mix(n: u64) -> u64 {
    let n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_tell_their_version() {
        for value_size in [0, 1, 3, 4, 5, 8, 9, 100] {
            let set = Dataset::new(1_000, 16, value_size).unwrap();
            let mut value = Vec::new();
            set.write_value(7, 1_000, &mut value);
            for versions in [1_000..=1_000, 990..=1_000, 1_000..=1_010] {
                assert!(set.is_value(7, versions, &value), "{value_size} bytes");
            }
            let is_told = value_size > 0;
            assert_eq!(set.is_value(7, 1_001..=1_010, &value), !is_told);
            assert_eq!(set.is_value(7, 990..=999, &value), !is_told);
            assert_eq!(set.is_value(8, 1_000..=1_000, &value), !is_told);
            for at in 0..value_size {
                let mut other = value.clone();
                other[at] ^= 1;
                assert!(!set.is_value(7, 1_000..=1_000, &other), "byte {at}");
            }
            value.push(0);
            assert!(!set.is_value(7, 1_000..=1_000, &value));
        }
    }

    #[test]
    fn sizes_are_the_items_own() {
        let sizes = [(10, 5), (8, 0), (9_999, 2_000_000)];
        let set = Dataset::with_each(&sizes);
        assert_eq!(set.key(0xf), b"kk0000000f");
        let lengths = [0, 1, 2].map(|n| (set.key(n).len(), set.value(n).len()));
        assert_eq!(lengths, [(10, 5), (8, 0), (250, 1_000_000)]);
        assert_eq!(set.bytes(), 15 + 8 + 1_000_250);
    }

    #[test]
    fn sizes_out_of_range_are_refused() {
        assert!(Dataset::new(0, 16, 32).is_err());
        assert!(Dataset::new(1, 7, 32).is_err());
        assert!(Dataset::new(1, 251, 32).is_err());
        assert!(Dataset::new(1, 16, 1_000_001).is_err());
        let is_refused = |keys, values| Dataset::with_sizes(9, keys, values).is_err();
        let fine = Sizes::Uniform(8, 250);
        assert!(is_refused(Sizes::Uniform(7, 250), fine));
        assert!(is_refused(Sizes::Uniform(8, 251), fine));
        assert!(is_refused(fine, Sizes::Uniform(1, 1_000_001)));
        assert!(!is_refused(fine, Sizes::Uniform(0, 1_000_000)));
    }

    #[test]
    fn values_of_a_range_may_be_empty() {
        let set = Dataset::with_sizes(100, Sizes::Fixed(8), Sizes::Uniform(0, 1)).unwrap();
        let empty = (0..100).filter(|&n| set.value_len(n) == 0).count();
        assert!((30..70).contains(&empty), "{empty}");
    }
}
