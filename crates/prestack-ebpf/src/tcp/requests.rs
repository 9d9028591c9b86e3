//! The stream of a flow's requests.

use aya_ebpf::bindings::xdp_action::XDP_PASS;
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::generated::{bpf_loop, bpf_xdp_load_bytes};
use aya_ebpf::programs::XdpContext;
use core::ffi::c_void;
use prestack_abi::config::{Config, Door};
use prestack_abi::flow::{Flow, MAX_ASKED, MAX_CARRY, Mode};
use prestack_proto::binary;
use prestack_proto::hash::{backend_seed, scan_key};
use prestack_proto::net::{TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, TCP_URG};
use prestack_proto::stream::{self, QUIET_META, QUIET_TEXT};
use prestack_proto::text::request::{Command, Effect, Form};
use prestack_proto::text::scan::{LineEnd, line_end, skip_spaces, token_end};
use prestack_proto::window::{Source, WINDOW, Window};
use prestack_proto::{MAX_KEY, swar};

use super::segment::Segment;
use super::{doubt, flow, hole, is_before, socket, take_back, tickets};
use crate::atomic;
use crate::cache::fence;
use crate::clock;
use crate::ledger::backend::{self, Arrival};
use crate::ledger::flushes;
use crate::ledger::writes::{self, End};
use crate::maps::{RX_STEPS, count};
use crate::packet::{Headers, Packet, is_whole};
use crate::rx::{again, command};
use crate::scratch::{Walk, scratch};

/// Bytes of a segment that are looked at together, behind what is carried.
pub const CHUNK: u64 = (WINDOW - MAX_CARRY) as u64;
/// Most chunks of a segment: a jumbo frame has six.
const MAX_CHUNKS: usize = 44;
/// Most commands, and keys of GETs, in a chunk: the shortest have two bytes.
const MAX_STEPS: u32 = 1024;
/// How far beyond what was seen leaving an acknowledgement may be, in bytes, for the connection to be
/// taken for one whose replies leave elsewhere.
const MAX_UNSEEN: u32 = 1 << 16;

/// Hands a segment over to the program that follows flows, if it has data or ends its flow.
#[inline(always)]
pub fn hand_over(
    ctx: &XdpContext,
    packet: Packet,
    config: &Config,
    door: Arrival,
    headers: &Headers,
) {
    let Some(segment) = Segment::read(packet, headers, door.backend, false) else {
        // What has no whole header the kernel drops.
        if !is_whole(ctx, packet.len()) {
            backend::forget(config, door.backend);
        }
        return;
    };
    // Most segments without data are acknowledgements.
    if segment.len == 0 && !segment.has(TCP_FIN | TCP_RST) {
        return;
    }
    // SAFETY: the program takes over; nothing is held here.
    unsafe { RX_STEPS.tail_call(ctx, 0) };
    // There is none, because user space has let it go.
    backend::forget(config, door.backend);
}

/// Follows a flow by a segment that has data, or that ends it; the segment passes in any case.
#[inline(always)]
pub fn segment(ctx: &XdpContext) -> u32 {
    // SAFETY: functions of ours, called with the program's context. They are side by side, not one in
    // the other: together their stacks would be too large.
    unsafe {
        if prestack_tcp_arrive(ctx.ctx) == 0 {
            return XDP_PASS;
        }
        match prestack_tcp_begin() {
            PARSE => {}
            KEEP => {
                hole::keep(ctx.ctx);
                return XDP_PASS;
            }
            _ => return XDP_PASS,
        }
        let mut is_kept = 0;
        for _ in 0..MAX_CHUNKS {
            if prestack_tcp_load(ctx.ctx, is_kept) == 0 {
                prestack_tcp_end();
                // What has come before may go on here.
                if hole::prestack_tcp_resume() == 0 {
                    break;
                }
                is_kept = 1;
                continue;
            }
            bpf_loop(MAX_STEPS, step as *mut c_void, core::ptr::null_mut(), 0);
            prestack_tcp_carry();
        }
        prestack_tcp_finish();
    }
    XDP_PASS
}

