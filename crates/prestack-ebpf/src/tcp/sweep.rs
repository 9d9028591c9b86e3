//! Closing flows whose end was not seen: the client has vanished, and the kernel has given up.
//!
//! User space knows which flows have no socket any more, and tells here one of them, as it was when it was
//! looked at. The flow is left alone if a segment has come since: it may be another by now.
//!
//! What may happen at the same time: a segment of the flow is parsed (`busy` says so, and is held
//! meanwhile); a new connection takes the place (name and time are compared under the set's lock);
//! the kernel answers a stray with RST, which closes the flow as well (what it counts for is swapped, so
//! that it is given back once, and closing it twice does no harm).

use aya_ebpf::helpers::generated::bpf_skb_load_bytes;
use aya_ebpf::helpers::{bpf_spin_lock, bpf_spin_unlock};
use aya_ebpf::programs::TcContext;
use prestack_abi::flow::{Dead, Flow};
use prestack_proto::net::ETHERNET_LEN;

use super::flow;
use super::table::{self, Retired};
use crate::atomic;
use crate::clock;
use crate::ledger::backend;
use crate::maps::TRANSLATIONS;

/// Closes the flow that the packet names. 1 if that was possible.
#[inline(always)]
pub fn close(ctx: &TcContext) -> i32 {
    let mut dead = Dead::default();
    // SAFETY: the program's context, and as many bytes as there is room for. One step at a time: on 6.1 the
    // verifier loses sight of what was checked together.
    let loaded = unsafe {
        bpf_skb_load_bytes(
            ctx.skb.skb.cast(),
            ETHERNET_LEN as u32,
            (&raw mut dead).cast(),
            size_of::<Dead>() as u32,
        )
    };
    if loaded != 0 {
        return 0;
    }
    let Some(config) = backend::config() else {
        return 0;
    };
    let Some(flow) = flow::at(dead.place) else {
        return 0;
    };
    match table::retire(dead.name, dead.place) {
        Retired::Gone => return 1,
        Retired::Unknown => return 0,
        Retired::Established => {}
    }
    let over_at = clock::now() + config.settle_ns;
    let last = last_sent(dead.place);
    let mut is_ours = false;
    // SAFETY: a map element. A flow that is established keeps its place.
    unsafe {
        if atomic::swap(&raw mut (*flow).busy, 1) != 0 {
            return 0;
        }
        let is_same = (*flow).asked == dead.asked
            && (*flow).next == dead.next
            && (*flow).acked == dead.acked
            && (*flow).sent == dead.sent;
        if is_same && table::end(dead.name, dead.place, over_at) {
            flow::close(config, flow, dead.place, Flow::CLOSED);
            end_translation(dead.place, last, over_at);
            is_ours = true;
        }
        (&raw mut (*flow).busy).write_volatile(0);
    }
    i32::from(is_ours)
}

/// Where the kernel's socket was of the connection that may be translated at this place: another connection is
/// somewhere else.
#[inline(always)]
fn last_sent(place: u32) -> u32 {
    let Some(translated) = TRANSLATIONS.get_ptr_mut(place) else {
        return 0;
    };
    // SAFETY: a map element.
    unsafe { (&raw const (*translated).ends.sent).read_volatile() }
}

/// Nothing of the connection has to be translated from this time on, unless there is another one by now.
#[inline(always)]
fn end_translation(place: u32, last: u32, over_at: u64) {
    let Some(translated) = TRANSLATIONS.get_ptr_mut(place) else {
        return;
    };
    // SAFETY: a map element; nothing is called under its lock.
    unsafe {
        bpf_spin_lock((&raw mut (*translated).lock).cast());
        if (*translated).ends.sent == last && (*translated).over_at == 0 {
            (*translated).over_at = over_at;
        }
        bpf_spin_unlock((&raw mut (*translated).lock).cast());
    }
}
