//! The table of flows.

use aya_ebpf::helpers::{bpf_spin_lock, bpf_spin_unlock};
use prestack_abi::config::Config;
use prestack_abi::flow::{FLOW_SETS as SETS, FLOW_WAYS, Flow, Mode};

use super::doubt;
use super::segment::Segment;
use crate::atomic;
use crate::clock;
use crate::ledger::backend;
use crate::maps::{FLOW_SETS, FLOWS, count};

#[inline(always)]
fn set_of(name: u64) -> u32 {
    (name >> 32) as u32 & (SETS as u32 - 1)
}

/// The place in `FLOWS` of the flow with this name.
#[inline(always)]
pub fn find(name: u64, now: u64) -> Option<u32> {
    let set = FLOW_SETS.get_ptr_mut(set_of(name))?;
    for i in 0..FLOW_WAYS {
        // SAFETY: a map element. What is being changed is another flow's, or this one's that opens or
        // closes just now.
        unsafe {
            if (&raw const (*set).names[i]).read_volatile() == name {
                let over_at = (&raw const (*set).over_at[i]).read_volatile();
                if over_at != 0 && over_at <= now {
                    return None;
                }
                return Some(set_of(name) * FLOW_WAYS as u32 + i as u32);
            }
        }
    }
    None
}

/// The flow at this place.
#[inline(always)]
pub fn at(place: u32) -> Option<*mut Flow> {
    FLOWS.get_ptr_mut(place)
}

/// A place for the flow of a segment that opens, or that is taken up midway; its state is as of a flow
/// that has sent nothing. `None` if there is none.
#[inline(always)]
pub fn open(config: &Config, segment: &Segment) -> Option<u32> {
    let name = segment.name(config);
    let set = FLOW_SETS.get_ptr_mut(set_of(name))?;
    let now = clock::now();
    let mut way = FLOW_WAYS;
    // SAFETY: a map element; nothing is called under its lock.
    unsafe {
        bpf_spin_lock((&raw mut (*set).lock).cast());
        for i in 0..FLOW_WAYS {
            let over_at = (*set).over_at[i];
            if (*set).names[i] == name {
                way = i;
                break;
            }
            if way == FLOW_WAYS && ((*set).names[i] == 0 || (over_at != 0 && over_at <= now)) {
                way = i;
            }
        }
        for i in 0..FLOW_WAYS {
            if i == way {
                (*set).names[i] = name;
                (*set).over_at[i] = 0;
            }
        }
        bpf_spin_unlock((&raw mut (*set).lock).cast());
    }
    if way == FLOW_WAYS {
        count!(flows_refused);
        return None;
    }
    let place = set_of(name) * FLOW_WAYS as u32 + way as u32;
    let flow = at(place)?;
    // SAFETY: a map element. Another program run may be at work on a flow of this name only if packets of
    // an old and a new connection meet.
    unsafe {
        if (*flow).over_at == 0 && (*flow).state != Flow::CLOSED {
            // The end of the old connection was not seen, and its writes may be under way.
            backend::be_quiet(config, (*flow).backend as u8);
        }
        stop_waiting(flow);
        // The numbers go on, so that all marks of the place's former flows have ended.
        let number = (*flow).asked + 1;
        (*flow).asked = number;
        (*flow).counted = number;
        (&raw mut (*flow).answered).write_volatile(number);
        (*flow).over_at = 0;
        (*flow).acked_before = now;
        (*flow).quiet_at = 0;
        (*flow).marked_at = now;
        (*flow).unacked_since = 0;
        (*flow).is_repeat = 0;
        (*flow).busy = 0;
        (*flow).doubt = 0;
        (*flow).doubt_since = now;
        (*flow).exchanges = 0;
        (*flow).is_tentative = 0;
        (*flow).is_seen = 0;
        (*flow).window_scale = 0;
        (*flow).backend = segment.backend;
        (*flow).mode = Mode::Command as u32;
        (*flow).protocol = 0;
        (*flow).data_from = 0;
        (*flow).data_until = 0;
        (*flow).carried = 0;
        (*flow).quiets = 0;
        (*flow).snapshots_taken = 0;
        (*flow).tickets_given = 0;
        (*flow).reply_carried = 0;
        (*flow).is_reply_data = 0;
        (*flow).doubted_until = 0;
        (*flow).kept_number = 0;
        (*flow).has_hole = 0;
        (*flow).flush_due = 0;
        (*flow).key = segment.key;
        for ticket in &mut (*flow).tickets {
            (&raw mut ticket.key).write_volatile(0);
        }
        (*flow).state = Flow::OPENING;
    }
    Some(place)
}

/// A flow has ended: its writes that have not been answered settle.
///
/// # Safety
///
/// `flow` is the element of `FLOWS` at `place`.
#[inline(always)]
pub unsafe fn close(config: &Config, flow: *mut Flow, place: u32, state: u32) {
    let over_at = clock::now() + config.settle_ns;
    // SAFETY: the caller's.
    unsafe {
        (*flow).state = state;
        (&raw mut (*flow).over_at).write_volatile(over_at);
        if (*flow).owes != 0 || (*flow).is_crowding != 0 {
            backend::be_quiet(config, (*flow).backend as u8);
            stop_waiting(flow);
        }
    }
    mark_over(place, over_at);
}

/// A flow goes on that was taken for closed.
///
/// # Safety
///
/// `flow` is the element of `FLOWS` at `place`.
#[inline(always)]
pub unsafe fn reopen(flow: *mut Flow, place: u32) {
    // SAFETY: the caller's.
    unsafe {
        (*flow).state = Flow::OPEN;
        (&raw mut (*flow).over_at).write_volatile(0);
    }
    mark_over(place, 0);
}

#[inline(always)]
fn mark_over(place: u32, over_at: u64) {
    let Some(set) = FLOW_SETS.get_ptr_mut(place / FLOW_WAYS as u32) else {
        return;
    };
    let way = place as usize % FLOW_WAYS;
    // SAFETY: a map element. The place is the flow's own until it is over.
    unsafe { (&raw mut (*set).over_at[way]).write_volatile(over_at) };
}

/// The backend does not wait for this flow any more.
///
/// # Safety
///
/// `flow` is an element of `FLOWS`.
#[inline(always)]
pub unsafe fn stop_waiting(flow: *mut Flow) {
    // SAFETY: the caller's.
    unsafe {
        doubt::stop_owing(flow);
        if atomic::swap(&raw mut (*flow).is_crowding, 0) != 0 {
            backend::thin_out((*flow).backend as u8);
        }
    }
}
