//! The answer that is kept for each connection.

use prestack_abi::config::Config;
use prestack_abi::translated::{AnswerRest, MAX_ANSWER, SHORT_ANSWER, Translated};
use prestack_proto::verifier::opaque;
use prestack_proto::window::Window;

use crate::maps::ANSWER_RESTS;

/// Words in the element itself, and in all.
const FIRST: u64 = SHORT_ANSWER as u64 / 8;
const ALL: u64 = MAX_ANSWER as u64 / 8;

/// Where the rest of the answer goes of the flow at this place. If only short ones are given, it is not used.
#[inline(always)]
pub fn rest(config: &Config, place: u32) -> Option<*mut AnswerRest> {
    ANSWER_RESTS.get_ptr_mut(if config.policy.room > SHORT_ANSWER as u64 {
        place
    } else {
        0
    })
}

/// Keeps the first `len` bytes of the window. The element is locked.
#[inline(always)]
pub fn keep(element: *mut Translated, rest: *mut AnswerRest, answer: &Window, len: u64) {
    for i in 0..FIRST {
        if 8 * i >= len {
            return;
        }
        // SAFETY: a map element that is locked, and in bounds.
        unsafe { (&raw mut (*element).answer[i as usize]).write_volatile(answer.word(8 * i)) };
    }
    for i in FIRST..ALL {
        if 8 * i >= len {
            return;
        }
        let word = answer.word(8 * i);
        // SAFETY: as above.
        unsafe { (&raw mut (*rest).words[(i - FIRST) as usize]).write_volatile(word) };
    }
}

/// A word of the answer. The element is locked.
#[inline(always)]
pub fn word(element: *mut Translated, rest: *mut AnswerRest, i: u64) -> u64 {
    // SAFETY: map elements, and in bounds. Opaque: the verifier has to see the position that is used checked.
    unsafe {
        let first = opaque(i);
        if first < FIRST {
            let words = (&raw const (*element).answer).cast::<u64>();
            return words.add(opaque(first) as usize).read_volatile();
        }
        let behind = opaque(i.wrapping_sub(FIRST));
        if behind < ALL - FIRST {
            let words = (&raw const (*rest).words).cast::<u64>();
            return words.add(opaque(behind) as usize).read_volatile();
        }
    }
    0
}
