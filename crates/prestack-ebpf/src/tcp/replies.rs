//! The stream of a flow's replies.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{bpf_loop, bpf_skb_load_bytes};
use aya_ebpf::programs::TcContext;
use core::ffi::c_void;
use prestack_abi::cache::MAX_REPLY;
use prestack_abi::config::Config;
use prestack_abi::flow::{Flow, MAX_ASKED, MAX_REPLY_CARRY, Mode};
use prestack_abi::requests::{Kind, Request};
use prestack_proto::hash::{backend_seed, hash_key};
use prestack_proto::net::{TCP_ACK, TCP_FIN, TCP_LEN, TCP_RST, TCP_SYN};
use prestack_proto::stream::{self, Class, Owner};
use prestack_proto::text::reply::{END_LEN, KEY_AT};
use prestack_proto::text::scan::token_end;
use prestack_proto::verifier::opaque;
use prestack_proto::window::{Source, WINDOW, Window};
use prestack_proto::{MAX_KEY, binary};

use super::segment::Segment;
use super::{doubt, flow, is_before, tickets};
use crate::atomic;
use crate::cache::fence;
use crate::clock;
use crate::ledger::{backend, flushes};
use crate::maps::TX_STEPS;
use crate::scratch::{Scratch, scratch};
use crate::tx::{self, learn};

/// Most looks at one packet: offloads make packets of 64 KiB of several.
const MAX_LOOKS: usize = 192;
/// Most elements of replies in a window.
const MAX_STEPS: u32 = 1024;
/// An acknowledgement is late after this many ns: the kernel delays none for longer than 200 ms
/// (`TCP_DELACK_MAX` in include/net/tcp.h).
const LATE_NS: u64 = 250_000_000;
/// TCP options (IANA registry "TCP Option Kind Numbers"): end, nothing, window scale (RFC 7323).
const OPTION_END: u8 = 0;
const OPTION_NOTHING: u8 = 1;
const OPTION_WINDOW_SCALE: u8 = 3;
/// Greatest shift of the window (RFC 7323).
const MAX_SCALE: u64 = 14;
/// Bytes of options at most.
const MAX_OPTIONS: u64 = 40;

/// Hands a segment from memcached over to the program that follows flows.
#[inline(always)]
pub fn hand_over(ctx: &TcContext) {
    // SAFETY: the program takes over; nothing is held here. If there is none because user space has let
    // it go, then `rx` has none either.
    unsafe { TX_STEPS.tail_call(ctx, 0) };
}

/// What is to be done with a segment.
const NOTHING: u64 = 0;
const OPEN: u64 = 1;
const FOLLOW: u64 = 2;

/// Looks at a segment from memcached; it always goes on unchanged.
#[inline(always)]
pub fn segment(ctx: &TcContext) -> i32 {
    // SAFETY: functions of ours, called with the program's context. They are side by side, not one in
    // the other: together their stacks would be too large.
    unsafe {
        let skb = ctx.skb.skb;
        let what = prestack_tcp_depart(skb);
        if what == OPEN {
            prestack_tcp_open(prestack_tcp_options(skb));
        }
        if what != FOLLOW || prestack_tcp_leave() == 0 {
            return tx::NEXT;
        }
        for _ in 0..MAX_LOOKS {
            if prestack_tcp_look(skb) == 0 {
                break;
            }
            bpf_loop(MAX_STEPS, step as *mut c_void, core::ptr::null_mut(), 0);
            if prestack_tcp_looked() != 0 {
                learn::learn();
            }
        }
        prestack_tcp_left();
    }
    tx::NEXT
}

