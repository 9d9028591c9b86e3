//! Doubt about a flow, and how it ends.
//!
//! While a flow's requests are in doubt, its data empties the cache, and no tickets are given from the
//! arrival of its data until memcached has sent something after it, or is found to wait for more. While its replies are in doubt, none
//! of its commands counts as answered.
//!
//! Doubt ends after [`EXCHANGES`] exchanges in a row. An exchange
//! starts when a segment arrives while everything before it has been acknowledged in both directions,
//! consists of whole commands, the last of which is owed a reply, and ends when as many replies of the right kinds have
//! left as it asks for. Inside a data block memcached would answer nothing. Doubt does not end on a part of a Multipath TCP
//! connection, whose bytes memcached gets among those of other parts.
//!
//! That all is acknowledged does not mean that all is answered: the replies of a client that is always one
//! command ahead look just as those of one that waits. So it is asked whether memcached has read all that
//! came when a reply leaves, and something of the exchange. memcached reads only when it owes nothing (and data no further
//! than to its end): then the reply is that to the last
//! command, unless the kernel has held it back, for want of a window say, and memcached has read more since. So
//! the first segment of an exchange's replies has to leave while memcached writes it, and nothing that was sent may be
//! unacknowledged when the exchange begins: what waits for that may leave while memcached reads.
//!
//! Where the kernel does not say, doubt does not end before the settle time is over, and the first exchange has to begin
//! after neither end has sent anything for the settle time: what memcached had to answer before, it has answered by then,
//! unless it sits on a command for longer than that.

use prestack_abi::config::Config;
use prestack_abi::flow::{Flow, Mode};

use super::flow::stop_waiting;
use super::{is_before, later};
use crate::atomic;
use crate::cache::fence;
use crate::clock;
use crate::ledger::backend;
use crate::maps::count;

/// Exchanges that end doubt.
const EXCHANGES: u32 = 2;

/// The flow's requests have not been understood to the byte.
///
/// # Safety
///
/// `flow` is an element of `FLOWS`.
#[inline(always)]
pub unsafe fn requests(config: &Config, flow: *mut Flow) {
    // SAFETY: the caller's.
    unsafe {
        if (*flow).doubt & Flow::REQUESTS == 0 {
            count!(doubted_requests);
        }
        give_up_hole(flow);
        raise(flow, Flow::REQUESTS | Flow::REPLIES);
        wait_for_any(flow);
        backend::forget(config, (*flow).backend as u8);
    }
}

/// [`requests`], from what has come on, and a segment that ends with this byte: that memcached has read it all is
/// waited for.
///
/// # Safety
///
/// `flow` is an element of `FLOWS`.
#[inline(always)]
pub unsafe fn all(config: &Config, flow: *mut Flow, end: u32) {
    // SAFETY: the caller's.
    unsafe {
        doubt_until(flow, end);
        requests(config, flow);
    }
}

/// What is waited for is that memcached has read up to this byte, and what has come.
#[inline(always)]
unsafe fn doubt_until(flow: *mut Flow, end: u32) {
    // SAFETY: the caller's.
    unsafe {
        let until = later((*flow).next, end);
        (&raw mut (*flow).doubted_until).write_volatile(until);
    }
}

/// What came while something before it was missing is not followed any more. memcached gets it all the same.
#[inline(always)]
unsafe fn give_up_hole(flow: *mut Flow) {
    // SAFETY: the caller's.
    unsafe {
        let hole = (*flow).has_hole;
        if hole == 0 {
            return;
        }
        (*flow).has_hole = 0;
        let mut until = (*flow).next;
        if hole & Flow::KEPT != 0 {
            until = later(until, (*flow).kept_until);
        }
        if hole & Flow::NOT_KEPT != 0 {
            until = later(until, (*flow).not_kept_until);
        }
        let known = (&raw const (*flow).doubted_until).read_volatile();
        if known == 0 || is_before(known, until) {
            (&raw mut (*flow).doubted_until).write_volatile(until);
        }
    }
}

/// It is not certain which of the flow's commands have been answered.
///
/// # Safety
///
/// `flow` is an element of `FLOWS`.
#[inline(always)]
pub unsafe fn replies(flow: *mut Flow) {
    // SAFETY: the caller's.
    unsafe {
        if (*flow).doubt & Flow::REPLIES == 0 {
            count!(doubted_replies);
        }
        raise(flow, Flow::REPLIES);
        if (&raw const (*flow).owes).read_volatile() == Flow::OWES_REPLY {
            // Whether that one has been answered would not be told.
            (&raw mut (*flow).doubted_until).write_volatile((*flow).next);
            wait_for_any(flow);
        }
    }
}

