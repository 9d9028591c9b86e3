//! The memory of requests that were let through to memcached and have not been answered.
//!
//! A request is known by its *name*: a hash of its flow and UDP request id. While a name is
//! remembered no ticket is given under it, so an old reply is never taken for a new one.

use crate::control::bpf_spin_lock;

/// Requests in a set.
pub const SET_WAYS: usize = 4;
/// Sets in the `REQUESTS` map (a power of two): 4,096 requests.
pub const REQUEST_SETS: usize = 1024;
/// Keys of one multi-key GET that can hold a ticket.
pub const MULTI_KEYS: usize = 48;
/// log₂ of the unit in ns of [`Request::seen`] (about 1.05 ms).
pub const SEEN_SHIFT: u32 = 20;
/// Stamps for forgotten requests in a set (a power of two).
pub const LOST_STAMPS: usize = 64;
/// log₂ of the unit of those stamps in nanoseconds (about 1.07 s).
pub const LOST_SHIFT: u32 = 30;

/// What a remembered request was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// A place that is free.
    Free = 0,
    /// Text `get` or `gets` of one key: answered when a reply ends in `END\r\n`.
    Get = 1,
    /// Text `get` or `gets` of several keys that has tickets in `KEY_TICKETS`.
    MultiGet = 2,
    /// `mg`: answered by one message; its key is in `REQUEST_KEYS`.
    Meta = 3,
    /// Binary GET: answered by one message; its key is in `REQUEST_KEYS`.
    Binary = 4,
    /// A write of one key, answered by one datagram.
    Write = 5,
    /// A command answered by one message, if at all, that ends nothing: it writes nothing, or it is a write that
    /// settles, for its answer cannot be told from another's.
    Other = 6,
    /// A datagram whose answers cannot be counted: forgotten by time alone.
    Endless = 7,
    /// `flush_all`, answered by one datagram.
    Flush = 8,
    /// One that was not understood. memcached may be waiting for more of it: what it does in the end
    /// is done when it answers.
    Odd = 9,
}

impl Kind {
    /// Whether this (a [`Kind`] as `u8`) is a GET of some kind.
    #[inline(always)]
    #[must_use]
    pub const fn is_get(kind: u8) -> bool {
        kind != Self::Free as u8 && kind <= Self::Binary as u8
    }

    /// Whether this (a [`Kind`] as `u8`) may change every item, and is heeded when it comes and when it is
    /// answered.
    #[inline(always)]
    #[must_use]
    pub const fn may_change_all(kind: u8) -> bool {
        kind >= Self::Flush as u8
    }
}

/// A request that memcached has not answered yet.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Request {
    /// Hash of the key (`Get`, `Meta`, `Binary`, `Write`), the coarse monotonic time in ns that a flush with a
    /// delay is asked for (`Flush`, `Odd`), else 0.
    pub key: u64,
    /// Coarse monotonic time in ns at which the request arrived; of several of the name, the last, or the first
    /// since a flush with a delay.
    pub time: u64,
    /// The bucket's version then (`Get`, `Meta`, `Binary`), the serial number of the tickets (`MultiGet`), the
    /// generation of the outstanding write (`Write`), or when the last request of the name came that may change
    /// every item (`Flush`, `Odd`), in the unit of `seen`.
    pub version: u32,
    /// The backend's epoch then.
    pub epoch: u32,
    /// When a request of this name arrived last, in units of 2^[`SEEN_SHIFT`] ns. One that is quiet
    /// counts as older than it is, so that it is forgotten soon.
    pub seen: u32,
    /// A [`Kind`].
    pub kind: u8,
    /// Requests of this name that are unanswered: above 1, replies cannot be told apart.
    pub unanswered: u8,
    /// Non-zero if a ticket was given (`Get`, `Meta`, `Binary`), or the number of keys with one (`MultiGet`).
    pub tickets: u8,
    /// Which backend was asked.
    pub backend: u8,
}

/// Stamps of requests that were let go: when such a one was seen last (in units of 2^[`LOST_SHIFT`] ns,
/// modulo 256; 0 for never). The next request that comes under one that is old clears it. If none does for minutes,
/// it seems young when the time has wrapped around, which costs tickets and no more.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Stamps {
    /// Of those that were forgotten in a full set: until that is old, no ticket is given under any name
    /// that shares the stamp.
    pub lost: u8,
    /// Of those that were remembered under a young stamp of `lost`: the reply that has ended such a one may
    /// have been its predecessor's, and its own still be under way.
    pub unsure: u8,
    /// Of those that were let through without being remembered, because their source may not be served. It
    /// concerns the writes of such sources alone.
    pub strange: u8,
    /// Explicit padding.
    pub reserved: u8,
}

/// An element of the `REQUESTS` map. Whoever remembers a request looks at three cache lines of it: the names,
/// a request and its stamps.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub struct RequestSet {
    /// Held to change the set.
    pub lock: bpf_spin_lock,
    /// Raised with every request that is remembered: the serial number of its tickets.
    pub serial: u32,
    /// Names of `requests`; 0 when free.
    pub names: [u64; SET_WAYS],
    /// Explicit padding.
    pub reserved: [u64; 3],
    /// The requests. When there is no place left the oldest is forgotten (of the endless ones, if there are
    /// any; an odd one last).
    pub requests: [Request; SET_WAYS],
    /// The stamps, by name.
    pub stamps: [Stamps; LOST_STAMPS],
}

/// A ticket for one key of a multi-key GET.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct KeyTicket {
    /// Hash of the key and serial number, [sealed](KeyTicket::seal).
    pub key: u64,
    /// The bucket's version when the request arrived, in the upper half, and the serial number of the
    /// request in the lower: one word, so that both are of one request.
    pub version: u64,
}

impl KeyTicket {
    /// The ticket of the request with this serial number for the key with this hash. It is written
    /// when another request may already have taken the place of the one it is for: what is read is a
    /// ticket only if both words show the serial number of the request.
    #[inline(always)]
    #[must_use]
    pub const fn new(key: u64, version: u32, serial: u32) -> Self {
        Self {
            key: Self::seal(key, serial),
            version: (version as u64) << 32 | serial as u64,
        }
    }

    /// The word that stands for a key in the tickets of a request.
    #[inline(always)]
    #[must_use]
    pub const fn seal(key: u64, serial: u32) -> u64 {
        // An odd factor: other serial numbers give other words.
        key ^ (serial as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

/// An element of the `KEY_TICKETS` map.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct KeyTickets {
    /// The tickets; the request says how many are used.
    pub keys: [KeyTicket; MULTI_KEYS],
}

/// An element of the `REQUEST_KEYS` map: the key of a request whose reply does not name it. It is
/// written when another request may already have taken the place of the one it is for: it is that
/// request's key only if it has the hash that the request holds.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RequestKey {
    /// Length in bytes.
    pub len: u64,
    /// The key's bytes; those behind it are anything.
    pub words: [u64; REQUEST_KEY_WORDS],
}

/// Words of the longest key (250 bytes).
pub const REQUEST_KEY_WORDS: usize = 32;

const _: () = assert!(size_of::<Request>() == 32);
const _: () = assert!(size_of::<RequestSet>() == 448);
const _: () = assert!(core::mem::offset_of!(RequestSet, requests) == 64);
const _: () = assert!(core::mem::offset_of!(RequestSet, lock) == 0 && size_of::<Stamps>() == 4);
const _: () = assert!(REQUEST_SETS.is_power_of_two() && LOST_STAMPS.is_power_of_two());
