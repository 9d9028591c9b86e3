//! The commands in the window: what they change, and what is owed to them.

use aya_ebpf::helpers::generated::bpf_loop;
use core::ffi::c_void;
use prestack_abi::config::Config;
use prestack_abi::flow::{Flow, MAX_ASKED, Mode};
use prestack_proto::hash::scan_key;
use prestack_proto::stream::{self, QUIET_META, QUIET_TEXT};
use prestack_proto::text::request::{Command, Effect, Form};
use prestack_proto::text::scan::{LineEnd, line_end, skip_spaces, token_end};
use prestack_proto::window::{Source, WINDOW, Window};
use prestack_proto::{MAX_KEY, binary};

use super::shown;
use crate::atomic;
use crate::clock;
use crate::ledger::writes::{self, End};
use crate::ledger::{backend, flushes};
use crate::rx::command;
use crate::scratch::{Walk, scratch};
use crate::tcp::segment::Segment;
use crate::tcp::{doubt, flow, tickets};

/// Most commands, and keys of GETs, in a chunk: the shortest have two bytes.
const MAX_STEPS: u32 = 1024;

/// Acts on the commands in the window. A global function (by its unmangled name): the verifier checks it
/// once, not for every chunk.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn prestack_tcp_walk() -> u64 {
    // SAFETY: the callback fits the helper.
    unsafe { bpf_loop(MAX_STEPS, step as *mut c_void, core::ptr::null_mut(), 0) };
    0
}

/// Acts on the next command, or key of a GET. Returns 1 at the end.
#[inline(never)]
extern "C" fn step(_: u32, _: *mut c_void) -> i64 {
    let (Some(scratch), Some(config)) = (scratch(), backend::config()) else {
        return 1;
    };
    // SAFETY: this CPU's scratch.
    let (window, walk, segment) = unsafe {
        (
            &(*scratch).window,
            &mut (*scratch).walk,
            &mut (*scratch).segment,
        )
    };
    let Some(flow) = flow::at(segment.flow) else {
        return 1;
    };
    let (at, end) = (walk.at, walk.end);
    if walk.odd != 0 || end > WINDOW as u64 {
        return 1;
    }
    if walk.start != 0 {
        // SAFETY: a map element.
        return unsafe { next_key(flow, window, walk, segment) };
    }
    if at >= end {
        return 1;
    }
    // SAFETY: a map element.
    unsafe {
        if (*flow).mode == Mode::Keys as u32 {
            return end_keys(flow, window, walk);
        }
        let is_binary = window.byte(at) == binary::REQUEST;
        let protocol = if is_binary { Flow::BINARY } else { Flow::TEXT };
        if (*flow).protocol != 0 && (*flow).protocol != protocol {
            walk.odd = 1;
            return 1;
        }
        (*flow).protocol = protocol;
    }
    command::parse_in_stream(at, end);
    // SAFETY: this CPU's scratch.
    let command = unsafe { (&raw const (*scratch).command).read_volatile() };
    if command.effect == Effect::Incomplete {
        return 1;
    }
    walk.odd = 1;
    let next = command.next + command.data;
    // SAFETY: a map element.
    unsafe {
        let Some(number) = heed(config, flow, window, walk, segment, &command) else {
            return 1;
        };
        if next > end {
            if command.effect != Effect::Write {
                return 1;
            }
            // Of what follows the line, or the key, only the end matters.
            let from = if command.form == Form::Binary {
                end
            } else {
                command.next
            };
            let base = segment.window_sequence as u32;
            (*flow).data_from = base.wrapping_add(from as u32);
            (*flow).data_until = base.wrapping_add(next as u32);
            (*flow).mode = Mode::Data as u32;
            let behind = window.forgotten(next - end);
            // The end of the block may be cut in two.
            let is_cut = behind < 2 && command.form != Form::Binary;
            if is_cut && window.byte(end - 1) != b'\r' && behind == 1 {
                return 1;
            }
            walk.at = end;
            walk.odd = 0;
            return 1;
        }
        if command.data > 0 && !(window.byte(next - 2) == b'\r' && window.byte(next - 1) == b'\n') {
            return 1;
        }
        walk.at = next;
        if command.effect == Effect::Get
            && number != u64::MAX
            && command.form as u32 <= Form::TextCas as u32
        {
            walk.start = command.key;
            walk.out = command.line_end;
            walk.key = number;
        }
    }
    walk.odd = 0;
    0
}

