//! The options of a segment that does not start a connection.

use prestack_proto::window::Source;

/// TCP options (IANA registry "TCP Option Kind Numbers").
const OPTION_END: u64 = 0;
const OPTION_NOTHING: u64 = 1;
const OPTION_SACK: u64 = 5;
const OPTION_TIMESTAMPS: u64 = 8;
/// Bytes of the timestamps option.
const TIMESTAMPS: u64 = 10;
/// Bytes of options at most.
const MAX_OPTIONS: u64 = 40;
/// Blocks in an option at most.
pub const MAX_BLOCKS: u64 = 4;

/// Where the options are whose numbers count.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Options {
    /// Position of the timestamp in the options, in bytes, and behind it of the one that it echoes; 0 if
    /// there are none.
    pub timestamps: u64,
    /// Position of the first SACK block (RFC 2018).
    pub blocks: u64,
    /// How many there are.
    pub count: u64,
}

impl Options {
    /// Finds them among the `len` bytes of options at the start of `source`, which can be read eight bytes
    /// further.
    #[inline(always)]
    pub fn find<S: Source + ?Sized>(source: &S, len: u64) -> Self {
        let mut at = source.forgotten(0);
        let mut found = Self::default();
        for _ in 0..MAX_OPTIONS {
            if at + 2 > len {
                break;
            }
            let Some(word) = source.word(at) else { break };
            let (kind, size) = (word & 0xff, word >> 8 & 0xff);
            if kind == OPTION_END {
                break;
            }
            if kind == OPTION_NOTHING {
                at = source.forgotten(at + 1);
                continue;
            }
            if size < 2 || at + size > len {
                break;
            }
            if kind == OPTION_TIMESTAMPS && size == TIMESTAMPS {
                found.timestamps = source.forgotten(at + 2);
            }
            let count = size / 8;
            if kind == OPTION_SACK && size & 7 == 2 && count <= MAX_BLOCKS {
                found.blocks = source.forgotten(at + 2);
                found.count = source.forgotten(count);
            }
            at = source.forgotten(at + size);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn found(options: &[u8]) -> Options {
        let mut bytes = options.to_vec();
        bytes.extend([0; 8]);
        Options::find(&bytes.as_slice(), options.len() as u64)
    }

    fn blocks(options: &[u8]) -> (u64, u64) {
        let found = found(options);
        (found.blocks, found.count)
    }

    #[test]
    fn finds_blocks_and_timestamps() {
        let mut options = vec![1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 1, 5, 10];
        options.extend([9; 8]);
        assert_eq!(found(&options).timestamps, 4);
        assert_eq!(blocks(&options), (16, 1));
        assert_eq!(blocks(&options[12..]), (4, 1));
        assert_eq!(found(&options[12..]).timestamps, 0);
        // In the other order, and with something unknown between.
        let mut other = options[12..].to_vec();
        other.extend([77, 3, 0]);
        other.extend(&options[2..12]);
        assert_eq!((found(&other).timestamps, blocks(&other)), (17, (4, 1)));
        assert_eq!(found(&options[..11]).timestamps, 0);
        assert_eq!(blocks(&options[..23]), (0, 0));
        assert_eq!(blocks(&[5, 9, 0, 0, 0, 0, 0, 0, 0]), (0, 0));
        assert_eq!(blocks(&[0, 5, 10, 0, 0, 0, 0, 0, 0, 0, 0]), (0, 0));
        assert_eq!(blocks(&[9, 0, 5, 10, 0, 0, 0, 0, 0, 0, 0, 0]), (0, 0));
    }

    proptest! {
        #[test]
        fn stays_within_the_options(options in proptest::collection::vec(0u8..12, 0..41)) {
            let found = found(&options);
            prop_assert!(found.blocks + 8 * found.count <= options.len() as u64);
            prop_assert!(found.timestamps == 0 || found.timestamps + 8 <= options.len() as u64);
        }
    }
}
