//! State of a whole backend: its epoch, and for how long nothing may be fetched for the cache.

use crate::control::bpf_spin_lock;

/// Most backends (memcached processes) of one instance.
pub const MAX_BACKENDS: u32 = 16;
/// Most sockets of theirs whose end is noticed.
pub const MAX_SOCKETS: usize = 4096;

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
    /// Coarse monotonic time in ns from which nothing is served and nothing fetched, for a `flush_all`
    /// with a delay may take effect ([`Flushes`]); 0 if there is none. Where that time has come the
    /// epoch is not to be trusted: it is raised before this is set to a later time. Changed with the
    /// lock of [`Flushes`] held.
    pub flush_from: u64,
    /// Keeps backends on cache lines of their own.
    pub reserved: u64,
}

/// Delayed `flush_all`s of a backend that are kept; of more the first to come is forgotten, for of all that it has
/// executed memcached keeps the last alone.
pub const PENDING_FLUSHES: usize = 8;
/// How long in ns before its time a `flush_all` may take effect: memcached counts in whole seconds of
/// a clock that lags behind by up to one, and takes off one more.
pub const FLUSH_EARLY_NS: u64 = 2_500_000_000;
/// How long in ns after its time it may, for the same reasons.
pub const FLUSH_LATE_NS: u64 = 1_500_000_000;

/// A delayed `flush_all`: coarse monotonic times in ns between which it takes effect.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct Flush {
    /// The earliest.
    pub from: u64,
    /// The latest; 0 where there is no flush.
    pub until: u64,
    /// Coarse monotonic time in ns at which it was asked for.
    pub asked: u64,
}

/// An element of the `FLUSHES` map: what `flush_all`s with a delay there are, by backend.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Flushes {
    /// Held to change them.
    pub lock: bpf_spin_lock,
    /// Explicit padding.
    pub reserved: u32,
    /// The flushes.
    pub pending: [Flush; PENDING_FLUSHES],
}

const _: () = assert!(size_of::<Backend>() == 64);