/// Puts the segment in the packet into the scratch's `segment`, and says what is to be done with it. A
/// global function (by its unmangled name), as those that follow: the verifier checks it once.
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn prestack_tcp_depart(ctx: *mut __sk_buff) -> u64 {
    let (Some(scratch), Some(config)) = (scratch(), backend::config()) else {
        return NOTHING;
    };
    let Some((packet, headers, door)) = tx::reply(&TcContext::new(ctx)) else {
        return NOTHING;
    };
    let Some(mut segment) = Segment::read(packet, &headers, door.backend, true) else {
        return NOTHING;
    };
    let mut what = FOLLOW;
    if segment.has(TCP_SYN) {
        if !segment.has(TCP_ACK) {
            return NOTHING;
        }
        segment.at = headers.l4 + TCP_LEN as u64;
        what = OPEN;
    } else {
        let Some(place) = flow::find(segment.name(config), clock::now()) else {
            return NOTHING;
        };
        segment.flow = place;
    }
    // SAFETY: this CPU's scratch.
    unsafe { (&raw mut (*scratch).segment).write_volatile(segment) };
    what
}

/// Loads the segment's TCP options, which start at `at`, into the window, and returns their length.
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn prestack_tcp_options(ctx: *mut __sk_buff) -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    // SAFETY: this CPU's scratch, whose window is longer.
    unsafe {
        let from = (&raw const (*scratch).segment.at).read_volatile();
        let len = (&raw const (*scratch).segment.data)
            .read_volatile()
            .wrapping_sub(from);
        let to = (*scratch).window.start().cast();
        let size = ((opaque(len.wrapping_sub(1)) & 63) + 1) as u32;
        if len == 0 || bpf_skb_load_bytes(ctx.cast(), from as u32, to, size) != 0 {
            return 0;
        }
        len
    }
}

/// The host agrees to the connection of the segment in the scratch, of whose options there are `len`
/// bytes in the window.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_tcp_open(len: u64) -> u64 {
    let (Some(scratch), Some(config)) = (scratch(), backend::config()) else {
        return 0;
    };
    // SAFETY: this CPU's scratch.
    let (segment, window) = unsafe {
        (
            (&raw const (*scratch).segment).read_volatile(),
            &(*scratch).window,
        )
    };
    let sent = segment.sequence.wrapping_add(1);
    if let Some(known) = flow::find(segment.name(config), clock::now())
        && let Some(flow) = flow::at(known)
    {
        // SAFETY: a map element.
        let is_again = unsafe { (*flow).state == Flow::OPENING && (*flow).sent == sent };
        if is_again {
            return 0;
        }
    }
    let scale = window_scale(window, len);
    let Some(flow) = flow::open(config, &segment).and_then(flow::at) else {
        return 0;
    };
    // SAFETY: a map element.
    unsafe {
        (*flow).next = segment.acknowledgement;
        (*flow).acked = segment.acknowledgement;
        (*flow).edge = segment.acknowledgement.wrapping_add(segment.window);
        (*flow).sent = sent;
        (*flow).window_scale = scale;
        (&raw mut (*flow).is_seen).write_volatile(1);
    }
    0
}

/// The shift of the window that the options in the first `len` bytes of the window announce, 0 without
/// one.
#[inline(always)]
fn window_scale(window: &Window, len: u64) -> u32 {
    let mut at = window.forgotten(0);
    let mut scale = window.forgotten(0);
    for _ in 0..MAX_OPTIONS {
        let kind = window.byte(at);
        if at >= len || kind == OPTION_END {
            break;
        }
        let size = u64::from(window.byte(at + 1));
        if kind == OPTION_WINDOW_SCALE {
            scale = window.forgotten(u64::from(window.byte(at + 2)));
            break;
        }
        let step = if kind == OPTION_NOTHING { 1 } else { size };
        if step == 0 {
            break;
        }
        at = window.forgotten(at + step);
    }
    if scale > MAX_SCALE {
        MAX_SCALE as u32
    } else {
        scale as u32
    }
}

