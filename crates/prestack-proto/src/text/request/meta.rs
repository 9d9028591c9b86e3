//! Meta commands (doc/protocol.txt, "Meta Commands").

use super::super::number::decimal;
use super::super::scan::{letter_bit, letters};
use super::{ARGUMENT_WORDS, Arguments, META_DEBUG, META_GET, META_SET};
use crate::command::{Command, Effect, Form};
use crate::window::Source;

/// Flags with which `mg` reads and no more.
const READS: u64 = letters(b"vfksctOqhlb");
/// Flags with which `mg` can be answered from a cache.
const SERVABLE: u64 = letters(b"vkfscqOb");
const VALUE: u64 = letters(b"v");
const QUIET: u64 = letters(b"q");
const BASE64: u64 = letters(b"b");
/// Flags that were not understood: any may be among them.
const ANY: u64 = u64::MAX;
/// More flags than are looked at.
const MAX_FLAGS: usize = 12;
/// Bytes of the longest flag that is understood, its letter included: memcached refuses a longer
/// opaque token.
pub(in crate::text) const MAX_FLAG: u64 = 32;

/// The flags of a command.
struct Flags {
    /// The letters; [`ANY`] if there are too many or one is no letter.
    set: u64,
    /// Not 0 if a letter comes twice or a flag is longer than [`MAX_FLAG`].
    odd: u64,
}

impl Flags {
    /// The flags are all arguments that remain.
    #[inline(always)]
    fn read(arguments: &mut Arguments<'_>) -> Self {
        let window = arguments.window;
        let mut flags = Self { set: 0, odd: 0 };
        for _ in 0..MAX_FLAGS {
            let (start, len) = arguments.next(ARGUMENT_WORDS);
            // More spaces than are skipped at once may hide a flag.
            if len == 0 && start < arguments.end {
                break;
            }
            if len == 0 {
                return flags;
            }
            let Some(bit) = letter_bit(window.byte(start)) else {
                break;
            };
            // No comparison: the verifier would follow both outcomes.
            flags.odd =
                window.forgotten(flags.odd | flags.set & bit | MAX_FLAG.wrapping_sub(len) >> 63);
            flags.set = window.forgotten(flags.set | bit);
        }
        Self { set: ANY, odd: 1 }
    }
}

/// Reads what follows the key of a meta command.
#[inline(always)]
pub(super) fn parse(arguments: &mut Arguments<'_>, verb: u64, command: &mut Command) {
    let window = arguments.window;
    command.flags = arguments.at;
    let mut data = 0;
    // Forgotten, so that the paths of the verbs are one.
    if window.forgotten(verb) == META_SET {
        let (start, len) = arguments.next(ARGUMENT_WORDS);
        let Some(bytes) = decimal(window, start, len) else {
            return;
        };
        data = bytes + 2;
    }
    let flags = Flags::read(arguments);
    let (set, odd) = (window.forgotten(flags.set), window.forgotten(flags.odd));
    command.quiet = set & QUIET != 0;
    command.is_base64 = set & BASE64 != 0;
    command.letters = set;
    let is_whole_key = !command.is_base64 || command.key_len & 3 == 0;
    let verb = window.forgotten(verb);
    if verb == META_DEBUG {
        command.effect = Effect::Read;
    } else if verb == META_GET && set & !READS == 0 {
        command.effect = Effect::Read;
        if set & !SERVABLE == 0 && set & VALUE != 0 && odd == 0 && is_whole_key {
            command.effect = Effect::Get;
            command.form = Form::Meta;
        }
    } else if set != ANY && is_whole_key {
        command.effect = Effect::Write;
        command.data = data;
    }
}
