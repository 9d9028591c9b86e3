//! Where an entry goes in its bucket, and whether others may be evicted for it.
//!
//! The functions are called while the bucket's lock is held; `index`, `group` and `block` are parts of
//! the map elements of that bucket.

use prestack_abi::cache::{
    Block, ENTRY_GRANULES, EntryHeader, GRANULES, GROUPS, Group, Index, NOWHERE, Place, WAYS,
};
use prestack_abi::config::Config;
use prestack_proto::swar;

use super::entry::Entry;
use super::{group_of, matches};

/// The lower bytes of a group's tags.
#[inline(always)]
pub unsafe fn tags_of(group: *const Group) -> u64 {
    // SAFETY: see the module.
    unsafe { (&raw const (*group).tags).read_volatile() }
}

#[inline(always)]
unsafe fn positions_of(group: *const Group) -> u64 {
    // SAFETY: see the module.
    unsafe { (&raw const (*group).at).read_volatile() }
}

/// The way of the key's entry, or the empty one in which it was until it was killed; `WAYS` if there is
/// neither. Of one that was killed half of the tag is left: it may be another key's.
#[inline(always)]
pub unsafe fn own_way(group: *const Group, place: Place) -> u64 {
    // SAFETY: see the module.
    unsafe {
        let same = matches(group, place);
        let killed = swar::equal_all(tags_of(group), 0)
            & !swar::equal_all(positions_of(group), NOWHERE)
            & swar::equal_all((&raw const (*group).upper).read_volatile(), place.upper);
        if same != 0 {
            swar::first(same)
        } else if killed != 0 {
            swar::first(killed)
        } else {
            WAYS as u64
        }
    }
}

/// The granule of the entry of this way, dead or alive, if it takes as many granules; else `GRANULES`.
#[inline(always)]
pub unsafe fn own_place(group: *const Group, block: *mut Block, way: u64, granules: u64) -> u64 {
    if way < WAYS as u64 {
        // SAFETY: see the module. An entry that was killed lies there until its way forgets it.
        unsafe {
            let at = positions_of(group) >> (8 * (way & 7)) & 0xff;
            if let Some(old) = Entry::new(block, at).header()
                && EntryHeader::granules(u64::from((&raw const (*old).reply_len).read_volatile()))
                    == granules
            {
                return at;
            }
        }
    }
    GRANULES as u64
}

/// The granule at which an entry goes that has no place of its own.
#[inline(always)]
pub unsafe fn next_place(index: *const Index, granules: u64) -> u64 {
    // SAFETY: see the module.
    let head = u64::from(unsafe { (&raw const (*index).groups[0].head).read_volatile() });
    if head + granules > ENTRY_GRANULES as u64 {
        0
    } else {
        head
    }
}

/// The way of a full group whose entry the head will reach next: the oldest.
#[inline(always)]
pub unsafe fn oldest(group: *const Group, head: u64) -> u64 {
    // SAFETY: `group` is part of an element of `INDEX`.
    let ats = unsafe { (&raw const (*group).at).read_volatile() };
    let mut best = u64::MAX;
    let mut way = 0;
    for i in 0..WAYS as u64 {
        let distance = (ats >> (8 * i)).wrapping_sub(head) & 0xff;
        if distance < best {
            best = distance;
            way = i;
        }
    }
    way
}

/// Whether an entry may be stored. What would evict a live entry may only if its key was refused before, so
/// that keys that are asked for once do not displace those that are asked for often. That is noted for the
/// last key of two groups, by its fingerprint (`proof`).
#[inline(always)]
pub unsafe fn admits(
    index: *mut Index,
    block: *mut Block,
    place: Place,
    new: &EntryHeader,
    proof: u16,
    config: &Config,
) -> bool {
    let group = group_of(index, place.group);
    // SAFETY: see the module.
    unsafe {
        if own_way(group, place) < WAYS as u64 || !evicts(index, block, group, new, config) {
            return true;
        }
        let refused = &raw mut (*group_of(index, place.group & !1)).refused;
        if refused.read_volatile() == proof {
            refused.write_volatile(0);
            true
        } else {
            refused.write_volatile(proof);
            false
        }
    }
}

/// Whether an entry of this `group` would evict a live one: in each group one of those in its way is looked
/// at.
#[inline(always)]
unsafe fn evicts(
    index: *mut Index,
    block: *mut Block,
    group: *const Group,
    new: &EntryHeader,
    config: &Config,
) -> bool {
    let granules = EntryHeader::granules(u64::from(new.reply_len));
    // SAFETY: see the module.
    unsafe {
        let at = next_place(index, granules);
        for number in 0..GROUPS as u32 {
            let group = group_of(index, number);
            let ats = positions_of(group);
            let hit =
                swar::in_range(ats, at as u8, granules as u8) & !swar::equal_all(tags_of(group), 0);
            if hit != 0 && is_live(block, ats >> (8 * swar::first(hit)), new, config) {
                return true;
            }
        }
        swar::equal_all(tags_of(group), 0) == 0
            && is_live(
                block,
                positions_of(group) >> (8 * oldest(group, at)),
                new,
                config,
            )
    }
}

/// Whether the entry at a granule (in the lowest byte) is looked for and could be served when the `new` one was
/// fetched, as far as its header tells: the epochs of other backends are not known. What is older than the
/// cache is large may not be looked for any more, and counts as dead.
#[inline(always)]
unsafe fn is_live(block: *mut Block, at: u64, new: &EntryHeader, config: &Config) -> bool {
    let Some(old) = Entry::new(block, at).header() else {
        return false;
    };
    // SAFETY: the header is in the block, and only the lock's holder writes it.
    let old = unsafe { &*old };
    let is_forgotten = old.backend == new.backend && old.epoch != new.epoch;
    let is_old = new.time.saturating_sub(old.time) > config.max_age_ns;
    !is_forgotten && !is_old && old.time >= config.grown_ns
}
