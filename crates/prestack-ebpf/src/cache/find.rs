//! Finding an entry: one load from the index tells a miss.

use prestack_abi::cache::{EntryHeader, LINE_GROUPS, Line, Place};
use prestack_abi::config::Config;
use prestack_proto::swar;
use prestack_proto::window::Source;

use super::entry::Entry;
use super::{fence, group_of};
use crate::maps::{BLOCKS, INDEX};

/// A live entry as it was when it was looked at. After its bytes have been copied,
/// [`is_unchanged`](Found::is_unchanged) tells whether they are good.
#[derive(Clone, Copy)]
pub struct Found {
    pub entry: Entry,
    line: *const Line,
    seq: u32,
    /// Length of the reply in bytes.
    pub reply_len: u64,
    /// One's-complement sum of the reply.
    pub sum: u16,
    /// Old enough to be fetched anew.
    pub is_ageing: bool,
}

impl Found {
    /// Whether no writer has touched the entry since it was found.
    #[inline(always)]
    pub fn is_unchanged(&self) -> bool {
        fence();
        // SAFETY: the line is an element of `INDEX`.
        unsafe { (&raw const (*self.line).seq).read_volatile() == self.seq }
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
    let Query {
        config,
        backend,
        epoch,
        now,
        hash,
    } = query;
    let place = Place::of(hash, config.buckets);
    let index = INDEX.get_ptr_mut(place.bucket)?;
    let line = (index as u64
        + if place.group >= LINE_GROUPS as u32 {
            64
        } else {
            0
        }) as *const Line;
    let group = group_of(index, place.group);
    // SAFETY: `line` and `group` are parts of an element of `INDEX`.
    let (seq, tags) = unsafe {
        let seq = (&raw const (*line).seq).read_volatile();
        fence();
        (seq, (&raw const (*group).tags).read_volatile())
    };
    let matches = swar::equal(tags, place.tag);
    if matches == 0 || seq & 1 != 0 {
        return None;
    }
    // SAFETY: as above.
    let at = unsafe { (&raw const (*group).at).read_volatile() } >> (8 * swar::first(matches));
    let entry = Entry::new(BLOCKS.get_ptr_mut(place.bucket)?, at);
    let header: *mut EntryHeader = entry.header()?;
    // SAFETY: the header is inside an element of `BLOCKS`. A writer may be at work on it: what is
    // read then is not used, because the seqlock has changed.
    let header = unsafe { &*header };
    let age = now.wrapping_sub(header.time);
    if header.epoch != epoch
        || header.backend != backend
        || u64::from(header.key_len) != key_len
        || age > config.max_age_ns
        || !entry.has_key(source, key, key_len)
    {
        return None;
    }
    Some(Found {
        entry,
        line,
        seq,
        reply_len: u64::from(header.reply_len),
        sum: header.sum,
        is_ageing: age > config.refresh_age_ns,
    })
}
