//! UDP datagrams.

use aya_ebpf::bindings::xdp_action::XDP_PASS;
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use prestack_abi::config::{Config, Door};
use prestack_abi::requests::{Kind, Request};
use prestack_proto::binary::HEADER_LEN;
use prestack_proto::hash::backend_seed;
use prestack_proto::text::request::{Command, Effect, Form};
use prestack_proto::udp::Frame;
use prestack_proto::window::{WINDOW, Window};

use super::datagram::{Datagram, Reading, request_to};
use super::single::SingleGet;
use super::{again, answer, command, commands, item, keys, odd};
use crate::inbound::Inbound;
use crate::ledger::backend::{self, Arrival};
use crate::ledger::flushes;
use crate::ledger::requests;
use crate::ledger::writes::{self, End};
use crate::maps::count;
use crate::packet::{Headers, Packet};
use crate::scratch::{Located, Scratch, Walk, scratch};

/// Decides on a UDP datagram.
#[inline(always)]
pub fn datagram(
    ctx: &XdpContext,
    packet: Packet,
    config: &'static Config,
    door: Arrival,
    headers: &Headers,
) -> u32 {
    match Datagram::read::<XdpContext>(packet, config, door, headers) {
        Reading::Empty => {
            count!(udp_passed);
            XDP_PASS
        }
        Reading::Odd => {
            odd::heed(ctx);
            count!(udp_passed);
            XDP_PASS
        }
        Reading::Request(datagram) => match SingleGet::of(packet, &datagram) {
            Some(get) => get.answer(ctx),
            None => {
                let action = other(ctx);
                requests::settle_doubted();
                action
            }
        },
    }
}

/// A datagram that is not understood: it may change anything.
#[inline(always)]
fn not_understood(config: &Config, door: Arrival) {
    backend::forget(config, door.backend);
    count!(udp_passed);
}

/// Every datagram but a plain single-key GET. A global function (by its unmangled name): the
/// verifier checks it once, and not again on every path to it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn prestack_other_datagram() -> u64 {
    u64::from(with_datagram(|datagram| {
        act(datagram);
        XDP_PASS
    }))
}

/// Answers a GET whose keys have been looked up, if it can. A global function, like
/// [`prestack_other_datagram`].
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn prestack_answer_keys(ctx: *mut xdp_md) -> u64 {
    let ctx = XdpContext::new(ctx);
    u64::from(with_datagram(|datagram| {
        answer::answer(&ctx, datagram).unwrap_or(XDP_PASS)
    }))
}

/// Lets a GET through whose keys have been looked up. A global function, like
/// [`prestack_other_datagram`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_pass_keys() -> u64 {
    u64::from(with_datagram(|datagram| {
        answer::pass(datagram);
        XDP_PASS
    }))
}

/// What `decide` says of the datagram that `prestack_load_datagram` has left in scratch.
#[inline(always)]
pub fn with_datagram(decide: impl FnOnce(&Datagram<'_>) -> u32) -> u32 {
    let Some(scratch) = scratch() else {
        return XDP_PASS;
    };
    let Some(config) = backend::config() else {
        return XDP_PASS;
    };
    // SAFETY: this CPU's scratch.
    let located = unsafe { &(*scratch).located };
    decide(&Datagram {
        config,
        door: Arrival {
            backend: located.backend as u8,
            flags: located.flags as u8,
        },
        headers: &located.headers,
        frame: Frame(located.frame),
        payload: located.payload,
        len: located.len,
        network: located.network,
        // SAFETY: `config` is a reference. Volatile: the compiler must not conclude anything.
        zero: unsafe { (&raw const config.zero).read_volatile() },
    })
}

/// Decides on every datagram but a plain single-key GET. The steps are functions side by side, not
/// one in the other: together their stacks would be too large.
#[inline(always)]
fn other(ctx: &XdpContext) -> u32 {
    let Some(scratch) = scratch() else {
        return XDP_PASS;
    };
    // SAFETY: functions of ours, called with the program's context; this CPU's scratch.
    unsafe {
        let end = &raw mut (*scratch).walk.end;
        if prestack_load_datagram(ctx.ctx) != LOADED {
            return XDP_PASS;
        }
        command::parse(0, end.read_volatile());
        prestack_other_datagram();
        if end.read_volatile() == 0 {
            return XDP_PASS;
        }
        match (&raw const (*scratch).walk.over).read_volatile() {
            Walk::COMMANDS => {
                commands::act_on_all();
                prestack_pass_commands();
                return XDP_PASS;
            }
            Walk::WRITE => {
                prestack_write_datagram();
                prestack_pass_write();
                return XDP_PASS;
            }
            over @ (Walk::META | Walk::BINARY) => item::look_up(over),
            _ => keys::look_up_all(),
        }
        let action = prestack_answer_keys(ctx.ctx) as u32;
        if action != XDP_PASS {
            return action;
        }
        prestack_pass_keys();
    }
    XDP_PASS
}

/// Marks the write in the scratch's `request`. A global function, like [`prestack_other_datagram`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn prestack_write_datagram() -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    // SAFETY: this CPU's scratch.
    unsafe {
        let request = &raw mut (*scratch).request;
        let settles = (&raw const (*scratch).walk.keys).read_volatile() != 0;
        let end = if settles { End::Settle } else { End::Reply };
        match writes::arrived((&raw const (*request).key).read_volatile(), end) {
            Some(mark) => (&raw mut (*request).version).write_volatile(mark.generation),
            None => (&raw mut (*request).kind).write_volatile(Kind::Odd as u8),
        }
    }
    0
}

