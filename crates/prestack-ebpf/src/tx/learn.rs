//! What a UDP reply teaches.

use aya_ebpf::helpers::generated::bpf_skb_load_bytes;
use aya_ebpf::programs::TcContext;
use prestack_abi::cache::{EntryHeader, MAX_REPLY};
use prestack_abi::config::Config;
use prestack_abi::requests::{KeyTicket, Kind, MULTI_KEYS, REQUEST_KEY_WORDS, Request, RequestKey};
use prestack_proto::hash::{backend_seed, hash_key, scan_key};
use prestack_proto::net::UDP_LEN;
use prestack_proto::udp::{FRAME_LEN, Frame};
use prestack_proto::verifier::opaque;
use prestack_proto::window::{Source, Window};
use prestack_proto::{MAX_KEY, swar};

use super::shown;
use crate::cache::entry::Entry;
use crate::cache::fill::{self, Filled, Ticket, fill};
use crate::cache::find::{Found, Query, find};
use crate::clock;
use crate::ledger::requests::{self, Reply};
use crate::ledger::{backend, flushes, tickets, writes};
use crate::maps::{BLOCKS, KEY_TICKETS, REQUEST_KEYS, count};
use crate::packet::Headers;
use crate::scratch::{Item, Scratch, copy_key, scratch};

/// Takes note that a datagram of memcached's answers the request of this name. True if that was a GET
/// from whose answer something can be [learnt](learn).
#[inline(never)]
pub fn take_note(
    ctx: &TcContext,
    headers: &Headers,
    udp_len: u64,
    frame: Frame,
    name: u64,
) -> bool {
    let (Some(scratch), Some(config)) = (scratch(), backend::config()) else {
        return false;
    };
    let around = (UDP_LEN + FRAME_LEN) as u64;
    let len = udp_len.wrapping_sub(around);
    let is_whole = frame.is_single() && load(ctx, headers.l4 + around, len, scratch);
    let ends = shown::parse(if is_whole { len } else { 0 });
    // SAFETY: this CPU's scratch.
    let has_item = unsafe { (&raw const (*scratch).item.shown).read_volatile() } != Item::NONE;
    let ends_message = frame.sequence() + 1 >= frame.count();
    let is_empty = len == 0;
    let reply = Reply {
        ends_one: if has_item { ends } else { ends_message },
        ends_many: ends,
        ends_message,
        is_split: !frame.is_single() && !is_empty,
        is_empty,
    };
    let Some((request, slot)) = requests::answered(name, reply) else {
        return false;
    };
    if request.kind == Kind::Write as u8 {
        // A reply whose owner is in doubt ends nothing.
        if request.unanswered == 1 && frame.is_single() {
            writes::ended(config, request.key, request.version);
        }
        return false;
    }
    if Kind::may_change_all(request.kind) {
        // Only now is it over, whatever it was.
        backend::forget(config, request.backend);
        if request.key != 0 {
            flushes::answered(request.backend, request.key, request.time);
        }
    }
    // SAFETY: this CPU's scratch.
    unsafe {
        (&raw mut (*scratch).request).write_volatile(request);
        (&raw mut (*scratch).slot).write_volatile(u64::from(slot));
        if (request.kind == Kind::Meta as u8 || request.kind == Kind::Binary as u8)
            && let Some(kept) = REQUEST_KEYS.get_ptr_mut(slot)
        {
            keep_key(scratch, kept);
        }
    }
    Kind::is_get(request.kind) && !(is_empty && request.kind != Kind::Binary as u8)
}

/// Loads the payload into the window; a longer one than can be stored is not looked at.
#[inline(always)]
fn load(ctx: &TcContext, at: u64, len: u64, scratch: *mut Scratch) -> bool {
    if len == 0 || len > MAX_REPLY as u64 {
        return false;
    }
    // SAFETY: this CPU's scratch; the window is longer than MAX_REPLY.
    unsafe {
        let window = (*scratch).window.start().cast();
        bpf_skb_load_bytes(ctx.skb.skb.cast(), at as u32, window, Window::size(len)) == 0
    }
}

/// Parses the reply in the first `len` bytes of the window, from which is then to be learnt.
#[inline(always)]
pub fn parse(len: u64) {
    shown::parse(len);
}

