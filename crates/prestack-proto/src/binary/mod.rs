//! The binary protocol (protocol_binary.h): a header of 24 bytes, then extras, key and value.

pub mod reply;
pub mod request;

/// First byte of a request (`PROTOCOL_BINARY_REQ`).
pub const REQUEST: u8 = 0x80;
/// First byte of a response (`PROTOCOL_BINARY_RES`).
pub const RESPONSE: u8 = 0x81;
/// Bytes of a header: magic, opcode, key length (u16), extras length, data type, vbucket or status
/// (u16), length of all that follows the header (u32), opaque (u32), CAS (u64); big-endian.
pub const HEADER_LEN: u64 = 24;
/// Status of a response to what succeeded (`PROTOCOL_BINARY_RESPONSE_SUCCESS`).
pub const STATUS_SUCCESS: u16 = 0;
/// Status of a response to a GET of an item that is not there
/// (`PROTOCOL_BINARY_RESPONSE_KEY_ENOENT`).
pub const STATUS_NOT_FOUND: u16 = 1;

/// Opcodes (`protocol_binary_command`). The names are those of protocol_binary.h, a `Q` at the end
/// of which means quiet: what is expected is not answered.
pub mod opcode {
    /// `PROTOCOL_BINARY_CMD_GET`: the response has no key.
    pub const GET: u8 = 0x00;
    /// `PROTOCOL_BINARY_CMD_SET`
    pub const SET: u8 = 0x01;
    /// `PROTOCOL_BINARY_CMD_ADD`
    pub const ADD: u8 = 0x02;
    /// `PROTOCOL_BINARY_CMD_REPLACE`
    pub const REPLACE: u8 = 0x03;
    /// `PROTOCOL_BINARY_CMD_DELETE`
    pub const DELETE: u8 = 0x04;
    /// `PROTOCOL_BINARY_CMD_INCREMENT`
    pub const INCREMENT: u8 = 0x05;
    /// `PROTOCOL_BINARY_CMD_DECREMENT`
    pub const DECREMENT: u8 = 0x06;
    /// `PROTOCOL_BINARY_CMD_QUIT`
    pub const QUIT: u8 = 0x07;
    /// `PROTOCOL_BINARY_CMD_FLUSH`
    pub const FLUSH: u8 = 0x08;
    /// `PROTOCOL_BINARY_CMD_GETQ`
    pub const GETQ: u8 = 0x09;
    /// `PROTOCOL_BINARY_CMD_NOOP`
    pub const NOOP: u8 = 0x0a;
    /// `PROTOCOL_BINARY_CMD_VERSION`
    pub const VERSION: u8 = 0x0b;
    /// `PROTOCOL_BINARY_CMD_GETK`: the response has the key.
    pub const GETK: u8 = 0x0c;
    /// `PROTOCOL_BINARY_CMD_GETKQ`
    pub const GETKQ: u8 = 0x0d;
    /// `PROTOCOL_BINARY_CMD_APPEND`
    pub const APPEND: u8 = 0x0e;
    /// `PROTOCOL_BINARY_CMD_PREPEND`
    pub const PREPEND: u8 = 0x0f;
    /// `PROTOCOL_BINARY_CMD_STAT`: any number of responses.
    pub const STAT: u8 = 0x10;
    /// `PROTOCOL_BINARY_CMD_SETQ`
    pub const SETQ: u8 = 0x11;
    /// `PROTOCOL_BINARY_CMD_ADDQ`
    pub const ADDQ: u8 = 0x12;
    /// `PROTOCOL_BINARY_CMD_REPLACEQ`
    pub const REPLACEQ: u8 = 0x13;
    /// `PROTOCOL_BINARY_CMD_DELETEQ`
    pub const DELETEQ: u8 = 0x14;
    /// `PROTOCOL_BINARY_CMD_INCREMENTQ`
    pub const INCREMENTQ: u8 = 0x15;
    /// `PROTOCOL_BINARY_CMD_DECREMENTQ`
    pub const DECREMENTQ: u8 = 0x16;
    /// `PROTOCOL_BINARY_CMD_QUITQ`
    pub const QUITQ: u8 = 0x17;
    /// `PROTOCOL_BINARY_CMD_FLUSHQ`
    pub const FLUSHQ: u8 = 0x18;
    /// `PROTOCOL_BINARY_CMD_APPENDQ`
    pub const APPENDQ: u8 = 0x19;
    /// `PROTOCOL_BINARY_CMD_PREPENDQ`
    pub const PREPENDQ: u8 = 0x1a;
    /// `PROTOCOL_BINARY_CMD_TOUCH`
    pub const TOUCH: u8 = 0x1c;
    /// `PROTOCOL_BINARY_CMD_GAT`
    pub const GAT: u8 = 0x1d;
    /// `PROTOCOL_BINARY_CMD_GATQ`
    pub const GATQ: u8 = 0x1e;
    /// `PROTOCOL_BINARY_CMD_SASL_LIST_MECHS`
    pub const SASL_LIST_MECHS: u8 = 0x20;
    /// `PROTOCOL_BINARY_CMD_SASL_AUTH`
    pub const SASL_AUTH: u8 = 0x21;
    /// `PROTOCOL_BINARY_CMD_SASL_STEP`
    pub const SASL_STEP: u8 = 0x22;
    /// `PROTOCOL_BINARY_CMD_GATK`
    pub const GATK: u8 = 0x23;
    /// `PROTOCOL_BINARY_CMD_GATKQ`
    pub const GATKQ: u8 = 0x24;
}

/// A set of opcodes, all of which are below 64.
const fn opcodes(members: &[u8]) -> u64 {
    let mut set = 0;
    let mut i = 0;
    while i < members.len() {
        set |= 1 << members[i];
        i += 1;
    }
    set
}

/// A big-endian `u16` that was read little-endian at bit `shift` of a word.
#[inline(always)]
pub(crate) const fn short(word: u64, shift: u32) -> u64 {
    (word >> shift & 0xff) << 8 | word >> (shift + 8) & 0xff
}
