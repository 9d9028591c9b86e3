//! The cache proper: per bucket an index of four cache lines, and a block that holds the entries.
//!
//! A key's hash names its bucket, a group of eight ways in it and a tag of 16 bits. The index
//! alone tells a miss; a way whose tag matches says where in the block its entry lies. A block is
//! written from start to end and around: what lies where the next entry goes is evicted, if the key was
//! missed twice of late. Entries take only the space they need, in granules.

/// Bytes of a block, one page.
pub const BLOCK_BYTES: usize = 4096;
/// Entries start at multiples of this many bytes in their block.
pub const GRANULE: usize = 16;
/// Granules in a block: positions fit a byte.
pub const GRANULES: usize = BLOCK_BYTES / GRANULE;
/// Granules of a block in which entries lie: behind the last byte of an entry there is room to read a
/// word from.
pub const ENTRY_GRANULES: usize = GRANULES - 1;
/// A granule at which no entry starts.
pub const NOWHERE: u8 = u8::MAX;
/// Ways in a group.
pub const WAYS: usize = 8;
/// Groups in a bucket (a power of two).
pub const GROUPS: usize = 8;

/// Longest reply that is served, in bytes without the UDP frame: memcached's limit for one
/// datagram (`UDP_MAX_PAYLOAD_SIZE` 1400 in memcached.h, less its 8-byte frame).
pub const MAX_REPLY: usize = 1392;
/// Longest text reply that is stored, in bytes: the one whose item fits a datagram in the protocol
/// with the shortest head (binary: 24 bytes and the flags), with the longest key and flags.
pub const MAX_STORED: usize =
    "VALUE ".len() + 250 + " 4294967295 1364\r\n".len() + (MAX_REPLY - 28) + "\r\nEND\r\n".len();

/// Eight ways of a bucket: half a cache line.
#[repr(C, align(32))]
#[derive(Clone, Copy, Default)]
pub struct Group {
    /// Seqlock of these ways and of their entries: odd while a writer is at work.
    pub seq: u32,
    /// In the first group: the granule at which the next entry goes.
    pub head: u16,
    /// In the first group of each cache line: the [fingerprint()] of the key of these groups for which
    /// nothing was evicted last, 0 if there is none.
    pub refused: u16,
    /// The lower byte of each way's tag, way 0 in the least significant; 0 is an empty way.
    pub tags: u64,
    /// The upper bytes; of an empty way, that of the entry that was killed.
    pub upper: u64,
    /// For each way the granule at which its entry starts, way 0 in the least significant byte. Of an empty
    /// way, where the entry lies that was killed, or [`NOWHERE`].
    pub at: u64,
}

/// An element of the `INDEX` map.
#[repr(C, align(64))]
#[derive(Clone, Copy, Default)]
pub struct Index {
    /// The ways.
    pub groups: [Group; GROUPS],
}

impl Index {
    /// How many ways are used.
    #[must_use]
    pub fn used(&self) -> u64 {
        let tags = self
            .groups
            .iter()
            .flat_map(|group| group.tags.to_le_bytes());
        tags.filter(|tag| *tag != 0).count() as u64
    }
}

/// What precedes an entry's reply in the block.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct EntryHeader {
    /// Coarse monotonic time in ns of the GET that fetched the entry.
    pub time: u64,
    /// Epoch of the backend when that GET arrived.
    pub epoch: u32,
    /// One's-complement sum of the reply, as little-endian 16-bit words, folded, not inverted.
    pub sum: u16,
    /// Length in bytes of the reply, `END\r\n` included.
    pub reply_len: u16,
    /// Length in bytes of the key.
    pub key_len: u8,
    /// Bytes of the reply before the data, less the key.
    pub around_key: u8,
    /// Which backend the entry belongs to.
    pub backend: u8,
    /// What is known of the item: [`EntryHeader::FLAGS`] and the following.
    pub knows: u8,
    /// The item's client flags.
    pub flags: u32,
    /// The item's CAS number.
    pub cas: u64,
}

impl EntryHeader {
    /// The client flags are known: the stored reply is what memcached would send.
    pub const FLAGS: u8 = 1;
    /// The CAS number is known.
    pub const CAS: u8 = 2;
    /// The item was shown by `mg` and is in no state that other replies do not show (stale, won).
    pub const META: u8 = 4;
    /// `mg` shows the key as it is.
    pub const KEY_PLAIN: u8 = 8;
    /// `mg` shows the key in base64.
    pub const KEY_BASE64: u8 = 16;