/// Learns from the reply to a GET: an item fills the cache if there is a ticket for it; anything else
/// means that memcached does not have the key, or has nothing that can be stored.
#[inline(always)]
pub fn learn() {
    prestack_learn();
}

/// A global function (by its unmangled name): the verifier checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_learn() -> u64 {
    let (Some(scratch), Some(config)) = (scratch(), backend::config()) else {
        return 0;
    };
    // SAFETY: this CPU's scratch.
    let (request, slot, item) = unsafe {
        (
            (&raw const (*scratch).request).read_volatile(),
            (&raw const (*scratch).slot).read_volatile() as u32,
            (&raw const (*scratch).item).read_volatile(),
        )
    };
    let is_single = request.kind != Kind::MultiGet as u8;
    let expected = if request.kind == Kind::Meta as u8 {
        Item::META
    } else if request.kind == Kind::Binary as u8 {
        Item::BINARY
    } else {
        Item::TEXT
    };
    if item.shown != expected {
        if is_single && request.key != 0 {
            fill::drop_key(config, request.key);
            tickets::release(config, request.key);
        }
        return 0;
    }
    let seed = backend_seed(config.seed, request.backend);
    let key = key_of(scratch, &item, expected);
    // SAFETY: as above.
    let bytes = unsafe { &(*scratch).key };
    // A key with a space, which the binary protocol can store, looks like flags where `mg` shows it,
    // `b` among them.
    let is_shown = item.knows & u64::from(EntryHeader::KEY_PLAIN | EntryHeader::KEY_BASE64) != 0;
    let hash = key.and_then(|len| {
        if is_shown {
            scan_key(bytes, 0, len, seed)
        } else {
            hash_key(bytes, 0, len, seed)
        }
    });
    let version = hash.and_then(|hash| ticket_version(&request, slot, hash));
    let (Some(key_len), Some(hash), Some(version)) = (key, hash, version) else {
        count!(fills_refused);
        if request.tickets != 0 && is_single {
            tickets::release(config, request.key);
        }
        return 0;
    };
    let ticket = Ticket {
        key: hash,
        version,
        epoch: request.epoch,
        backend: request.backend,
    };
    match store(config, scratch, &item, key_len, request.time, &ticket) {
        Filled::Stored => count!(fills),
        Filled::Refused => count!(fills_refused),
        Filled::Deferred => count!(fills_deferred),
    }
    tickets::release(config, hash);
    0
}

/// Puts the key of a request whose reply does not name it into the scratch's `key`, and its length into
/// the `item`.
///
/// # Safety
///
/// `scratch` is this CPU's, and `kept` part of a map element.
#[inline(always)]
pub unsafe fn keep_key(scratch: *mut Scratch, kept: *const RequestKey) {
    // SAFETY: the caller's.
    unsafe {
        let key = &mut (*scratch).key;
        for i in 0..REQUEST_KEY_WORDS {
            key.set_word(8 * i as u64, (&raw const (*kept).words[i]).read_volatile());
        }
        (&raw mut (*scratch).item.key_len).write_volatile((&raw const (*kept).len).read_volatile());
    }
}

/// The length of the item's key, which is then in the scratch's `key`: a text reply shows it.
#[inline(always)]
fn key_of(scratch: *mut Scratch, item: &Item, shown: u64) -> Option<u64> {
    // SAFETY: this CPU's scratch.
    let (window, key) = unsafe { (&(*scratch).window, &mut (*scratch).key) };
    if shown == Item::TEXT {
        copy_key(window, item.key, item.key_len, key, 0);
    }
    let len = window.forgotten(item.key_len);
    (len > 0 && len <= MAX_KEY as u64).then_some(len)
}

/// The version on the request's ticket for the key with this hash.
#[inline(always)]
fn ticket_version(request: &Request, slot: requests::Slot, key: u64) -> Option<u32> {
    if request.kind != Kind::MultiGet as u8 {
        return (request.tickets != 0 && request.key == key).then_some(request.version);
    }
    let tickets = KEY_TICKETS.get_ptr_mut(slot)?;
    let count = u64::from(request.tickets);
    let serial = request.version;
    let sealed = KeyTicket::seal(key, serial);
    for i in 0..MULTI_KEYS as u64 {
        // Opaque, or the compiler counts down from `count`, whose bounds the verifier does not see.
        let i = opaque(i);
        if i >= MULTI_KEYS as u64 || i >= count {
            break;
        }
        // SAFETY: `tickets` is a map element.
        unsafe {
            let ticket = &raw const (*tickets).keys[i as usize];
            let version = (&raw const (*ticket).version).read_volatile();
            if (&raw const (*ticket).key).read_volatile() == sealed && version as u32 == serial {
                return Some((version >> 32) as u32);
            }
        }
    }
    None
}

