//! TCP connections on which some requests are answered before the kernel's socket sees them.
//!
//! Of such a connection the client's stream has bytes that the socket never gets (requests that were
//! *swallowed*), and the stream to the client has bytes that the socket never sent (their *answers*). So the
//! two ends count differently: the client uses *wire* numbers, the socket the *kernel's*. This crate decides
//! when a request may be answered, turns the numbers of every segment into those of the other end, and says
//! when an answer that was lost is sent again.
//!
//! No packets here, no memory and no clock: the caller reads headers into a [`Segment`], keeps a
//! [`Translation`] and what it knows of the [`Ends`] for each connection, and the bytes of one answer. The
//! state that is kept is a few numbers, the operations are straight-line arithmetic modulo 2³²; the crate is
//! `no_std` and is compiled for BPF as well.
//!
//! ```text
//! client ── segment ──▶ arrive ──▶ may_serve ──▶ serve   answered, swallowed
//!                         │            └───────▶ pass    to the kernel, in its numbers
//!                         ├─▶ the answer again, or an acknowledgement: the segment is not passed
//! client ◀── segment ── leave ◀── kernel                 to the client, in wire numbers
//! ```
//!
//! # The rules
//!
//! They are those of [`Rule`]; each can be left out in the tests, which show what breaks then.
#![cfg_attr(not(test), no_std)]

mod agreement;
mod arrive;
mod difference;
mod ends;
#[cfg(test)]
mod fixture;
mod leave;
#[cfg(test)]
mod model;
mod options;
#[cfg(test)]
mod oracle;
mod pass;
mod policy;
mod rules;
mod sack;
mod segment;
mod serve;
mod translation;

pub use agreement::Agreement;
pub use arrive::{Again, Arrival, PART};
pub use difference::{apply, difference};
pub use ends::Ends;
pub use leave::{Departing, Departure};
pub use options::{MAX_BLOCKS, Options};
pub use pass::Passing;
pub use policy::Policy;
pub use rules::Rule;
pub use sack::Block;
pub use segment::{Segment, is_before, later};
pub use serve::Reply;
pub use translation::Translation;