/// Finds the flow of the segment in the packet, which is then in the scratch's `segment`. 0 if there is
/// nothing more to do. A global function (by its unmangled name), as those that follow: the verifier
/// checks it once.
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn prestack_tcp_arrive(ctx: *mut xdp_md) -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    let Some((config, packet, headers, door)) = again(&XdpContext::new(ctx)) else {
        return 0;
    };
    let Some(mut segment) = Segment::read(packet, &headers, door.backend, false) else {
        return 0;
    };
    // A connection attempt; with data the kernel drops it, unless Fast Open is on for all.
    if segment.has(TCP_SYN) {
        if segment.len != 0 && config.has_fast_open != 0 {
            backend::forget(config, door.backend);
        }
        return 0;
    }
    if segment.len != 0 {
        count!(tcp_passed);
    }
    let found = flow::find(segment.name(config), clock::now());
    let place = match found {
        Some(place) => place,
        None => {
            // A reset or the end of what is not known is no loss.
            if segment.len == 0 {
                return 0;
            }
            // SAFETY: the caller's context.
            if !unsafe { socket::takes_data(ctx, &segment.key) } {
                count!(strays);
                return 0;
            }
            let taken = if door.flags & Door::ANY_ADDRESS == 0 {
                flow::open(config, &segment)
            } else {
                None
            };
            let Some(place) = taken else {
                backend::forget(config, door.backend);
                return 0;
            };
            if let Some(flow) = flow::at(place) {
                // SAFETY: a map element.
                unsafe {
                    (*flow).state = Flow::OPEN;
                    doubt::requests(config, flow);
                }
            }
            place
        }
    };
    segment.flow = place;
    // SAFETY: this CPU's scratch.
    unsafe { (&raw mut (*scratch).segment).write_volatile(segment) };
    1
}

/// What is to be done with a segment.
enum Plan {
    /// Nothing.
    Pass,
    /// Its data is to be parsed.
    Parse,
    /// Its data is to be kept until what is missing before it has come.
    Keep,
}

/// The plans as [`prestack_tcp_begin`] returns them; 0 is nothing.
const PARSE: u64 = 1;
const KEEP: u64 = 2;

/// Decides whether the segment's data is to be parsed, and sets the flow accordingly.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_tcp_begin() -> u64 {
    let (Some(scratch), Some(config)) = (scratch(), backend::config()) else {
        return 0;
    };
    // SAFETY: this CPU's scratch.
    let mut segment = unsafe { (&raw const (*scratch).segment).read_volatile() };
    let Some(flow) = flow::at(segment.flow) else {
        return 0;
    };
    // SAFETY: a map element. Two runs on segments of one flow at a time: the second does not touch the
    // requests, but makes them doubtful.
    unsafe {
        if !is_acceptable(config, flow, &segment) {
            return 0;
        }
        if atomic::swap(&raw mut (*flow).busy, 1) != 0 {
            doubt::requests(config, flow);
            return 0;
        }
        match plan(config, flow, &mut segment) {
            Plan::Pass => {
                (&raw mut (*flow).busy).write_volatile(0);
                0
            }
            Plan::Keep => {
                (&raw mut (*scratch).segment).write_volatile(segment);
                KEEP
            }
            Plan::Parse => {
                take_back::note(flow, segment.sequence);
                (&raw mut (*scratch).segment).write_volatile(segment);
                let seed = backend_seed(config.seed, segment.backend as u8);
                Walk::start(scratch, Walk::COMMANDS, 0, 0, segment.backend as u8, seed);
                PARSE
            }
        }
    }
}

/// Whether the kernel may take the segment in: it lies in the window, and acknowledges nothing that was
/// not sent. Closes the flow if the segment resets it.
#[inline(always)]
unsafe fn is_acceptable(config: &Config, flow: *mut Flow, segment: &Segment) -> bool {
    // SAFETY: the caller's: a map element.
    unsafe {
        if (*flow).state == Flow::CLOSED {
            return false;
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
                count!(strays);
                return false;
            }
        }
        if segment.has(TCP_RST) {
            if (*flow).is_seen != 0 && segment.sequence == (*flow).next {
                flow::close(config, flow, segment.flow, Flow::RESET);
            }
            return false;
        }
        true
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
            segment.len = segment.len.wrapping_sub(u64::from(known)) & 0xffff;
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
        let is_at_rest = is_seen
            && segment.sequence == acked
            && segment.acknowledgement == (&raw const (*flow).sent).read_volatile();
        if (*flow).doubt & Flow::REQUESTS != 0 {
            if is_at_rest {
                doubt::start_exchange(flow, segment.sequence);
                return Plan::Parse;
            }
            if (*flow).is_tentative != 0 && segment.sequence == (*flow).next {
                return Plan::Parse;
            }
            doubt::break_off(flow);
            return Plan::Pass;
        }
        if (*flow).doubt != 0
            && is_at_rest
            && segment.sequence == (*flow).next
            && (*flow).mode == Mode::Command as u32
            && (*flow).carried == 0
        {
            doubt::start_exchange(flow, segment.sequence);
        }
        in_order(config, flow, segment)
    }
}

