//! Values that tell which write they are of, and in which no byte may be another.

use anyhow::{Context, Result, ensure};
use fastrand::Rng;

/// Length of the version at the start of a value that is long enough.
pub const VERSION: usize = 16;
/// What some values are filled with.
const LURE: &[u8] = b"\r\nEND\r\nVALUE a 0 1\r\nget b\r\n";

/// The value of a key after its `version`-th write.
pub fn value(key: u64, version: u64, len: usize) -> Vec<u8> {
    let mut value = vec![0; len];
    let mut random = Rng::with_seed(key << 40 ^ version);
    if version.is_multiple_of(8) {
        let start = random.usize(..LURE.len());
        let lure = LURE.iter().cycle().skip(start);
        value
            .iter_mut()
            .zip(lure)
            .for_each(|(to, from)| *to = *from);
    } else {
        random.fill(&mut value);
    }
    if let Some(head) = value.get_mut(..VERSION) {
        head.copy_from_slice(format!("{version:016x}").as_bytes());
    }
    value
}

/// The version of a key's value, all of whose bytes must be those of that version.
pub fn version(key: u64, bytes: &[u8]) -> Result<u64> {
    let head = bytes.get(..VERSION).context("a value without a version")?;
    let version = u64::from_str_radix(std::str::from_utf8(head)?, 16)?;
    let expected = value(key, version, bytes.len());
    ensure!(
        bytes == expected,
        "version {version} of key {key} has other bytes from {:?} on",
        bytes.iter().zip(&expected).position(|(a, b)| a != b)
    );
    Ok(version)
}
