//! Removing entries.

use prestack_abi::cache::{Index, Place};
use prestack_proto::swar;

use super::group_of;

/// Removes what is in the cache under the tag of `place`: the entry of the key, or of one that
/// could be taken for it. The bucket's lock is held.
///
/// # Safety
///
/// `index` points to the element of `INDEX` that `place` names.
#[inline(always)]
pub unsafe fn kill(index: *mut Index, place: Place) {
    let group = group_of(index, place.group);
    // SAFETY: the group is part of an element of `INDEX`; only the lock's holder writes it.
    unsafe {
        let tags = (&raw mut (*group).tags).read_volatile();
        let matches = swar::equal_all(tags, place.tag);
        if matches != 0 {
            (&raw mut (*group).tags).write_volatile(tags & !swar::widen(matches));
        }
    }
}
