//! The elements of the replies in the window: to which command each belongs, and what it ends.

use aya_ebpf::helpers::generated::bpf_loop;
use core::ffi::c_void;
use prestack_abi::cache::MAX_REPLY;
use prestack_abi::flow::{Flow, MAX_ASKED, Mode};
use prestack_proto::binary::opcode::{GET, GETK, GETKQ, GETQ, NOOP};
use prestack_proto::stream::{self, Ask, Class, Owner};
use prestack_proto::text::reply::END_LEN;
use prestack_proto::window::WINDOW;

use super::leave::mark_answered;
use crate::hits::element;
use crate::ledger::backend;
use crate::scratch::scratch;
use crate::tcp::{flow, tickets};

/// Most elements of replies in a window.
const MAX_STEPS: u32 = 1024;

/// Takes note of the elements of the replies in the window. A global function (by its unmangled name): the
/// verifier checks it once, not for every look.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn prestack_tcp_go_over() -> u64 {
    // SAFETY: the callback fits the helper.
    unsafe { bpf_loop(MAX_STEPS, step as *mut c_void, core::ptr::null_mut(), 0) };
    0
}

/// Takes note of the next element of the replies in the window. Returns 1 at the end.
#[inline(never)]
extern "C" fn step(_: u32, _: *mut c_void) -> i64 {
    let Some(scratch) = scratch() else { return 1 };
    // SAFETY: this CPU's scratch.
    let (walk, segment) = unsafe { (&mut (*scratch).walk, &mut (*scratch).segment) };
    let Some(flow) = flow::at(segment.flow) else {
        return 1;
    };
    let (at, end) = (walk.at, walk.end);
    if at >= end || end > WINDOW as u64 || walk.odd != 0 {
        return 1;
    }
    prestack_tcp_element(at, end);
    // SAFETY: this CPU's scratch.
    let element = unsafe { (&raw const (*scratch).element).read_volatile() };
    if element.class == Class::Incomplete {
        return 1;
    }
    // SAFETY: a map element, and the index is in bounds.
    unsafe {
        let number = (*flow).counted;
        let is_owed = number < (&raw const (*flow).asked).read_volatile();
        let ask = (&raw const (*flow).asks[number as usize & (MAX_ASKED - 1)]).read_volatile();
        let ask = is_owed.then_some(ask);
        let protocol = (&raw const (*flow).protocol).read_volatile();
        let is_binary = element.class == Class::Binary;
        // 0 while the first command is parsed again.
        let is_others = protocol != 0 && is_binary != (protocol == Flow::BINARY);
        let owner = if element.class == Class::Odd || is_others {
            Owner::Unknown
        } else if is_binary {
            stream::binary_owner(ask, element.opcode, element.is_last)
        } else if !is_owed && (&raw const (*flow).quiets).read_volatile() == 0 {
            // No quiet command has come either.
            Owner::Unknown
        } else {
            stream::text_owner(ask, element.class)
        };
        // What is owed nothing is no answer to a command that has not come as a whole: it is none.
        let is_false = !is_owed
            && (*flow).doubt & Flow::REQUESTS != 0
            && ((&raw const (*flow).mode).read_volatile() != Mode::Command as u32
                || (&raw const (*flow).carried).read_volatile() != 0);
        if owner == Owner::Unknown || is_false {
            if !is_owed && element.class != Class::Error && (*flow).doubt == 0 {
                disprove(flow);
            }
            walk.odd = 1;
            return 1;
        }
        let next = at + element.len;
        let is_learnt = element.has_data
            && element.len <= MAX_REPLY as u64 - END_LEN
            && owner != Owner::Quiet
            && tickets::has_any(flow, number);
        // What is learnt from starts the window.
        if is_learnt && at != 0 {
            walk.keys = 1;
            return 1;
        }
        if next > end {
            let base = segment.window_sequence as u32;
            (*flow).is_reply_data = 1;
            (*flow).reply_until = base.wrapping_add(next as u32);
            walk.at = end;
        } else {
            walk.at = next;
        }
        let learns = is_learnt && at == 0 && next <= end;
        if learns {
            walk.keys = 1;
            segment.learn = element.len;
            walk.misses = number;
        }
        if owner == Owner::Ends {
            (&raw mut (*flow).counted).write_volatile(number + 1);
            // An error may say that the client has not shown yet who it is.
            let is_refusal = element.class == Class::Error || element.is_refusal;
            if !is_refusal && is_get((*flow).protocol, ask.unwrap_or_default()) {
                earn(segment.flow);
            }
            if (*flow).doubt == 0 {
                mark_answered(flow, number + 1);
            }
            if !learns {
                tickets::give_back(segment.flow, number);
            }
        }
        i64::from(learns)
    }
}

/// A reply for which nothing is owed: earlier ones were taken for those to later commands, which may still be under
/// way.
#[inline(always)]
unsafe fn disprove(flow: *mut Flow) {
    if let Some(config) = backend::config() {
        // SAFETY: the caller's: a map element.
        backend::forget(config, unsafe { (*flow).backend as u8 });
    }
}

/// Whether an ask is a GET's.
#[inline(always)]
fn is_get(protocol: u32, ask: u8) -> bool {
    if protocol == Flow::BINARY {
        matches!(ask, GET | GETQ | GETK | GETKQ | NOOP)
    } else {
        let kind = stream::kind(ask);
        kind == Ask::Get as u8 || kind == Ask::Meta as u8
    }
}

/// memcached has answered a GET on the flow at this place.
#[inline(always)]
fn earn(place: u32) {
    if let Some(config) = backend::config() {
        element::earn(config, place);
    }
}

/// The element of the replies at `at` of the window, before `end`, is then in the scratch's `element`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_tcp_element(at: u64, end: u64) -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    // SAFETY: this CPU's scratch.
    unsafe {
        let element = stream::element(&(*scratch).window, at, end);
        (&raw mut (*scratch).element).write_volatile(element);
    }
    0
}
