//! The requests of a segment: whether they may be answered now, and their answers.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use prestack_abi::config::Door;
use prestack_abi::flow::{Flow, Mode};
use prestack_abi::translated::{MAX_ANSWER, Translated};
use prestack_proto::binary::opcode::NOOP;
use prestack_proto::binary::{HEADER_LEN, RESPONSE};
use prestack_proto::checksum::{fold, window_sum_from};
use prestack_proto::hash::backend_seed;
use prestack_proto::net::{IPV4_DONT_FRAGMENT, IPV4_LEN, PROTO_TCP, TCP_ACK, TCP_PSH};
use prestack_proto::text::reply::{END, END_LEN};
use prestack_proto::text::request::{Effect, Form};
use prestack_proto::window::{Source as _, WINDOW, Window};
use prestack_translate::Ends;

use super::element;
use super::merged::is_partial_sum;
use crate::cache::fence;
use crate::clock;
use crate::inbound::Inbound as _;
use crate::ledger::backend;
use crate::maps::count;
use crate::packet::{Headers, Packet};
use crate::rx::checksum::pseudo_header;
use crate::rx::{allow, command, item, keys, link};
use crate::scratch::{Scratch, Walk, scratch};
use crate::tcp::flow;

const SERVE_TCP: u64 = Door::SERVE_TCP as u64;
/// Most commands of a segment that are answered.
const MAX_COMMANDS: usize = 16;

/// Answers the requests of the segment, as far as the scratch's `answer`: false if one of them is none that hits.
#[inline(always)]
pub fn answer_all(ctx: &XdpContext) -> bool {
    // SAFETY: a function of ours, called with the program's context.
    if unsafe { prestack_hits_load(ctx.ctx) } == 0 {
        return false;
    }
    for _ in 0..=MAX_COMMANDS {
        let next = prestack_hits_next();
        if next == AT_END {
            return true;
        }
        prestack_hits_look_up();
        if next == OTHER || prestack_hits_collect() == 0 {
            break;
        }
    }
    count!(tcp_misses);
    false
}

/// Loads the segment into the window, from its header on, if its requests may be answered: 0 if not.
///
/// A global function (by its unmangled name), as those that follow: the verifier checks it once.
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn prestack_hits_load(ctx: *mut xdp_md) -> u64 {
    u64::from(load(&XdpContext::new(ctx)).is_some())
}

#[inline(always)]
fn load(ctx: &XdpContext) -> Option<()> {
    let (scratch, config) = (scratch()?, backend::config()?);
    // SAFETY: this CPU's scratch.
    let (numbered, headers, door) = unsafe {
        (
            &mut (*scratch).numbered,
            &(*scratch).located.headers,
            (*scratch).located.flags,
        )
    };
    let flags = numbered.segment.flags & !u32::from(TCP_PSH);
    let len = u64::from(numbered.segment.len);
    let total = numbered.header_len() + len;
    if config.policy.is_serving == 0
        || clock::now() >= config.serve_until
        || flags != u32::from(TCP_ACK)
        || len == 0
        || total > WINDOW as u64
        || !may_answer(numbered.place, door)?
    {
        return None;
    }
    let packet = ctx.packet(config);
    if !is_in_one_piece(packet, headers)? {
        return None;
    }
    let network = allow::network(config, headers.v6, &headers.addresses.source);
    if !link::admits(ctx, config, packet, headers, network) {
        return None;
    }
    // SAFETY: this CPU's scratch, whose window holds as many bytes.
    let is_loaded = unsafe {
        let start = (*scratch).window.start().cast();
        ctx.load(headers.l4 as u32, start, Window::size(total))
    };
    if !is_loaded {
        return None;
    }
    numbered.at = numbered.header_len();
    numbered.end = total;
    let field = packet.read::<u16>(headers.l4 + 16)?;
    let pseudo = pseudo_header(&headers.addresses, total as u16, PROTO_TCP);
    let sum = prestack_hits_sum(total);
    if fold(pseudo + sum) != 0xffff && !is_partial_sum(config, field, pseudo) {
        count!(bad_checksums);
        return None;
    }
    Some(())
}

/// The one's-complement sum of the first `len` bytes of the window.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_hits_sum(len: u64) -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    // SAFETY: this CPU's scratch.
    u64::from(window_sum_from(unsafe { &(*scratch).window }, 0, len))
}

