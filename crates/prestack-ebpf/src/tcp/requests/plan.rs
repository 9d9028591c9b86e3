//! What is to be done with a segment of requests: the order of a flow's bytes.

use aya_ebpf::helpers::generated::bpf_loop;
use core::ffi::c_void;
use prestack_abi::config::Config;
use prestack_abi::flow::{Flow, Mode};
use prestack_proto::hash::backend_seed;
use prestack_proto::net::{TCP_ACK, TCP_RST, TCP_URG};

use crate::atomic;
use crate::ledger::backend;
use crate::maps::count;
use crate::scratch::{Walk, scratch};
use crate::tcp::segment::Segment;
use crate::tcp::{doubt, flow, is_before, later, take_back};

/// How far beyond what was seen leaving an acknowledgement may be, in bytes, for the connection to be
/// taken for one whose replies leave elsewhere.
const MAX_UNSEEN: u32 = 1 << 16;

/// Looks at what another CPU has under way before it is given up: some milliseconds. A run takes a few
/// microseconds, a hundred if a segment is full of short commands, and longer only if the CPU is taken away
/// from a virtual machine meanwhile.
const PATIENCE: u32 = 1 << 20;

/// What is to be done with a segment.
enum Plan {
    /// Nothing.
    Pass,
    /// Its data is to be parsed.
    Parse,
    /// Something before it is missing.
    Early,
    /// It was seen before, or some of it: what the kernel has of it says nothing any more.
    Again,
    /// Its data is to be compared with what it may be a copy of.
    Compare,
}

/// The plans as [`prestack_tcp_begin`] returns them; 0 is nothing.
pub const PARSE: u64 = 1;
pub const EARLY: u64 = 2;
pub const COMPARE: u64 = 3;
/// It lies outside of what was seen of its flow: the host's socket may know better.
pub const STRAY: u64 = 4;
/// It was seen before, or some of it: [`prestack_tcp_begin`] is to be called again when the kernel was asked.
pub const AGAIN: u64 = 5;

/// Decides whether the segment's data is to be parsed, and sets the flow accordingly.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn prestack_tcp_begin() -> u64 {
    let (Some(scratch), Some(config)) = (scratch(), backend::config()) else {
        return 0;
    };
    // SAFETY: this CPU's scratch.
    let segment = unsafe { &mut (*scratch).segment };
    let Some(flow) = flow::at(segment.flow) else {
        return 0;
    };
    // SAFETY: a map element. Two runs on segments of one flow at a time: the second waits, and if that is of
    // no avail it does not touch the requests, but makes them doubtful.
    unsafe {
        let is_mine = seize(flow);
        let fits = fits(config, flow, segment);
        if fits != Fit::Inside {
            if is_mine != 0 {
                (&raw mut (*flow).busy).write_volatile(0);
            }
            return if fits == Fit::Outside { STRAY } else { 0 };
        }
        if is_mine == 0 {
            doubt::all(config, flow, segment.end());
            return 0;
        }
        match plan(config, flow, segment) {
            plan @ (Plan::Pass | Plan::Again) => {
                (&raw mut (*flow).busy).write_volatile(0);
                if matches!(plan, Plan::Again) {
                    AGAIN
                } else {
                    0
                }
            }
            Plan::Early => EARLY,
            Plan::Compare => COMPARE,
            Plan::Parse => {
                if (*flow).is_repeat != Flow::EARLIER {
                    take_back::note(flow, segment.sequence);
                }
                let seed = backend_seed(config.seed, segment.backend as u8);
                Walk::start(scratch, Walk::COMMANDS, 0, 0, segment.backend as u8, seed);
                PARSE
            }
        }
    }
}

/// Takes the requests of the flow of the segment in the scratch, on which no other run works any more then. 0 if
/// that could not be brought about.
#[inline(always)]
unsafe fn seize(flow: *mut Flow) -> u64 {
    // SAFETY: the caller's: a map element.
    unsafe {
        if atomic::swap(&raw mut (*flow).busy, 1) == 0 {
            return 1;
        }
    }
    prestack_tcp_wait()
}

