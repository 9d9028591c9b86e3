//! The cache: finding, storing and killing entries (`prestack_abi::cache` has the layout).

mod admit;
pub mod entry;
pub mod fill;
pub mod find;
pub mod kill;

use core::sync::atomic::{Ordering, compiler_fence};

use prestack_abi::cache::{Group, Index, Place};
use prestack_proto::swar;
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
    let at = opaque(u64::from(group)) * size_of::<Group>() as u64;
    (index as u64 + at) as *mut Group
}

/// The top bit of the byte of every way that is used under the tag of this place.
///
/// # Safety
///
/// `group` is part of an element of `INDEX`.
#[inline(always)]
pub unsafe fn matches(group: *const Group, place: Place) -> u64 {
    // SAFETY: the caller's.
    let (tags, upper) = unsafe {
        (
            (&raw const (*group).tags).read_volatile(),
            (&raw const (*group).upper).read_volatile(),
        )
    };
    swar::equal_all(tags, place.tag) & swar::equal_all(upper, place.upper)
}