/// Heeds a command. Returns the number of the reply it is owed, `u64::MAX` if it is owed none; `None` if
/// it was not understood.
#[inline(always)]
unsafe fn heed(
    config: &Config,
    flow: *mut Flow,
    window: &Window,
    walk: &Walk,
    segment: &Segment,
    command: &Command,
) -> Option<u64> {
    let is_binary = command.form == Form::Binary;
    let first = window.word(walk.at);
    let place = segment.flow as u16;
    // SAFETY: the caller's: a map element.
    unsafe {
        let number = (*flow).asked;
        let mut is_quiet = command.quiet;
        if is_quiet
            && !is_binary
            && command.flags == 0
            && !ends_in_noreply(window, command.line_end)
        {
            // One word more than there should be: memcached answers, but who knows what. A time of 0 for
            // `delete` is a relic of old clients.
            if first & DELETE_MASK != DELETE || !ends_in_zero(window, command.line_end) {
                return None;
            }
            is_quiet = false;
        }
        let is_plain = is_binary || !shown::may_break(walk.at, walk.seed);
        match command.effect {
            Effect::Write => {
                let key = command::key(walk.seed)?;
                let end = if is_quiet {
                    End::Quiet {
                        flow: place,
                        number,
                    }
                } else {
                    End::Owed {
                        flow: place,
                        number,
                    }
                };
                if writes::arrived(key, end)?.is_crowded {
                    crowd(config, flow, key, number, is_quiet);
                    // The version is raised once more, now that who reads it sees the crowd as well.
                    writes::arrived_again(key, end)?;
                }
            }
            Effect::Flush => {
                let due = flushes::arrived(segment.backend as u8);
                if due == 0 {
                    backend::forget(config, segment.backend as u8);
                }
                if is_quiet {
                    let now = clock::now();
                    (*flow).quiet_flush_at = now;
                    // Known before anybody waits for a reply because of it.
                    (&raw mut (*flow).quiet_at).write_volatile(now);
                    // memcached comes to it when it has answered what precedes it.
                    doubt::wait_until_answered(config, flow, number, segment.end());
                    // Until then, or until the kernel has it: then it is known when it takes effect.
                    (*flow).flush_asked = now;
                    (*flow).flush_due = due;
                } else {
                    doubt::wait_for_flush(flow, number, segment.end());
                    (*flow).flush_asked = clock::now();
                    (*flow).flush_due = due;
                }
            }
            Effect::Get => {
                if command.form as u32 >= Form::Meta as u32 && !is_quiet && is_plain {
                    let hash = command::key(walk.seed)?;
                    let len = (*scratch()?).item.key_len;
                    tickets::take(segment.flow, number, hash, tickets::KEPT, len);
                }
            }
            Effect::Read | Effect::LongRead => {}
            Effect::Incomplete | Effect::Unknown => return None,
        }
        let ask = if is_binary {
            (first >> 8) as u8
        } else {
            match stream::ask(first, command.effect) {
                Some(ask) if is_plain => ask as u8,
                _ => {
                    doubt::replies(flow);
                    return Some(u64::MAX);
                }
            }
        };
        if is_quiet {
            let quiet = if command.flags != 0 {
                QUIET_META
            } else {
                QUIET_TEXT
            };
            (*flow).quiets |= u32::from(quiet);
            (*flow).quiet_at = clock::now();
            return Some(u64::MAX);
        }
        if number.wrapping_sub((&raw const (*flow).counted).read_volatile()) >= MAX_ASKED as u64
            && (*flow).doubt & Flow::REPLIES == 0
        {
            doubt::replies(flow);
        }
        let place = number as usize & (MAX_ASKED - 1);
        let quiets = if is_binary { 0 } else { (*flow).quiets as u8 };
        (&raw mut (*flow).asks[place]).write_volatile(ask | quiets);
        (*flow).quiets = 0;
        (&raw mut (*flow).asked).write_volatile(number + 1);
        Some(number)
    }
}

