//! UDP GETs of several keys, and of one key written in an unusual way: answered only if every key
//! hits. The reply is put together in scratch memory, so the packet stays whole until it is sure.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_TX};
use aya_ebpf::helpers::generated::{bpf_loop, bpf_xdp_store_bytes};
use aya_ebpf::programs::XdpContext;
use core::ffi::c_void;
use prestack_abi::cache::MAX_REPLY;
use prestack_abi::config::Door;
use prestack_abi::requests::{KeyTicket, Kind, MULTI_KEYS, Request};
use prestack_proto::MAX_KEY;
use prestack_proto::hash::{backend_seed, scan_key};
use prestack_proto::text::reply::{END, END_LEN};
use prestack_proto::text::scan::{skip_spaces, token_end};
use prestack_proto::window::{Source, Window};

use super::get::is_servable;
use super::reply;
use super::room::{self, Room};
use super::udp::Datagram;
use crate::cache::find::{Found, Query, find};
use crate::clock;
use crate::ledger::{backend, requests, tickets};
use crate::maps::{KEY_TICKETS, count};
use crate::packet::Packet;
use crate::scratch::{Missed, Scratch, Walk, scratch, sum_of_reply};

/// Most keys of a GET that are looked at: a request of 1,400 bytes can hold 700.
const MAX_KEYS: u32 = 64;

/// Starts the walk over the keys from `key` to `line_end` of the window.
#[inline(always)]
pub fn start(datagram: &Datagram<'_>, scratch: *mut Scratch, key: u64, line_end: u64) {
    let (config, door) = (datagram.config, datagram.door);
    let Some(state) = backend::backend(door.backend) else {
        return;
    };
    let seed = backend_seed(config.seed, door.backend);
    // SAFETY: this CPU's scratch.
    unsafe {
        Walk::start(
            scratch,
            key,
            line_end,
            seed,
            clock::now(),
            door.backend,
            backend::epoch(state),
        )
    };
}

/// Walks over the keys.
#[inline(always)]
pub fn look_up_keys() {
    // SAFETY: the callback fits the helper.
    unsafe { bpf_loop(MAX_KEYS, look_up as *mut c_void, core::ptr::null_mut(), 0) };
}

/// Answers the GET whose keys have been looked up. `None` if a key is missing or it may not be
/// answered: the packet is then as it was.
#[inline(always)]
pub fn answer(ctx: &XdpContext, datagram: &Datagram<'_>) -> Option<u32> {
    let (config, door) = (datagram.config, datagram.door);
    let scratch = scratch()?;
    // SAFETY: this CPU's scratch.
    let (is_complete, now, out) = unsafe {
        let walk = &raw const (*scratch).walk;
        let is_at_end =
            (&raw const (*walk).at).read_volatile() >= (&raw const (*walk).end).read_volatile();
        let is_hit = (&raw const (*walk).misses).read_volatile() == 0
            && (&raw const (*walk).keys).read_volatile() > 0;
        let is_plain = (&raw const (*walk).odd).read_volatile() == 0;
        let now = (&raw const (*walk).now).read_volatile();
        (
            is_at_end && is_hit && is_plain,
            now,
            (&raw const (*walk).out).read_volatile(),
        )
    };
    if !is_complete || !is_servable(config, door, now, ctx, datagram, out + END_LEN) {
        return None;
    }
    serve(ctx, datagram, scratch, out)
}

/// Lets the GET through, with tickets for the keys that are missing.
#[inline(always)]
pub fn pass(datagram: &Datagram<'_>) {
    let Some(scratch) = scratch() else { return };
    // At a wildcard door the packet may be for another host behind this one.
    let may_fill = datagram.door.flags & Door::ANY_ADDRESS == 0;
    // SAFETY: this CPU's scratch.
    let (keys, request) = unsafe {
        let walk = &raw const (*scratch).walk;
        let keys = (&raw const (*walk).keys).read_volatile();
        let tickets = (&raw const (*walk).tickets).read_volatile();
        let is_single = keys == 1;
        let request = Request {
            key: if is_single {
                (&raw const (*walk).key).read_volatile()
            } else {
                0
            },
            time: (&raw const (*walk).now).read_volatile(),
            version: if is_single {
                (&raw const (*scratch).missed[0].version).read_volatile()
            } else {
                0
            },
            epoch: (&raw const (*walk).epoch).read_volatile() as u32,
            seen: 0,
            kind: if is_single { Kind::Get } else { Kind::MultiGet } as u8,
            unanswered: 1,
            tickets: if (&raw const (*walk).odd).read_volatile() == 0 && may_fill {
                tickets as u8
            } else {
                0
            },
            backend: datagram.door.backend,
        };
        (keys, request)
    };
    if let Some((slot, serial)) = requests::remember(datagram.config, datagram.name(), &request)
        && keys > 1
    {
        keep_tickets(slot, serial, scratch);
    }
    count!(udp_misses);
}

