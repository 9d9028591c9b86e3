//! What a segment of replies says of its flow, before and after they are gone over.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use prestack_abi::config::Config;
use prestack_abi::flow::{Flow, Mode};
use prestack_proto::net::{TCP_FIN, TCP_RST};

use crate::atomic;
use crate::cache::fence;
use crate::clock;
use crate::hits::element;
use crate::ledger::{backend, flushes};
use crate::scratch::scratch;
use crate::tcp::segment::Segment;
use crate::tcp::{GREATEST_SCALE, doubt, flow, is_before, socket};

/// An acknowledgement is late after this many ns: the kernel delays none for longer than 200 ms
/// (`TCP_DELACK_MAX` in include/net/tcp.h).
const LATE_NS: u64 = 250_000_000;

/// What comes of a connection in doubt lies no further ahead of what the kernel has acknowledged, in bytes: windows are
/// hardly ever wider (`net.ipv4.tcp_rmem`).
const MOST_UNREAD: u32 = 1 << 24;

/// Takes note of what the segment in the scratch says of its flow; 0 if there are no replies to be looked
/// at. `read` is what [`prestack_tcp_read`] has said.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn prestack_tcp_leave(read: u64) -> u64 {
    let (Some(scratch), Some(config)) = (scratch(), backend::config()) else {
        return 0;
    };
    // SAFETY: this CPU's scratch.
    let mut segment = unsafe { (&raw const (*scratch).segment).read_volatile() };
    let Some(flow) = flow::at(segment.flow) else {
        return 0;
    };
    // SAFETY: a map element. The kernel sends the segments of a connection one after the other.
    unsafe {
        if segment.has(TCP_RST) {
            let is_next = (*flow).is_seen != 0 && segment.sequence == (*flow).sent;
            if is_next {
                flow::close(config, flow, segment.flow);
            } else {
                // A filter may have answered a segment of somebody's, which no socket has heard of.
                flow::reset(config, flow, segment.flow);
            }
            return 0;
        }
        let scale = (*flow).window_scale;
        let ack = segment.acknowledgement;
        let edge = ack.wrapping_add(segment.window << (scale & 15));
        if (*flow).is_seen == 0 {
            // The scale is not known: the window may be as wide as any.
            (*flow).window_scale = GREATEST_SCALE as u32;
            (*flow).acked = ack;
            (*flow).marked = ack;
            (*flow).edge = ack.wrapping_add(segment.window << GREATEST_SCALE);
            (*flow).sent = segment.sequence;
            (&raw mut (*flow).is_seen).write_volatile(1);
        }
        let mut is_new_doubt = false;
        if is_before((*flow).acked, ack) {
            let next = (&raw const (*flow).next).read_volatile();
            let is_open = (*flow).state != Flow::CLOSED;
            if is_open && is_before(next, ack) && (*flow).doubt & Flow::REQUESTS == 0 {
                // The kernel has taken in what was not seen. Whether memcached has read it the next segment tells.
                doubt::all(config, flow, ack);
                is_new_doubt = true;
            }
            if (*flow).doubt & Flow::REQUESTS != 0 && next.wrapping_sub(ack) > MOST_UNREAD {
                // It was somebody else's number, or the kernel has got what passed without being counted.
                (&raw mut (*flow).next).write_volatile(ack);
                doubt::break_off(flow);
            }
            (&raw mut (*flow).acked).write_volatile(ack);
            acknowledged(config, flow, ack, next, clock::now());
            settle_crowd(config, flow);
        }
        if is_before((*flow).edge, edge) {
            (&raw mut (*flow).edge).write_volatile(edge);
        }
        let state = (*flow).state;
        if state == Flow::RESET {
            // The reset was not heeded, or has crossed this.
            flow::reopen(config, flow, segment.flow);
        }
        let is_new = segment.len != 0 && look_at_order(flow, &mut segment);
        if segment.has(TCP_FIN) && (*flow).state != Flow::CLOSED {
            flow::close(config, flow, segment.flow);
            element::linger(config, segment.flow);
        }
        if !is_new {
            return 0;
        }
        note_reply(flow);
        let has_taken_all = |flow: *mut Flow, owes| {
            let doubted_until = (&raw const (*flow).doubted_until).read_volatile();
            let taken = if read & IS_KNOWN != 0 {
                read as u32
            } else {
                ack
            };
            owes == Flow::OWES_ANY && !is_before(taken, doubted_until)
        };
        if (&raw const (*flow).owes).read_volatile() == Flow::OWES_ANY
            && !is_new_doubt
            && has_taken_all(flow, Flow::OWES_ANY)
        {
            // memcached goes on; what it was at settles.
            backend::be_quiet(config, (*flow).backend as u8);
            doubt::paid(flow, has_taken_all);
        }
        let is_unsettled = (&raw const (*flow).is_unsettled).read_volatile() != 0;
        if is_unsettled || (*flow).doubt & Flow::PART != 0 {
            // memcached reads several commands at once: it may have come to them only now. Or it has read one that came
            // by another part.
            backend::forget(config, (*flow).backend as u8);
            (*flow).flush_due = postponed((*flow).flush_due);
            (*flow).flush_due = postponed((*flow).flush_due);
        }
        if (*flow).doubt != 0 {
            doubt::hear(flow);
            if !goes_on(flow, read) {
                // More was owed than is known, or may have been.
                doubt::break_off(flow);
                return 0;
            }
        }
        (&raw mut (*scratch).segment).write_volatile(segment);
        (&raw mut (*scratch).walk.odd).write_volatile(0);
    }
    1
}

