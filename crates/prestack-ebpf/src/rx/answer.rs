//! Sending a reply that was put together in scratch memory, or letting the GET through.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_TX};
use aya_ebpf::helpers::generated::bpf_xdp_store_bytes;
use aya_ebpf::programs::XdpContext;
use prestack_abi::requests::{KeyTicket, Kind, MULTI_KEYS, REQUEST_KEY_WORDS, Request};
use prestack_proto::text::reply::{END, END_LEN};
use prestack_proto::verifier::opaque;
use prestack_proto::window::{Source, Window};

use super::datagram::Datagram;
use super::get::is_servable;
use super::item::HEAD_ROOM;
use super::room::{self, Room};
use super::{rate, reply};
use crate::inbound::Inbound as _;
use crate::ledger::{backend, requests};
use crate::maps::{KEY_TICKETS, REQUEST_KEYS, count};
use crate::scratch::{Scratch, Walk, scratch, sum_of_reply};

/// Answers the GET whose keys have been looked up. `None` if a key is missing or it may not be
/// answered: the packet is then as it was.
#[inline(always)]
pub fn answer(ctx: &XdpContext, datagram: &Datagram<'_>) -> Option<u32> {
    let door = datagram.door;
    let state = backend::backend(door.backend)?;
    let scratch = scratch()?;
    // SAFETY: this CPU's scratch.
    let (reply, walk) = unsafe { (&mut (*scratch).reply, &raw const (*scratch).walk) };
    // SAFETY: as above.
    let (is_complete, over, now, start, out) = unsafe {
        let is_at_end =
            (&raw const (*walk).at).read_volatile() >= (&raw const (*walk).end).read_volatile();
        let is_hit = (&raw const (*walk).misses).read_volatile() == 0
            && (&raw const (*walk).keys).read_volatile() > 0;
        let is_plain = (&raw const (*walk).odd).read_volatile() == 0;
        (
            is_at_end && is_hit && is_plain,
            (&raw const (*walk).over).read_volatile(),
            (&raw const (*walk).now).read_volatile(),
            (&raw const (*walk).start).read_volatile(),
            (&raw const (*walk).out).read_volatile(),
        )
    };
    if !is_complete {
        return None;
    }
    let end = if over == Walk::KEYS || over == Walk::KEYS_CAS {
        reply.set_word(out, END);
        out + END_LEN
    } else {
        out
    };
    let len = reply.forgotten(end.wrapping_sub(start));
    if !is_servable(ctx, datagram, state, now, len, None) {
        return None;
    }
    let action = serve(ctx, datagram, scratch, start, len)?;
    rate::spend(datagram.config, &datagram.headers.addresses.source, now);
    Some(action)
}

/// Sends the `len` bytes at `start` of the reply in scratch.
#[inline(always)]
fn serve(
    ctx: &XdpContext,
    datagram: &Datagram<'_>,
    scratch: *mut Scratch,
    start: u64,
    len: u64,
) -> Option<u32> {
    let config = datagram.config;
    let packet = ctx.packet(config);
    // SAFETY: this CPU's scratch.
    let reply = unsafe { &mut (*scratch).reply };
    let sum = sum_of_reply(start, len);
    let at = datagram.payload;
    let room = Room::make(ctx, config, packet, None, at, at + len)?;
    let moved = room.move_headers(at);
    // SAFETY: behind the reply buffer there is as much of the scratch as a start can be off, and
    // more.
    let stored = unsafe {
        let from = reply
            .start()
            .add((opaque(start) & (HEAD_ROOM - 1)) as usize);
        bpf_xdp_store_bytes(ctx.ctx, at as u32, from.cast(), Window::size(len))
    };
    let packet = ctx.packet(config);
    let written = reply::write_headers(packet, datagram.headers, len, sum);
    if moved.is_none() || stored != 0 || written.is_none() {
        // There is room, so this cannot be; the request is no longer whole, so it cannot pass.
        return Some(XDP_DROP);
    }
    room::cut_to_frame(ctx, packet, at + len);
    count!(udp_hits);
    Some(XDP_TX)
}

/// Lets the GET through, with tickets for the keys that are missing.
#[inline(always)]
pub fn pass(datagram: &Datagram<'_>) {
    count!(udp_misses);
    let Some(scratch) = scratch() else { return };
    // SAFETY: this CPU's scratch.
    let request = unsafe {
        let walk = &raw const (*scratch).walk;
        let keys = (&raw const (*walk).keys).read_volatile();
        let tickets = (&raw const (*walk).tickets).read_volatile();
        // Where the walk did not come to the end of the line, memcached may see further keys.
        let is_at_end =
            (&raw const (*walk).at).read_volatile() >= (&raw const (*walk).end).read_volatile();
        let over = (&raw const (*walk).over).read_volatile();
        let is_single = keys == 1 && (is_at_end || over >= Walk::META);
        let kind = match over {
            Walk::META => Kind::Meta,
            Walk::BINARY => Kind::Binary,
            _ if is_single => Kind::Get,
            _ => Kind::MultiGet,
        };
        Request {
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
            kind: kind as u8,
            unanswered: 1,
            tickets: if (&raw const (*walk).odd).read_volatile() == 0 {
                tickets as u8
            } else {
                0
            },
            backend: datagram.door.backend,
        }
    };
    let (name, asker) = (datagram.name(), datagram.asker());
    count!(not_allowed, u64::from(asker == requests::Asker::Stranger));
    if let Some((slot, serial)) = requests::remember(name, &request, asker) {
        if request.kind == Kind::MultiGet as u8 {
            keep_tickets(slot, serial, scratch);
        } else if request.kind != Kind::Get as u8 && request.tickets != 0 {
            keep_key(slot, scratch);
        }
    }
}

/// Writes down the key of a request whose reply does not name it.
#[inline(always)]
fn keep_key(slot: requests::Slot, scratch: *mut Scratch) {
    let Some(kept) = REQUEST_KEYS.get_ptr_mut(slot) else {
        return;
    };
    // SAFETY: a map element, and this CPU's scratch. Volatile, or the compiler makes it a call to
    // memcpy.
    unsafe {
        let len = (&raw const (*scratch).item.key_len).read_volatile();
        (&raw mut (*kept).len).write_volatile(len);
        let key = &(*scratch).key;
        let len = key.forgotten(len);
        for i in 0..REQUEST_KEY_WORDS {
            if 8 * i as u64 >= len {
                break;
            }
            (&raw mut (*kept).words[i]).write_volatile(key.word(8 * i as u64));
        }
    }
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
