//! Copying a part of an entry's reply.

use prestack_proto::window::Source;

use crate::cache::entry::Entry;
use crate::packet::Packet;
use crate::rx::get::copy;

/// Copies `len` bytes (4 to `MAX_REPLY`) at `from` of an entry's reply to `at` of the packet.
#[inline(always)]
pub fn copy_part(packet: Packet, at: u64, entry: Entry, from: u64, len: u64) -> Option<()> {
    let entry = entry.behind(packet.forgotten(from));
    let (at, len) = (packet.forgotten(at), packet.forgotten(len));
    if len >= 16 {
        copy(packet, at, entry, len)
    } else if len >= 8 {
        copy_both::<u64>(packet, at, entry, len - 8)
    } else if len >= 4 {
        copy_both::<u32>(packet, at, entry, len - 4)
    } else {
        None
    }
}

/// Copies `len` bytes, and garbage before them if they are less than a word.
#[inline(always)]
pub fn copy_last(packet: Packet, at: u64, entry: Entry, from: u64, len: u64) -> Option<()> {
    let missing = packet.forgotten(8_u64.saturating_sub(len));
    copy_part(packet, at - missing, entry, from - missing, len + missing)
}

/// Copies the `T` at 0 and the one at `last`.
#[inline(always)]
fn copy_both<T: Copy>(packet: Packet, at: u64, entry: Entry, last: u64) -> Option<()> {
    // SAFETY: `at` has checked that they are in the block.
    let (first, second) = unsafe { (*entry.at::<T>(0)?, *entry.at::<T>(last)?) };
    packet.write(at, first)?;
    packet.write(at + last, second)
}