/// The kernel has acknowledged everything before `ack`. What settles by time does so only from then on, or a moment
/// before: `now` is the time at which the segment was looked at.
#[inline(always)]
pub(super) unsafe fn acknowledged(config: &Config, flow: *mut Flow, ack: u32, next: u32, now: u64) {
    // SAFETY: the caller's: a map element.
    unsafe {
        let is_all = ack == next;
        if !is_all && is_before(ack, (*flow).marked) {
            return;
        }
        let since = (&raw const (*flow).unacked_since).read_volatile();
        let quiet_at = (&raw const (*flow).quiet_at).read_volatile();
        // memcached has at least half of the settle time from now on.
        let late = LATE_NS.min(config.settle_ns / 2);
        if since != 0 && quiet_at >= since && now > since + late {
            // It was held up, and quiet writes among it are executed only now.
            if (&raw const (*flow).quiet_flush_at).read_volatile() >= since {
                backend::forget(config, (*flow).backend as u8);
                (*flow).flush_due = postponed((*flow).flush_due);
            } else {
                backend::be_quiet(config, (*flow).backend as u8);
            }
        }
        if is_all && (*flow).flush_due & LATE == 0 && !is_waited_for(flow) {
            // It is not postponed any more.
            (*flow).flush_due = 0;
        }
        let marked_at = (*flow).marked_at;
        (*flow).marked = next;
        (*flow).marked_at = now;
        (&raw mut (*flow).unacked_since).write_volatile(if is_all { 0 } else { marked_at });
        let acked_before = if is_all { u64::MAX } else { marked_at };
        if quiet_at != 0 {
            // What is read after this is read when others see it.
            atomic::swap(&raw mut (*flow).acked_before, acked_before);
        } else {
            (&raw mut (*flow).acked_before).write_volatile(acked_before);
            fence();
        }
        if is_all && (&raw const (*flow).next).read_volatile() != next {
            // More has come at this moment.
            (&raw mut (*flow).acked_before).write_volatile(marked_at);
        }
    }
}

/// Set in a flow's `flush_due` if memcached comes to the `flush_all` only now.
const LATE: u64 = 1 << 63;

/// The time at which a delayed `flush_all` was due that memcached comes to only now; 0 is for none.
#[inline(always)]
fn postponed(due: u64) -> u64 {
    if due == 0 { 0 } else { due | LATE }
}

/// Whether memcached may be at a command before the flow's `flush_all` still.
#[inline(always)]
unsafe fn is_waited_for(flow: *mut Flow) -> bool {
    // SAFETY: the caller's: a map element.
    unsafe { (*flow).doubt != 0 || (&raw const (*flow).owes).read_volatile() != 0 }
}

/// The delayed `flush_all` that the flow of the segment in the scratch has waited for takes effect later than it was asked
/// for, if memcached comes to it only now.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn prestack_tcp_postpone() -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    // SAFETY: this CPU's scratch.
    let place = unsafe { (&raw const (*scratch).segment.flow).read_volatile() };
    let Some(flow) = flow::at(place) else {
        return 0;
    };
    // SAFETY: a map element.
    unsafe {
        let due = (*flow).flush_due;
        if due & LATE != 0 {
            (*flow).flush_due = if is_waited_for(flow) { due & !LATE } else { 0 };
            flushes::answered((*flow).backend as u8, due & !LATE, (*flow).flush_asked);
        }
    }
    0
}

