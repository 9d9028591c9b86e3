//! Commands one after the other, whose writes are heeded: a TCP segment, or a datagram with several.

use aya_ebpf::helpers::generated::bpf_loop;
use core::ffi::c_void;
use prestack_abi::flow::Flow;
use prestack_proto::binary;
use prestack_proto::text::request::Effect;
use prestack_proto::window::{WINDOW, Window};

use super::command;
use crate::ledger::flushes;
use crate::ledger::writes::{self, End};
use crate::scratch::scratch;

/// Most commands of a packet that are looked at.
const MAX_COMMANDS: u32 = 128;

/// Walks over the commands in the window. At the end the walk is `odd`, or not at its end, if they
/// were not all understood.
#[inline(always)]
pub fn act_on_all() {
    // SAFETY: the callback fits the helper.
    unsafe { bpf_loop(MAX_COMMANDS, act as *mut c_void, core::ptr::null_mut(), 0) };
}

/// Whether all commands of the walk were understood, and change no more than items whose keys they name.
#[inline(always)]
pub fn are_understood() -> bool {
    let Some(scratch) = scratch() else {
        return false;
    };
    // SAFETY: this CPU's scratch.
    unsafe {
        let walk = &raw const (*scratch).walk;
        (&raw const (*walk).odd).read_volatile() == 0
            && (&raw const (*walk).flushes).read_volatile() == 0
            && (&raw const (*walk).at).read_volatile() == (&raw const (*walk).end).read_volatile()
    }
}

/// When the last `flush_all` of the walk is due, in coarse monotonic time in ns; 0 if it is at once, or there is none.
#[inline(always)]
pub fn flush_due() -> u64 {
    // SAFETY: this CPU's scratch.
    let due = scratch().map_or(0, |scratch| unsafe {
        (&raw const (*scratch).walk.flushes).read_volatile()
    });
    due & !1
}

/// Whether the data block that ends at `end` ends as memcached wants it to.
#[inline(always)]
pub fn is_closed(window: &Window, end: u64) -> bool {
    window.byte(end - 2) == b'\r' && window.byte(end - 1) == b'\n'
}

/// Acts on the next command: one step of the walk. Returns 1 at its end.
#[inline(never)]
extern "C" fn act(_: u32, _: *mut c_void) -> i64 {
    let Some(scratch) = scratch() else { return 1 };
    // SAFETY: this CPU's scratch.
    let (window, walk) = unsafe { (&(*scratch).window, &mut (*scratch).walk) };
    let (at, end) = (walk.at, walk.end);
    if at >= end {
        return 1;
    }
    let protocol = if window.byte(at) == binary::REQUEST {
        u64::from(Flow::BINARY)
    } else {
        u64::from(Flow::TEXT)
    };
    if end > WINDOW as u64 || (walk.protocol != 0 && walk.protocol != protocol) {
        walk.odd = 1;
        return 1;
    }
    walk.protocol = protocol;
    command::parse(at, end);
    // SAFETY: this CPU's scratch.
    let command = unsafe { (&raw const (*scratch).command).read_volatile() };
    let next = command.next + command.data;
    walk.at = next;
    walk.odd = 1;
    match command.effect {
        Effect::Get | Effect::Read | Effect::LongRead => {}
        Effect::Write => {
            if next > end || (command.data > 0 && !is_closed(window, next)) {
                return 1;
            }
            let Some(key) = command::key(walk.seed) else {
                return 1;
            };
            if writes::arrived(key, End::Settle).is_none() {
                return 1;
            }
        }
        // Each is executed, so each is noted.
        Effect::Flush => walk.flushes = flushes::arrived(walk.backend as u8) | 1,
        Effect::Incomplete | Effect::Unknown => return 1,
    }
    walk.odd = 0;
    0
}