/// Lets a write through that was marked. A global function, like [`prestack_other_datagram`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn prestack_pass_write() -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    // SAFETY: this CPU's scratch.
    let request = unsafe { (&raw const (*scratch).request).read_volatile() };
    u64::from(with_datagram(|datagram| {
        datagram.remember(&request);
        count!(udp_passed);
        XDP_PASS
    }))
}

/// Lets a datagram of several commands through. A global function, like
/// [`prestack_other_datagram`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn prestack_pass_commands() -> u64 {
    u64::from(with_datagram(|datagram| {
        let kind = if commands::are_understood() {
            Kind::Endless
        } else {
            Kind::Odd
        };
        datagram.remember(&Request {
            key: commands::flush_due(),
            kind: kind as u8,
            ..request_to(datagram.door)
        });
        count!(udp_passed);
        XDP_PASS
    }))
}

/// What [`load`] made of a datagram: it is nothing to memcached, was loaded, or is not understood.
const EMPTY: u64 = 0;
pub const LOADED: u64 = 1;
pub const ODD: u64 = 2;

/// Loads the datagram. A global function, like [`prestack_other_datagram`].
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn prestack_load_datagram(ctx: *mut xdp_md) -> u64 {
    load(&XdpContext::new(ctx))
}

/// Leaves in scratch what the other steps need to know: where the datagram is, and its payload in the
/// window; the walk's end is its length, or 0 if that is not possible.
#[inline(always)]
pub fn load<C: Inbound>(ctx: &C) -> u64 {
    let Some(scratch) = scratch() else {
        return EMPTY;
    };
    let Some((config, packet, headers, door)) = again(ctx) else {
        return EMPTY;
    };
    let datagram = match Datagram::read::<C>(packet, config, door, &headers) {
        Reading::Empty => return EMPTY,
        Reading::Odd => return ODD,
        Reading::Request(datagram) => datagram,
    };
    // SAFETY: this CPU's scratch; the window holds WINDOW bytes. The load fails unless the packet has
    // all of them.
    unsafe {
        (*scratch).located = Located {
            headers,
            backend: u64::from(door.backend),
            flags: u64::from(door.flags),
            frame: datagram.frame.0,
            payload: datagram.payload,
            len: datagram.len,
            network: datagram.network,
        };
        let end = &raw mut (*scratch).walk.end;
        end.write_volatile(0);
        let len = datagram.len;
        let window = (*scratch).window.start().cast();
        let is_short = len <= WINDOW as u64;
        if is_short && ctx.load(datagram.payload as u32, window, Window::size(len)) {
            end.write_volatile(len);
        }
    }
    LOADED
}

