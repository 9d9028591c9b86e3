//! How flows begin and end.

use prestack_abi::config::Config;
use prestack_abi::flow::{Flow, Mode};

use super::segment::Segment;
use super::table::{self, Reservation};
use super::{GREATEST_SCALE, doubt};
use crate::atomic;
use crate::clock;
use crate::hits::element;
use crate::ledger::backend;
use crate::maps::{FLOWS, count};

/// The flow at this place.
#[inline(always)]
pub fn at(place: u32) -> Option<*mut Flow> {
    FLOWS.get_ptr_mut(place)
}

/// How a flow begins.
#[derive(Clone, Copy)]
pub enum Beginning {
    /// The host has agreed to the connection: it expects the byte `next`, has sent all before `sent`, and
    /// takes what comes before `edge`. If the connection is a part of a Multipath TCP connection, memcached gets its
    /// bytes among those of others.
    Agreed {
        next: u32,
        sent: u32,
        edge: u32,
        window_scale: u32,
        is_part: bool,
    },
    /// It is taken up before its first byte, which is `next`, with what is sent to it at `sent`.
    Fresh { next: u32, sent: u32 },
    /// It is taken up midway: nothing of it is certain.
    Midway,
    /// The same, and nothing ever will be: it is a part of a Multipath TCP connection.
    Part,
}

/// Sets up the flow of a segment, and returns its place. If it is to be taken up and is known already, because
/// another CPU was quicker, then that is it. `None` if there is no place.
#[inline(always)]
pub fn begin(config: &Config, segment: &Segment, beginning: Beginning) -> Option<u32> {
    let name = segment.name(config);
    let is_agreed = matches!(beginning, Beginning::Agreed { .. });
    let place = match table::reserve(name, clock::now(), !is_agreed) {
        Reservation::Place(place) => place,
        Reservation::Known(place) => return Some(place),
        Reservation::Full => {
            count!(flows_refused);
            return None;
        }
    };
    let flow = at(place)?;
    element::begin(config, place);
    // SAFETY: a map element, at a place that nobody finds. Another program run may be at work there only if
    // packets of an old and a new connection of one name meet.
    let published = unsafe {
        set_up(config, flow, segment);
        match beginning {
            Beginning::Agreed {
                next,
                sent,
                edge,
                window_scale,
                is_part,
            } => {
                see(flow, next, sent, edge, window_scale);
                (*flow).state = Flow::OPENING;
                if is_part {
                    // Nothing has come of it that would be waited for.
                    (*flow).doubt = Flow::REQUESTS | Flow::REPLIES | Flow::PART;
                }
            }
            Beginning::Fresh { next, sent } => {
                // The scale is not known: the window may be as wide as any.
                let edge = next.wrapping_add(GREATEST_WINDOW);
                see(flow, next, sent, edge, GREATEST_SCALE as u32);
                (*flow).state = Flow::OPEN;
                count!(flows_adopted);
            }
            Beginning::Midway | Beginning::Part => {
                (*flow).state = Flow::OPEN;
                (*flow).next = segment.sequence;
                if matches!(beginning, Beginning::Part) {
                    (*flow).doubt = Flow::PART;
                }
                doubt::requests(config, flow);
            }
        }
        table::publish(name, place, is_agreed)
    };
    if published != place {
        // SAFETY: as above.
        unsafe {
            (*flow).state = Flow::CLOSED;
            stop_waiting(flow);
        }
    }
    Some(published)
}

/// The widest window there is (RFC 7323).
pub const GREATEST_WINDOW: u32 = (u16::MAX as u32) << GREATEST_SCALE;

/// A flow's numbers are known.
#[inline(always)]
unsafe fn see(flow: *mut Flow, next: u32, sent: u32, edge: u32, window_scale: u32) {
    // SAFETY: the caller's: an element of `FLOWS`.
    unsafe {
        (*flow).next = next;
        (*flow).acked = next;
        (*flow).marked = next;
        (*flow).edge = edge;
        (*flow).sent = sent;
        (*flow).window_scale = window_scale;
        (&raw mut (*flow).is_seen).write_volatile(1);
    }
}

