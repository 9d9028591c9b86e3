//! Working memory of a program run, one per CPU.
//!
//! Programs run to their end on one CPU with softirqs off, so that nothing else uses it meanwhile.
//! What is kept here rather than in variables is also forgotten by the verifier, which keeps the
//! number of states it follows small.

use prestack_abi::control::{OUTSTANDING_KEYS, Outstanding};
use prestack_abi::requests::{MULTI_KEYS, REQUEST_KEY_WORDS, Request};
use prestack_proto::checksum::window_sum_from;
use prestack_proto::stream::Element;
use prestack_proto::text::meta::{self, HeadCursor};
use prestack_proto::text::request::Command;
use prestack_proto::window::{Source, Window};

use crate::cache::find::Kept;
use crate::clock;
use crate::hits::growth::Refused;
use crate::hits::numbered::Numbered;
use crate::maps::SCRATCH;
use crate::packet::Headers;
use crate::tcp::segment::Segment;

/// Words of a packet that a reply may overwrite: a request of 336 bytes, headers included. The
/// longest single-key GET has 256 bytes and at most 78 before them.
pub const SAVED_WORDS: usize = 42;

/// Most keys of a GET that is answered in place.
pub const KEPT: usize = 32;

/// What the steps leave one another that answer a GET in place.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct InPlace {
    /// The words of the packet before its payload, as it arrived.
    pub head: [u64; 7],
    /// What the request has beside its key: see the form.
    pub words: [u64; 2],
    /// The entries of its keys.
    pub kept: [Kept; KEPT],
}

/// Working memory.
#[repr(C, align(8))]
pub struct Scratch {
    /// The datagram.
    pub located: Located,
    /// The payload that is parsed.
    pub window: Window,
    /// The command that was parsed last.
    pub command: Command,
    /// The key of that command, or of the reply that is learnt from.
    pub key: Window,
    /// The item that is served, or that a reply shows.
    pub item: Item,
    /// The request that the reply answers.
    pub request: Request,
    /// Its place in `REQUESTS`.
    pub slot: u64,
    /// The first line of a reply to `mg`, and how far it is written.
    pub head: Window,
    pub shown: Shown,
    /// A reply that is put together.
    pub reply: Window,
    /// Request bytes under a reply that is being written.
    pub saved: [u64; SAVED_WORDS],
    /// Cursors of a walk over keys or lines.
    pub walk: Walk,
    /// The keys and generations of two writes over UDP whose replies cannot be told from others any more: of
    /// one that was remembered, and of the one that has come. A key of 0 for none.
    pub doubted: [[u64; 2]; 2],
    /// The marks of a bucket as they were before its lock was taken.
    pub marks: [Outstanding; OUTSTANDING_KEYS],
    /// An answer over TCP.
    pub answer: Window,
    /// By how much a packet could not grow for one.
    pub refused: Refused,
    /// The segment whose numbers are translated.
    pub numbered: Numbered,
    /// The TCP segment that is followed.
    pub segment: Segment,
    /// What was found in it.
    pub element: Element,
    /// A GET that is answered in place, but for the plain one.
    pub in_place: InPlace,
    /// Hashes of the keys that a multi-key GET missed, and the versions of their buckets.
    pub missed: [Missed; MULTI_KEYS],
}

/// A datagram, found once for all steps that deal with it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Located {
    /// Where its headers are, and what they say.
    pub headers: Headers,
    /// The door's backend and flags.
    pub backend: u64,
    pub flags: u64,
    /// The memcached frame.
    pub frame: u64,
    /// Position and length of the payload behind the frame.
    pub payload: u64,
    pub len: u64,
    /// Which network of the allow list the source is in, as in `Datagram`.
    pub network: u64,
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

/// The writing of the first line of a reply to `mg`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Shown {
    /// What is known of the item.
    pub item: meta::Item,
    /// How far it is written.
    pub cursor: HeadCursor,
    /// Non-zero once all flags have been heeded.
    pub is_complete: u64,
}

/// An item and what is known of it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Item {
    /// In which protocol a reply showed it: one of [`Item::NONE`] and the following.
    pub shown: u64,
    /// Position of the key in the window (text replies).
    pub key: u64,
    /// Length of the key.
    pub key_len: u64,
    /// Position of the data in the window.
    pub data: u64,
    /// Length of the data.
    pub data_len: u64,
    /// What is known (`EntryHeader::FLAGS` and the following).
    pub knows: u64,
    /// Client flags.
    pub flags: u64,
    /// CAS number.
    pub cas: u64,
    /// Non-zero if the command's base64 key is the only way to write it.
    pub is_canonical: u64,
    /// Non-zero if there is a line feed in the command's key, which is written in base64.
    pub has_line_end: u64,
}

