//! State of a whole backend: its epoch, and for how long nothing may be fetched for the cache.

use crate::time::Ticks;

/// Most backends (memcached processes) of one instance.
pub const MAX_BACKENDS: u32 = 16;

/// An element of the `BACKENDS` map.
#[repr(C, align(64))]
#[derive(Clone, Copy, Default)]
pub struct Backend {
    /// Generation of the backend's entries: entries of another epoch are dead. Adding one empties
    /// the cache.
    pub epoch: u32,
    /// No tickets are given before this time: a write whose key is unknown may be under way. Set
    /// before `epoch` is raised, so that a ticket with the new epoch implies that it was seen.
    pub quiet_until: Ticks,
    /// Non-zero while `quiet_until` has a meaning (ticks wrap around).
    pub quiet: u32,
    /// Explicit padding.
    pub reserved: [u32; 13],
}

const _: () = assert!(size_of::<Backend>() == 64);