/// Waits for another run's work on the flow of the segment in the scratch, and takes over from it; 0 if it does
/// not end. A global function, so that the verifier does not go through what follows twice.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_tcp_wait() -> u64 {
    // SAFETY: a function of ours.
    let looks = unsafe { bpf_loop(PATIENCE, take_over as *mut c_void, core::ptr::null_mut(), 0) };
    u64::from((looks as u32) < PATIENCE)
}

/// Looks at another run's work on the flow of the segment in the scratch, and takes over if that is done, but
/// not at the last look. Returns 1 at the end.
#[inline(never)]
extern "C" fn take_over(look: u32, _: *mut c_void) -> i64 {
    let Some(scratch) = scratch() else { return 0 };
    // SAFETY: this CPU's scratch.
    let place = unsafe { (&raw const (*scratch).segment.flow).read_volatile() };
    let Some(flow) = flow::at(place) else {
        return 0;
    };
    // SAFETY: a map element.
    unsafe {
        let is_done = look + 1 < PATIENCE
            && (&raw const (*flow).busy).read_volatile() == 0
            && atomic::swap(&raw mut (*flow).busy, 1) == 0;
        i64::from(is_done)
    }
}

/// Whether the kernel may take a segment in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fit {
    /// It lies in the window, and acknowledges nothing that was not sent.
    Inside,
    /// It does not, as far as was seen.
    Outside,
    /// It brings nothing.
    Nothing,
}

/// Whether the kernel may take the segment in. Closes the flow if the segment resets it.
#[inline(always)]
unsafe fn fits(config: &Config, flow: *mut Flow, segment: &Segment) -> Fit {
    // SAFETY: the caller's: a map element.
    unsafe {
        if (*flow).state == Flow::CLOSED {
            // A filter may have answered a segment with a reset that looks like the socket's.
            return if segment.len == 0 {
                Fit::Nothing
            } else {
                Fit::Outside
            };
        }
        if (*flow).is_seen != 0 {
            let sent = (&raw const (*flow).sent).read_volatile();
            let edge = (&raw const (*flow).edge).read_volatile();
            // A reset need not acknowledge anything; the number is 0 then.
            let is_ahead = segment.has(TCP_ACK) && is_before(sent, segment.acknowledgement);
            if is_ahead
                && segment.acknowledgement.wrapping_sub(sent) <= MAX_UNSEEN
                && segment.len != 0
            {
                // Replies seem to leave where they are not seen.
                doubt::requests(config, flow);
                (&raw mut (*flow).is_seen).write_volatile(0);
            } else if is_ahead || is_before(edge, segment.sequence) {
                return Fit::Outside;
            }
        }
        if segment.has(TCP_RST) {
            if (*flow).is_seen != 0 && segment.sequence == (*flow).next {
                flow::reset(config, flow, segment.flow);
            }
            return Fit::Nothing;
        }
        if (*flow).state == Flow::RESET {
            // Its client goes on. What follows must not settle by the reset.
            flow::reopen(config, flow, segment.flow);
        }
        Fit::Inside
    }
}

