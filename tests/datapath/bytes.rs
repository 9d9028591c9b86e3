//! Checksums by the book, and texts of the memcached protocol.

use std::net::IpAddr;

/// The one's-complement sum of the big-endian 16-bit words of `bytes` (RFC 1071).
pub fn ones_complement_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
        sum += u32::from(word);
        if sum > 0xffff {
            sum -= 0xffff;
        }
    }
    sum as u16
}

/// The Internet checksum of `bytes`, in which the checksum field is zero.
pub fn internet_checksum(bytes: &[u8]) -> u16 {
    !ones_complement_sum(bytes)
}

/// The pseudo header of a UDP datagram or TCP segment (RFC 768, RFC 8200 section 8.1).
pub fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, len: u16) -> Vec<u8> {
    let mut header = octets(source);
    header.extend(octets(destination));
    header.extend([0, protocol]);
    header.extend(len.to_be_bytes());
    header
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// One item of a reply to a `get`, without the `END` that follows the last.
pub fn item(key: impl AsRef<[u8]>, flags: u32, value: impl AsRef<[u8]>) -> Vec<u8> {
    let value = value.as_ref();
    let rest = format!(" {flags} {}\r\n", value.len());
    [b"VALUE ", key.as_ref(), rest.as_bytes(), value, b"\r\n"].concat()
}

/// memcached's reply to a `get` of one key that it has.
pub fn hit(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Vec<u8> {
    [&item(key, 0, value)[..], b"END\r\n"].concat()
}

/// A value such that the reply to a `get` of `key` has `len` bytes; every byte of it depends on its
/// position. Few lengths cannot be had: those at which the value's length gets a digit more.
pub fn value_for_reply(key: impl AsRef<[u8]>, len: usize) -> Option<Vec<u8>> {
    let key = key.as_ref();
    let around = hit(key, "").len();
    (1..=4).find_map(|digits| {
        let value: Vec<u8> = (0..(len + 1).checked_sub(around + digits)?)
            .map(|i| b'!' + (i * 7 % 90) as u8)
            .collect();
        (hit(key, &value).len() == len).then_some(value)
    })
}

/// A `get` of these keys.
pub fn get<K: AsRef<[u8]>>(keys: &[K]) -> Vec<u8> {
    let mut text = b"get".to_vec();
    for key in keys {
        text.push(b' ');
        text.extend(key.as_ref());
    }
    text.extend(b"\r\n");
    text
}

/// A key of this length.
pub fn key_of(len: usize) -> Vec<u8> {
    (0..len).map(|i| b'a' + (i % 26) as u8).collect()
}
