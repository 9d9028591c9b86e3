//! Storing an entry.

use prestack_abi::cache::{
    BLOCK_BYTES, Block, EntryHeader, GRANULE, GRANULES, GROUPS, HEADER_BYTES, Index, MAX_STORED,
    NOWHERE, Place, WAYS, fingerprint,
};
use prestack_abi::config::Config;
use prestack_proto::swar;
use prestack_proto::window::{Source, Window};

use super::admit::{admits, next_place, oldest, own_place, own_way, tags_of};
use super::entry::Entry;
use super::kill::{has, kill};
use super::{fence, group_of, matches};
use crate::lock::{lock, unlock};
use crate::maps::{self, BLOCKS, INDEX, count};
use crate::scratch::sum_of_reply;
use prestack_proto::verifier::opaque;

/// What a reply needs to fill the cache.
pub struct Ticket {
    /// Hash of the key.
    pub key: u64,
    /// The version of the key's control when the GET arrived.
    pub version: u32,
    /// The backend's epoch then.
    pub epoch: u32,
    /// The backend.
    pub backend: u8,
}

/// An item to be stored; the reply to a text `get` of it is in a window.
pub struct Item {
    /// Length of the key.
    pub key_len: u64,
    /// Position of the data in the reply.
    pub data: u64,
    /// Length of the reply.
    pub reply_len: u64,
    /// What is known of the item (`EntryHeader::FLAGS` and the following).
    pub knows: u8,
    /// Client flags.
    pub flags: u32,
    /// CAS number.
    pub cas: u64,
    /// Coarse monotonic time in ns of the GET that fetched the oldest of what is known.
    pub time: u64,
    /// Where the entry is from which some of what is known was taken, if it was: its granule, and
    /// the seqlock of its group.
    pub older: Option<(u64, u32)>,
}

/// What became of an item that was to be stored.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Filled {
    /// It is stored.
    Stored,
    /// It is not: a write has arrived since the ticket was given, or the older entry is no longer there.
    Refused,
    /// It is not, so that what would have made room for it stays: it is if its key is missed again soon.
    Deferred,
}

/// Stores the item whose reply is in the window.
#[inline(always)]
pub fn fill(config: &Config, window: &Window, item: &Item, ticket: &Ticket) -> Filled {
    let place = config.place(ticket.key);
    let (Some(control), Some(held), Some(index), Some(block)) = (
        maps::control(config, ticket.key),
        maps::lock(place.bucket),
        INDEX.get_ptr_mut(place.bucket),
        BLOCKS.get_ptr_mut(place.bucket),
    ) else {
        return Filled::Refused;
    };
    let len = item.reply_len;
    if len < 16 || len > MAX_STORED as u64 {
        return Filled::Refused;
    }
    let header = EntryHeader {
        time: item.time,
        epoch: ticket.epoch,
        sum: sum_of_reply(0, len),
        reply_len: len as u16,
        key_len: item.key_len as u8,
        around_key: (item.data - item.key_len) as u8,
        backend: ticket.backend,
        knows: item.knows,
        flags: item.flags,
        cas: item.cas,
    };
    let proof = fingerprint(ticket.key);
    let mut evicted = 0;
    let mut filled = Filled::Refused;
    // A write raises the version before it takes the bucket's lock to kill the entry: either the version
    // tells of it here, or it comes later and finds the entry.
    // SAFETY: the pointers are map elements of the bucket, and the control of the key; all calls between
    // the lock and its release are inlined.
    unsafe {
        lock(held);
        let version = (&raw const (*control).version).read_volatile();
        if version == ticket.version && is_there(index, place, item.older) {
            if admits(index, block, place, &header, proof, config) {
                raise_seq(index);
                evicted = store(index, block, place, window, &header);
                raise_seq(index);
                filled = Filled::Stored;
            } else {
                filled = Filled::Deferred;
            }
        }
        unlock(held);
    }
    count!(evictions, evicted);
    filled
}

/// Whether an entry that was found without the lock is still the one under this tag.
#[inline(always)]
unsafe fn is_there(index: *mut Index, place: Place, older: Option<(u64, u32)>) -> bool {
    let Some((granule, seq)) = older else {
        return true;
    };
    let group = group_of(index, place.group);
    // SAFETY: `index` is an element of `INDEX`, and only the lock's holder writes it.
    unsafe {
        let same = matches(group, place);
        let at = (&raw const (*group).at).read_volatile() >> (8 * swar::first(same));
        // An entry that was killed in between has lost its tag.
        same != 0 && at & 0xff == granule && (&raw const (*group).seq).read_volatile() == seq
    }
}