/// Takes note of what the segment in the scratch says of its flow; 0 if there are no replies to be looked
/// at.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_tcp_leave() -> u64 {
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
            flow::close(config, flow, segment.flow, Flow::CLOSED);
            return 0;
        }
        let scale = (*flow).window_scale;
        let ack = segment.acknowledgement;
        let edge = ack.wrapping_add(segment.window << (scale & 15));
        if (*flow).is_seen == 0 {
            // The scale is not known: the window may be as wide as any.
            (*flow).window_scale = MAX_SCALE as u32;
            (*flow).acked = ack;
            (*flow).edge = ack.wrapping_add(segment.window << MAX_SCALE);
            (*flow).sent = segment.sequence;
            (&raw mut (*flow).is_seen).write_volatile(1);
        }
        if is_before((*flow).acked, ack) {
            let next = (&raw const (*flow).next).read_volatile();
            let is_open = (*flow).state != Flow::CLOSED;
            if is_open && is_before(next, ack) && (*flow).doubt & Flow::REQUESTS == 0 {
                // The kernel has taken in what was not seen.
                doubt::requests(config, flow);
            }
            (&raw mut (*flow).acked).write_volatile(ack);
            acknowledged(config, flow, ack, next);
        }
        if is_before((*flow).edge, edge) {
            (&raw mut (*flow).edge).write_volatile(edge);
        }
        let state = (*flow).state;
        if state == Flow::RESET {
            // The reset was not heeded, or has crossed this.
            flow::reopen(flow, segment.flow);
        }
        if state == Flow::OPENING {
            (*flow).state = Flow::OPEN;
        }
        let is_new = segment.len != 0 && look_at_order(flow, &mut segment);
        if segment.has(TCP_FIN) && (*flow).state != Flow::CLOSED {
            flow::close(config, flow, segment.flow, Flow::CLOSED);
        }
        if !is_new {
            return 0;
        }
        let has_taken_all = |flow: *mut Flow, owes| {
            let doubted_until = (&raw const (*flow).doubted_until).read_volatile();
            owes == Flow::OWES_ANY && !is_before(ack, doubted_until)
        };
        if (&raw const (*flow).owes).read_volatile() == Flow::OWES_ANY
            && has_taken_all(flow, Flow::OWES_ANY)
        {
            // memcached goes on; what it was at settles.
            backend::be_quiet(config, (*flow).backend as u8);
            doubt::paid(flow, has_taken_all);
        }
        if (*flow).doubt != 0 && (*flow).is_tentative == 0 {
            return 0;
        }
        (&raw mut (*scratch).segment).write_volatile(segment);
        (&raw mut (*scratch).walk.odd).write_volatile(0);
    }
    1
}

/// The kernel has acknowledged everything before `ack`. What settles by time does so only from then on.
#[inline(always)]
unsafe fn acknowledged(config: &Config, flow: *mut Flow, ack: u32, next: u32) {
    // SAFETY: the caller's: a map element.
    unsafe {
        let is_all = ack == next;
        if !is_all && is_before(ack, (*flow).marked) {
            return;
        }
        let now = clock::now();
        let since = (&raw const (*flow).unacked_since).read_volatile();
        let quiet_at = (&raw const (*flow).quiet_at).read_volatile();
        if since != 0 && quiet_at >= since && now > since + LATE_NS {
            // It was held up, and quiet writes among it are executed only now.
            backend::be_quiet(config, (*flow).backend as u8);
        }
        let marked_at = (*flow).marked_at;
        (*flow).marked = next;
        (*flow).marked_at = now;
        (&raw mut (*flow).unacked_since).write_volatile(if is_all { 0 } else { marked_at });
        (&raw mut (*flow).acked_before).write_volatile(if is_all { u64::MAX } else { marked_at });
        fence();
        if is_all && (&raw const (*flow).next).read_volatile() != next {
            // More has come at this moment.
            (&raw mut (*flow).acked_before).write_volatile(marked_at);
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
            segment.len = segment.len.wrapping_sub(known) & 0xffff;
        }
        (&raw mut (*flow).sent).write_volatile(end);
    }
    true
}