impl Item {
    /// The reply shows no item that can be stored.
    pub const NONE: u64 = 0;
    /// A reply to text `get` or `gets`.
    pub const TEXT: u64 = 1;
    /// A reply to `mg`.
    pub const META: u64 = 2;
    /// A binary reply.
    pub const BINARY: u64 = 3;
}

/// Where a walk over a payload stands.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Walk {
    /// Position in the window.
    pub at: u64,
    /// End of what is walked, in the window.
    pub end: u64,
    /// Where the reply starts in `reply`.
    pub start: u64,
    /// Where it ends.
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
    /// Non-zero once a `flush_all` has been among the commands: when the last of them is due in coarse monotonic time
    /// in ns, 1 for at once.
    pub flushes: u64,
    /// What the walk goes over: one of [`Walk::COMMANDS`] and the following.
    pub over: u64,
    /// The protocol of the commands so far (`Flow::TEXT`, `Flow::BINARY`), 0 before the first.
    pub protocol: u64,
    /// Non-zero if replies may fill the cache.
    pub may_fill: u64,
}

impl Walk {
    /// Whole commands, one after the other.
    pub const COMMANDS: u64 = 0;
    /// The keys of a text `get`.
    pub const KEYS: u64 = 1;
    /// The keys of a text `gets`.
    pub const KEYS_CAS: u64 = 2;
    /// The one key of an `mg`.
    pub const META: u64 = 3;
    /// The one key of a binary GET.
    pub const BINARY: u64 = 4;
    /// The one command, a write.
    pub const WRITE: u64 = 5;

    /// A walk over the window from `at` to `end`.
    ///
    /// # Safety
    ///
    /// `scratch` is this CPU's.
    #[inline(always)]
    pub unsafe fn start(
        scratch: *mut Scratch,
        over: u64,
        at: u64,
        end: u64,
        backend: u8,
        seed: u64,
    ) {
        // SAFETY: the caller's. Volatile, or the compiler makes the zeros a call to memset.
        unsafe {
            let walk = &raw mut (*scratch).walk;
            (&raw mut (*walk).at).write_volatile(at);
            (&raw mut (*walk).end).write_volatile(end);
            (&raw mut (*walk).start).write_volatile(0);
            (&raw mut (*walk).out).write_volatile(0);
            (&raw mut (*walk).keys).write_volatile(0);
            (&raw mut (*walk).misses).write_volatile(0);
            (&raw mut (*walk).tickets).write_volatile(0);
            (&raw mut (*walk).key).write_volatile(0);
            (&raw mut (*walk).seed).write_volatile(seed);
            (&raw mut (*walk).now).write_volatile(clock::now());
            (&raw mut (*walk).backend).write_volatile(u64::from(backend));
            (&raw mut (*walk).epoch).write_volatile(0);
            (&raw mut (*walk).odd).write_volatile(0);
            (&raw mut (*walk).flushes).write_volatile(0);
            (&raw mut (*walk).over).write_volatile(over);
            (&raw mut (*walk).protocol).write_volatile(0);
            (&raw mut (*walk).may_fill).write_volatile(0);
        }
    }
}

/// Copies a key from one window to another, and garbage behind it.
#[inline(always)]
pub fn copy_key(source: &Window, at: u64, len: u64, target: &mut Window, to: u64) {
    let (at, to) = (source.forgotten(at), source.forgotten(to));
    let len = source.forgotten(len);
    for i in 0..REQUEST_KEY_WORDS as u64 {
        if 8 * i >= len {
            break;
        }
        target.set_word(to + 8 * i, source.word(at + 8 * i));
    }
}

/// The one's-complement sum of `len` bytes from `at` of this CPU's reply.
#[inline(always)]
pub fn sum_of_reply(at: u64, len: u64) -> u16 {
    prestack_sum(at, len) as u16
}

/// A global function (by its unmangled name): the verifier checks it once, for all arguments, and
/// not again on every path to it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_sum(at: u64, len: u64) -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    // SAFETY: this CPU's scratch.
    u64::from(window_sum_from(unsafe { &(*scratch).reply }, at, len))
}

/// This CPU's working memory.
#[inline(always)]
pub fn scratch() -> Option<*mut Scratch> {
    SCRATCH.get_ptr_mut(0)
}