/// Looks up the next key: one step of the walk. Returns 1 at its end.
#[inline(never)]
extern "C" fn look_up(_: u32, _: *mut c_void) -> i64 {
    let Some(scratch) = scratch() else { return 1 };
    let Some(config) = backend::config() else {
        return 1;
    };
    // SAFETY: this CPU's scratch.
    let (window, walk) = unsafe { (&(*scratch).window, &mut (*scratch).walk) };
    let (at, end) = (walk.at, walk.end);
    let start = skip_spaces(window, at, end);
    let stop = token_end(window, start, end, MAX_KEY.div_ceil(8) + 1);
    let len = stop.wrapping_sub(start);
    walk.at = stop;
    if len == 0 {
        return 1;
    }
    if len > MAX_KEY as u64 {
        walk.odd = 1;
        return 1;
    }
    let Some(hash) = scan_key(window, start, len, walk.seed) else {
        walk.odd = 1;
        return 1;
    };
    walk.keys += 1;
    walk.key = hash;
    let query = Query {
        config,
        backend: walk.backend as u8,
        epoch: walk.epoch as u32,
        now: walk.now,
        hash,
    };
    if let Some(found) = find(query, window, start, len) {
        // Whatever the age: a reply to several keys does not name those that memcached has lost, so
        // it cannot refresh.
        if append(scratch, &found).is_some() {
            return 0;
        }
    }
    miss(scratch, hash);
    0
}

/// Notes a key that is not in the cache, with a ticket if one may be given.
#[inline(always)]
fn miss(scratch: *mut Scratch, hash: u64) {
    let Some(config) = backend::config() else {
        return;
    };
    // SAFETY: this CPU's scratch.
    let walk = unsafe { &mut (*scratch).walk };
    walk.misses += 1;
    let Some(state) = backend::backend(walk.backend as u8) else {
        return;
    };
    if walk.tickets >= MULTI_KEYS as u64 {
        return;
    }
    let Some(version) = tickets::take(config, state, hash, walk.now) else {
        return;
    };
    let slot = walk.tickets as usize;
    if slot < MULTI_KEYS {
        // SAFETY: as above.
        unsafe {
            (*scratch).missed[slot] = Missed {
                key: hash,
                version,
                reserved: 0,
            }
        };
        walk.tickets += 1;
    }
}

/// Appends an entry's `VALUE` block, without its `END`, to the reply in scratch.
#[inline(always)]
fn append(scratch: *mut Scratch, found: &Found) -> Option<()> {
    const CHUNK: u64 = 32;
    // SAFETY: this CPU's scratch.
    let walk = unsafe { &mut (*scratch).walk };
    let out = walk.out;
    let len = found.reply_len - END_LEN;
    if out + found.reply_len > MAX_REPLY as u64 {
        return None;
    }
    // SAFETY: as above.
    let reply = unsafe { &mut (*scratch).reply };
    let len = reply.forgotten(len);
    let mut done = 0;
    for _ in 0..(MAX_REPLY as u64).div_ceil(CHUNK) {
        if done >= len {
            break;
        }
        // A chunk may reach past the entry, into the next one: what is too much is overwritten by
        // the next entry or cut off.
        for i in 0..CHUNK / 8 {
            let at = done + 8 * i;
            match found.entry.word(at) {
                Some(word) => reply.set_word(out + at, word),
                // Behind the end of the block.
                None if at >= len => break,
                None => return None,
            }
        }
        done += CHUNK;
    }
    if !found.is_unchanged() {
        count!(races);
        return None;
    }
    walk.out = out + len;
    Some(())
}

/// Sends the reply of `out` bytes in scratch, `END` still to be added.
#[inline(always)]
fn serve(
    ctx: &XdpContext,
    datagram: &Datagram<'_>,
    scratch: *mut Scratch,
    out: u64,
) -> Option<u32> {
    let config = datagram.config;
    let packet = Packet::of(ctx, config);
    // SAFETY: this CPU's scratch.
    let reply = unsafe { &mut (*scratch).reply };
    reply.set_word(out, END);
    let len = packet.forgotten(out + END_LEN);
    let sum = sum_of_reply(len);
    let at = datagram.payload;
    let room = Room::make(ctx, config, packet, None, at, at + len)?;
    let moved = room.move_headers(at);
    // SAFETY: the reply buffer is as long as the window.
    let stored =
        unsafe { bpf_xdp_store_bytes(ctx.ctx, at as u32, reply.start().cast(), Window::size(len)) };
    let packet = Packet::of(ctx, config);
    let written = reply::write_headers(packet, datagram.headers, len, sum);
    if moved.is_none() || stored != 0 || written.is_none() {
        // There is room, so this cannot be; the request is no longer whole, so it cannot pass.
        return Some(XDP_DROP);
    }
    room::cut(ctx, packet, at + len);
    count!(udp_hits);
    Some(XDP_TX)
}

/// Writes down the tickets of a multi-key GET.
#[inline(always)]
fn keep_tickets(slot: requests::Slot, serial: u32, scratch: *mut Scratch) {
    let Some(tickets) = KEY_TICKETS.get_ptr_mut(slot) else {
        return;
    };
    for i in 0..MULTI_KEYS {
        // SAFETY: both are map elements, and the scratch is this CPU's.
        unsafe {
            if i as u64 >= (*scratch).walk.tickets {
                break;
            }
            let missed = (&raw const (*scratch).missed[i]).read_volatile();
            let ticket = KeyTicket::new(missed.key, missed.version, serial);
            let place = &raw mut (*tickets).keys[i];
            (&raw mut (*place).key).write_volatile(ticket.key);
            (&raw mut (*place).version).write_volatile(ticket.version);
        }
    }
}
