//! The items that a benchmark stores and reads back: every byte follows from the key's number.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use prestack_testbed::{Namespace, TcpClient};

/// Bytes of the frame before a UDP datagram's payload.
const FRAME: usize = 8;
/// Keys end in their number, in hexadecimal digits.
const DIGITS: usize = 8;
/// Greatest length of a value: its reply fits one datagram, whatever its key.
const MAX_VALUE: usize = 1_100;

/// A set of items, all of one size.
#[derive(Clone, Debug)]
pub struct Dataset {
    keys: u32,
    value_size: usize,
    /// A request with a key of zeros.
    request: Vec<u8>,
    /// A reply's payload between key and value.
    middle: Vec<u8>,
}

impl Dataset {
    /// `keys` items with keys of `key_size` and values of `value_size` bytes.
    ///
    /// # Errors
    /// When a size is out of range.
    pub fn new(keys: u32, key_size: usize, value_size: usize) -> Result<Self> {
        ensure!(keys > 0, "there must be at least one key");
        ensure!(
            (DIGITS..=250).contains(&key_size),
            "the key size must be {DIGITS} to 250 bytes"
        );
        ensure!(
            value_size <= MAX_VALUE,
            "the value size must be at most {MAX_VALUE} bytes"
        );
        let key = [vec![b'k'; key_size - DIGITS], vec![b'0'; DIGITS]].concat();
        let request = [&[0, 0, 0, 0, 0, 1, 0, 0], &b"get "[..], &key, b"\r\n"].concat();
        let middle = format!(" 0 {value_size}\r\n").into_bytes();
        Ok(Self {
            keys,
            value_size,
            request,
            middle,
        })
    }

    /// The number of items.
    #[must_use]
    pub fn keys(&self) -> u32 {
        self.keys
    }

    /// A datagram that holds any reply, and some more: what is too long is seen.
    pub(crate) fn reply_capacity(&self) -> usize {
        self.request.len() + self.middle.len() + self.value_size + 64
    }

    /// Bytes of a request's datagram.
    pub(crate) fn request_len(&self) -> usize {
        self.request.len()
    }

    /// Writes a request for item `n` to `datagram`, of [`request_len`](Self::request_len) bytes.
    pub(crate) fn write_request(&self, n: u32, id: u16, datagram: &mut [u8]) {
        datagram.copy_from_slice(&self.request);
        datagram[..2].copy_from_slice(&id.to_be_bytes());
        let end = datagram.len() - 2;
        datagram[end - DIGITS..end].copy_from_slice(&digits(n));
    }

    /// The key of item `n`.
    pub(crate) fn key(&self, n: u32) -> Vec<u8> {
        let key = &self.request[FRAME + 4..self.request.len() - 2 - DIGITS];
        [key, &digits(n)].concat()
    }

    /// The value of item `n`.
    pub(crate) fn value(&self, n: u32) -> Vec<u8> {
        let words = self.words(n);
        words
            .flat_map(|(word, len)| word.into_iter().take(len))
            .collect()
    }

    /// Whether `datagram` is, byte for byte, what memcached answers to
    /// [the request](Self::write_request) for item `n`.
    pub(crate) fn is_reply(&self, n: u32, id: u16, datagram: &[u8]) -> bool {
        let mut rest = datagram;
        let mut expect = |bytes: &[u8]| {
            let found = rest.starts_with(bytes);
            rest = &rest[if found { bytes.len() } else { 0 }..];
            found
        };
        let key_padding = &self.request[FRAME + 4..self.request.len() - 2 - DIGITS];
        expect(&id.to_be_bytes())
            && expect(&[0, 0, 0, 1, 0, 0])
            && expect(b"VALUE ")
            && expect(key_padding)
            && expect(&digits(n))
            && expect(&self.middle)
            && self.words(n).all(|(word, len)| expect(&word[..len]))
            && expect(b"\r\nEND\r\n")
            && rest.is_empty()
    }

