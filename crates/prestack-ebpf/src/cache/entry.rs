//! Reading an entry in its block. Every read is checked against the end of the block where it is
//! made, as the verifier wants it.

use prestack_abi::cache::{BLOCK_BYTES, Block, EntryHeader, GRANULE, HEADER_BYTES};
use prestack_proto::text::reply::KEY_AT;
use prestack_proto::window::Source;

use prestack_proto::verifier::opaque;

/// An entry in a block: positions in it count from the first byte of the reply.
#[derive(Clone, Copy)]
pub struct Entry {
    block: *mut Block,
    reply: u64,
}

impl Entry {
    /// The entry whose header starts at granule `at` (below 256).
    #[inline(always)]
    pub fn new(block: *mut Block, at: u64) -> Self {
        Self {
            block,
            reply: (at & 0xff) * GRANULE as u64 + HEADER_BYTES as u64,
        }
    }

    /// The same, but positions count from `from` of the reply.
    #[inline(always)]
    pub fn behind(self, from: u64) -> Self {
        Self {
            reply: self.reply + from,
            ..self
        }
    }

    /// A pointer to the `T` at `at` of the reply, if all of it is in the block.
    #[inline(always)]
    pub fn at<T>(self, at: u64) -> Option<*mut T> {
        let at = opaque(self.reply + at);
        if at > (BLOCK_BYTES - size_of::<T>()) as u64 {
            return None;
        }
        Some((self.block as u64 + at) as *mut T)
    }

    /// The eight bytes at `at` of the reply, little-endian; garbage behind the end of the block, where
    /// no entry has bytes (`ENTRY_GRANULES`).
    #[inline(always)]
    pub fn word_before_end(self, at: u64) -> u64 {
        const LAST: u64 = (BLOCK_BYTES - size_of::<u64>()) as u64;
        let mut at = opaque(self.reply + at);
        if at > LAST {
            at = LAST;
        }
        // SAFETY: the word is in the block. As in `word`, below.
        unsafe { *((self.block as u64 + at) as *const u64) }
    }

    /// A pointer to the header, if all of it is in the block.
    #[inline(always)]
    pub fn header(self) -> Option<*mut EntryHeader> {
        let at = opaque(self.reply - HEADER_BYTES as u64);
        if at > (BLOCK_BYTES - HEADER_BYTES) as u64 {
            return None;
        }
        Some((self.block as u64 + at) as *mut EntryHeader)
    }

    /// Whether the entry's key is the one of `len` bytes at `at` of `source`.
    #[inline(always)]
    pub fn has_key<S: Source>(self, source: &S, at: u64, len: u64) -> bool {
        let len = source.forgotten(len);
        let mut done = 0;
        for _ in 0..prestack_proto::MAX_KEY / 8 {
            if done + 8 > len {
                break;
            }
            if self.word(KEY_AT + done) != source.word(at + done) {
                return false;
            }
            // What follows is the same however many words there were: it need not be verified for each.
            done = source.forgotten(done + 8);
        }
        let rest = len - done;
        if rest == 0 {
            return true;
        }
        // Both are read backwards from the key's end: what precedes the key is there.
        if rest >= 8 {
            return false;
        }
        let shift = 8 * (8 - rest);
        match (self.word(KEY_AT + len - 8), source.word(at + len - 8)) {
            (Some(ours), Some(theirs)) => ours >> shift == theirs >> shift,
            _ => false,
        }
    }
}

impl Source for Entry {
    #[inline(always)]
    fn word(&self, at: u64) -> Option<u64> {
        // SAFETY: `at` checked that the word is in the block. Another CPU may be writing it: the
        // seqlock then tells. BPF reads words at any address.
        self.at::<u64>(at).map(|word| unsafe { *word })
    }
}