    /// Granules that an entry with a reply of this length takes, header included.
    #[inline(always)]
    #[must_use]
    pub const fn granules(reply_len: u64) -> u64 {
        (HEADER_BYTES as u64 + reply_len).div_ceil(GRANULE as u64)
    }
}

/// Bytes of an [`EntryHeader`]; the reply follows.
pub const HEADER_BYTES: usize = size_of::<EntryHeader>();

/// An element of the `BLOCKS` map: entries, each a header and the reply to a text `get`
/// (`VALUE <key> <flags> <bytes>\r\n<data>\r\nEND\r\n`).
#[repr(C, align(4096))]
#[derive(Clone, Copy)]
pub struct Block {
    /// The block's bytes.
    pub bytes: [u8; BLOCK_BYTES],
}

/// Where a key's entry would be found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Index into `INDEX` and `BLOCKS`.
    pub bucket: u32,
    /// Group in the bucket, below [`GROUPS`].
    pub group: u32,
    /// The tag's lower byte, never 0.
    pub tag: u8,
    /// Its upper byte.
    pub upper: u8,
}

impl Place {
    /// The place of the key with this hash (see `prestack_proto::hash`) while `parts` parts (a power of
    /// two) of `base` buckets each are in use.
    ///
    /// With twice the parts a key stays where it is, or its place is in a part that was not in use: what
    /// it has left elsewhere is never its place again.
    #[inline(always)]
    #[must_use]
    pub const fn of(hash: u64, base: u32, parts: u32) -> Self {
        let tag = (hash & 0xff) as u8;
        let part = (hash >> 32) as u32 & parts.wrapping_sub(1);
        Self {
            bucket: (((hash >> 32) * base as u64) >> 32) as u32 + part * base,
            group: (hash >> 16) as u32 & (GROUPS as u32 - 1),
            tag: if tag == 0 { 1 } else { tag },
            upper: (hash >> 8) as u8,
        }
    }
}

/// What tells the keys of two groups apart that were missed once: bits of the key's hash that neither its
/// tag nor its bucket depends on, and its group. Never 0.
#[inline(always)]
#[must_use]
pub const fn fingerprint(hash: u64) -> u16 {
    let bits = (hash >> 16) as u16;
    if bits == 0 { 1 } else { bits }
}

/// Bytes of map memory that one bucket takes, over all maps sized by it.
pub const BUCKET_BYTES: usize = size_of::<Index>() + size_of::<Block>();

const _: () = assert!(size_of::<Group>() == 32);
const _: () = assert!(size_of::<Index>() == 256);
const _: () = assert!(size_of::<Block>() == BLOCK_BYTES);
const _: () = assert!(HEADER_BYTES == 32 && HEADER_BYTES.is_multiple_of(GRANULE));
const _: () = assert!(GRANULES == 256);
const _: () = assert!(NOWHERE as usize >= ENTRY_GRANULES);
// `fill` tests whether a position lies in a range of fewer than 128 granules.
const _: () = assert!(EntryHeader::granules(MAX_STORED as u64) < 128);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_stay_in_range_and_spread() {
        let mut groups = [0u32; GROUPS];
        let mut buckets = [0u32; 1000];
        for i in 0..60_000u64 {
            let hash = i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let place = Place::of(hash, 250, 4);
            buckets[place.bucket as usize] += 1;
            assert!(place.group < GROUPS as u32 && place.tag != 0);
            groups[place.group as usize] += 1;
        }
        assert!(
            groups.iter().all(|&n| (7_000..8_000).contains(&n)),
            "{groups:?}"
        );
        assert!(
            buckets.iter().all(|&n| (20..120).contains(&n)),
            "{buckets:?}"
        );
    }

    #[test]
    fn a_place_that_was_left_is_never_taken_again() {
        for i in 0..10_000u64 {
            let hash = i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let bucket = |doublings: u32| Place::of(hash, 100, 1 << doublings).bucket;
            let mut staying = 0;
            for doublings in 1..17 {
                let (old, new) = (bucket(doublings - 1), bucket(doublings));
                staying += u32::from(old == new);
                assert!(new == old || new >= 100 << (doublings - 1));
                assert!(new < 100 << doublings);
            }
            assert!(staying < 16 || hash >> 32 & 0xffff == 0, "it never moves");
        }
    }
}