#[inline(always)]
unsafe fn raise(flow: *mut Flow, doubt: u32) {
    // SAFETY: the caller's.
    unsafe {
        (&raw mut (*flow).doubt).write_volatile((*flow).doubt | doubt);
        (&raw mut (*flow).exchanges).write_volatile(0);
        // Who begins to wait for a reply at this moment sees the doubt, or else what it waits for is seen next. Each time
        // another time, so that who ends doubt at this moment sees that more has arisen, or else has not the last word.
        let since = (&raw const (*flow).doubt_since).read_volatile();
        let now = clock::now();
        let now = if now > since { now } else { since + 1 };
        atomic::swap(&raw mut (*flow).doubt_since, now);
        (&raw mut (*flow).doubt).write_volatile((*flow).doubt | doubt);
        break_off(flow);
        hear(flow);
    }
}

/// Either end of a flow in doubt has sent data.
///
/// # Safety
///
/// `flow` is an element of `FLOWS`.
#[inline(always)]
pub unsafe fn hear(flow: *mut Flow) {
    // SAFETY: the caller's.
    unsafe { (&raw mut (*flow).heard_at).write_volatile(clock::now()) };
}

/// Whether neither end has sent data for the settle time.
///
/// # Safety
///
/// `flow` is an element of `FLOWS`, and in doubt.
#[inline(always)]
pub unsafe fn is_quiet(config: &Config, flow: *mut Flow) -> bool {
    // SAFETY: the caller's.
    unsafe { clock::now() > (&raw const (*flow).heard_at).read_volatile() + config.settle_ns }
}

/// No tickets until memcached has sent something on this flow.
///
/// # Safety
///
/// `flow` is an element of `FLOWS`.
#[inline(always)]
pub unsafe fn wait_for_any(flow: *mut Flow) {
    // SAFETY: the caller's.
    unsafe {
        (&raw mut (*flow).is_unsettled).write_volatile(1);
        owe(flow, Flow::OWES_ANY)
    };
}

/// No tickets until the command with this number has been answered.
///
/// # Safety
///
/// `flow` is an element of `FLOWS`.
#[inline(always)]
pub unsafe fn wait_for(flow: *mut Flow, number: u64) {
    // SAFETY: the caller's.
    unsafe {
        // What is parsed again may be an earlier one.
        if number > (&raw const (*flow).owed_number).read_volatile() {
            (&raw mut (*flow).owed_number).write_volatile(number);
        }
        if owe(flow, Flow::OWES_REPLY) == Flow::OWES_ANY {
            owe(flow, Flow::OWES_ANY);
        }
    }
}

/// No tickets until the command with this number, which is in a segment that ends with this byte, has been answered. If
/// that would not be told, until memcached has sent something after it.
///
/// # Safety
///
/// `flow` is an element of `FLOWS`.
#[inline(always)]
pub unsafe fn wait_for_flush(flow: *mut Flow, number: u64, end: u32) {
    // SAFETY: the caller's.
    unsafe {
        wait_for(flow, number);
        if (&raw const (*flow).doubt).read_volatile() != 0 {
            doubt_until(flow, end);
            wait_for_any(flow);
        }
    }
}

/// No tickets until all commands before the one with this number, which is in a segment that ends with this byte, have
/// been answered, and the settle time is over since then. If that would not be told, until memcached has read it.
///
/// # Safety
///
/// `flow` is an element of `FLOWS`.
#[inline(always)]
pub unsafe fn wait_until_answered(config: &Config, flow: *mut Flow, number: u64, end: u32) {
    // SAFETY: the caller's.
    unsafe {
        if (&raw const (*flow).doubt).read_volatile() != 0 {
            doubt_until(flow, end);
            wait_for_any(flow);
            return;
        }
        let is_open = (&raw const (*flow).answered).read_volatile() < number
            || (&raw const (*flow).is_reply_data).read_volatile() != 0;
        if is_open {
            wait_for(flow, number.wrapping_sub(1));
            // It may have been answered at this moment, by whom nobody was seen to wait.
            pay(config, flow);
        }
    }
}

/// If the command is answered for which the backend waits, it does not wait any more.
///
/// # Safety
///
/// `flow` is an element of `FLOWS`.
#[inline(always)]
pub unsafe fn pay(config: &Config, flow: *mut Flow) {
    let is_answered = |flow: *mut Flow, owes| {
        // SAFETY: the caller's.
        unsafe {
            owes == Flow::OWES_REPLY
                && (&raw const (*flow).answered).read_volatile()
                    > (&raw const (*flow).owed_number).read_volatile()
                && (&raw const (*flow).is_reply_data).read_volatile() == 0
        }
    };
    // SAFETY: the caller's.
    unsafe {
        if (&raw const (*flow).quiet_at).read_volatile() != 0
            && is_answered(flow, (&raw const (*flow).owes).read_volatile())
        {
            // A quiet command that was waited for settles from now on.
            backend::be_quiet(config, (*flow).backend as u8);
        }
        paid(flow, is_answered);
    }
}

