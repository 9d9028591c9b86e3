//! What a client asks for next.

use std::fmt;
use std::sync::Arc;

use crate::dataset::mix;

/// One step of the generator of whether a request is a write.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// What to do with an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Ask for it.
    Get,
    /// Store it.
    Set,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Get => "GET",
            Self::Set => "SET",
        })
    }
}

impl Operation {
    /// A write for a share of `writes` of 2^32 of all random numbers.
    fn of(random: u64, writes: u64) -> Self {
        if random >> 32 < writes {
            Self::Set
        } else {
            Self::Get
        }
    }
}

/// This share of 2^32.
fn of_all(share: f64) -> u64 {
    (share * (1u64 << 32) as f64) as u64
}

/// What is done, again and again.
#[derive(Clone, Debug)]
pub(crate) enum Sequence {
    /// Keys in this order; a share of 2^32 of what is done to them is writes.
    Mix(Arc<[u32]>, u64),
    /// Keys in this order; a share of 2^32 of the keys are written, and the others read.
    Apart(Arc<[u32]>, u64),
    /// Just this.
    Trace(Arc<[(Operation, u32)]>),
}

impl Sequence {
    /// `keys` in their order, of which a share `write_ratio` are written.
    pub(crate) fn mix(keys: Arc<[u32]>, write_ratio: f64) -> Self {
        Self::Mix(keys, of_all(write_ratio))
    }

    /// `keys` in their order, a share `write_ratio` of which are written, but never read.
    pub(crate) fn apart(keys: Arc<[u32]>, write_ratio: f64) -> Self {
        Self::Apart(keys, of_all(write_ratio))
    }

    fn len(&self) -> usize {
        match self {
            Self::Mix(keys, _) | Self::Apart(keys, _) => keys.len(),
            Self::Trace(operations) => operations.len(),
        }
    }
}

/// An endless sequence of operations.
#[derive(Clone, Debug)]
pub(crate) struct Operations {
    sequence: Sequence,
    next: usize,
    state: u64,
}

impl Operations {
    /// The operations of the `n`-th of `clients` clients: each begins at another place. Different `seed`s
    /// give different mixtures.
    pub(crate) fn new(sequence: Sequence, n: usize, clients: usize, seed: u64) -> Self {
        Self {
            next: n * sequence.len() / clients,
            sequence,
            state: mix(seed),
        }
    }

    /// The same, but from `place` on, which others of the same sequence have [come to](Self::place).
    pub(crate) fn starting_at(mut self, place: usize) -> Self {
        self.next = place % self.sequence.len();
        // Other ones of the keys that come again are written.
        self.state ^= mix(place as u64);
        self
    }

    /// The place in the sequence of what comes next.
    pub(crate) fn place(&self) -> usize {
        self.next
    }

    /// The next operation, and the number of its item.
    pub(crate) fn next(&mut self) -> (Operation, u32) {
        let at = self.next;
        self.next = if at + 1 == self.sequence.len() {
            0
        } else {
            at + 1
        };
        match &self.sequence {
            Sequence::Trace(operations) => operations[at],
            Sequence::Mix(keys, 0) => (Operation::Get, keys[at]),
            Sequence::Mix(keys, writes) => {
                self.state = self.state.wrapping_add(STEP);
                (Operation::of(mix(self.state), *writes), keys[at])
            }
            Sequence::Apart(keys, writes) => {
                let key = keys[at];
                (Operation::of(mix(key.into()), *writes), key)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_writes_is_as_asked() {
        for ratio in [0.0, 0.1, 0.5, 1.0] {
            let mut operations = Operations::new(Sequence::mix((0..10).collect(), ratio), 3, 10, 1);
            let mut writes = 0;
            for i in 0..100_000 {
                let (operation, n) = operations.next();
                assert_eq!(n, (i + 3) % 10);
                writes += u32::from(operation == Operation::Set);
            }
            let expected = ratio * 1e5;
            assert!((f64::from(writes) - expected).abs() <= 0.02 * expected);
        }
    }

    #[test]
    fn what_is_written_apart_is_never_read() {
        let keys: Arc<[u32]> = (0..10_000).collect();
        let mut operations = Operations::new(Sequence::apart(keys, 0.1), 0, 1, 1);
        let first: Vec<_> = (0..10_000).map(|_| operations.next()).collect();
        let again: Vec<_> = (0..10_000).map(|_| operations.next()).collect();
        assert_eq!(first, again);
        let writes = first
            .iter()
            .filter(|(operation, _)| *operation == Operation::Set)
            .count();
        assert!((900..1_100).contains(&writes), "{writes}");
    }
}
