//! The hit path: a UDP GET of one key.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::programs::XdpContext;
use prestack_abi::backend::Backend;
use prestack_abi::cache::{EntryHeader, MAX_REPLY};
use prestack_abi::config::Door;
use prestack_abi::requests::{Kind, Request};
use prestack_proto::verifier::opaque;
use prestack_proto::window::Source;

use super::datagram::Datagram;
use super::room::{self, Room};
use super::{checksum, link, rate, reply};
use crate::cache::entry::Entry;
use crate::cache::find::{Found, Query, find};
use crate::clock;
use crate::inbound::Inbound as _;
use crate::ledger::backend;
use crate::ledger::requests::{self, Asker};
use crate::ledger::tickets;
use crate::maps::count;
use crate::packet::Packet;
use crate::scratch::{Scratch, scratch};

/// The number of the loopback interface in every network namespace (`LOOPBACK_IFINDEX` in include/net/net_namespace.h).
const LOOPBACK_IFINDEX: usize = 1;

/// Answers the GET of the key of `key_len` bytes with this `hash`: the action for the kernel, [`MISS`] or
/// [`AGEING`]. `sum` is the one's-complement sum of the payload. With `is_second` the GET has been here
/// before, and is not to fetch the entry anew.
#[inline(always)]
pub fn get(
    ctx: &XdpContext,
    packet: Packet,
    datagram: &Datagram<'_>,
    key_len: u64,
    hash: u64,
    sum: u64,
    is_second: bool,
) -> u32 {
    let (config, door) = (datagram.config, datagram.door);
    let Some(state) = backend::backend(door.backend) else {
        return XDP_PASS;
    };
    let now = clock::now();
    let epoch = backend::epoch(state, now);
    let key = datagram.payload + 4;
    let query = Query {
        config,
        backend: door.backend,
        epoch,
        now,
        hash,
    };
    let found = find(query, &packet, key, key_len);
    let mut is_wanted = 1;
    if let Some(found) = &found {
        if found.is_ageing && !is_second && datagram.may_fill() {
            note(datagram, hash, now, epoch, 1);
            return AGEING;
        }
        // What is there and new need not be fetched, even if it cannot be sent.
        is_wanted = found.is_ageing as u64 | !found.knows(EntryHeader::FLAGS) as u64;
        is_wanted = packet.forgotten(is_wanted);
        if found.knows(EntryHeader::FLAGS)
            && is_servable(ctx, datagram, state, now, found.reply_len, Some(sum))
            && let Some(action) = serve(ctx, packet, datagram, found, now)
        {
            return action;
        }
    }
    count!(udp_misses);
    note(datagram, hash, now, epoch, is_wanted);
    match datagram.asker() {
        Asker::Client => MISS,
        Asker::Stranger => STRANGE,
    }
}

/// The GET is to be let through by [`missed`].
pub const MISS: u32 = 0x100;
/// The entry should be fetched anew: [`refresh`] says whether this GET is to do that.
pub const AGEING: u32 = 0x101;
/// The GET is to be let through by [`strange`].
pub const STRANGE: u32 = 0x102;

/// Leaves the request, and its name, in the scratch for the step that follows. The steps are functions
/// side by side, not one in the other: together their stacks would be too large. Its entry is to be fetched if that
/// `is_wanted` (1, else 0).
#[inline(always)]
fn note(datagram: &Datagram<'_>, hash: u64, now: u64, epoch: u32, is_wanted: u64) {
    let Some(scratch) = scratch() else { return };
    let request = Request {
        key: hash,
        time: now,
        version: 0,
        epoch,
        seen: 0,
        kind: Kind::Get as u8,
        unanswered: 1,
        tickets: u8::from(datagram.may_fill()) & is_wanted as u8,
        backend: datagram.door.backend,
    };
    note_request(scratch, &request, datagram.name());
}

/// [`note`]s this request.
#[inline(always)]
pub fn note_request(scratch: *mut Scratch, request: &Request, name: u64) {
    // SAFETY: this CPU's scratch.
    unsafe {
        (&raw mut (*scratch).request).write_volatile(*request);
        (&raw mut (*scratch).slot).write_volatile(name);
    }
}

/// Lets the GET in the scratch through, with a ticket if one may be given.
#[inline(always)]
pub fn missed() {
    pass(MISS);
}

/// Lets the GET in the scratch through, whose source may not be served.
#[inline(always)]
pub fn strange() {
    count!(not_allowed);
    pass(STRANGE);
}

/// Lets the GET in the scratch through to fetch its entry anew, if it gets a ticket for that.
#[inline(always)]
pub fn refresh() -> bool {
    pass(AGEING)
}

/// Lets the GET in the scratch through, for the reason given.
#[inline(always)]
fn pass(why: u32) -> bool {
    let is_passed = prestack_take_ticket(why.into()) != 0;
    if is_passed {
        let asker = if why == STRANGE {
            Asker::Stranger
        } else {
            Asker::Client
        };
        requests::remember_noted(asker);
    }
    is_passed
}

