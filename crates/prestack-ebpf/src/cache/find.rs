//! Finding an entry: the index alone tells a miss.

use prestack_abi::cache::{BLOCK_BYTES, EntryHeader, GROUPS, Group, Place};
use prestack_abi::config::Config;
use prestack_proto::swar;
use prestack_proto::text::reply::END_LEN;
use prestack_proto::verifier::opaque;
use prestack_proto::window::Source;

use super::entry::Entry;
use super::{fence, group_of, matches};
use crate::maps::{BLOCKS, INDEX};

/// A live entry as it was when it was looked at. After its bytes have been copied,
/// [`is_unchanged`](Found::is_unchanged) tells whether they are good.
#[derive(Clone, Copy)]
pub struct Found {
    pub entry: Entry,
    group: *const Group,
    /// The seqlock of its group.
    pub seq: u32,
    /// Its position, in granules.
    pub granule: u64,
    /// Length of the reply in bytes.
    pub reply_len: u64,
    /// Position of the data in the reply.
    pub data: u64,
    /// One's-complement sum of the reply.
    pub sum: u16,
    /// What is known of the item (`EntryHeader::FLAGS` and the following).
    pub knows: u8,
    /// The item's client flags.
    pub flags: u32,
    /// The item's CAS number.
    pub cas: u64,
    /// Coarse monotonic time in ns of the GET that fetched it.
    pub time: u64,
    /// Old enough to be fetched anew.
    pub is_ageing: bool,
}

/// Bytes of a line of the CPU's cache.
const LINE: usize = 64;

/// Bytes behind the data in a reply: `\r\nEND\r\n`.
pub const BEHIND_DATA: u64 = END_LEN + 2;

impl Found {
    /// Whether all of `what` is known of the item.
    #[inline(always)]
    pub fn knows(&self, what: u8) -> bool {
        self.knows & what == what
    }

    /// Length of the item's data in bytes.
    #[inline(always)]
    pub fn data_len(&self) -> u64 {
        self.reply_len.wrapping_sub(self.data + BEHIND_DATA)
    }

    /// Whether no writer has touched the entry since it was found.
    #[inline(always)]
    pub fn is_unchanged(&self) -> bool {
        fence();
        // SAFETY: the group is part of an element of `INDEX`.
        unsafe { (&raw const (*self.group).seq).read_volatile() == self.seq }
    }
}

/// An entry that was found, for a step that cannot be handed pointers.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Kept {
    /// Where it is.
    bucket: u32,
    group: u32,
    granule: u64,
    seq: u32,
    sum: u16,
    reply_len: u16,
    data: u64,
    flags: u32,
    /// Explicit padding.
    reserved: u32,
    cas: u64,
    /// Length of the key, and its sum, not folded.
    pub key_len: u64,
    pub key_sum: u64,
}

impl Kept {
    /// Keeps the entry that was found in this place for a key of this length and sum.
    ///
    /// # Safety
    ///
    /// `this` can be written.
    #[inline(always)]
    pub unsafe fn keep(this: *mut Self, place: Place, found: &Found, key_len: u64, key_sum: u64) {
        // SAFETY: the caller's. Field by field, for want of stack, and volatile, or the compiler makes it a
        // call to memcpy.
        unsafe {
            (&raw mut (*this).bucket).write_volatile(place.bucket);
            (&raw mut (*this).group).write_volatile(place.group);
            (&raw mut (*this).granule).write_volatile(found.granule);
            (&raw mut (*this).seq).write_volatile(found.seq);
            (&raw mut (*this).sum).write_volatile(found.sum);
            (&raw mut (*this).reply_len).write_volatile(found.reply_len as u16);
            (&raw mut (*this).data).write_volatile(found.data);
            (&raw mut (*this).flags).write_volatile(found.flags);
            (&raw mut (*this).cas).write_volatile(found.cas);
            (&raw mut (*this).key_len).write_volatile(key_len);
            (&raw mut (*this).key_sum).write_volatile(key_sum);
        }
    }

