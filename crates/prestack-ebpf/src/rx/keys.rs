//! Text GETs of several keys, and of one key written in an unusual way. The reply is put together in
//! scratch memory, so the packet stays whole until it is sure that every key hits.

use aya_ebpf::helpers::generated::bpf_loop;
use core::ffi::c_void;
use prestack_abi::cache::{EntryHeader, MAX_REPLY, MAX_STORED};
use prestack_abi::requests::MULTI_KEYS;
use prestack_proto::MAX_KEY;
use prestack_proto::hash::scan_key;
use prestack_proto::text::number::render;
use prestack_proto::text::reply::END_LEN;
use prestack_proto::text::scan::{skip_spaces, token_end};
use prestack_proto::window::{Source, Window};

use crate::cache::entry::Entry;
use crate::cache::find::{Found, Query, find};
use crate::ledger::{backend, tickets};
use crate::maps::count;
use crate::scratch::{Missed, Scratch, Walk, scratch};

/// Most keys of a GET that are looked at: a request of 1,400 bytes can hold 700.
const MAX_KEYS: u32 = 64;

/// Walks over the keys.
#[inline(always)]
pub fn look_up_all() {
    // SAFETY: the callback fits the helper.
    unsafe { bpf_loop(MAX_KEYS, look_up as *mut c_void, core::ptr::null_mut(), 0) };
}

/// Looks up the next key: one step of the walk. Returns 1 at its end.
#[inline(never)]
extern "C" fn look_up(_: u32, _: *mut c_void) -> i64 {
    let Some(scratch) = scratch() else { return 1 };
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
    let Some(query) = query(walk, hash) else {
        return 1;
    };
    if let Some(found) = find(query, window, start, len) {
        // A reply to several keys does not name those that memcached has lost, so it cannot refresh.
        if found.is_ageing
            && walk.keys == 1
            && skip_spaces(window, stop, end) >= end
            && take_ticket(scratch, hash)
        {
            count!(refreshes);
            walk.misses += 1;
            return 0;
        }
        if append(scratch, &found).is_some() {
            return 0;
        }
    }
    miss(scratch, hash);
    0
}

/// What the walk looks for.
#[inline(always)]
pub fn query(walk: &Walk, hash: u64) -> Option<Query> {
    Some(Query {
        config: backend::config()?,
        backend: walk.backend as u8,
        epoch: walk.epoch as u32,
        now: walk.now,
        hash,
    })
}

/// Notes a key that is not in the cache, with a ticket if one may be given.
#[inline(always)]
pub fn miss(scratch: *mut Scratch, hash: u64) {
    // SAFETY: this CPU's scratch.
    unsafe { (*scratch).walk.misses += 1 };
    take_ticket(scratch, hash);
}

/// Takes a ticket for a key and notes it: false if none may be given.
#[inline(always)]
pub fn take_ticket(scratch: *mut Scratch, hash: u64) -> bool {
    // SAFETY: this CPU's scratch.
    let walk = unsafe { &mut (*scratch).walk };
    let Some(config) = backend::config() else {
        return false;
    };
    if walk.may_fill == 0 || walk.tickets >= MULTI_KEYS as u64 {
        return false;
    }
    let Some(version) = tickets::take(config, walk.backend as u8, hash, walk.now) else {
        return false;
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
    true
}

/// Appends an entry's `VALUE` block, without its `END`, to the reply in scratch; with the CAS number
/// if the request wants it.
#[inline(always)]
fn append(scratch: *mut Scratch, found: &Found) -> Option<()> {
    // SAFETY: this CPU's scratch.
    let (reply, walk) = unsafe { (&mut (*scratch).reply, &mut (*scratch).walk) };
    let with_cas = walk.over == Walk::KEYS_CAS;
    let wanted = EntryHeader::FLAGS | if with_cas { EntryHeader::CAS } else { 0 };
    // A CAS number has up to 20 digits.
    if !found.knows(wanted) || walk.out + found.reply_len > MAX_REPLY as u64 {
        return None;
    }
    let line_end = found.data - 2;
    let mut out = copy_out(found.entry, 0, line_end, reply, walk.out);
    if with_cas {
        reply.set_word(out, u64::from(b' '));
        out = out + 1 + render(reply, out + 1, found.cas);
    }
    let rest = found.reply_len - END_LEN - line_end;
    let out = copy_out(found.entry, line_end, rest, reply, out);
    if !found.is_unchanged() {
        count!(races);
        return None;
    }
    walk.out = out;
    Some(())
}

/// Copies `len` bytes from `from` of an entry's reply to `to` of the window, and garbage behind them;
/// returns where they end.
#[inline(always)]
pub fn copy_out(entry: Entry, from: u64, len: u64, target: &mut Window, to: u64) -> u64 {
    const CHUNK: u64 = 32;
    let (from, to) = (target.forgotten(from), target.forgotten(to));
    let len = target.forgotten(len);
    let mut done = 0;
    for _ in 0..(MAX_STORED as u64).div_ceil(CHUNK) {
        // Forgotten each time, so that the paths out of the loop are one.
        if done >= target.forgotten(len) {
            break;
        }
        // A chunk may reach past the entry, into the next one or to the end of the block: what is too
        // much is overwritten or cut off.
        for i in 0..CHUNK / 8 {
            let at = done + 8 * i;
            target.set_word(to + at, entry.word_before_end(from + at));
        }
        done += CHUNK;
    }
    target.forgotten(to + len)
}