/// Whether the IP header is right, and forbids that the packet is cut up: nothing translates fragments.
#[inline(always)]
fn is_in_one_piece(packet: Packet, headers: &Headers) -> Option<bool> {
    if headers.v6 {
        return Some(true);
    }
    let ip = packet.at::<[u32; IPV4_LEN / 4]>(headers.l3)?;
    // SAFETY: `at` checked the length.
    let ip = unsafe { *ip };
    let mut sum = 0;
    for word in ip {
        sum += u64::from(word);
    }
    let fragment = (ip[1] >> 16) as u16;
    Some(fold(sum) == 0xffff && fragment & IPV4_DONT_FRAGMENT.to_be() != 0)
}

/// Whether answers may be given at a door with these flags on the flow at this place: memcached owes nothing on it, and
/// all that was passed is understood.
#[inline(always)]
pub fn may_answer(place: u32, door: u64) -> Option<bool> {
    let (flow, element) = (flow::at(place)?, element::at(place)?);
    // SAFETY: map elements. Volatile: other CPUs may be changing them. What comes after this is seen when the answer is
    // given: see `owes_nothing`.
    unsafe {
        let next = (&raw const (*flow).next).read_volatile();
        let unusual = u64::from((&raw const (*flow).state).read_volatile() ^ Flow::OPEN)
            | u64::from((*flow).is_seen ^ 1)
            | u64::from((&raw const (*flow).doubt).read_volatile())
            | (&raw const (*flow).busy).read_volatile()
            | u64::from((&raw const (*flow).carried).read_volatile())
            | u64::from((*flow).has_hole)
            | u64::from((*flow).is_repeat)
            | u64::from((&raw const (*flow).mode).read_volatile() ^ Mode::Command as u32)
            | u64::from((&raw const (*flow).quiets).read_volatile())
            | (&raw const (*flow).owes).read_volatile()
            | u64::from((*flow).reply_carried)
            | u64::from((*flow).is_reply_data)
            | ((&raw const (*flow).asked).read_volatile()
                ^ (&raw const (*flow).answered).read_volatile())
            | u64::from(next ^ (&raw const (*element).ends.next).read_volatile())
            | u64::from(element::state(element) ^ Translated::READY)
            | door & SERVE_TCP ^ SERVE_TCP;
        Some(unusual == 0)
    }
}

/// Whether memcached still owes nothing when the element of its flow is locked to give an answer: another CPU may have
/// passed a request since [`may_answer`], or be at a reply, which counts as answered before it has left.
#[inline(always)]
pub fn owes_nothing(flow: *const Flow, ends: &Ends) -> bool {
    // SAFETY: a map element. Volatile, and in this order: `tx` moves `sent` on before it counts a command as answered,
    // and `ends.sent` when the reply leaves.
    unsafe {
        // First: while what was seen before is parsed again, numbers go back.
        let busy = (&raw const (*flow).busy).read_volatile();
        fence();
        let owed = (&raw const (*flow).asked).read_volatile()
            ^ (&raw const (*flow).answered).read_volatile();
        fence();
        let unusual = u64::from((&raw const (*flow).state).read_volatile() ^ Flow::OPEN)
            | u64::from((&raw const (*flow).doubt).read_volatile())
            | u64::from((&raw const (*flow).quiets).read_volatile())
            | u64::from((&raw const (*flow).carried).read_volatile())
            | u64::from((&raw const (*flow).mode).read_volatile() ^ Mode::Command as u32)
            | u64::from((&raw const (*flow).next).read_volatile() ^ ends.next)
            | u64::from((&raw const (*flow).sent).read_volatile() ^ ends.sent);
        busy | owed | unusual == 0
    }
}

/// What [`prestack_hits_next`] returns: there is no further request; it cannot be answered.
const AT_END: u64 = 1;
const OTHER: u64 = 2;
/// The request is to be looked up.
const LOOK_UP: u64 = 3;

/// Starts the walk over the next request.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_hits_next() -> u64 {
    let Some(scratch) = scratch() else {
        return OTHER;
    };
    // SAFETY: this CPU's scratch.
    let (at, end) = unsafe {
        let numbered = &raw const (*scratch).numbered;
        (
            (&raw const (*numbered).at).read_volatile(),
            (&raw const (*numbered).end).read_volatile(),
        )
    };
    if at >= end || end > WINDOW as u64 {
        return AT_END;
    }
    command::parse(at, end);
    next(scratch, at, end).unwrap_or(OTHER)
}

