//! Frames of the binary protocol.

use super::command::Datagram;
use super::source::Source;

const GET: u8 = 0x00;
const GET_QUIETLY: u8 = 0x09;
const NOOP: u8 = 0x0a;
const VERSION: u8 = 0x0b;
const GET_WITH_KEY: u8 = 0x0c;
const GET_WITH_KEY_QUIETLY: u8 = 0x0d;

/// The opcodes that only read an item.
pub const GETS: [u8; 4] = [GET, GET_QUIETLY, GET_WITH_KEY, GET_WITH_KEY_QUIETLY];

/// A frame of this opcode.
pub fn frame(opcode: u8, opaque: u32, number: u64, parts: [&[u8]; 3]) -> Vec<u8> {
    prestack_tests::binary::frame([0x80, opcode], 0, parts, opaque, number)
}

/// A NOOP, and the answer to it.
pub fn noop(opaque: u32) -> (Vec<u8>, Vec<u8>) {
    let request = frame(NOOP, opaque, 0, [b"", b"", b""]);
    let mut answer = request.clone();
    answer[0] = 0x81;
    (request, answer)
}

/// A GET of a hot key.
pub fn plain_get(source: &mut Source, opcode: u8) -> Datagram {
    let key = source.hot_key();
    let opaque = source.number() as u32;
    Datagram::new(frame(opcode, opaque, 0, [b"", &key, b""]))
}

/// A frame that reads.
pub fn read(source: &mut Source) -> Vec<u8> {
    let opaque = source.number() as u32;
    let opcode = match source.below(16) {
        0 => return noop(opaque).0,
        1 => return frame(VERSION, opaque, 0, [b"", b"", b""]),
        2..8 => GET,
        8..11 => GET_WITH_KEY,
        11..14 => GET_QUIETLY,
        _ => GET_WITH_KEY_QUIETLY,
    };
    let key = source.any_key();
    // A GET's number does not matter.
    let number = if source.one_in(20) {
        source.number()
    } else {
        0
    };
    frame(opcode, opaque, number, [b"", &key, b""])
}

/// A frame that changes items. `calm` ones are always answered.
pub fn write(source: &mut Source, calm: bool) -> Vec<u8> {
    let opaque = source.number() as u32;
    let (mut key, mut number) = (source.any_key(), 0);
    if source.one_in(8) {
        (key, number) = source.numbered();
    }
    let quiet = !calm && source.one_in(4);
    let (opcode, extras, value) = match source.below(20) {
        0..10 => (
            0x01 + source.below(3) as u8,
            storage(source),
            source.value(),
        ),
        10..13 => (0x04, Vec::new(), Vec::new()),
        13..16 => (0x05 + source.below(2) as u8, counting(source), Vec::new()),
        16..18 => {
            let mut value = source.value();
            value.truncate(60);
            (0x0e + source.below(2) as u8, Vec::new(), value)
        }
        _ => {
            let opcodes: &[u8] = if calm {
                &[0x1c, 0x1d, 0x23]
            } else {
                &[0x1c, 0x1d, 0x1e, 0x23, 0x24]
            };
            let opcode = opcodes[source.below(opcodes.len())];
            let extras = source.expiry_number().to_be_bytes().to_vec();
            return frame(opcode, opaque, number, [&extras, &key, b""]);
        }
    };
    let opcode = if quiet { quiet_form(opcode) } else { opcode };
    frame(opcode, opaque, number, [&extras, &key, &value])
}

/// `FLUSH` or `FLUSHQ`, now.
pub fn flush(source: &mut Source) -> Vec<u8> {
    let opcode = if source.one_in(2) { 0x08 } else { 0x18 };
    let extras: &[u8] = if source.one_in(2) { b"" } else { &[0; 4] };
    frame(opcode, source.number() as u32, 0, [extras, b"", b""])
}

fn quiet_form(opcode: u8) -> u8 {
    match opcode {
        0x01..=0x06 => opcode + 0x10,
        _ => opcode + 0x0b,
    }
}

fn storage(source: &mut Source) -> Vec<u8> {
    let flags: u32 = source.flags().parse().unwrap_or(0);
    [flags.to_be_bytes(), source.expiry_number().to_be_bytes()].concat()
}

fn counting(source: &mut Source) -> Vec<u8> {
    let delta = if source.one_in(5) {
        source.number()
    } else {
        source.below(1000) as u64
    };
    let expiry = if source.one_in(3) { u32::MAX } else { 0 };
    [
        &delta.to_be_bytes()[..],
        &13u64.to_be_bytes(),
        &expiry.to_be_bytes(),
    ]
    .concat()
}
