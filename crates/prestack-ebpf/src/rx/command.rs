//! Parsing a command in scratch memory.

use prestack_proto::text::request;
use prestack_proto::window::WINDOW;

use crate::scratch::scratch;

/// Parses the command at `at` of the window, before `limit`; the result is in the scratch's
/// `command`.
#[inline(always)]
pub fn parse(at: u64, limit: u64) {
    prestack_parse_command(at, limit);
}

/// A global function (by its unmangled name): the verifier checks it once, for all arguments, and
/// not again for each call.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_parse_command(at: u64, limit: u64) -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    if limit > WINDOW as u64 {
        return 0;
    }
    // SAFETY: this CPU's scratch.
    unsafe {
        let command = request::parse(&(*scratch).window, at, limit);
        (&raw mut (*scratch).command).write_volatile(command);
    }
    0
}