#[inline(always)]
fn next(scratch: *mut Scratch, at: u64, end: u64) -> Option<u64> {
    let config = backend::config()?;
    // SAFETY: this CPU's scratch.
    let (command, backend, place) = unsafe {
        (
            (&raw const (*scratch).command).read_volatile(),
            (*scratch).located.backend as u8,
            (*scratch).numbered.place,
        )
    };
    let flow = flow::at(place)?;
    // SAFETY: a map element.
    let protocol = unsafe { (&raw const (*flow).protocol).read_volatile() };
    let is_binary = command.form == Form::Binary;
    if command.next > end || command.data != 0 || is_binary != (protocol == Flow::BINARY) {
        return None;
    }
    let seed = backend_seed(config.seed, backend);
    let mut hash = 0;
    let (over, from, until) = match (command.effect, command.form) {
        (Effect::Get, Form::Text) => (Walk::KEYS, command.key, command.line_end),
        (Effect::Get, Form::TextCas) => (Walk::KEYS_CAS, command.key, command.line_end),
        (Effect::Get, Form::Meta) => (Walk::META, at, at + 1),
        (Effect::Get, Form::Binary) => (Walk::BINARY, at, at + 1),
        (Effect::Read, Form::Binary) => (Walk::COMMANDS, at, at),
        _ => return None,
    };
    if over >= Walk::META {
        hash = command::key(seed)?;
    }
    let state = backend::backend(backend)?;
    // SAFETY: this CPU's scratch.
    unsafe {
        Walk::start(scratch, over, from, until, backend, seed);
        let walk = &raw mut (*scratch).walk;
        let epoch = backend::epoch(state, (&raw const (*walk).now).read_volatile());
        (&raw mut (*walk).epoch).write_volatile(u64::from(epoch));
        (&raw mut (*walk).key).write_volatile(hash);
        (&raw mut (*walk).keys).write_volatile(u64::from(hash != 0));
        (&raw mut (*scratch).numbered.at).write_volatile(command.next);
    }
    Some(LOOK_UP)
}

/// Looks up what the walk goes over.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_hits_look_up() -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    // SAFETY: this CPU's scratch.
    match unsafe { (&raw const (*scratch).walk.over).read_volatile() } {
        Walk::KEYS | Walk::KEYS_CAS => keys::look_up_all(),
        over @ (Walk::META | Walk::BINARY) => item::look_up(over),
        _ => {}
    }
    0
}

/// Appends what was looked up to the answer: 0 if something is missing, or it is too long.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_hits_collect() -> u64 {
    u64::from(collect().is_some())
}

#[inline(always)]
fn collect() -> Option<()> {
    let (scratch, config) = (scratch()?, backend::config()?);
    // SAFETY: this CPU's scratch.
    let (walk, reply, window, answer, numbered) = unsafe {
        (
            &(*scratch).walk,
            &mut (*scratch).reply,
            &(*scratch).window,
            &mut (*scratch).answer,
            &mut (*scratch).numbered,
        )
    };
    let (mut start, mut end) = (walk.start, walk.out);
    if walk.over == Walk::COMMANDS {
        // The end of a run of quiet requests. With a key, extras or a body memcached refuses it.
        let lengths = window.word(walk.at) >> 16 | window.word(walk.at + 8) << 32;
        if window.byte(walk.at + 1) != NOOP || lengths != 0 {
            return None;
        }
        let opaque = window.word(walk.at + 8) >> 32 << 32;
        reply.set_word(0, u64::from(RESPONSE) | u64::from(NOOP) << 8);
        reply.set_word(8, opaque);
        reply.set_word(16, 0);
        (start, end) = (0, HEADER_LEN);
    } else {
        let is_complete = walk.at >= walk.end && walk.misses == 0 && walk.keys > 0 && walk.odd == 0;
        if !is_complete {
            return None;
        }
        if walk.over == Walk::KEYS || walk.over == Walk::KEYS_CAS {
            reply.set_word(end, END);
            end += END_LEN;
        }
    }
    let len = reply.forgotten(end.wrapping_sub(start));
    let (start, at) = (reply.forgotten(start), reply.forgotten(numbered.answer));
    let total = at + len;
    if len > MAX_ANSWER as u64 || total > config.policy.room || total > MAX_ANSWER as u64 {
        return None;
    }
    for i in 0..MAX_ANSWER as u64 / 8 {
        if 8 * i >= len {
            break;
        }
        answer.set_word(at + 8 * i, reply.word(start + 8 * i));
    }
    numbered.answer = total;
    Some(())
}
