//! Working memory of a program run, one per CPU.
//!
//! Programs run to their end on one CPU with softirqs off, so that nothing else uses it meanwhile.
//! What is kept here rather than in variables is also forgotten by the verifier, which keeps the
//! number of states it follows small.

use prestack_abi::requests::MULTI_KEYS;
use prestack_proto::checksum::window_sum;
use prestack_proto::text::request::Command;
use prestack_proto::window::Window;

use crate::ledger::backend::Arrival;
use crate::maps::SCRATCH;
use crate::packet::Headers;

/// Words of a packet that a reply may overwrite: a request of 320 bytes, headers included. The
/// longest single-key GET has 256 bytes and at most 78 before them.
pub const SAVED_WORDS: usize = 42;

/// Working memory.
#[repr(C, align(8))]
pub struct Scratch {
    /// The payload that is parsed.
    pub window: Window,
    /// The plain single-key GET that is to be answered.
    pub get: SingleGet,
    /// The command that was parsed last.
    pub command: Command,
    /// A reply that is put together.
    pub reply: Window,
    /// Request bytes under a reply that is being written.
    pub saved: [u64; SAVED_WORDS],
    /// Cursors of a walk over keys or lines.
    pub walk: Walk,
    /// Hashes of the keys that a multi-key GET missed, and the versions of their buckets.
    pub missed: [Missed; MULTI_KEYS],
}

/// A plain single-key GET: what the function that answers it, which the verifier checks on its own,
/// has to know.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct SingleGet {
    pub headers: Headers,
    pub door: Arrival,
    /// The memcached frame.
    pub frame: u64,
    /// Position of the payload behind the frame.
    pub payload: u64,
    /// Length of that payload.
    pub len: u64,
    /// Length of the key.
    pub key_len: u64,
    /// Hash of the key.
    pub hash: u64,
}

/// A key that is not in the cache.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Missed {
    /// Its hash.
    pub key: u64,
    /// Its bucket's version.
    pub version: u32,
    /// Explicit padding.
    pub reserved: u32,
}

/// Where a walk over a payload stands.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Walk {
    /// Position in the window.
    pub at: u64,
    /// End of what is walked, in the window.
    pub end: u64,
    /// Bytes in `reply`.
    pub out: u64,
    /// Keys seen.
    pub keys: u64,
    /// Keys that were not found.
    pub misses: u64,
    /// Tickets prepared in `missed`.
    pub tickets: u64,
    /// Hash of the last key seen.
    pub key: u64,
    /// Seed of the backend's keys.
    pub seed: u64,
    /// Coarse monotonic time in ns.
    pub now: u64,
    /// The backend.
    pub backend: u64,
    /// Its epoch.
    pub epoch: u64,
    /// 0 while the walk is as expected.
    pub odd: u64,
}

impl Walk {
    /// A walk over the window from `at` to `end`.
    ///
    /// # Safety
    ///
    /// `scratch` is this CPU's.
    #[inline(always)]
    pub unsafe fn start(
        scratch: *mut Scratch,
        at: u64,
        end: u64,
        seed: u64,
        now: u64,
        backend: u8,
        epoch: u32,
    ) {
        // SAFETY: the caller's. Volatile, or the compiler makes the zeros a call to memset.
        unsafe {
            let walk = &raw mut (*scratch).walk;
            (&raw mut (*walk).at).write_volatile(at);
            (&raw mut (*walk).end).write_volatile(end);
            (&raw mut (*walk).out).write_volatile(0);
            (&raw mut (*walk).keys).write_volatile(0);
            (&raw mut (*walk).misses).write_volatile(0);
            (&raw mut (*walk).tickets).write_volatile(0);
            (&raw mut (*walk).key).write_volatile(0);
            (&raw mut (*walk).seed).write_volatile(seed);
            (&raw mut (*walk).now).write_volatile(now);
            (&raw mut (*walk).backend).write_volatile(u64::from(backend));
            (&raw mut (*walk).epoch).write_volatile(u64::from(epoch));
            (&raw mut (*walk).odd).write_volatile(0);
        }
    }
}

/// The one's-complement sum of the first `len` bytes of this CPU's window.
#[inline(always)]
pub fn sum_of_window(len: u64) -> u16 {
    prestack_sum(0, len) as u16
}

/// The one's-complement sum of the first `len` bytes of this CPU's reply.
#[inline(always)]
pub fn sum_of_reply(len: u64) -> u16 {
    prestack_sum(1, len) as u16
}

/// A global function (by its unmangled name): the verifier checks it once, for all arguments, and
/// not again on every path to it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_sum(reply: u64, len: u64) -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    // SAFETY: this CPU's scratch.
    let window = unsafe {
        if reply != 0 {
            &(*scratch).reply
        } else {
            &(*scratch).window
        }
    };
    u64::from(window_sum(window, len))
}

/// This CPU's working memory.
#[inline(always)]
pub fn scratch() -> Option<*mut Scratch> {
    SCRATCH.get_ptr_mut(0)
}