/// Acts on a datagram that was loaded and parsed. If it is a GET, or holds several commands, the walk
/// over its keys or commands, or the one of its write, is started, else the walk's end is 0.
#[inline(always)]
fn act(datagram: &Datagram<'_>) {
    let (config, door) = (datagram.config, datagram.door);
    let Some(scratch) = scratch() else {
        not_understood(config, door);
        return;
    };
    // SAFETY: this CPU's scratch.
    let (window, mut command, len) = unsafe {
        let end = &raw mut (*scratch).walk.end;
        let len = end.read_volatile();
        end.write_volatile(0);
        (
            &(*scratch).window,
            (&raw const (*scratch).command).read_volatile(),
            len,
        )
    };
    if len == 0 {
        command.effect = Effect::Unknown;
    }
    let seed = backend_seed(config.seed, door.backend);
    let next = command.next + command.data;
    let is_walked =
        command.effect as u32 <= Effect::Write as u32 || command.effect == Effect::Flush;
    if next < len && is_walked {
        // SAFETY: this CPU's scratch.
        unsafe { Walk::start(scratch, Walk::COMMANDS, 0, len, door.backend, seed) };
        return;
    }
    let is_alone = next == len && (command.data == 0 || commands::is_closed(window, len));
    let mut request = request_to(door);
    match command.effect {
        Effect::Get if is_alone => {
            if start(datagram, scratch, &command, seed) {
                return;
            }
            request.kind = Kind::Endless as u8;
        }
        // One message for an answer, or none.
        Effect::Read if is_alone => {}
        Effect::LongRead if is_alone => request.kind = Kind::Endless as u8,
        Effect::Write if is_alone => {
            let is_answered = door.flags & (Door::HAS_UDP | Arrival::LOCAL) != 0;
            let end = if command.quiet || !is_answered {
                End::Settle
            } else {
                End::Reply
            };
            if let Some(key) = command::key(seed) {
                request.key = key;
                request.kind = Kind::Write as u8;
                if command.quiet {
                    // If it is answered, then with an error, and soon.
                    request.kind = Kind::Endless as u8;
                    request.seen = requests::age_to_remember_for(config, config.settle_ns);
                }
                // SAFETY: this CPU's scratch.
                unsafe {
                    (&raw mut (*scratch).request).write_volatile(request);
                    Walk::start(scratch, Walk::WRITE, 0, len, door.backend, seed);
                    (&raw mut (*scratch).walk.keys).write_volatile(u64::from(end == End::Settle));
                }
                return;
            }
            request.kind = Kind::Odd as u8;
        }
        // Without a whole line or header memcached drops it; a body it waits for.
        Effect::Incomplete if command.form == Form::Text || len < HEADER_LEN => {
            request.kind = Kind::Endless as u8;
        }
        Effect::Flush => {
            request.key = flushes::arrived(door.backend);
            request.kind = Kind::Odd as u8;
            if is_alone && command.quiet {
                // As a quiet write.
                backend::forget(config, door.backend);
                request.kind = Kind::Endless as u8;
                request.seen = requests::age_to_remember_for(config, config.settle_ns);
            } else if is_alone {
                request.kind = Kind::Flush as u8;
            }
        }
        _ => request.kind = Kind::Odd as u8,
    }
    datagram.remember(&request);
    count!(udp_passed);
}

/// Starts the walk over the keys of a GET; false if it has none that memcached would take.
#[inline(always)]
fn start(datagram: &Datagram<'_>, scratch: *mut Scratch, command: &Command, seed: u64) -> bool {
    let door = datagram.door;
    let Some(state) = backend::backend(door.backend) else {
        return false;
    };
    let (over, at, end) = match command.form {
        Form::Text => (Walk::KEYS, command.key, command.line_end),
        Form::TextCas => (Walk::KEYS_CAS, command.key, command.line_end),
        Form::Meta => (Walk::META, 0, 1),
        Form::Binary => (Walk::BINARY, 0, 1),
    };
    let hash = if over >= Walk::META {
        match command::key(seed) {
            Some(hash) => hash,
            None => return false,
        }
    } else {
        0
    };
    let may_fill = datagram.may_fill();
    // SAFETY: this CPU's scratch.
    unsafe {
        Walk::start(scratch, over, at, end, door.backend, seed);
        let walk = &raw mut (*scratch).walk;
        let epoch = backend::epoch(state, (&raw const (*walk).now).read_volatile());
        (&raw mut (*walk).epoch).write_volatile(u64::from(epoch));
        (&raw mut (*walk).may_fill).write_volatile(u64::from(may_fill));
        (&raw mut (*walk).key).write_volatile(hash);
        (&raw mut (*walk).keys).write_volatile(u64::from(hash != 0));
    }
    true
}