/// Loads the next bytes of the segment, behind what is carried, into the window; 0 if there are none.
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn prestack_tcp_look(ctx: *mut __sk_buff) -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    // SAFETY: this CPU's scratch.
    let (segment, walk, window) = unsafe {
        (
            &mut (*scratch).segment,
            &mut (*scratch).walk,
            &mut (*scratch).window,
        )
    };
    let Some(flow) = flow::at(segment.flow) else {
        return 0;
    };
    if walk.odd != 0 {
        return 0;
    }
    // SAFETY: a map element; the load stays in the window.
    unsafe {
        let mut at = window.forgotten(segment.at);
        if (*flow).is_reply_data != 0 {
            let sequence = segment.sequence.wrapping_add(at as u32);
            let left = u64::from((*flow).reply_until.wrapping_sub(sequence));
            let rest = segment.len.wrapping_sub(at);
            at += if left < rest { left } else { rest };
            if left <= rest {
                (*flow).is_reply_data = 0;
            }
            at = window.forgotten(at);
            segment.at = at;
        }
        let rest = segment.len.wrapping_sub(at);
        if rest == 0 || rest > 0xffff {
            return 0;
        }
        let carried = window.forgotten(u64::from((*flow).reply_carried));
        if carried > MAX_REPLY_CARRY as u64 {
            return 0;
        }
        for i in 0..MAX_REPLY_CARRY / 8 {
            if 8 * i as u64 >= carried {
                break;
            }
            let word = (&raw const (*flow).reply_carry[i]).read_volatile();
            window.set_word(8 * i as u64, word);
        }
        (*flow).reply_carried = 0;
        // Behind what is carried there is room for fewer bytes.
        let room = if carried == 0 {
            WINDOW as u64
        } else {
            (WINDOW - MAX_REPLY_CARRY) as u64
        };
        let size = window.forgotten(if rest < room { rest } else { room });
        let from = segment.data.wrapping_add(at) as u32;
        let loaded = if carried == 0 {
            let to = window.start();
            bpf_skb_load_bytes(ctx.cast(), from, to.cast(), Window::size(size))
        } else {
            let to = window.start().add((opaque(carried) & 511) as usize);
            let size = ((opaque(size.wrapping_sub(1)) & 1023) + 1) as u32;
            bpf_skb_load_bytes(ctx.cast(), from, to.cast(), size)
        };
        let size = if carried == 0 {
            u64::from(Window::size(size))
        } else {
            (opaque(size.wrapping_sub(1)) & 1023) + 1
        };
        if loaded != 0 {
            walk.odd = 1;
            return 0;
        }
        segment.window_sequence = u64::from(
            segment
                .sequence
                .wrapping_add(at as u32)
                .wrapping_sub(carried as u32),
        );
        segment.at = at + size;
        segment.learn = 0;
        walk.at = 0;
        walk.end = carried + size;
        walk.keys = 0;
        walk.out = carried;
    }
    1
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
        let owner = if element.class == Class::Odd {
            Owner::Unknown
        } else if element.class == Class::Binary {
            stream::binary_owner(ask, element.opcode, element.is_last)
        } else {
            stream::text_owner(ask, element.class)
        };
        if owner == Owner::Unknown {
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
            if (*flow).doubt == 0 {
                (&raw mut (*flow).answered).write_volatile(number + 1);
            }
            if !learns {
                tickets::give_back(segment.flow, number);
            }
        }
        i64::from(learns)
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

/// The replies in the window have been gone over: what is left will be looked at again, or is carried.
/// Non-zero if there is something to learn.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_tcp_looked() -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    // SAFETY: this CPU's scratch.
    let (window, walk, segment) = unsafe {
        (
            &(*scratch).window,
            &mut (*scratch).walk,
            &mut (*scratch).segment,
        )
    };
    let Some(flow) = flow::at(segment.flow) else {
        return 0;
    };
    let at = window.forgotten(walk.at);
    let left = window.forgotten(walk.end.wrapping_sub(at));
    if walk.odd != 0 || left > WINDOW as u64 {
        return 0;
    }
    let carried = window.forgotten(walk.out);
    if left != 0 && segment.at == segment.len && left <= MAX_REPLY_CARRY as u64 && walk.keys == 0 {
        // SAFETY: a map element, and the index is in bounds.
        unsafe {
            for i in 0..MAX_REPLY_CARRY / 8 {
                if 8 * i as u64 >= left {
                    break;
                }
                let word = &raw mut (*flow).reply_carry[i];
                word.write_volatile(window.word(at + 8 * i as u64));
            }
            (*flow).reply_carried = left as u32;
        }
    } else if left != 0 {
        // Loaded again, from the start of the element; not what was carried.
        if at < carried || at == 0 {
            walk.odd = 1;
            return 0;
        }
        segment.at = segment.at.wrapping_sub(left);
    }
    if segment.learn == 0 {
        return 0;
    }
    // SAFETY: a map element, and this CPU's scratch.
    unsafe { prepare(scratch, flow, walk.misses, segment.learn) }
}