    /// The entry, but for its age and what is known of it.
    #[inline(always)]
    pub fn found(&self) -> Option<Found> {
        let index = INDEX.get_ptr_mut(self.bucket)?;
        Some(Found {
            entry: Entry::new(BLOCKS.get_ptr_mut(self.bucket)?, self.granule),
            group: group_of(index, self.group & (GROUPS as u32 - 1)),
            seq: self.seq,
            granule: self.granule,
            reply_len: u64::from(self.reply_len),
            data: self.data,
            sum: self.sum,
            knows: 0,
            flags: self.flags,
            cas: self.cas,
            time: 0,
            is_ageing: false,
        })
    }
}

/// What is looked for, beside the key's bytes.
#[derive(Clone, Copy)]
pub struct Query {
    pub config: &'static Config,
    pub backend: u8,
    /// The backend's epoch.
    pub epoch: u32,
    /// Coarse monotonic time in ns.
    pub now: u64,
    /// The key's hash.
    pub hash: u64,
}

/// Finds the entry for the key of `key_len` bytes at `key` of `source`.
#[inline(always)]
pub fn find<S: Source>(query: Query, source: &S, key: u64, key_len: u64) -> Option<Found> {
    find_with(query, key_len, |entry| entry.has_key(source, key, key_len))
}

/// Finds the entry for a key of `key_len` bytes of which `has_key` says whether it is an entry's.
#[inline(always)]
pub fn find_with(query: Query, key_len: u64, has_key: impl FnOnce(Entry) -> bool) -> Option<Found> {
    find_in(query, query.config.place(query.hash), key_len, has_key)
}

/// Finds the entry for a key that would be in this place.
#[inline(always)]
pub fn find_in(
    query: Query,
    place: Place,
    key_len: u64,
    has_key: impl FnOnce(Entry) -> bool,
) -> Option<Found> {
    let Query {
        config,
        backend,
        epoch,
        now,
        ..
    } = query;
    let index = INDEX.get_ptr_mut(place.bucket)?;
    let group = group_of(index, place.group);
    let block = BLOCKS.get_ptr_mut(place.bucket)?;
    // SAFETY: `group` is part of an element of `INDEX`, `block` an element of `BLOCKS`.
    let (seq, matches) = unsafe {
        // Nobody wants this byte: the CPU looks up the page's address for it while it waits for the group, and has
        // it when that says where the entry is. In each block it is in the same line, and in all of them in
        // different ones, which share the CPU's cache evenly.
        let line = opaque(u64::from(place.bucket)) % (BLOCK_BYTES / LINE) as u64;
        (&raw const (*block).bytes)
            .cast::<[u8; LINE]>()
            .add(line as usize)
            .cast::<u8>()
            .read_volatile();
        let seq = (&raw const (*group).seq).read_volatile();
        fence();
        (seq, matches(group, place))
    };
    if matches == 0 || seq & 1 != 0 {
        return None;
    }
    // SAFETY: as above.
    let at = unsafe { (&raw const (*group).at).read_volatile() } >> (8 * swar::first(matches));
    let granule = at & 0xff;
    let entry = Entry::new(block, granule);
    let header: *mut EntryHeader = entry.header()?;
    // SAFETY: the header is inside an element of `BLOCKS`. A writer may be at work on it: what is
    // read then is not used, because the seqlock has changed.
    let header = unsafe { &*header };
    let age = now.wrapping_sub(header.time);
    if header.epoch != epoch
        || header.backend != backend
        || u64::from(header.key_len) != key_len
        || age > config.max_age_ns
        || !has_key(entry)
    {
        return None;
    }
    Some(Found {
        entry,
        group,
        seq,
        granule,
        reply_len: u64::from(header.reply_len),
        data: key_len + u64::from(header.around_key),
        sum: header.sum,
        knows: header.knows,
        flags: header.flags,
        cas: header.cas,
        time: header.time,
        is_ageing: age > config.refresh_age_ns,
    })
}
