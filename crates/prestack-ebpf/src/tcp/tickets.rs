//! Tickets of GETs on a flow: their replies may fill the cache.

use prestack_abi::config::Attention;
use prestack_abi::flow::{FLOW_TICKETS, Flow, FlowTicket};
use prestack_abi::requests::REQUEST_KEY_WORDS;
use prestack_proto::window::Window;

use crate::cache::find::{Query, find};
use crate::cache::{fence, fill};
use crate::clock;
use crate::ledger::{backend, tickets};
use crate::scratch::scratch;

/// Takes a ticket for the key with this hash, which stands at `key` of the window or, if `len` is of
/// another form, in the scratch's `key`, for the flow's command with this number. A key that is in the
/// cache and not ageing needs none.
#[inline(always)]
pub fn take(flow: u32, number: u64, hash: u64, key: u64, len: u64) {
    prestack_flow_ticket(u64::from(flow), number, hash, key, len);
}

/// A global function (by its unmangled name): the verifier checks it once, for all arguments.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_flow_ticket(flow: u64, number: u64, hash: u64, key: u64, len: u64) -> u64 {
    let (Some(config), Some(scratch), Some(flow)) =
        (backend::config(), scratch(), super::flow::at(flow as u32))
    else {
        return 0;
    };
    // SAFETY: a map element, and this CPU's scratch.
    unsafe {
        // The first copy of what is seen again may have been executed long ago.
        if (*flow).doubt != 0
            || (*flow).is_repeat != 0
            || config.attention != Attention::Learning as u32
        {
            return 0;
        }
        let number_of_backend = (*flow).backend as u8;
        let Some(state) = backend::backend(number_of_backend) else {
            return 0;
        };
        let now = clock::now();
        let epoch = backend::epoch(state, now);
        let query = Query {
            config,
            backend: number_of_backend,
            epoch,
            now,
            hash,
        };
        let (is_binary_or_meta, source) = if key == KEPT {
            (true, &(*scratch).key)
        } else {
            (false, &(*scratch).window)
        };
        let at = if is_binary_or_meta { 0 } else { key };
        let is_fresh = find(query, source, at, len).is_some_and(|found| !found.is_ageing);
        if is_fresh || (is_binary_or_meta && !keep_key(flow, number, &(*scratch).key, len)) {
            return 0;
        }
        let Some(version) = tickets::take(config, number_of_backend, hash, now) else {
            return 0;
        };
        let place = (*flow).tickets_given as usize & (FLOW_TICKETS - 1);
        (*flow).tickets_given += 1;
        // Replies are read at the same time: the number is changed before the rest, and the key, without
        // which there is no ticket, comes last.
        let ticket = &raw mut (*flow).tickets[place];
        (&raw mut (*ticket).key).write_volatile(0);
        fence();
        (&raw mut (*ticket).number).write_volatile(number);
        fence();
        (&raw mut (*ticket).version).write_volatile(version);
        (&raw mut (*ticket).epoch).write_volatile(epoch);
        (&raw mut (*ticket).time).write_volatile(now);
        fence();
        (&raw mut (*ticket).key).write_volatile(hash);
    }
    1
}

/// The key is in the scratch's `key`.
pub const KEPT: u64 = u64::MAX;

/// Keeps the key of a command whose reply does not name it: false if that of another is kept that has
/// not been answered.
#[inline(always)]
unsafe fn keep_key(flow: *mut Flow, number: u64, key: &Window, len: u64) -> bool {
    // SAFETY: the caller's: an element of `FLOWS`.
    unsafe {
        if (*flow).kept_number >= (&raw const (*flow).answered).read_volatile()
            && (*flow).kept.len != 0
        {
            return false;
        }
        (*flow).kept_number = number;
        (*flow).kept.len = len;
        for i in 0..REQUEST_KEY_WORDS {
            let word = &raw mut (*flow).kept.words[i];
            word.write_volatile(key.word(8 * i as u64));
        }
    }
    true
}

/// Whether the flow's command with this number has a ticket.
///
/// # Safety
///
/// `flow` is an element of `FLOWS`.
#[inline(always)]
pub unsafe fn has_any(flow: *mut Flow, number: u64) -> bool {
    for i in 0..FLOW_TICKETS {
        // SAFETY: the caller's, and the index is in bounds.
        unsafe {
            let ticket = &raw const (*flow).tickets[i];
            if (&raw const (*ticket).number).read_volatile() == number
                && (&raw const (*ticket).key).read_volatile() != 0
            {
                return true;
            }
        }
    }
    false
}

/// The ticket of the flow's command with this number, for the key with this hash or, if that is 0, for
/// any.
///
/// # Safety
///
/// `flow` is an element of `FLOWS`.
#[inline(always)]
pub unsafe fn find_for(flow: *mut Flow, number: u64, hash: u64) -> Option<FlowTicket> {
    for i in 0..FLOW_TICKETS {
        // SAFETY: the caller's, and the index is in bounds.
        unsafe {
            let held = &raw mut (*flow).tickets[i];
            let key = (&raw const (*held).key).read_volatile();
            if key == 0
                || (hash != 0 && key != hash)
                || (&raw const (*held).number).read_volatile() != number
            {
                continue;
            }
            fence();
            let ticket = FlowTicket {
                key,
                time: (&raw const (*held).time).read_volatile(),
                number,
                version: (&raw const (*held).version).read_volatile(),
                epoch: (&raw const (*held).epoch).read_volatile(),
            };
            fence();
            // Given to another command meanwhile?
            if (&raw const (*held).number).read_volatile() != number {
                continue;
            }
            (&raw mut (*held).key).write_volatile(0);
            return Some(ticket);
        }
    }
    None
}

/// The flow's command with this number has been answered: what has a ticket still was not there.
#[inline(always)]
pub fn give_back(flow: u32, number: u64) {
    prestack_give_back(u64::from(flow), number);
}

/// A global function, like [`prestack_flow_ticket`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_give_back(flow: u64, number: u64) -> u64 {
    let Some(flow) = super::flow::at(flow as u32) else {
        return 0;
    };
    for i in 0..FLOW_TICKETS {
        // SAFETY: a map element, and the index is in bounds.
        unsafe {
            let held = &raw mut (*flow).tickets[i];
            let key = (&raw const (*held).key).read_volatile();
            if key != 0 && (&raw const (*held).number).read_volatile() == number {
                (&raw mut (*held).key).write_volatile(0);
                prestack_drop(key);
            }
        }
    }
    0
}

/// A global function, like [`prestack_flow_ticket`]: memcached does not have the key with this hash.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_drop(hash: u64) -> u64 {
    if let Some(config) = backend::config() {
        fill::drop_key(config, hash);
        tickets::release(config, hash);
    }
    0
}
