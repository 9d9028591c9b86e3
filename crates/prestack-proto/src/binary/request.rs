//! Binary requests: what a command can do to the items in memcached.

use super::opcode::*;
use super::{HEADER_LEN, REQUEST, opcodes, short};
use crate::MAX_KEY;
use crate::command::{Command, Effect, Form};
use crate::window::Window;

const GETS: u64 = opcodes(&[GET, GETQ, GETK, GETKQ]);
const WRITES: u64 = opcodes(&[
    SET, ADD, REPLACE, DELETE, INCREMENT, DECREMENT, APPEND, PREPEND, SETQ, ADDQ, REPLACEQ,
    DELETEQ, INCREMENTQ, DECREMENTQ, APPENDQ, PREPENDQ, TOUCH, GAT, GATQ, GATK, GATKQ,
]);
/// Requests of which memcached 1.6.18 consumes extras and key, whatever the length of the body: what
/// is left of the body it takes for the next request.
const WITHOUT_VALUE: u64 = opcodes(&[TOUCH, GAT, GATQ, GATK, GATKQ, STAT]);
/// Bytes of the longest body that is one to memcached 1.6.18: it computes the length of the value as an `int`, and of
/// a negative one (`write_bin_error` in proto_bin.c) it skips nothing.
const LONGEST_BODY: u64 = i32::MAX as u64;
const FLUSHES: u64 = opcodes(&[FLUSH, FLUSHQ]);
const READS: u64 = opcodes(&[
    NOOP,
    VERSION,
    QUIT,
    QUITQ,
    SASL_LIST_MECHS,
    SASL_AUTH,
    SASL_STEP,
]);
const LONG_READS: u64 = opcodes(&[STAT]);
pub(crate) const QUIETS: u64 = opcodes(&[
    GETQ, GETKQ, SETQ, ADDQ, REPLACEQ, DELETEQ, INCREMENTQ, DECREMENTQ, QUITQ, FLUSHQ, APPENDQ,
    PREPENDQ, GATQ, GATKQ,
]);