/// Makes an element the flow of a segment, which has sent nothing.
#[inline(always)]
unsafe fn set_up(config: &Config, flow: *mut Flow, segment: &Segment) {
    let now = clock::now();
    // SAFETY: the caller's: an element of `FLOWS`.
    unsafe {
        let (state, over_at) = ((*flow).state, (*flow).over_at);
        let is_unseen = over_at == 0 && state != Flow::CLOSED && state != Flow::OPENING;
        // Of one of the same name that has just ended commands may wait to be read: memcached gets them all the same.
        let is_settling = over_at > now
            && ((*flow).asked != (*flow).answered || (*flow).quiet_at != 0 || (*flow).doubt != 0);
        if is_unseen || is_settling {
            // The end of the old connection was not seen, or its writes settle, and their marks end with what follows.
            backend::be_quiet(config, (*flow).backend as u8);
        }
        stop_waiting(flow);
        // The numbers go on, so that all marks of the place's former flows have ended.
        let number = (*flow).asked + 1;
        (*flow).asked = number;
        (*flow).counted = number;
        (&raw mut (*flow).answered).write_volatile(number);
        (*flow).owed_number = 0;
        (*flow).crowded_number = 0;
        (*flow).over_at = 0;
        (*flow).acked_before = now;
        (*flow).quiet_at = 0;
        (*flow).quiet_flush_at = 0;
        (*flow).replied_at = 0;
        (*flow).marked_at = now;
        (*flow).unacked_since = 0;
        (*flow).is_repeat = 0;
        (*flow).busy = 0;
        (*flow).doubt = 0;
        (*flow).doubt_since = now;
        (*flow).exchanges = 0;
        (*flow).is_tentative = 0;
        (*flow).is_rested = 0;
        (*flow).is_unsettled = 0;
        (*flow).heard_at = now;
        (*flow).is_seen = 0;
        (*flow).window_scale = 0;
        (*flow).backend = segment.backend;
        (*flow).mode = Mode::Command as u32;
        (*flow).protocol = 0;
        (*flow).data_from = 0;
        (*flow).data_until = 0;
        (*flow).carried = 0;
        (*flow).quiets = 0;
        (*flow).carry_turn = 0;
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
    }
}

/// Something has shown that a half-open flow's client exists: it stays. False if it has lost its place.
#[inline(always)]
pub fn establish(name: u64, place: u32) -> bool {
    let is_there = table::establish(name, place);
    if is_there && let Some(flow) = at(place) {
        // SAFETY: a map element, which is the flow's own from now on.
        unsafe {
            if (*flow).state == Flow::OPENING {
                (*flow).state = Flow::OPEN;
            }
        }
    }
    is_there
}

/// A flow has ended: its writes that have not been answered settle.
///
/// # Safety
///
/// `flow` is the element of `FLOWS` at `place`.
#[inline(always)]
pub unsafe fn close(config: &Config, flow: *mut Flow, place: u32) {
    // SAFETY: the caller's.
    let over_at = unsafe { settle(config, flow, Flow::CLOSED) };
    table::mark_over(place, over_at);
    element::close(config, place, over_at);
}

/// The client has reset a flow, or a filter of this host for it, which has ended if the other end heeds that. What is
/// dropped on its way (by a filter, or for its checksum) it does not: then a connection that is translated breaks unless
/// it stays so. It does until the kernel resets it, or it is found to have no socket.
///
/// # Safety
///
/// As for [`close`].
#[inline(always)]
pub unsafe fn reset(config: &Config, flow: *mut Flow, place: u32) {
    // SAFETY: the caller's. First: from then on nothing is answered that would make the connection a translated one.
    let over_at = unsafe { settle(config, flow, Flow::RESET) };
    if !element::is_translated(config, place) {
        table::mark_over(place, over_at);
        element::close(config, place, over_at);
    }
}

/// The writes of a flow in this state settle. Returns the time at which they have.
#[inline(always)]
unsafe fn settle(config: &Config, flow: *mut Flow, state: u32) -> u64 {
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
    over_at
}

/// A flow goes on that was taken for closed.
///
/// # Safety
///
/// `flow` is the element of `FLOWS` at `place`.
#[inline(always)]
pub unsafe fn reopen(config: &Config, flow: *mut Flow, place: u32) {
    // SAFETY: the caller's.
    unsafe {
        (*flow).state = Flow::OPEN;
        (&raw mut (*flow).over_at).write_volatile(0);
    }
    table::mark_over(place, 0);
    element::close(config, place, 0);
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