/// Prepares the learning from the first `len` bytes of the window, which answer the command with this
/// number.
#[inline(always)]
unsafe fn prepare(scratch: *mut Scratch, flow: *mut Flow, number: u64, len: u64) -> u64 {
    // SAFETY: the caller's.
    unsafe {
        let Some(config) = backend::config() else {
            return 0;
        };
        let window = &(*scratch).window;
        let is_text = window.byte(0) == b'V' && window.byte(2) == b'L';
        let seed = backend_seed(config.seed, (*flow).backend as u8);
        let (hash, kind) = if is_text {
            let end = token_end(window, KEY_AT, len, (MAX_KEY + 1).div_ceil(8) + 1);
            let key_len = end.wrapping_sub(KEY_AT);
            if key_len == 0 || key_len > MAX_KEY as u64 {
                return 0;
            }
            let Some(hash) = hash_key(window, KEY_AT, key_len, seed) else {
                return 0;
            };
            (hash, Kind::Get)
        } else if window.byte(0) == binary::RESPONSE {
            (0, Kind::Binary)
        } else {
            (0, Kind::Meta)
        };
        if !is_text {
            if (*flow).kept_number != number {
                return 0;
            }
            learn::keep_key(scratch, &raw const (*flow).kept);
        }
        let Some(ticket) = tickets::find_for(flow, number, hash) else {
            return 0;
        };
        (&raw mut (*scratch).request).write_volatile(Request {
            key: ticket.key,
            time: ticket.time,
            version: ticket.version,
            epoch: ticket.epoch,
            seen: 0,
            kind: kind as u8,
            unanswered: 1,
            tickets: 1,
            backend: (*flow).backend as u8,
        });
        learn::parse(len);
    }
    1
}

/// The segment has been gone over.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_tcp_left() -> u64 {
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
            let next = (&raw const (*flow).next).read_volatile();
            // Of a command of which only the beginning has come nothing can be said yet.
            let is_whole = (*flow).counted == (*flow).asked
                && (&raw const (*flow).mode).read_volatile() == Mode::Command as u32
                && (&raw const (*flow).carried).read_volatile() == 0
                && (*flow).is_reply_data == 0
                && (*flow).reply_carried == 0;
            if is_whole && segment.acknowledgement == next {
                doubt::end_exchange(config, flow);
            }
        }
        let answered = (*flow).answered;
        let due = (*flow).flush_due;
        if due != 0 && answered > (&raw const (*flow).owed_number).read_volatile() {
            (*flow).flush_due = 0;
            flushes::answered((*flow).backend as u8, due, (*flow).flush_asked);
        }
        doubt::paid(flow, |flow, owes| {
            owes == Flow::OWES_REPLY && answered > (&raw const (*flow).owed_number).read_volatile()
        });
        if (*flow).is_crowding != 0
            && answered > (&raw const (*flow).crowded_number).read_volatile()
        {
            if atomic::swap(&raw mut (*flow).is_crowding, 0) != 0 {
                backend::thin_out((*flow).backend as u8);
            }
            if answered <= (&raw const (*flow).crowded_number).read_volatile()
                && atomic::swap(&raw mut (*flow).is_crowding, 1) == 0
            {
                // More has come at this moment, and may have found that it crowded already.
                backend::crowd((*flow).backend as u8);
                backend::be_quiet(config, (*flow).backend as u8);
            }
        }
    }
    0
}