/// Decides on a segment of a flow whose requests are known up to `next`.
#[inline(always)]
unsafe fn in_order(config: &Config, flow: *mut Flow, segment: &Segment) -> Plan {
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
            if segment.has(TCP_FIN) || !hole::claim(flow, segment) {
                doubt::requests(config, flow);
                return Plan::Pass;
            }
            return Plan::Keep;
        }
        let end = segment.end();
        let last = (*flow).data_until.wrapping_sub(behind_data);
        let is_data_known = (*flow).data_from != (*flow).data_until;
        if is_data_known && !is_before(sequence, (*flow).data_from) && !is_before(last, end) {
            // Data of the block that is or was the latest.
            return Plan::Pass;
        }
        // Of what is not sent again in one piece, or together with more, it could not be told afterwards
        // whether it is the same.
        if end != next || !take_back::to(flow, sequence) {
            doubt::requests(config, flow);
            return Plan::Pass;
        }
        count!(reparsed);
        Plan::Parse
    }
}

/// Loads the next chunk of the segment's data, behind what is carried, into the window, where the walk
/// is to start; 0 if there is none. With `is_kept` the data was kept before.
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn prestack_tcp_load(ctx: *mut xdp_md, is_kept: u64) -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    // SAFETY: this CPU's scratch.
    let segment = unsafe { &mut (*scratch).segment };
    let Some(flow) = flow::at(segment.flow) else {
        return 0;
    };
    // SAFETY: a map element; the loads stay in the window, which is WINDOW bytes long.
    unsafe {
        let walk = &raw mut (*scratch).walk;
        if (&raw const (*walk).odd).read_volatile() != 0 {
            return 0;
        }
        let window = &mut (*scratch).window;
        let mut at = window.forgotten(segment.at);
        let is_binary = (*flow).protocol == Flow::BINARY;
        let is_data = (*flow).mode == Mode::Data as u32;
        let sequence = segment.sequence.wrapping_add(at as u32);
        let mut closing = 0;
        if is_data {
            let left = u64::from((*flow).data_until.wrapping_sub(sequence));
            let keep = if is_binary { 0 } else { 2 };
            if left > keep {
                let skip = left - keep;
                let rest = segment.len.wrapping_sub(at);
                at += if skip < rest { skip } else { rest };
                closing = keep;
            } else {
                closing = left;
            }
            at = window.forgotten(at);
        }
        let rest = segment.len.wrapping_sub(at);
        segment.at = at;
        if rest == 0 || rest > 0xffff {
            return 0;
        }
        let size = window.forgotten(if rest < CHUNK { rest } else { CHUNK });
        let carried = window.forgotten(u64::from((*flow).carried));
        if carried > MAX_CARRY as u64 || size > CHUNK {
            return 0;
        }
        let turn = (*flow).carries as usize & 1;
        for i in 0..MAX_CARRY / 8 {
            if 8 * i as u64 >= carried {
                break;
            }
            let word = (&raw const (*flow).carry[turn][i]).read_volatile();
            window.set_word(8 * i as u64, word);
        }
        let to = window
            .start()
            .add((prestack_proto::verifier::opaque(carried) & 1023) as usize);
        let from = segment.data.wrapping_add(at) as u32;
        let size_arg = ((prestack_proto::verifier::opaque(size.wrapping_sub(1)) & 1023) + 1) as u32;
        let size = u64::from(size_arg);
        let is_loaded = if is_kept != 0 {
            hole::copy(at, carried, size)
        } else {
            bpf_xdp_load_bytes(ctx, from, to.cast(), size_arg) == 0
        };
        if !is_loaded {
            // The packet is shorter than it says: the kernel drops it.
            return 0;
        }
        segment.window_sequence = u64::from(
            segment
                .sequence
                .wrapping_add(at as u32)
                .wrapping_sub(carried as u32),
        );
        segment.at = at + size;
        (*flow).carried = 0;
        (&raw mut (*walk).at).write_volatile(0);
        (&raw mut (*walk).end).write_volatile(carried + size);
        (&raw mut (*walk).start).write_volatile(0);
        (&raw mut (*walk).out).write_volatile(0);
        if is_data {
            // The data block is to end in `\r\n`, of which the first may have come before.
            let first_is_right = closing < 2 || window.byte(0) == b'\r';
            let last_is_right = closing == 0 || closing > size || window.byte(closing - 1) == b'\n';
            if !first_is_right || !last_is_right {
                (&raw mut (*walk).odd).write_volatile(1);
            }
            let done = if closing < size { closing } else { size };
            (&raw mut (*walk).at).write_volatile(done);
            if closing <= size {
                (*flow).mode = Mode::Command as u32;
            }
        }
    }
    1
}

