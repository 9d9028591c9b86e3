//! What may happen next.

use crate::history::Answer;
use crate::names::{Name, Stamp};
use crate::scenario::{Client, Op};

/// How `rx` deals with a UDP GET. All but the first pass it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// It is a hit.
    Serve,
    /// It is a miss, or lets this one through to refresh the entry: a ticket if possible.
    Fetch,
    /// Somebody else fetches the key already: no ticket.
    Pass,
}

/// What becomes of a packet that passed `rx`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It reaches its socket.
    Accepted,
    /// It reaches its socket, and another copy of it will come to `rx`.
    AcceptedTwice,
    /// It is dropped. TCP sends it again.
    Dropped,
    /// TCP: it shows something else, and is dropped. TCP sends it again.
    Garbled,
}

/// What may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A client sends a command.
    Send(Op),
    /// A packet comes to `rx`.
    Arrive(Op, Choice, Fate),
    /// memcached executes a command.
    Execute(Op),
    /// memcached refuses a quiet write.
    Refuse(Op),
    /// An answer leaves through `tx`.
    Answer(Op, Answer),
    /// An answer reaches its client.
    Receive(Op, Answer),
    /// The last reply of a connection leaves again.
    Repeat(Client),
    /// The kernel acknowledges what it has of a connection.
    Acknowledge(Client),
    /// A connection is reset.
    Reset(Client),
    /// A reset that the kernel ignores, for it is not the client's, passes `rx`.
    ForgeReset(Client),
    /// Time ends a write.
    Settle(Op),
    /// Time ends the memory of a name.
    Forget(Name),
    /// There is no room for a name.
    Lose(Name),
    /// Time ends a stamp.
    Age(Name, Stamp),
    /// The entry is evicted or too old.
    Evict,
}
