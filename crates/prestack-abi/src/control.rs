//! Per bucket: the lock that writers of the bucket take, its version, and the keys in it that
//! have a write outstanding.

/// Keys of one bucket whose outstanding writes are told apart; when more are written at once, the
/// whole bucket counts as written.
pub const OUTSTANDING_KEYS: usize = 3;
/// Keys of one bucket that can each have one ticket at a time.
pub const CLAIMS: usize = 4;

/// The kernel's `struct bpf_spin_lock` (include/uapi/linux/bpf.h). The kernel finds it by this
/// name in the map's BTF.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct bpf_spin_lock {
    /// The kernel's.
    pub val: u32,
}

/// An element of the `CONTROL` map.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Control {
    /// Held to change the bucket's index, its block or this.
    pub lock: bpf_spin_lock,
    /// Raised by every write to a key of the bucket, after the write is marked outstanding: a
    /// ticket with the current version implies that the mark was seen.
    pub version: u32,
    /// Keys with a write outstanding.
    pub outstanding: [Outstanding; OUTSTANDING_KEYS],
    /// Coarse monotonic time in ns until when every key of the bucket counts as written.
    pub crowded_until: u64,
    /// Tickets given: fingerprint in the upper, time (see [`crate::time::CLAIM_SHIFT`]) in the lower
    /// 16 bits; chosen by the fingerprint's last bits.
    pub claims: [u32; CLAIMS],
}

/// A key with a write outstanding.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct Outstanding {
    /// The key's [fingerprint()].
    pub fingerprint: u16,
    /// Writes that have not ended: 0 when free, [`Outstanding::SETTLES`] when only time ends it.
    pub writes: u16,
    /// The bucket's version when this element was given to the key, so that a late reply to a write
    /// that has settled does not end another one.
    pub generation: u32,
    /// Coarse monotonic time in ns at which the writes count as ended if nothing ends them before.
    pub until: u64,
}

impl Outstanding {
    /// Value of `writes` from which no reply ends the outstanding state: time does.
    pub const SETTLES: u16 = u16::MAX;
}

/// What tells the keys of a bucket apart in [`Control`]: 16 bits of the key's hash.
#[inline(always)]
#[must_use]
pub const fn fingerprint(hash: u64) -> u16 {
    hash as u16
}

const _: () = assert!(size_of::<Control>() == 80);
const _: () = assert!(core::mem::offset_of!(Control, lock) == 0);