#[inline(always)]
unsafe fn plan(config: &Config, flow: *mut Flow, segment: &mut Segment) -> Plan {
    // SAFETY: the caller's: a map element.
    unsafe {
        let acked = (&raw const (*flow).acked).read_volatile();
        let is_seen = (&raw const (*flow).is_seen).read_volatile() != 0;
        if segment.has(TCP_URG) {
            doubt::requests(config, flow);
        }
        if is_seen && !is_before(acked, segment.end()) {
            // Sent again although it has arrived, or the end that comes next.
            let is_fin = segment.len == 0 && segment.sequence == (*flow).next;
            return if is_fin { Plan::Parse } else { Plan::Pass };
        }
        if is_seen && is_before(segment.sequence, acked) {
            let known = acked.wrapping_sub(segment.sequence);
            segment.sequence = acked;
            segment.data += u64::from(known);
            segment.len = segment.len.wrapping_sub(u64::from(known)) & Segment::MAX_LEN;
        }
        if (*flow).doubt & Flow::REQUESTS != 0 {
            if segment.len == 0 {
                return Plan::Pass;
            }
            // What is waited for comes first: see `doubt::paid`.
            if is_before((*flow).doubted_until, segment.end()) || (*flow).is_tentative == 0 {
                (&raw mut (*flow).doubted_until).write_volatile(segment.end());
            }
            backend::forget(config, segment.backend as u8);
            doubt::wait_for_any(flow);
        }
        let was_quiet = (*flow).doubt != 0 && doubt::is_quiet(config, flow);
        if (*flow).doubt != 0 {
            doubt::hear(flow);
        }
        // Without a window memcached may wait for its client to take in an answer.
        let is_at_rest = is_seen
            && segment.sequence == acked
            && segment.acknowledgement == (&raw const (*flow).sent).read_volatile()
            && segment.window != 0;
        let next = (*flow).next;
        let is_next = segment.sequence == next;
        let is_whole = (*flow).mode == Mode::Command as u32 && (*flow).carried == 0;
        if (*flow).doubt & Flow::REQUESTS != 0 {
            // The rest of a command starts none, nor what may be a copy: memcached may get what was there before.
            let goes_on = (*flow).is_tentative != 0 && is_next;
            let is_rest = goes_on && !is_whole;
            if is_at_rest && !is_rest && !is_before(segment.sequence, next) {
                doubt::start_exchange(flow, segment.sequence, was_quiet);
                return Plan::Parse;
            }
            if goes_on {
                return Plan::Parse;
            }
            doubt::break_off(flow);
            // Beyond the window, if that is known, the kernel takes nothing.
            if is_seen || !is_before(next, segment.sequence) {
                (&raw mut (*flow).next).write_volatile(later(next, segment.end()));
            }
            return Plan::Pass;
        }
        if (*flow).doubt != 0 && is_at_rest && is_next && is_whole {
            doubt::start_exchange(flow, segment.sequence, was_quiet);
        }
        in_order(config, flow, segment)
    }
}

/// Decides on a segment of a flow whose requests are known up to `next`.
#[inline(always)]
unsafe fn in_order(config: &Config, flow: *mut Flow, segment: &mut Segment) -> Plan {
    // SAFETY: the caller's: a map element.
    unsafe {
        let next = (*flow).next;
        let sequence = segment.sequence;
        if sequence == next {
            return Plan::Parse;
        }
        let behind_data = if (*flow).protocol == Flow::BINARY {
            0
        } else {
            2
        };
        if is_before(next, sequence) {
            let last = (*flow).data_until.wrapping_sub(behind_data);
            if (*flow).mode == Mode::Data as u32 && !is_before(last, sequence) {
                // What is missing is data.
                (*flow).next = sequence;
                return Plan::Parse;
            }
            return Plan::Early;
        }
        let end = segment.end();
        let last = (*flow).data_until.wrapping_sub(behind_data);
        let is_data_known = (*flow).data_from != (*flow).data_until;
        if is_data_known && !is_before(sequence, (*flow).data_from) && !is_before(last, end) {
            // Data of the block that is or was the latest.
            return Plan::Pass;
        }
        if segment.is_asked == 0 {
            return Plan::Again;
        }
        if !is_before(next, end)
            && let Some((turn, at)) = take_back::find_carried(segment.flow, sequence, end)
        {
            segment.copy_of = turn;
            segment.kept = at;
            return Plan::Compare;
        }
        // Of what is sent again together with more, or cut in another way, it could not be told afterwards whether it
        // is the same.
        if is_before(next, end) || !take_back::to(segment.flow, sequence, end) {
            doubt::all(config, flow, segment.end());
            (&raw mut (*flow).next).write_volatile(later(next, end));
            return Plan::Pass;
        }
        count!(reparsed);
        Plan::Parse
    }
}
