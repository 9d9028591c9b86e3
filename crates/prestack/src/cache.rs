//! The cache as seen from user space: what is in it, and a single entry.

use std::sync::atomic::{Ordering, fence};

use prestack_abi::{
    cache::{BLOCK_BYTES, EntryHeader, GRANULE, Group, HEADER_BYTES, Place, WAYS},
    config::Config,
};
use prestack_proto::{hash, text::reply::KEY_AT};

use crate::maps::{CacheMaps, Controls};

/// Times a group is read again when the datapath was writing to it.
const ATTEMPTS: u32 = 100;

/// How much a backend has in the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Entries that could be served.
    pub entries: u64,
    /// Memory they take, headers and padding included.
    pub bytes: u64,
}

/// An entry that was found.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What precedes the reply.
    pub header: EntryHeader,
    /// The reply, from `VALUE` to `END\r\n`.
    pub reply: Vec<u8>,
}

/// What decides whether an entry is live.
struct Present {
    now: u64,
    max_age: u64,
    /// Entries hold the low half of an epoch.
    epochs: Vec<u32>,
}

impl Present {
    fn is_live(&self, header: &EntryHeader) -> bool {
        self.epochs.get(usize::from(header.backend)) == Some(&header.epoch)
            && self.now.saturating_sub(header.time) <= self.max_age
    }
}

/// Counts the live entries of each of the first `backends` backends.
///
/// Packets flow meanwhile, so the counts are of no single moment.
#[must_use]
pub fn usage(maps: &CacheMaps, controls: &Controls, backends: u8, now: u64) -> Vec<Usage> {
    let config = controls.config();
    let present = Present {
        now,
        max_age: config.max_age_ns,
        epochs: (0..backends)
            .map(|backend| controls.epoch_of(backend) as u32)
            .collect(),
    };
    let mut usage = vec![Usage::default(); usize::from(backends)];
    for bucket in 0..config.base * config.parts {
        let index = maps.index.read(bucket);
        if index.groups.iter().all(is_empty) {
            continue;
        }
        let block = maps.blocks.read(bucket);
        for at in index.groups.iter().flat_map(positions) {
            let header = header(&block.bytes, at);
            if present.is_live(&header) && is_in_place(&config, bucket, &block.bytes, at) {
                let mine = &mut usage[usize::from(header.backend)];
                mine.entries += 1;
                mine.bytes += EntryHeader::granules(header.reply_len.into()) * GRANULE as u64;
            }
        }
    }
    usage
}

/// Whether the entry at a granule of a bucket is where its key is looked for: not what was left there when
/// more of the cache came into use.
fn is_in_place(config: &Config, bucket: u32, block: &[u8; BLOCK_BYTES], at: u8) -> bool {
    let header = header(block, at);
    let key_at = usize::from(at) * GRANULE + HEADER_BYTES + KEY_AT as usize;
    block
        .get(key_at..key_at + usize::from(header.key_len))
        .is_some_and(|key| place(config, header.backend, key).0.bucket == bucket)
}

fn is_empty(group: &Group) -> bool {
    group.tags == 0
}

/// The granules at which the entries of a group start.
fn positions(group: &Group) -> impl Iterator<Item = u8> {
    let tags = group.tags.to_le_bytes().into_iter();
    let ways = tags.zip(group.at.to_le_bytes());
    ways.filter(|(tag, _)| *tag != 0).map(|(_, at)| at)
}

fn header(block: &[u8; BLOCK_BYTES], at: u8) -> EntryHeader {
    let mut bytes = [0; HEADER_BYTES];
    for (offset, byte) in bytes.iter_mut().enumerate() {
        // What a torn read finds at the block's end is garbage in any case.
        *byte = block[(usize::from(at) * GRANULE + offset) % BLOCK_BYTES];
    }
    // SAFETY: the header is made of integers: any bytes are one.
    unsafe { std::mem::transmute::<[u8; HEADER_BYTES], EntryHeader>(bytes) }
}

/// Where a backend's entry for `key` would be, and the hash of the key.
#[must_use]
pub fn place(config: &Config, backend: u8, key: &[u8]) -> (Place, u64) {
    let hash = hash::key_hash(hash::backend_seed(config.seed, backend), key);
    (config.place(hash), hash)
}

