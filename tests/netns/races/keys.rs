//! The keys, and what their values tell.

use anyhow::{Context, Result, ensure};

/// What writes do to a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// They replace its value by one that is written only once, or remove it.
    Register,
    /// They add 1.
    Up,
    /// They take 1 away.
    Down,
    /// They put a byte before or behind it.
    Grown,
}

/// The keys, by number.
pub const KINDS: [Kind; 13] = [
    Kind::Register,
    Kind::Register,
    Kind::Register,
    Kind::Register,
    Kind::Register,
    Kind::Register,
    Kind::Register,
    Kind::Register,
    Kind::Up,
    Kind::Up,
    Kind::Down,
    Kind::Grown,
    Kind::Grown,
];
/// How many of them are registers; they come first.
pub const REGISTERS: usize = 8;

/// Numbers keep their length: memcached fills one that becomes shorter up with blanks.
const UP_FROM: u64 = 1_000_000;
const DOWN_FROM: u64 = 9_999_999;

/// The name of a key.
pub fn name(key: usize) -> Vec<u8> {
    format!("{:?}{key}", KINDS[key]).into_bytes()
}

/// The register value with this number: some are too long to be cached, some look like the end of a
/// reply.
pub fn value(number: u64) -> Vec<u8> {
    let rest = match number % 32 {
        3 | 19 => "\r\nEND\r\nVALUE x 0 1\r\n".to_owned(),
        5 => "x".repeat(1_100),
        7 => "x".repeat(5_000),
        _ => "x".repeat((number * 7 % 90) as usize),
    };
    format!("{number}:{rest}").into_bytes()
}

/// Whether the register value with this number fits a datagram.
pub fn is_short(number: u64) -> bool {
    number % 32 != 7
}

/// What a key is set to before anything else; `number` is for a register.
pub fn initial(key: usize, number: u64) -> Vec<u8> {
    match KINDS[key] {
        Kind::Register => value(number),
        Kind::Up => UP_FROM.to_string().into_bytes(),
        Kind::Down => DOWN_FROM.to_string().into_bytes(),
        Kind::Grown => b"|".to_vec(),
    }
}

/// The number of a register value, whose every byte must be as it was written, or how many steps the
/// key has come since it was set.
pub fn read(key: usize, value_read: &[u8]) -> Result<u64> {
    let shown = || {
        let start = &value_read[..value_read.len().min(60)];
        format!("a torn value: {:?}", String::from_utf8_lossy(start))
    };
    let number = |digits: &[u8]| -> Result<u64> {
        std::str::from_utf8(digits)
            .ok()
            .and_then(|digits| digits.parse().ok())
            .with_context(shown)
    };
    match KINDS[key] {
        Kind::Register => {
            let digits = value_read.split(|&b| b == b':').next().unwrap_or_default();
            let number = number(digits)?;
            ensure!(value_read == value(number), shown());
            Ok(number)
        }
        Kind::Up => number(value_read)?.checked_sub(UP_FROM).with_context(shown),
        Kind::Down => DOWN_FROM
            .checked_sub(number(value_read)?)
            .with_context(shown),
        Kind::Grown => {
            let pluses = value_read.iter().filter(|&&b| b == b'+').count();
            ensure!(
                value_read.contains(&b'|') && pluses + 1 == value_read.len(),
                shown()
            );
            Ok(pluses as u64)
        }
    }
}