/// Sets what the backend waits for, and returns what it was. `rx` and `tx` may both change it at this
/// moment: whoever finds nothing there makes the backend wait, and whoever takes it away lets it go on.
///
/// # Safety
///
/// `flow` is an element of `FLOWS`.
#[inline(always)]
unsafe fn owe(flow: *mut Flow, what: u64) -> u64 {
    // SAFETY: the caller's.
    unsafe {
        let old = atomic::swap(&raw mut (*flow).owes, what);
        if old == 0 {
            backend::wait((*flow).backend as u8);
        }
        old
    }
}

/// Memcached has sent something behind `ack`, with commands up to `answered` answered: the backend does
/// not wait for that any more.
///
/// # Safety
///
/// `flow` is an element of `FLOWS`.
#[inline(always)]
pub unsafe fn paid(flow: *mut Flow, is_paid: impl Fn(*mut Flow, u64) -> bool) -> bool {
    // SAFETY: the caller's.
    unsafe {
        let owes = (&raw const (*flow).owes).read_volatile();
        if owes == 0 || !is_paid(flow, owes) {
            return false;
        }
        stop_owing(flow);
        if !is_paid(flow, owes) {
            // More has come at this moment, and may have found that the backend waited already.
            owe(flow, owes);
            return false;
        }
    }
    true
}

/// The backend does not wait for anything of this flow.
///
/// # Safety
///
/// `flow` is an element of `FLOWS`.
#[inline(always)]
pub unsafe fn stop_owing(flow: *mut Flow) {
    // SAFETY: the caller's.
    unsafe {
        if atomic::swap(&raw mut (*flow).owes, 0) != 0 {
            backend::go_on((*flow).backend as u8);
        }
    }
}

/// An exchange starts with this byte: the flow is at rest, and before that it was quiet or not.
///
/// # Safety
///
/// `flow` is an element of `FLOWS`.
#[inline(always)]
pub unsafe fn start_exchange(flow: *mut Flow, sequence: u32, was_quiet: bool) {
    // SAFETY: the caller's.
    unsafe {
        // What is owed is not waited for any more, and may be answered all the same.
        if (*flow).counted != (*flow).asked {
            break_off(flow);
        }
        if was_quiet {
            (*flow).is_rested = 1;
        }
        if (*flow).doubt & Flow::REQUESTS != 0 {
            (*flow).next = sequence;
            (*flow).mode = Mode::Command as u32;
            (*flow).protocol = 0;
            (*flow).carried = 0;
            (*flow).snapshots_taken = 0;
        }
        (*flow).quiets = 0;
        (*flow).is_reply_data = 0;
        (*flow).reply_carried = 0;
        (*flow).counted = (*flow).asked;
        (*flow).exchange_from = (*flow).asked;
        (*flow).exchange_at = sequence;
        (*flow).is_tentative = Flow::ASKED;
    }
}

/// An exchange has broken off, and those before do not count.
///
/// # Safety
///
/// `flow` is an element of `FLOWS`.
#[inline(always)]
pub unsafe fn break_off(flow: *mut Flow) {
    // SAFETY: the caller's.
    unsafe {
        (*flow).is_tentative = 0;
        (&raw mut (*flow).exchanges).write_volatile(0);
        (*flow).is_rested = 0;
    }
}

/// All that was asked for has been answered, and all that came has been acknowledged. Whether memcached has read it is known,
/// or told by time.
///
/// # Safety
///
/// `flow` is an element of `FLOWS`, whose `busy` the caller holds.
#[inline(always)]
pub unsafe fn end_exchange(config: &Config, flow: *mut Flow, is_known: bool) {
    // SAFETY: the caller's.
    unsafe {
        let since = (&raw const (*flow).doubt_since).read_volatile();
        fence();
        let exchanges = (&raw const (*flow).exchanges).read_volatile() + 1;
        (*flow).is_tentative = 0;
        let is_settled = is_known || clock::now() > since + config.settle_ns;
        if exchanges < EXCHANGES || !is_settled || (*flow).doubt & Flow::PART != 0 {
            (&raw mut (*flow).exchanges).write_volatile(exchanges);
            fence();
            if (&raw const (*flow).doubt_since).read_volatile() != since {
                (&raw mut (*flow).exchanges).write_volatile(0);
            }
            return;
        }
        (&raw mut (*flow).exchanges).write_volatile(0);
        // First: whoever sees that a write has ended is to see this.
        backend::be_quiet(config, (*flow).backend as u8);
        fence();
        // What came before has been answered.
        (&raw mut (*flow).is_unsettled).write_volatile(0);
        (&raw mut (*flow).answered).write_volatile((*flow).counted);
        (&raw mut (*flow).doubt).write_volatile(0);
        // A swap: what follows is read when others see what precedes it.
        stop_waiting(flow);
        fence();
        if (&raw const (*flow).doubt_since).read_volatile() == since {
            count!(regained);
        } else {
            // More has arisen at this moment, where nobody waits for `busy`.
            raise(flow, Flow::REQUESTS | Flow::REPLIES);
            wait_for_any(flow);
        }
    }
}
