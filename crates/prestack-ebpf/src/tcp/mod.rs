//! TCP: flows are followed by both byte streams, so that every command is seen, and every reply is
//! matched to its command.
//!
//! Nothing is answered and nothing held back. What a flow's requests change is invalidated before
//! memcached sees them, and counts as outstanding until the reply has left.

mod copies;
pub mod doubt;
pub mod flow;
pub mod hole;
pub mod plain;
pub mod replies;
pub mod requests;
pub mod segment;
pub mod socket;
pub mod sweep;
pub mod table;
mod take_back;
mod tickets;

/// Greatest shift of the window (RFC 7323).
pub const GREATEST_SCALE: u64 = 14;

/// The later of two sequence numbers.
#[inline(always)]
pub const fn later(a: u32, b: u32) -> u32 {
    if is_before(a, b) { b } else { a }
}

/// Whether sequence number `a` comes before `b` (RFC 9293 3.4).
#[inline(always)]
pub const fn is_before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}