/// If nothing is owed any more, and all has been acknowledged, then only quiet ones are left of the writes without
/// marks: they settle from now on.
#[inline(always)]
unsafe fn settle_crowd(config: &Config, flow: *mut Flow) {
    let is_left_to_time = |flow: *mut Flow| {
        // SAFETY: the caller's: a map element.
        unsafe {
            let answered = (&raw const (*flow).answered).read_volatile();
            let unusual = (&raw const (*flow).busy).read_volatile()
                | u64::from((&raw const (*flow).doubt).read_volatile())
                | u64::from((*flow).is_reply_data);
            // Of a segment that is being looked at the numbers come last.
            fence();
            unusual == 0
                && (&raw const (*flow).next).read_volatile() == (*flow).acked
                && (&raw const (*flow).asked).read_volatile() == answered
                && (&raw const (*flow).crowded_number).read_volatile() <= answered
        }
    };
    // SAFETY: as above.
    unsafe {
        if (&raw const (*flow).is_crowding).read_volatile() == 0 || !is_left_to_time(flow) {
            return;
        }
        backend::be_quiet(config, (*flow).backend as u8);
        stop_crowding(config, flow, is_left_to_time);
    }
}

/// The flow does not crowd any more, unless more has come at this moment.
#[inline(always)]
unsafe fn stop_crowding(config: &Config, flow: *mut Flow, is_over: impl Fn(*mut Flow) -> bool) {
    // SAFETY: the caller's: a map element.
    unsafe {
        if atomic::swap(&raw mut (*flow).is_crowding, 0) != 0 {
            backend::thin_out((*flow).backend as u8);
        }
        if !is_over(flow) && atomic::swap(&raw mut (*flow).is_crowding, 1) == 0 {
            // It may have found that it crowded already.
            backend::crowd((*flow).backend as u8);
            backend::be_quiet(config, (*flow).backend as u8);
        }
    }
}

/// memcached has sent something: quiet writes behind that settle from now on. To be called before a reply counts
/// as answered.
#[inline(always)]
pub(super) unsafe fn note_reply(flow: *mut Flow) {
    // SAFETY: the caller's: a map element.
    unsafe {
        if (&raw const (*flow).quiet_at).read_volatile() != 0 {
            (&raw mut (*flow).replied_at).write_volatile(clock::now());
            fence();
        }
    }
}

/// Commands before this number have been answered. What is read after this is read when others see it, if
/// quiet commands have arrived: somebody may begin to wait at this moment.
#[inline(always)]
pub(super) unsafe fn mark_answered(flow: *mut Flow, number: u64) {
    // SAFETY: the caller's: a map element.
    unsafe {
        if (&raw const (*flow).quiet_at).read_volatile() != 0 {
            atomic::swap(&raw mut (*flow).answered, number);
        } else {
            (&raw mut (*flow).answered).write_volatile(number);
        }
    }
}

/// [`mark_answered`] where nobody was seen to wait for it before.
#[inline(always)]
pub(super) unsafe fn count_answered(config: &Config, flow: *mut Flow, number: u64) {
    // SAFETY: the caller's: a map element.
    unsafe {
        mark_answered(flow, number);
        if (&raw const (*flow).owes).read_volatile() != 0 {
            doubt::pay(config, flow);
        }
    }
}

/// Whether the segment's data is what comes next on its flow; what of it has been sent before is left
/// out.
#[inline(always)]
unsafe fn look_at_order(flow: *mut Flow, segment: &mut Segment) -> bool {
    // SAFETY: the caller's: a map element.
    unsafe {
        let sent = (*flow).sent;
        let end = segment.end();
        if !is_before(sent, end) {
            return false;
        }
        if is_before(sent, segment.sequence) {
            // Something was sent elsewhere.
            doubt::replies(flow);
        }
        if is_before(segment.sequence, sent) {
            let known = u64::from(sent.wrapping_sub(segment.sequence));
            segment.sequence = sent;
            segment.data += known;
            segment.len = segment.len.wrapping_sub(known) & Segment::MAX_LEN;
        }
        (&raw mut (*flow).sent).write_volatile(end);
        // See `hits::requests::owes_nothing`.
        fence();
    }
    true
}

/// What the kernel says of what memcached has read of the requests of the flow of the segment in the scratch, if that
/// is in doubt, or waited for: the sequence number of what comes next, [`IS_KNOWN`], and [`IS_WRITTEN`] or not; or 0,
/// which is nothing.
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn prestack_tcp_read(ctx: *mut __sk_buff) -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    // SAFETY: this CPU's scratch.
    let segment = unsafe { (&raw const (*scratch).segment).read_volatile() };
    let Some(flow) = flow::at(segment.flow) else {
        return 0;
    };
    // SAFETY: a map element, and the caller's.
    unsafe {
        if (*flow).doubt == 0 && (&raw const (*flow).owes).read_volatile() != Flow::OWES_ANY {
            return 0;
        }
        match socket::reading(&TcContext::new(ctx), &segment.key) {
            Some(reading) if reading.is_written => IS_WRITTEN | IS_KNOWN | u64::from(reading.next),
            Some(reading) => IS_KNOWN | u64::from(reading.next),
            None => 0,
        }
    }
}

