//! The cache: finding, storing and killing entries (`prestack_abi::cache` has the layout).

pub mod entry;
pub mod fill;
pub mod find;
pub mod kill;

use core::sync::atomic::{Ordering, compiler_fence};

use prestack_abi::cache::{Group, Index, LINE_GROUPS};

use prestack_proto::verifier::opaque;

/// Keeps loads and stores on their side of this point. The architectures supported (x86-64) keep
/// the order of loads among loads and of stores among stores, so the compiler alone has to be told.
#[inline(always)]
pub fn fence() {
    compiler_fence(Ordering::SeqCst);
}

/// The group with this number, which is below `GROUPS`.
#[inline(always)]
pub fn group_of(index: *mut Index, group: u32) -> *mut Group {
    let group = opaque(u64::from(group));
    let line = u64::from(group >= LINE_GROUPS as u64);
    // The second line's head comes between the third and the fourth group.
    let at = 16 + group * 16 + line * 16;
    (index as u64 + at) as *mut Group
}

const _: () = assert!(size_of::<Group>() == 16 && LINE_GROUPS == 3);
const _: () = assert!(core::mem::offset_of!(prestack_abi::cache::Line, groups) == 16);