    /// The value of item `n` in words of eight bytes and the used length of each.
    fn words(&self, n: u32) -> impl Iterator<Item = ([u8; 8], usize)> {
        (0..self.value_size).step_by(8).map(move |at| {
            let word = mix(u64::from(n) << 32 | at as u64).to_le_bytes();
            (word, (self.value_size - at).min(8))
        })
    }

    /// Stores all items in the memcached at `server`, over TCP from `namespace`.
    ///
    /// # Errors
    /// When the connection fails, or memcached refuses an item.
    pub fn load(&self, namespace: &Namespace, server: SocketAddr) -> Result<()> {
        const BATCH: u32 = 1_000;
        let mut client = TcpClient::connect(namespace, server)?;
        let mut commands = Vec::new();
        for first in (0..self.keys).step_by(BATCH as usize) {
            commands.clear();
            let batch = first..self.keys.min(first + BATCH);
            for n in batch.clone() {
                self.write_set(n, &mut commands);
            }
            client.send(&commands)?;
            for n in batch {
                let answer = client.line().context("storing the items")?;
                ensure!(
                    answer == b"STORED\r\n",
                    "item {n}: {}",
                    String::from_utf8_lossy(&answer)
                );
            }
        }
        Ok(())
    }

    fn write_set(&self, n: u32, commands: &mut Vec<u8>) {
        commands.extend(b"set ");
        commands.extend(&self.request[FRAME + 4..self.request.len() - 2 - DIGITS]);
        commands.extend(digits(n));
        commands.extend(b" 0");
        commands.extend(&self.middle);
        self.words(n)
            .for_each(|(word, len)| commands.extend(&word[..len]));
        commands.extend(b"\r\n");
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
    fn only_the_exact_reply_is_accepted() {
        for value_size in [0, 1, 7, 8, 9, 1_100] {
            let set = Dataset::new(1_000, 16, value_size).unwrap();
            let mut command = Vec::new();
            set.write_set(0x3e7, &mut command);
            assert!(command.starts_with(b"set kkkkkkkk000003e7 0 "));
            let value = &command[command.iter().position(|&b| b == b'\n').unwrap() + 1..];
            let header = format!("VALUE kkkkkkkk000003e7 0 {value_size}\r\n");
            let frame = [0xab, 0xcd, 0, 0, 0, 1, 0, 0];
            let reply = [&frame[..], header.as_bytes(), value, b"END\r\n"].concat();
            assert!(set.is_reply(0x3e7, 0xabcd, &reply));
            assert!(!set.is_reply(0x3e6, 0xabcd, &reply));
            assert!(!set.is_reply(0x3e7, 0xabcc, &reply));
            assert!(reply.len() <= set.reply_capacity());
            for at in 0..reply.len() {
                let mut other = reply.clone();
                other[at] ^= 1;
                assert!(!set.is_reply(0x3e7, 0xabcd, &other), "byte {at}");
                assert!(!set.is_reply(0x3e7, 0xabcd, &reply[..at]), "cut at {at}");
            }
            assert!(!set.is_reply(0x3e7, 0xabcd, &[&reply[..], b"\n"].concat()));
        }
    }

    #[test]
    fn requests_name_their_key() {
        let set = Dataset::new(1, 10, 0).unwrap();
        let mut datagram = vec![0; set.request_len()];
        set.write_request(0xfedc_ba98, 0x0102, &mut datagram);
        assert_eq!(datagram, b"\x01\x02\0\0\0\x01\0\0get kkfedcba98\r\n");
    }

    #[test]
    fn sizes_out_of_range_are_refused() {
        assert!(Dataset::new(0, 16, 32).is_err());
        assert!(Dataset::new(1, 7, 32).is_err());
        assert!(Dataset::new(1, 251, 32).is_err());
        assert!(Dataset::new(1, 16, 1_101).is_err());
    }
}
