//! Commands of the meta protocol.

use prestack_tests::base64::base64;

use super::command::Datagram;
use super::source::Source;
use super::text::{line_end, spaces};

/// The longest key whose base64 memcached takes: its 248 characters are no more than the 250 of a key.
const BASE64_KEY: usize = 186;

/// A `mg` that asks for the value, spelled as clients do: `flags` in any order.
pub fn plain_get(source: &mut Source, flags: &[&str]) -> Datagram {
    let mut payload = b"mg ".to_vec();
    let mut key = source.hot_key();
    if flags.contains(&"b") {
        key.truncate(BASE64_KEY);
        payload.extend(base64(&key).bytes());
    } else {
        payload.extend(key);
    }
    let mut flags = flags.to_vec();
    source.shuffle(&mut flags);
    for flag in flags {
        payload.push(b' ');
        payload.extend(flag.as_bytes());
    }
    payload.extend(b"\r\n");
    Datagram::new(payload)
}

/// A `mg`, with any mix of flags; some of them change the item, but not of `calm` ones.
pub fn read(source: &mut Source, calm: bool) -> Datagram {
    let mut flags = Vec::new();
    if !source.one_in(6) {
        flags.push("v".to_owned());
    }
    for flag in ["k", "f", "s", "c", "q"] {
        if source.one_in(3) {
            flags.push(flag.to_owned());
        }
    }
    opaque(source, &mut flags);
    if !calm && source.one_in(12) {
        let changing = [
            "N0", "N1000000", "R30", "R2000000", "T0", "T1000000", "T-1", "E77",
        ];
        flags.push(source.pick(&changing).to_owned());
    }
    Datagram::new(command(source, calm, b"mg", None, flags, None))
}

/// A `ms`, `md` or `ma`. `calm` ones are always answered, and understood.
pub fn write(source: &mut Source, calm: bool) -> Vec<u8> {
    let mut flags = Vec::new();
    if !calm && source.one_in(5) {
        flags.push("q".to_owned());
    }
    for flag in ["k", "c"] {
        if source.one_in(6) {
            flags.push(flag.to_owned());
        }
    }
    opaque(source, &mut flags);
    match source.below(12) {
        0..7 => set(source, calm, flags),
        7..10 => delete(source, calm, flags),
        _ => arithmetic(source, calm, flags),
    }
}

fn set(source: &mut Source, calm: bool, mut flags: Vec<String>) -> Vec<u8> {
    if source.one_in(3) {
        flags.push(format!("F{}", source.flags()));
    }
    if source.one_in(3) {
        flags.push(format!("T{}", source.expiry()));
    }
    if source.one_in(6) {
        let modes = ["ME", "MA", "MP", "MR", "MS", "Mset", "Mx"];
        let modes = if calm { &modes[..5] } else { &modes };
        flags.push(source.pick(modes).to_owned());
    }
    if source.one_in(10) {
        flags.push("I".to_owned());
    }
    let key = compared(source, &mut flags);
    let value = source.value();
    command(source, calm, b"ms", key, flags, Some(value))
}

fn delete(source: &mut Source, calm: bool, mut flags: Vec<String>) -> Vec<u8> {
    if source.one_in(3) {
        flags.push("I".to_owned());
    }
    if source.one_in(4) {
        flags.push(format!("T{}", source.expiry()));
    }
    let key = compared(source, &mut flags);
    command(source, calm, b"md", key, flags, None)
}

fn arithmetic(source: &mut Source, calm: bool, mut flags: Vec<String>) -> Vec<u8> {
    for flag in ["v", "N0", "J13", "T0", "D7", "D18446744073709551615"] {
        if source.one_in(4) {
            flags.push(flag.to_owned());
        }
    }
    if source.one_in(3) {
        let modes = ["MI", "MD", "M+", "M-", "Mincr", "Mdecr"];
        flags.push(source.pick(&modes).to_owned());
    }
    let key = compared(source, &mut flags);
    command(source, calm, b"ma", key, flags, None)
}

/// Rarely makes a command depend on an item's unique number: then returns the item's key.
fn compared(source: &mut Source, flags: &mut Vec<String>) -> Option<Vec<u8>> {
    source.one_in(8).then(|| {
        let (key, number) = source.numbered();
        flags.push(format!("C{number}"));
        key
    })
}

fn opaque(source: &mut Source, flags: &mut Vec<String>) {
    if source.one_in(3) {
        let len = 1 + source.below(30);
        let number = source.number();
        flags.push(format!("O{number:030}")[..len + 1].to_owned());
    }
}

/// A command line, its flags in any order, with a data block or without.
fn command(
    source: &mut Source,
    calm: bool,
    verb: &[u8],
    key: Option<Vec<u8>>,
    mut flags: Vec<String>,
    value: Option<Vec<u8>>,
) -> Vec<u8> {
    let mut line = verb.to_vec();
    let spaced = source.one_in(10);
    spaces(source, &mut line, spaced);
    if source.one_in(5) {
        flags.push("b".to_owned());
        let key = key.unwrap_or_else(|| source.any_key());
        line.extend(if calm {
            base64(&key[..key.len().min(BASE64_KEY)]).into_bytes()
        } else {
            odd_base64(source, &key)
        });
    } else {
        line.extend(key.unwrap_or_else(|| source.key()));
    }
    if let Some(value) = &value {
        spaces(source, &mut line, spaced);
        line.extend(value.len().to_string().into_bytes());
    }
    source.shuffle(&mut flags);
    for flag in flags {
        spaces(source, &mut line, spaced);
        line.extend(flag.into_bytes());
    }
    if source.one_in(20) {
        spaces(source, &mut line, spaced);
    }
    line.extend(line_end(source));
    if let Some(value) = value {
        line.extend(value);
        line.extend(b"\r\n");
    }
    line
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Base64, rarely with bits behind the last byte, without padding, or with an odd digit.
fn odd_base64(source: &mut Source, bytes: &[u8]) -> Vec<u8> {
    let mut text = base64(bytes).into_bytes();
    let last = text.iter().rposition(|&b| b != b'=').unwrap_or(0);
    match source.below(12) {
        0 => text[last] = ALPHABET[source.below(64)],
        1 => text.truncate(last + 1),
        2 => text[last] = b'-',
        _ => {}
    }
    text
}
