//! memcached's binary protocol, as far as the tests speak it.

use anyhow::{Result, ensure};
use prestack_testbed::TcpClient;

/// Operations.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
#[allow(missing_docs, reason = "they are named as in the protocol")]
pub enum Opcode {
    Get = 0x00,
    Set = 0x01,
    Add = 0x02,
    Replace = 0x03,
    Delete = 0x04,
    Increment = 0x05,
    Decrement = 0x06,
    Flush = 0x08,
    Noop = 0x0a,
    GetK = 0x0c,
    Append = 0x0e,
    Prepend = 0x0f,
    SetQ = 0x11,
    AddQ = 0x12,
    ReplaceQ = 0x13,
    DeleteQ = 0x14,
    IncrementQ = 0x15,
    DecrementQ = 0x16,
    FlushQ = 0x18,
    AppendQ = 0x19,
    PrependQ = 0x1a,
    Touch = 0x1c,
    Gat = 0x1d,
    GatQ = 0x1e,
    GatK = 0x23,
    GatKQ = 0x24,
}

/// A frame: magic, opcode, status or 0, and the rest of the header and body.
#[must_use]
pub fn frame(
    [magic, opcode]: [u8; 2],
    status: u16,
    [extras, key, value]: [&[u8]; 3],
    opaque: u32,
    cas: u64,
) -> Vec<u8> {
    let body = extras.len() + key.len() + value.len();
    let mut frame = vec![magic, opcode];
    frame.extend((key.len() as u16).to_be_bytes());
    frame.extend([extras.len() as u8, 0]);
    frame.extend(status.to_be_bytes());
    frame.extend((body as u32).to_be_bytes());
    frame.extend(opaque.to_be_bytes());
    frame.extend(cas.to_be_bytes());
    frame.extend([extras, key, value].concat());
    frame
}

/// A request.
#[must_use]
pub fn request(opcode: Opcode, extras: &[u8], key: &[u8], value: &[u8]) -> Vec<u8> {
    frame([0x80, opcode as u8], 0, [extras, key, value], 0, 0)
}

/// Extras of `Set`, `Add` and `Replace`: no flags, no expiry.
pub const STORAGE: [u8; 8] = [0; 8];

/// Extras of `Increment` and `Decrement`: by 1, no item made.
pub const COUNT: [u8; 20] = [
    0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff,
];

/// Extras of `Touch` and `Gat`: expired since 1970 (too large for a number of seconds from now).
pub const EXPIRED: [u8; 4] = [1, 0, 0, 0];

/// Reads responses up to the one to `opcode`; returns its status.
///
/// # Errors
/// When it does not come, or is no response.
pub fn status(client: &mut TcpClient, opcode: Opcode) -> Result<u16> {
    loop {
        let header = client.bytes(24)?;
        ensure!(header[0] == 0x81, "no response: {header:x?}");
        let body = u32::from_be_bytes([header[8], header[9], header[10], header[11]]);
        client.bytes(body as usize)?;
        if header[1] == opcode as u8 {
            return Ok(u16::from_be_bytes([header[6], header[7]]));
        }
    }
}