/// Set in what [`prestack_tcp_read`] returns if the kernel says it.
const IS_KNOWN: u64 = 1 << 32;
/// Set in it if memcached is writing at this moment.
const IS_WRITTEN: u64 = 1 << 33;

/// Whether data that leaves, of which the kernel says so much, is of the replies of an exchange that is under way.
#[inline(always)]
unsafe fn goes_on(flow: *mut Flow, read: u64) -> bool {
    let is_known = read & IS_KNOWN != 0;
    // SAFETY: the caller's: a map element.
    unsafe {
        let tentative = (&raw const (*flow).is_tentative).read_volatile();
        let from = (&raw const (*flow).exchange_at).read_volatile();
        // memcached reads a command when it has answered those before.
        if tentative == 0 || is_known && !is_before(from, read as u32) {
            return false;
        }
        if tentative != Flow::ASKED {
            return true;
        }
        let was_held_back = is_known && read & IS_WRITTEN == 0;
        if was_held_back || atomic::swap(&raw mut (*flow).busy, 1) != 0 {
            return false;
        }
        // Another may have begun at this moment.
        let is_same = (*flow).is_tentative == Flow::ASKED && (*flow).exchange_at == from;
        if is_same {
            (*flow).is_tentative = Flow::REPLIED;
        }
        (&raw mut (*flow).busy).write_volatile(0);
        is_same
    }
}

/// If all that was asked for in an exchange has been answered, that ends it, unless something comes at this moment.
#[inline(always)]
unsafe fn may_end_exchange(config: &Config, flow: *mut Flow, segment: &Segment, read: u64) {
    // SAFETY: the caller's: a map element.
    unsafe {
        if atomic::swap(&raw mut (*flow).busy, 1) != 0 {
            return;
        }
        // Of a command of which only the beginning has come nothing can be said yet, nor of quiet ones at the end.
        let is_whole = (*flow).counted == (*flow).asked
            && (*flow).counted != (*flow).exchange_from
            && (*flow).mode == Mode::Command as u32
            && (*flow).carried == 0
            && (*flow).quiets == 0
            && (*flow).is_reply_data == 0
            && (*flow).reply_carried == 0;
        let is_known = read & IS_KNOWN != 0;
        let has_read_all = if is_known {
            read as u32 == segment.acknowledgement
        } else {
            (*flow).is_rested != 0
        };
        let is_all = is_whole && has_read_all && segment.acknowledgement == (*flow).next;
        if is_all && (*flow).is_tentative == Flow::REPLIED {
            doubt::end_exchange(config, flow, is_known);
        } else if is_whole || is_known && !has_read_all {
            // This reply may be that to an earlier command.
            doubt::break_off(flow);
        }
        (&raw mut (*flow).busy).write_volatile(0);
    }
}

/// The segment has been gone over; `read` is what [`prestack_tcp_read`] has said.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn prestack_tcp_left(read: u64) -> u64 {
    let (Some(scratch), Some(config)) = (scratch(), backend::config()) else {
        return 0;
    };
    // SAFETY: this CPU's scratch.
    let (segment, odd) = unsafe {
        (
            (&raw const (*scratch).segment).read_volatile(),
            (&raw const (*scratch).walk.odd).read_volatile(),
        )
    };
    let Some(flow) = flow::at(segment.flow) else {
        return 0;
    };
    // SAFETY: a map element.
    unsafe {
        if odd != 0 || segment.at != segment.len {
            doubt::replies(flow);
            return 0;
        }
        if (*flow).doubt != 0 {
            may_end_exchange(config, flow, &segment, read);
        }
        let answered = (*flow).answered;
        let is_answered = answered > (&raw const (*flow).owed_number).read_volatile();
        if is_answered && (*flow).doubt == 0 {
            (*flow).flush_due = postponed((*flow).flush_due);
        }
        doubt::pay(config, flow);
        let is_ended =
            |flow: *mut Flow| answered > (&raw const (*flow).crowded_number).read_volatile();
        if (*flow).is_crowding != 0 && is_ended(flow) {
            stop_crowding(config, flow, is_ended);
        }
        settle_crowd(config, flow);
    }
    0
}