/// Drops the entry of the key with this hash: memcached no longer has it, or not as it was.
#[inline(always)]
pub fn drop_key(config: &Config, hash: u64) {
    let place = config.place(hash);
    // Of what was never there nothing can be dropped, and what another CPU stores at this moment it may store a
    // moment later as well.
    if has(place) {
        kill(place);
    }
}

/// Makes the seqlocks odd, or even again.
#[inline(always)]
unsafe fn raise_seq(index: *mut Index) {
    fence();
    for group in 0..GROUPS {
        // SAFETY: `index` is an element of `INDEX`; only the lock's holder writes it.
        unsafe {
            let seq = &raw mut (*index).groups[group].seq;
            seq.write_volatile(seq.read_volatile().wrapping_add(1));
        }
    }
    fence();
}

/// Writes the entry and points its way at it. Returns how many other entries it displaced.
#[inline(always)]
unsafe fn store(
    index: *mut Index,
    block: *mut Block,
    place: Place,
    window: &Window,
    header: &EntryHeader,
) -> u64 {
    let group = group_of(index, place.group);
    let granules = EntryHeader::granules(u64::from(header.reply_len));
    let mut evicted = 0;
    // SAFETY: `index` and `block` are map elements, and only the lock's holder writes them.
    unsafe {
        let own = own_way(group, place);
        let mut at = own_place(group, block, own, granules);
        let way;
        if at < GRANULES as u64 {
            way = own;
        } else {
            at = next_place(index, granules);
            evicted += clear(index, at as u8, granules as u8);
            // A way without memory of its own is taken before one that a killed key may come back to.
            let tags = tags_of(group);
            let empty = swar::equal_all(tags, 0);
            let unused = empty & swar::equal_all((&raw const (*group).at).read_volatile(), NOWHERE);
            way = if own < WAYS as u64 {
                own
            } else if unused != 0 {
                swar::first(unused)
            } else if empty != 0 {
                swar::first(empty)
            } else {
                evicted += 1;
                oldest(group, at)
            };
            (&raw mut (*index).groups[0].head).write_volatile((at + granules) as u16);
        }
        write(block, at, granules, window, header);
        let shift = 8 * (way & 7);
        let tags = tags_of(group) & !(0xff << shift) | u64::from(place.tag) << shift;
        let ats =
            (&raw const (*group).at).read_volatile() & !(0xff << shift) | (at & 0xff) << shift;
        let upper = (&raw const (*group).upper).read_volatile() & !(0xff << shift)
            | u64::from(place.upper) << shift;
        (&raw mut (*group).at).write_volatile(ats);
        (&raw mut (*group).upper).write_volatile(upper);
        (&raw mut (*group).tags).write_volatile(tags);
    }
    evicted
}

/// Empties the ways whose entries start in the `len` granules from `at`, and has the empty ones forget
/// what was there; returns how many were not empty. An entry that reaches into them from before was
/// emptied when the head passed its start.
#[inline(always)]
unsafe fn clear(index: *mut Index, at: u8, len: u8) -> u64 {
    let mut cleared = 0;
    for number in 0..GROUPS as u32 {
        let group = group_of(index, number);
        // SAFETY: `group` is part of an element of `INDEX`; only the lock's holder writes it.
        unsafe {
            let tags = tags_of(group);
            let ats = (&raw const (*group).at).read_volatile();
            let hit = swar::in_range(ats, at, len);
            if hit != 0 {
                cleared += swar::count(hit & !swar::equal_all(tags, 0));
                (&raw mut (*group).tags).write_volatile(tags & !swar::widen(hit));
                (&raw mut (*group).at).write_volatile(ats | swar::widen(hit));
            }
        }
    }
    cleared
}

/// Writes header and reply to the block.
#[inline(always)]
unsafe fn write(block: *mut Block, at: u64, granules: u64, window: &Window, header: &EntryHeader) {
    const HEADER_GRANULES: u64 = (HEADER_BYTES / GRANULE) as u64;
    if let Some(target) = Entry::new(block, at).header() {
        // SAFETY: `target` is inside the block.
        unsafe { target.write_volatile(*header) };
    }
    let (at, granules) = (window.forgotten(at), window.forgotten(granules));
    for i in 0..MAX_STORED.div_ceil(GRANULE) as u64 {
        if HEADER_GRANULES + i >= granules {
            break;
        }
        let to = opaque((at + HEADER_GRANULES + i) * GRANULE as u64);
        if to > (BLOCK_BYTES - GRANULE) as u64 {
            break;
        }
        let from = i * GRANULE as u64;
        // SAFETY: `to` is inside the block. Volatile, or the compiler makes it a call to memcpy.
        unsafe {
            let to = (block as u64 + to) as *mut u64;
            to.write_volatile(window.word(from));
            to.add(1).write_volatile(window.word(from + 8));
        }
    }
}
