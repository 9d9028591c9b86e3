//! For some keys at a time: a lock, a version, and those of them that have a write outstanding.
//!
//! However many keys there are, these are so few that they stay in the CPU's cache. Keys that share one
//! also share its version: a write voids the tickets of a few keys more. Which control a key has does not
//! depend on where its entry is.

/// Elements of the `CONTROL` map.
pub const CONTROLS: usize = 8192;

/// The control of the key with this hash, of the first `controls`.
#[inline(always)]
#[must_use]
pub const fn control_of(hash: u64, controls: u32) -> u32 {
    (((hash >> 32) * controls as u64) >> 32) as u32
}

/// Elements of the `LOCKS` map (a power of two).
pub const LOCKS: usize = 8192;

/// The lock of a bucket: buckets share them.
#[inline(always)]
#[must_use]
pub const fn lock_of(bucket: u32) -> u32 {
    bucket & (LOCKS as u32 - 1)
}

/// Outstanding writes that are told apart; when there are more, all keys count as written.
pub const OUTSTANDING_KEYS: usize = 6;
/// Keys of one control that can each have one ticket at a time.
pub const CLAIMS: usize = 4;

/// The kernel's `struct bpf_spin_lock` (include/uapi/linux/bpf.h). The kernel finds it by this
/// name in the map's BTF.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct bpf_spin_lock {
    /// The kernel's.
    pub val: u32,
}

/// An element of the `CONTROL` map: two cache lines.
#[repr(C, align(64))]
#[derive(Clone, Copy, Default)]
pub struct Control {
    /// Held to change this.
    pub lock: bpf_spin_lock,
    /// Raised by every write to one of the keys, after the write is marked outstanding: a
    /// ticket with the current version implies that the mark was seen.
    pub version: u32,
    /// Time (see [`crate::time::SETTLE_SHIFT`]) until when all of the keys count as written.
    pub crowded_until: u32,
    /// Time (in the same unit, never 0) at which a write on a TCP flow found no mark, 0 if none has: while
    /// some flow of the backend is owed a reply to such a write, and was ever since then, all of the
    /// keys count as written.
    pub crowded_at: u32,
    /// Tickets given: fingerprint in the upper, time (see [`crate::time::CLAIM_SHIFT`]) in the lower
    /// 16 bits; chosen by the fingerprint's last bits.
    pub claims: [u32; CLAIMS],
    /// Writes that are outstanding.
    pub outstanding: [Outstanding; OUTSTANDING_KEYS],
}

/// An element of the `LOCKS` map: held to change the indices and blocks of its buckets.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Lock {
    /// The kernel's.
    pub lock: bpf_spin_lock,
    /// Explicit padding.
    pub reserved: u32,
}

/// A key with a write outstanding: on a TCP flow until its reply has left, else until it was answered
/// or its time is over.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Outstanding {
    /// The key's [fingerprint()].
    pub fingerprint: u16,
    /// 0 when free; [`Outstanding::SETTLES`], [`Outstanding::OWED`] or [`Outstanding::QUIET`]; else the
    /// number of UDP writes that have not been answered.
    pub writes: u16,
    /// The flow's place in `FLOWS` (`OWED`, `QUIET`).
    pub flow: u16,
    /// Upper 16 bits of the command's number on its flow.
    pub number_high: u16,
    /// Its lower 32 bits. Of UDP writes, the control's version when this element was given to the key,
    /// so that a late reply to a write that has settled does not end another one.
    pub number: u32,
    /// Time (see [`crate::time::SETTLE_SHIFT`]) at which the writes count as ended if nothing ends them
    /// before (not of `OWED` ones).
    pub until: u32,
}

impl Outstanding {
    /// Only time ends the outstanding state.
    pub const SETTLES: u16 = u16::MAX;
    /// The reply to the command on its flow ends it.
    pub const OWED: u16 = u16::MAX - 1;
    /// The reply to the next command that is owed one ends it, or time.
    pub const QUIET: u16 = u16::MAX - 2;
    /// Most UDP writes that are counted.
    pub const MAX_COUNT: u16 = u16::MAX - 3;

    /// The command's number on its flow (`OWED`, `QUIET`).
    #[inline(always)]
    #[must_use]
    pub const fn command(&self) -> u64 {
        (self.number_high as u64) << 32 | self.number as u64
    }
}

/// What tells keys apart in their [`Control`]: 16 bits of the key's hash.
#[inline(always)]
#[must_use]
pub const fn fingerprint(hash: u64) -> u16 {
    hash as u16
}

const _: () = assert!(size_of::<Outstanding>() == 16);
const _: () = assert!(size_of::<Control>() == 128);
const _: () = assert!(LOCKS.is_power_of_two());
const _: () = assert!(size_of::<Lock>() == 8);
const _: () = assert!(core::mem::offset_of!(Control, lock) == 0);