/// The commands of a chunk have been gone over: keeps what is left of it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_tcp_carry() -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    // SAFETY: this CPU's scratch.
    let (window, walk, segment) = unsafe {
        (
            &(*scratch).window,
            &mut (*scratch).walk,
            &(*scratch).segment,
        )
    };
    let Some(flow) = flow::at(segment.flow) else {
        return 0;
    };
    let at = window.forgotten(walk.at);
    let left = window.forgotten(walk.end.wrapping_sub(at));
    if left == 0 || walk.odd != 0 {
        return 0;
    }
    // SAFETY: a map element, and the indices are in bounds.
    unsafe {
        if (*flow).mode != Mode::Command as u32 || left > WINDOW as u64 {
            walk.odd = 1;
            return 0;
        }
        if left > MAX_CARRY as u64 {
            let first = window.word(at);
            let is_get = swar::keep(first, 4) == u64::from_le_bytes(*b"get \0\0\0\0")
                || swar::keep(first, 5) == u64::from_le_bytes(*b"gets \0\0\0");
            if is_get {
                (*flow).mode = Mode::Keys as u32;
            } else {
                walk.odd = 1;
            }
            return 0;
        }
        let carries = (*flow).carries.wrapping_add(1);
        let turn = carries as usize & 1;
        for i in 0..MAX_CARRY / 8 {
            if 8 * i as u64 >= left {
                break;
            }
            let word = &raw mut (*flow).carry[turn][i];
            word.write_volatile(window.word(at + 8 * i as u64));
        }
        (*flow).carries = carries;
        (*flow).carried = left as u32;
    }
    0
}

/// The segment has been gone over.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_tcp_end() -> u64 {
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
            if is_before((*flow).doubted_until, segment.end()) || (*flow).doubted_until == 0 {
                (&raw mut (*flow).doubted_until).write_volatile(segment.end());
            }
            doubt::requests(config, flow);
        }
        if (*flow).is_repeat != 0 {
            (*flow).is_repeat = 0;
            if !take_back::is_as_before(flow, segment.end()) {
                doubt::requests(config, flow);
            }
        }
        let now = clock::now();
        if (&raw const (*flow).acked).read_volatile() == (*flow).next {
            (&raw mut (*flow).unacked_since).write_volatile(now);
        }
        let fin = u32::from(segment.has(TCP_FIN));
        (&raw mut (*flow).next).write_volatile(segment.end().wrapping_add(fin));
        fence();
        // An acknowledgement of all that was there before may be on its way at this moment.
        if (&raw const (*flow).acked_before).read_volatile() == u64::MAX {
            (&raw mut (*flow).acked_before).write_volatile(now);
        }
    }
    0
}

/// Nothing more is to be done to the requests of the segment's flow.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_tcp_finish() -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    // SAFETY: this CPU's scratch.
    let place = unsafe { (&raw const (*scratch).segment.flow).read_volatile() };
    if let Some(flow) = flow::at(place) {
        // SAFETY: a map element.
        unsafe { (&raw mut (*flow).busy).write_volatile(0) };
    }
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
                if !is_quiet {
                    doubt::wait_for(flow, number);
                    (*flow).flush_asked = clock::now();
                    (*flow).flush_due = due;
                }
            }
            Effect::Get => {
                if command.form as u32 >= Form::Meta as u32 && !is_quiet {
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
            let asked = stream::ask(first, command.effect);
            match asked {
                Some(ask) => ask as u8,
                None => {
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
unsafe fn crowd(config: &Config, flow: *mut Flow, key: u64, number: u64, is_quiet: bool) {
    // SAFETY: the caller's: a map element. The flow counts before its bucket says so.
    unsafe {
        // A quiet one has ended when the command after it has.
        (&raw mut (*flow).crowded_number).write_volatile(number);
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
