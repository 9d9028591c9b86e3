//! What belongs to a flow beside it, so that requests can be answered on it.

use prestack_abi::config::Config;
use prestack_abi::flow::Flow;
use prestack_abi::translated::Translated;
use prestack_translate::{Ends, Translation};

use crate::clock;
use crate::lock::{lock, unlock};
use crate::maps::TRANSLATIONS;
use crate::tcp::{flow, table};

/// How long in ns a connection on which requests were answered is translated after the kernel's FIN, unless
/// both ends are seen to have got everything: what is lost is sent again for about as long
/// (`TCP_TIMEWAIT_LEN` in include/net/tcp.h).
const LINGER_NS: u64 = 60_000_000_000;
/// How long in ns it is translated after the kernel has sent something else once it has closed, while the client lacks
/// something: it waits no longer until it sends that again (`TCP_RTO_MAX` there, and some more). A client without room
/// is asked for as long as it answers.
const AGAIN_NS: u64 = 125_000_000_000;
/// How long in ns it is translated at least once they are. The acknowledgement of the last FIN may still be lost, which
/// is then sent again: four times in this time (after 200, 600, 1,400 and 3,000 ms, by `TCP_RTO_MIN` there).
const LAST_NS: u64 = 4_000_000_000;

/// Whether connections are translated at all.
#[inline(always)]
pub fn is_on(config: &Config) -> bool {
    config.policy.room != 0
}

/// The element of the flow at this place.
#[inline(always)]
pub fn at(place: u32) -> Option<*mut Translated> {
    TRANSLATIONS.get_ptr_mut(place)
}

/// The state of an element.
#[inline(always)]
pub fn state(element: *mut Translated) -> u32 {
    // SAFETY: a map element. Volatile: another CPU may be changing it.
    unsafe { (&raw const (*element).state).read_volatile() }
}

/// Calls `with` while the element is locked.
#[inline(always)]
pub fn locked<T>(
    element: *mut Translated,
    with: impl FnOnce(*mut Translated, &mut Ends, &mut Translation) -> T,
) -> T {
    // SAFETY: a map element; `with` is inlined and calls nothing. Whoever uses these two holds the lock.
    unsafe {
        lock(&raw mut (*element).lock);
        let result = with(element, &mut (*element).ends, &mut (*element).translation);
        unlock(&raw mut (*element).lock);
        result
    }
}

/// memcached has answered a GET on the flow at this place.
#[inline(always)]
pub fn earn(config: &Config, place: u32) {
    if is_on(config)
        && let Some(element) = at(place)
        && state(element) == Translated::NEW
    {
        // SAFETY: a map element. Only `tx` writes it, and the kernel sends one segment after the other.
        unsafe { (&raw mut (*element).state).write_volatile(Translated::EARNED) };
    }
}

/// The place is a new flow's.
#[inline(always)]
pub fn begin(config: &Config, place: u32) {
    if !is_on(config) {
        return;
    }
    if let Some(element) = at(place) {
        locked(element, |element, _, translation| {
            // SAFETY: a map element that is locked.
            unsafe {
                (&raw mut (*element).state).write_volatile(Translated::NEW);
                (&raw mut (*element).fins).write_volatile(0);
                (&raw mut (*element).over_at).write_volatile(0);
            }
            translation.is_active = 0;
        });
    }
}

/// The flow at this place is closed, and free from this time on.
#[inline(always)]
pub fn close(config: &Config, place: u32, over_at: u64) {
    if is_on(config)
        && let Some(element) = at(place)
    {
        // SAFETY: a map element.
        unsafe { (&raw mut (*element).over_at).write_volatile(over_at) };
    }
}

/// Whether the connection of the flow at this place is translated.
#[inline(always)]
pub fn is_translated(config: &Config, place: u32) -> bool {
    // Locked: an answer that is given at this moment makes it so.
    is_on(config)
        && at(place)
            .is_some_and(|element| locked(element, |_, _, translation| translation.is_active) != 0)
}

/// The kernel has closed the connection of the flow at this place, and may send again what the client lacks: if
/// it is translated, it stays.
#[inline(always)]
pub fn linger(config: &Config, place: u32) {
    if is_translated(config, place) {
        end_at(config, place, clock::now() + LINGER_NS);
    }
}

/// Both ends of the connection of the flow at this place have got everything.
#[inline(always)]
pub fn end(config: &Config, place: u32, now: u64) {
    if let Some(flow) = flow::at(place) {
        // SAFETY: a map element.
        unsafe {
            // Through a wildcard it has ended unseen, and nothing that it owes is waited for any more.
            if (&raw const (*flow).state).read_volatile() != Flow::CLOSED {
                flow::close(config, flow, place);
            }
        }
    }
    end_at(config, place, now + LAST_NS.max(config.settle_ns));
}

/// The kernel sends something again on the closed connection of the flow at this place.
#[inline(always)]
pub fn linger_on(config: &Config, place: u32, now: u64) {
    end_at(config, place, now + AGAIN_NS);
}

#[inline(always)]
fn end_at(config: &Config, place: u32, over_at: u64) {
    table::mark_over(place, over_at);
    close(config, place, over_at);
}

/// An end sends its FIN, if `is_fin`.
#[inline(always)]
pub fn note_fin(element: *mut Translated, is_fin: bool, whose: u32) {
    if is_fin {
        // SAFETY: a map element that is locked.
        unsafe { (*element).fins |= whose };
    }
}

/// What [`is_wanting`] says.
pub const WANTING: u64 = 4;

/// [`WANTING`] if the connection is closed, of which the kernel has sent its FIN before, and the client lacks something.
#[inline(always)]
pub fn is_wanting(element: *mut Translated, ends: &Ends, translation: &Translation) -> u64 {
    // SAFETY: a map element that is locked.
    let (fins, over_at) = unsafe { ((*element).fins, (*element).over_at) };
    let is_wanting =
        fins & Translated::KERNEL != 0 && over_at != 0 && translation.told != ends.sent;
    if is_wanting { WANTING } else { 0 }
}

/// What [`has_ended`] says.
pub const ENDED: u64 = 2;

/// [`ENDED`] if both ends have sent their FIN, and have got that of the other.
#[inline(always)]
pub fn has_ended(element: *mut Translated, ends: &Ends, translation: &Translation) -> u64 {
    // SAFETY: a map element that is locked.
    let fins = unsafe { (*element).fins };
    let has_ended = fins == Translated::CLIENT | Translated::KERNEL
        && ends.acked == ends.next
        && translation.told == ends.sent;
    if has_ended { ENDED } else { 0 }
}
