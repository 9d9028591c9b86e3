//! Commands as the generators make them.

/// How the answer to a datagram is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// Datagram by datagram.
    Exact,
    /// What the datagrams say together: a GET of several keys may be answered by one datagram or
    /// several, and by some that are empty.
    Joined,
}

/// What one datagram says.
#[derive(Clone, Debug)]
pub struct Datagram {
    /// Sequence number, number of datagrams, and what is reserved.
    pub frame: [u16; 3],
    /// The command, or what passes for one.
    pub payload: Vec<u8>,
    /// How its answer is compared.
    pub comparison: Comparison,
    /// About how many datagrams the answer may have.
    pub answers: usize,
}

impl Datagram {
    /// A command in a proper frame, answered by one message.
    pub fn new(payload: Vec<u8>) -> Self {
        Self {
            frame: [0, 1, 0],
            payload,
            comparison: Comparison::Exact,
            answers: 1,
        }
    }

    /// A GET of `keys` keys.
    pub fn get(payload: Vec<u8>, keys: usize) -> Self {
        let comparison = if keys > 1 {
            Comparison::Joined
        } else {
            Comparison::Exact
        };
        Self {
            comparison,
            answers: keys,
            ..Self::new(payload)
        }
    }
}
