//! State of a whole backend: its epoch, and for how long nothing may be fetched for the cache.

/// Most backends (memcached processes) of one instance.
pub const MAX_BACKENDS: u32 = 16;

/// An element of the `BACKENDS` map.
#[repr(C, align(64))]
#[derive(Clone, Copy, Default)]
pub struct Backend {
    /// Generation of the backend's entries: entries of another epoch (of which they hold the low 32
    /// bits) are dead. Adding one, atomically, empties the cache.
    pub epoch: u64,
    /// Coarse monotonic time in ns before which no tickets are given: a write whose key is unknown
    /// may be under way. Set before `epoch` is raised, so that a ticket with the new epoch implies
    /// that it was seen.
    pub quiet_until: u64,
    /// Non-zero once this memcached process was seen answering over UDP: only then are hits served
    /// over UDP. Set by the datapath, cleared by user space with a new process.
    pub answers_udp: u64,
    /// TCP flows for which no tickets are given: what they have sent may change any item, and memcached
    /// has not shown that it is done with it. Changed atomically.
    pub waits: u64,
    /// TCP flows that are owed a reply to a write that found no mark in its bucket. Changed atomically.
    pub crowding: u64,
    /// Coarse monotonic time in ns, read before `crowding` last fell to 0: buckets crowded before then
    /// are not any more.
    pub calm_at: u64,
    /// Keeps backends on cache lines of their own.
    pub reserved: [u64; 2],
}

const _: () = assert!(size_of::<Backend>() == 64);
