//! Connections on which requests are answered before the kernel's socket sees them.

use prestack_translate::{Ends, Translation};

use crate::control::bpf_spin_lock;

/// Bytes of the longest answer (a multiple of 8): as much as a segment has in 1,500 bytes. One is kept for each
/// connection, for it may have to be sent again.
pub const MAX_ANSWER: usize = 1472;
/// Bytes of it that are kept with what belongs to the flow.
pub const SHORT_ANSWER: usize = 256;

/// An element of the `TRANSLATIONS` map: what belongs to the flow at the same place in `FLOWS` beside it.
/// All zeros is a flow on which nothing was answered.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub struct Translated {
    /// Held to read or change what follows, `state` excepted.
    pub lock: bpf_spin_lock,
    /// [`Translated::NEW`] and the following. `tx` writes it.
    pub state: u32,
    /// Where the kernel's socket is, in its own numbers.
    pub ends: Ends,
    /// Coarse monotonic time in ns from which the element is of no use any more, for its connection is
    /// closed; 0 while it is open.
    pub over_at: u64,
    /// Requests that were answered.
    pub answers: u64,
    /// Which ends have closed the connection: [`Translated::CLIENT`], [`Translated::KERNEL`].
    pub fins: u32,
    /// Explicit padding.
    pub reserved: u32,
    /// How the numbers of the two ends differ.
    pub translation: Translation,
    /// The last answer, or its first [`SHORT_ANSWER`] bytes.
    pub answer: [u64; SHORT_ANSWER / 8],
}

/// An element of the `ANSWER_RESTS` map: what is behind the first [`SHORT_ANSWER`] bytes of the last answer of the
/// flow at the same place. The lock of its [`Translated`] is held to read or change it.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub struct AnswerRest {
    /// The bytes.
    pub words: [u64; (MAX_ANSWER - SHORT_ANSWER) / 8],
}

impl Translated {
    /// memcached has not answered a GET on it yet.
    pub const NEW: u32 = 0;
    /// It has, and what the two ends have agreed to is to be found out.
    pub const EARNED: u32 = 1;
    /// Requests may be answered, and all segments have to come by.
    pub const READY: u32 = 2;
    /// The two ends have agreed to something with which nothing can be answered.
    pub const REFUSED: u32 = 3;

    /// The client has sent its FIN.
    pub const CLIENT: u32 = 1;
    /// The kernel has.
    pub const KERNEL: u32 = 2;

    /// Whether a request was ever answered, so that the connection breaks if its segments are not
    /// translated.
    #[must_use]
    pub const fn is_translated(&self) -> bool {
        self.translation.is_active != 0
    }
}

const _: () = assert!(size_of::<Translated>() == 448);
const _: () = assert!(size_of::<AnswerRest>() == MAX_ANSWER - SHORT_ANSWER);
const _: () = assert!(core::mem::offset_of!(Translated, translation) == 64);