/// Parses the request that starts at `at`, in bytes before `limit` (at most
/// [`WINDOW`](crate::window::WINDOW)).
#[inline(always)]
pub fn parse(window: &Window, at: u64, limit: u64) -> Command {
    let (first, second) = (window.word(at), window.word(at + 8));
    if at + HEADER_LEN > limit {
        return Command::of(Effect::Incomplete, Form::Binary);
    }
    if first & 0xff != REQUEST as u64 {
        return Command::of(Effect::Unknown, Form::Binary);
    }
    let opcode = first >> 8 & 0xff;
    let key_len = short(first, 16);
    let extras = first >> 32 & 0xff;
    let data_type = first >> 40 & 0xff;
    let body = short(second, 0) << 16 | short(second, 16);
    let next = at + HEADER_LEN + body;
    if next > limit {
        return Command::of(Effect::Incomplete, Form::Binary);
    }
    let mut command = Command {
        key: at + HEADER_LEN + extras,
        key_len,
        line_end: next,
        next,
        ..Command::of(Effect::Unknown, Form::Binary)
    };
    if opcode > 63 || key_len + extras > body || body > LONGEST_BODY {
        return command;
    }
    let opcode = 1 << (opcode & 63);
    command.quiet = opcode & QUIETS != 0;
    let is_key = key_len > 0 && key_len <= MAX_KEY as u64;
    if opcode & WITHOUT_VALUE != 0 && body != key_len + extras {
        return command;
    }
    if opcode & WRITES != 0 {
        if is_key {
            command.effect = Effect::Write;
        }
    } else if opcode & GETS != 0 {
        // Others memcached answers with an error, or not at all, or like this one (data type).
        let is_plain = extras | data_type == 0 && body == key_len;
        command.effect = if is_plain && is_key {
            Effect::Get
        } else {
            Effect::Read
        };
    } else if opcode & FLUSHES != 0 {
        command.effect = Effect::Flush;
        // The delay.
        command.key = at + HEADER_LEN;
        command.key_len = extras;
    } else if opcode & READS != 0 {
        command.effect = Effect::Read;
    } else if opcode & LONG_READS != 0 {
        command.effect = Effect::LongRead;
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn slow_parse(bytes: &[u8]) -> Command {
        if bytes.len() < 24 {
            return Command::of(Effect::Incomplete, Form::Binary);
        }
        if bytes[0] != 0x80 {
            return Command::of(Effect::Unknown, Form::Binary);
        }
        let key_len = u16::from_be_bytes(bytes[2..4].try_into().unwrap()) as usize;
        let extras = bytes[4] as usize;
        let body = u32::from_be_bytes(bytes[8..12].try_into().unwrap()) as usize;
        if bytes.len() < 24 + body {
            return Command::of(Effect::Incomplete, Form::Binary);
        }
        let mut command = Command {
            key: 24 + extras as u64,
            key_len: key_len as u64,
            line_end: 24 + body as u64,
            next: 24 + body as u64,
            ..Command::of(Effect::Unknown, Form::Binary)
        };
        if key_len + extras > body || body > i32::MAX as usize {
            return command;
        }
        let has_key = (1..=250).contains(&key_len);
        command.effect = match bytes[1] {
            0x10 | 0x1c..=0x1e | 0x23 | 0x24 if body != key_len + extras => Effect::Unknown,
            0x00 | 0x09 | 0x0c | 0x0d if has_key && body == key_len && bytes[5] == 0 => Effect::Get,
            0x00 | 0x09 | 0x0c | 0x0d => Effect::Read,
            0x01..=0x06 | 0x0e | 0x0f | 0x11..=0x16 | 0x19 | 0x1a | 0x1c..=0x1e | 0x23 | 0x24
                if has_key =>
            {
                Effect::Write
            }
            0x08 | 0x18 => {
                command.key = 24;
                command.key_len = extras as u64;
                Effect::Flush
            }
            0x07 | 0x0a | 0x0b | 0x17 | 0x20..=0x22 => Effect::Read,
            0x10 => Effect::LongRead,
            _ => Effect::Unknown,
        };
        command.quiet = matches!(bytes[1], 0x09 | 0x0d | 0x11..=0x1a | 0x1e | 0x24);
        command
    }

    fn header(opcode: u8, key: u16, extras: u8, data_type: u8, body: u32) -> Vec<u8> {
        let mut bytes = vec![0x80, opcode];
        bytes.extend(key.to_be_bytes());
        bytes.extend([extras, data_type, 0, 0]);
        bytes.extend(body.to_be_bytes());
        bytes.extend([7; 12]);
        bytes
    }

    fn fast_parse(bytes: &[u8]) -> Command {
        parse(&Window::showing(bytes), 0, bytes.len() as u64)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn agrees_with_the_slow_parser(
            opcode in prop_oneof![0u8..0x28, any::<u8>()],
            key in prop_oneof![Just(0u16), 1u16..=250, 245u16..256, any::<u16>()],
            extras in prop_oneof![Just(0u8), Just(4), Just(8), any::<u8>()],
            data_type in prop_oneof![Just(0u8), Just(0), any::<u8>()],
            value in prop_oneof![Just(0u32), 0u32..600, any::<u32>()],
            cut in 0usize..30,
        ) {
            let body = (u32::from(key) + u32::from(extras)).wrapping_add(value);
            let mut bytes = header(opcode, key, extras, data_type, body);
            bytes.resize(24 + body.min(1500) as usize, b'k');
            prop_assert_eq!(fast_parse(&bytes), slow_parse(&bytes));
            let short = &bytes[..bytes.len() - cut.min(bytes.len())];
            prop_assert_eq!(fast_parse(short), slow_parse(short));
        }

        #[test]
        fn arbitrary_bytes(
            first in prop_oneof![Just(0x80u8), any::<u8>()],
            rest in proptest::collection::vec(any::<u8>(), 0..100),
            small: bool,
        ) {
            let mut bytes = vec![first];
            bytes.extend(rest);
            if small && bytes.len() > 11 {
                bytes[8..11].fill(0);
            }
            prop_assert_eq!(fast_parse(&bytes), slow_parse(&bytes));
        }
    }

    #[test]
    fn a_body_of_negative_length_is_unknown() {
        // Of a stream more may follow, however long.
        let effect =
            |body| parse(&Window::showing(&header(SET, 3, 8, 0, body)), 0, u64::MAX).effect;
        assert_eq!(effect(0x7fff_ffff), Effect::Write);
        assert_eq!(effect(0x8000_0000), Effect::Unknown);
        assert_eq!(effect(u32::MAX), Effect::Unknown);
    }

    #[test]
    fn positions_are_those_of_the_window() {
        let mut bytes = b"junk".to_vec();
        bytes.extend(header(SET, 3, 8, 0, 16));
        bytes.extend([0; 8]);
        bytes.extend(b"key-data-");
        let c = parse(&Window::showing(&bytes), 4, bytes.len() as u64);
        assert_eq!(
            (c.effect, c.form, c.key, c.key_len, c.next, c.data, c.quiet),
            (Effect::Write, Form::Binary, 36, 3, 44, 0, false)
        );
    }
}
