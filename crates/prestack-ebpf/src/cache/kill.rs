//! Removing entries.

use prestack_abi::cache::{Index, Place};
use prestack_proto::swar;

use super::{group_of, matches};
use crate::lock::{lock, unlock};
use crate::maps::{self, INDEX};

/// Removes what is in the cache at `place`: the entry of the key, or of one that could be taken for it.
#[inline(always)]
pub fn kill(place: Place) {
    let (Some(held), Some(index)) = (maps::lock(place.bucket), INDEX.get_ptr_mut(place.bucket))
    else {
        return;
    };
    // SAFETY: the index is that of the lock's bucket; all calls between the lock and its release are
    // inlined.
    unsafe {
        lock(held);
        remove(index, place);
        unlock(held);
    }
}

/// Whether there is an entry that [`kill`] would remove.
#[inline(always)]
pub fn has(place: Place) -> bool {
    let Some(index) = INDEX.get_ptr_mut(place.bucket) else {
        return false;
    };
    // SAFETY: the group is part of an element of `INDEX`.
    unsafe { matches(group_of(index, place.group), place) != 0 }
}

/// [`kill`] while the bucket's lock is held.
///
/// # Safety
///
/// `index` points to the element of `INDEX` that `place` names.
#[inline(always)]
unsafe fn remove(index: *mut Index, place: Place) {
    let group = group_of(index, place.group);
    // SAFETY: the group is part of an element of `INDEX`; only the lock's holder writes it.
    unsafe {
        let matches = matches(group, place);
        if matches != 0 {
            let tags = (&raw mut (*group).tags).read_volatile();
            (&raw mut (*group).tags).write_volatile(tags & !swar::widen(matches));
        }
    }
}
