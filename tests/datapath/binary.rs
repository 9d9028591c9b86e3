//! Frames of the binary protocol (memcached's protocol_binary.h).

use prestack_tests::binary::frame;

pub const GET: u8 = 0x00;
pub const GETQ: u8 = 0x09;
pub const GETK: u8 = 0x0c;
pub const GETKQ: u8 = 0x0d;

/// A request.
pub fn request(opcode: u8, extras: &[u8], key: &[u8], value: &[u8], opaque: u32) -> Vec<u8> {
    frame([0x80, opcode], 0, [extras, key, value], opaque, 0)
}

/// A request of the GET family.
pub fn get(opcode: u8, key: &[u8], opaque: u32) -> Vec<u8> {
    request(opcode, b"", key, b"", opaque)
}

/// The reply to one, with the key where the opcode asks for it.
pub fn hit(opcode: u8, key: &[u8], flags: u32, cas: u64, value: &[u8], opaque: u32) -> Vec<u8> {
    let key = if matches!(opcode, GETK | GETKQ) {
        key
    } else {
        b""
    };
    let extras = flags.to_be_bytes();
    frame([0x81, opcode], 0, [&extras, key, value], opaque, cas)
}

/// The reply to a GET of a key that memcached does not have.
pub fn not_found(opcode: u8, opaque: u32) -> Vec<u8> {
    frame([0x81, opcode], 1, [b"", b"", b"Not found"], opaque, 0)
}

/// The reply to a write that was carried out.
pub fn done(opcode: u8, opaque: u32) -> Vec<u8> {
    frame([0x81, opcode], 0, [b"", b"", b""], opaque, 7)
}