/// Stores the item whose key is in the scratch's `key`, together with what an older entry knows
/// besides.
#[inline(always)]
fn store(
    config: &'static Config,
    scratch: *mut Scratch,
    item: &Item,
    key_len: u64,
    time: u64,
    ticket: &Ticket,
) -> Filled {
    // SAFETY: this CPU's scratch.
    let key = unsafe { &(*scratch).key };
    let mut new = fill::Item {
        key_len,
        data: 0,
        reply_len: 0,
        knows: item.knows as u8,
        flags: item.flags as u32,
        cas: item.cas,
        time,
        older: None,
    };
    let query = Query {
        config,
        backend: ticket.backend,
        epoch: ticket.epoch,
        now: clock::now(),
        hash: ticket.key,
    };
    // A live entry is of the same time between two writes as the ticket: what it knows of the item is
    // still true. It keeps the greater age. One that is to be fetched anew is not built upon; nor is one with
    // other data, which was changed unseen.
    if let Some(older) = find(query, key, 0, key_len)
        && !older.is_ageing
        && older.data_len() == item.data_len
        && agrees(&new, older.knows, older.flags, older.cas)
        && has_data(config, ticket.key, item, &older)
    {
        let more = older.knows & !new.knows;
        if more & EntryHeader::FLAGS != 0 {
            new.flags = older.flags;
        }
        if more & EntryHeader::CAS != 0 {
            new.cas = older.cas;
        }
        if more != 0 {
            new.knows |= more;
            if older.time < new.time {
                new.time = older.time;
            }
            new.older = Some((older.granule, older.seq));
        }
    }
    shown::render(scratch, item, &mut new);
    // SAFETY: as above.
    fill(config, unsafe { &(*scratch).reply }, &new, ticket)
}

/// Whether an entry has the data that the reply shows.
#[inline(always)]
fn has_data(config: &Config, hash: u64, item: &Item, entry: &Found) -> bool {
    let bucket = config.place(hash).bucket;
    let len = item.data_len;
    prestack_has_data(u64::from(bucket), entry.granule, entry.data, item.data, len) != 0
}

/// A global function, like [`prestack_learn`]: whether the data at `ours` of the entry at a granule of a
/// bucket is that at `theirs` of the window.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_has_data(
    bucket: u64,
    granule: u64,
    ours: u64,
    theirs: u64,
    len: u64,
) -> u64 {
    let (Some(scratch), Some(block)) = (scratch(), BLOCKS.get_ptr_mut(bucket as u32)) else {
        return 0;
    };
    let entry = Entry::new(block, granule);
    // SAFETY: this CPU's scratch.
    let window = unsafe { &(*scratch).window };
    let mut difference = 0;
    for i in 0..(MAX_REPLY / 8) as u64 {
        let rest = window.forgotten(len.wrapping_sub(8 * i));
        let Some(word) = entry.word(ours + 8 * i) else {
            return 0;
        };
        let word = word ^ window.word(theirs + 8 * i);
        if rest <= 8 {
            difference |= swar::keep(word, window.forgotten(rest));
            break;
        }
        difference = window.forgotten(difference | word);
    }
    u64::from(difference == 0)
}

/// Whether what both know of an item is the same.
#[inline(always)]
fn agrees(item: &fill::Item, knows: u8, flags: u32, cas: u64) -> bool {
    const FORMS: u8 = EntryHeader::KEY_PLAIN | EntryHeader::KEY_BASE64;
    let both = item.knows & knows;
    let (form, older) = (item.knows & FORMS, knows & FORMS);
    (form == 0 || older == 0 || form == older)
        && (both & EntryHeader::FLAGS == 0 || item.flags == flags)
        && (both & EntryHeader::CAS == 0 || item.cas == cas)
}