/// `delete` at the start of a line.
const DELETE: u64 = u64::from_le_bytes(*b"delete \0");
const DELETE_MASK: u64 = (1 << 56) - 1;

/// Whether a line ends in ` 0`.
#[inline(always)]
fn ends_in_zero(window: &Window, end: u64) -> bool {
    window.word(end.wrapping_sub(2)) & 0xffff == u64::from(u16::from_le_bytes(*b" 0"))
}

/// Whether a line ends in ` noreply`.
#[inline(always)]
fn ends_in_noreply(window: &Window, end: u64) -> bool {
    window.word(end.wrapping_sub(8)) == u64::from_le_bytes(*b" noreply")
}

/// A write has found no mark: its bucket counts as written until the flow has answered it.
#[inline(always)]
pub(super) unsafe fn crowd(
    config: &Config,
    flow: *mut Flow,
    key: u64,
    number: u64,
    is_quiet: bool,
) {
    // SAFETY: the caller's: a map element. The flow counts before its bucket says so.
    unsafe {
        // A quiet one has ended when the command after it has. What is parsed again may be an earlier one.
        if number > (&raw const (*flow).crowded_number).read_volatile() {
            (&raw mut (*flow).crowded_number).write_volatile(number);
        }
        if atomic::swap(&raw mut (*flow).is_crowding, 1) == 0 {
            backend::crowd((*flow).backend as u8);
        }
    }
    if is_quiet {
        // SAFETY: as above.
        backend::be_quiet(config, unsafe { (*flow).backend as u8 });
    }
    writes::crowd(config, key);
}

/// Takes a ticket for the next key of a text GET.
#[inline(always)]
unsafe fn next_key(flow: *mut Flow, window: &Window, walk: &mut Walk, segment: &Segment) -> i64 {
    let end = walk.out;
    let start = skip_spaces(window, walk.start, end);
    let stop = token_end(window, start, end, (MAX_KEY + 1).div_ceil(8) + 1);
    let len = window.forgotten(stop.wrapping_sub(start));
    // SAFETY: the caller's: a map element.
    let is_certain = unsafe { (*flow).doubt == 0 };
    if start >= end || len == 0 || len > MAX_KEY as u64 || !is_certain {
        walk.start = 0;
        return 0;
    }
    walk.start = stop;
    if let Some(hash) = scan_key(window, start, len, walk.seed) {
        tickets::take(segment.flow, walk.key, hash, start, len);
    }
    0
}

/// Looks for the end of a GET that was too long to be carried.
#[inline(always)]
unsafe fn end_keys(flow: *mut Flow, window: &Window, walk: &mut Walk) -> i64 {
    match line_end(window, walk.at, walk.end) {
        LineEnd::At { next, .. } => {
            // SAFETY: the caller's: a map element, and the index is in bounds.
            unsafe {
                (*flow).mode = Mode::Command as u32;
                let number = (*flow).asked;
                if number.wrapping_sub((*flow).counted) >= MAX_ASKED as u64 && (*flow).doubt == 0 {
                    doubt::replies(flow);
                }
                let place = number as usize & (MAX_ASKED - 1);
                let ask = stream::Ask::Get as u8 | (*flow).quiets as u8;
                (&raw mut (*flow).asks[place]).write_volatile(ask);
                (*flow).quiets = 0;
                (&raw mut (*flow).asked).write_volatile(number + 1);
            }
            walk.at = next;
            0
        }
        LineEnd::Missing => {
            walk.at = walk.end;
            1
        }
        LineEnd::Odd => {
            walk.odd = 1;
            1
        }
    }
}