/// The entry of a backend for `key`, dead or alive; `None` also if the datapath never stops
/// writing to it.
#[must_use]
pub fn find(maps: &CacheMaps, place: Place, backend: u8, key: &[u8]) -> Option<Entry> {
    let number = place.group as usize;
    for _ in 0..ATTEMPTS {
        let before = maps.index.read(place.bucket).groups[number];
        fence(Ordering::SeqCst);
        let tags = |bytes: u64, way: usize| bytes.to_le_bytes()[way];
        let found = (0..WAYS)
            .filter(|way| tags(before.tags, *way) == place.tag)
            .filter(|way| tags(before.upper, *way) == place.upper)
            .find_map(|way| {
                let block = maps.blocks.read(place.bucket);
                let at = before.at.to_le_bytes()[way];
                read_entry(&block.bytes, at, backend, key)
            });
        fence(Ordering::SeqCst);
        let after = maps.index.read(place.bucket).groups[number];
        if before.seq.is_multiple_of(2) && before.seq == after.seq {
            return found;
        }
    }
    None
}

fn read_entry(block: &[u8; BLOCK_BYTES], at: u8, backend: u8, key: &[u8]) -> Option<Entry> {
    let header = header(block, at);
    let start = usize::from(at) * GRANULE + HEADER_BYTES;
    let reply = block.get(start..start + usize::from(header.reply_len))?;
    let stored = reply
        .strip_prefix(b"VALUE ")?
        .get(..usize::from(header.key_len))?;
    (header.backend == backend && stored == key).then(|| Entry {
        header,
        reply: reply.to_vec(),
    })
}

impl Entry {
    /// Flags and value, as in `VALUE <key> <flags> <bytes>\r\n<data>\r\nEND\r\n`.
    #[must_use]
    pub fn value(&self) -> Option<(u32, &[u8])> {
        let rest = self
            .reply
            .get("VALUE ".len() + usize::from(self.header.key_len) + 1..)?;
        let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
        let mut words = std::str::from_utf8(&rest[..end]).ok()?.split(' ');
        let flags = words.next()?.parse().ok()?;
        let length: usize = words.next()?.parse().ok()?;
        Some((flags, rest.get(end + 2..end + 2 + length)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(at: u8, header: &EntryHeader, reply: &[u8]) -> Box<[u8; BLOCK_BYTES]> {
        let mut block = Box::new([0; BLOCK_BYTES]);
        let start = usize::from(at) * GRANULE;
        // SAFETY: the header is made of integers, without padding.
        let bytes = unsafe { std::mem::transmute::<EntryHeader, [u8; HEADER_BYTES]>(*header) };
        block[start..start + HEADER_BYTES].copy_from_slice(&bytes);
        block[start + HEADER_BYTES..start + HEADER_BYTES + reply.len()].copy_from_slice(reply);
        block
    }

    #[test]
    fn an_entry_is_read_back() {
        let reply = b"VALUE ab 7 4\r\n1\r\n2\r\nEND\r\n";
        let header = EntryHeader {
            reply_len: reply.len() as u16,
            key_len: 2,
            backend: 1,
            epoch: 3,
            ..EntryHeader::default()
        };
        let block = block(9, &header, reply);
        let entry = read_entry(&block, 9, 1, b"ab").expect("there");
        assert_eq!(entry.value(), Some((7, &b"1\r\n2"[..])));
        assert_eq!(entry.header.epoch, 3);
        assert!(
            read_entry(&block, 9, 0, b"ab").is_none(),
            "another backend's"
        );
        assert!(read_entry(&block, 9, 1, b"ac").is_none(), "another key");
        assert!(read_entry(&block, 8, 1, b"ab").is_none(), "another place");
        assert!(read_entry(&block, 255, 1, b"ab").is_none(), "at the end");
    }

    #[test]
    fn positions_are_those_of_used_ways() {
        assert!(is_empty(&Group::default()));
        let group = Group {
            tags: u64::from_le_bytes([0, 5, 0, 0, 0, 0, 0, 9]),
            at: u64::from_le_bytes([1, 2, 3, 4, 5, 6, 7, 8]),
            ..Group::default()
        };
        assert_eq!(positions(&group).collect::<Vec<_>>(), [2, 8]);
    }

    #[test]
    fn old_and_emptied_entries_are_dead() {
        let present = Present {
            now: 1000,
            max_age: 100,
            epochs: vec![4],
        };
        let header = EntryHeader {
            time: 950,
            epoch: 4,
            ..EntryHeader::default()
        };
        assert!(present.is_live(&header));
        assert!(!present.is_live(&EntryHeader {
            time: 800,
            ..header
        }));
        assert!(!present.is_live(&EntryHeader { epoch: 3, ..header }));
        assert!(!present.is_live(&EntryHeader {
            backend: 1,
            ..header
        }));
        // The clock is read before the entry: a later entry is young.
        assert!(present.is_live(&EntryHeader {
            time: 1010,
            ..header
        }));
    }
}