/// Takes a ticket for the GET in the scratch if one may be given. 0 if it is not to be let through for the
/// reason given. A global function (by its unmangled name): the verifier checks it once, for all arguments.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_take_ticket(why: u64) -> u64 {
    let (Some(scratch), Some(config)) = (scratch(), backend::config()) else {
        return 0;
    };
    // SAFETY: this CPU's scratch.
    let (request, name) = unsafe {
        (
            &raw mut (*scratch).request,
            (&raw const (*scratch).slot).read_volatile(),
        )
    };
    // SAFETY: as above.
    let (hash, now, number, may_fill) = unsafe {
        (
            (&raw const (*request).key).read_volatile(),
            (&raw const (*request).time).read_volatile(),
            (&raw const (*request).backend).read_volatile(),
            (&raw const (*request).tickets).read_volatile() != 0,
        )
    };
    requests::expect(name);
    tickets::expect(config, hash);
    // In words that are always set: the verifier of Linux 6.1 refuses to read what is set on some ways only.
    let (mut version, mut tickets) = (0, 0);
    if may_fill && let Some(given) = tickets::take(config, number, hash, now) {
        version = opaque(given.into()) as u32;
        tickets = 1;
    }
    if why == u64::from(AGEING) {
        if tickets == 0 {
            return 0;
        }
        count!(refreshes);
        count!(udp_misses);
    }
    // SAFETY: as above.
    unsafe {
        (&raw mut (*request).version).write_volatile(version);
        (&raw mut (*request).tickets).write_volatile(tickets);
    }
    1
}

/// Whether a reply of this length may be sent to where the request claims to be from. The sum of its
/// payload is given if it is known.
#[inline(always)]
pub fn is_servable(
    ctx: &XdpContext,
    datagram: &Datagram<'_>,
    state: *const Backend,
    now: u64,
    reply_len: u64,
    payload_sum: Option<u64>,
) -> bool {
    let (config, door, headers) = (datagram.config, datagram.door, datagram.headers);
    if door.flags & Door::SERVE_UDP == 0
        || door.flags & Door::LOOPBACK != 0 && ctx.ingress_ifindex() != LOOPBACK_IFINDEX
        || !backend::answers_udp(state)
        || now >= config.serve_until
        || reply_len > MAX_REPLY as u64
        || !reply::fits(config.mtu, headers, reply_len)
    {
        return false;
    }
    let packet = ctx.packet(config);
    if !link::admits(ctx, config, packet, headers, datagram.network()) {
        return false;
    }
    let is_intact = match payload_sum {
        Some(sum) => checksum::hold_given(packet, headers, sum),
        // The rest of it may be in memory that cannot be read in place: nothing is wrong with it.
        None if headers.l4 + headers.l4_len > packet.len() => return false,
        None => checksum::hold(ctx, headers),
    };
    if !is_intact {
        count!(bad_checksums);
        return false;
    }
    if config.rate_interval_ns != 0 && !rate::admits(config, &headers.addresses.source, now) {
        count!(rate_limited);
        return false;
    }
    true
}

/// Turns the packet into the reply. `None` if that did not work out: the packet is then as it was.
#[inline(always)]
fn serve(
    ctx: &XdpContext,
    packet: Packet,
    datagram: &Datagram<'_>,
    found: &Found,
    now: u64,
) -> Option<u32> {
    let scratch = scratch()?;
    let at = datagram.payload;
    let new_len = at + found.reply_len;
    let room = Room::make(ctx, datagram.config, packet, Some(scratch), at, new_len)?;
    let packet = room.packet;
    let copied = room
        .move_headers(at)
        .and_then(|()| copy(packet, at, found.entry, found.reply_len));
    if copied.is_none() || !found.is_unchanged() {
        count!(races);
        room.undo(ctx, scratch);
        return None;
    }
    let reply_len = packet.forgotten(found.reply_len);
    if reply::write_headers(packet, datagram.headers, reply_len, found.sum).is_none() {
        // The headers were read in these places, so this cannot be; neither a request nor a reply
        // any more, the packet must not go anywhere.
        return Some(XDP_DROP);
    }
    room::cut(ctx, packet, new_len);
    rate::spend(datagram.config, &datagram.headers.addresses.source, now);
    count!(udp_hits);
    Some(XDP_TX)
}

/// Copies a reply of `len` bytes (16 to `MAX_REPLY`) to `at` of the packet, in chunks of which the
/// last overlaps the one before.
#[inline(always)]
pub fn copy(packet: Packet, at: u64, entry: Entry, len: u64) -> Option<()> {
    const CHUNK: u64 = 64;
    let len = packet.forgotten(len);
    if len > MAX_REPLY as u64 {
        return None;
    }
    if len >= CHUNK {
        let mut done = 0;
        for _ in 0..MAX_REPLY as u64 / CHUNK {
            if done + CHUNK > len {
                break;
            }
            copy_chunk::<8>(packet, at, entry, done)?;
            done += CHUNK;
        }
        copy_chunk::<8>(packet, at, entry, len - CHUNK)
    } else if len >= 32 {
        copy_chunk::<4>(packet, at, entry, 0)?;
        copy_chunk::<4>(packet, at, entry, len - 32)
    } else if len >= 16 {
        copy_chunk::<2>(packet, at, entry, 0)?;
        copy_chunk::<2>(packet, at, entry, len - 16)
    } else {
        None
    }
}

#[inline(always)]
fn copy_chunk<const WORDS: usize>(
    packet: Packet,
    at: u64,
    entry: Entry,
    offset: u64,
) -> Option<()> {
    let from = entry.at::<[u64; WORDS]>(offset)?.cast::<u64>();
    let to = packet.at::<[u64; WORDS]>(at + offset)?.cast::<u64>();
    for i in 0..WORDS {
        // SAFETY: both were checked to hold all words. Volatile, or the compiler makes the loop a
        // call to memmove.
        unsafe { to.add(i).write_volatile(from.add(i).read_volatile()) };
    }
    Some(())
}
