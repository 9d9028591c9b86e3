//! Closing flows whose end was not seen: the client has vanished, and the kernel has given up. And no more waiting for
//! those on which memcached waits for its client.
//!
//! User space knows which flows have no socket any more, and which have one that is at rest, and tells here one of
//! them, as it was when it was looked at. The flow is left alone if a segment has come since: it may be another by now.
//!
//! What may happen at the same time: a segment of the flow is parsed (`busy` says so, and is held
//! meanwhile); a new connection takes the place (name and time are compared under the set's lock);
//! the kernel answers a stray with RST, which closes the flow as well (what it counts for is swapped, so
//! that it is given back once, and closing it twice does no harm).

use aya_ebpf::helpers::generated::bpf_skb_load_bytes;
use aya_ebpf::helpers::{bpf_spin_lock, bpf_spin_unlock};
use aya_ebpf::programs::TcContext;
use prestack_abi::config::Config;
use prestack_abi::flow::{Finding, Flow};
use prestack_proto::net::ETHERNET_LEN;

use super::table::{self, Retired};
use super::{doubt, flow};
use crate::atomic;
use crate::clock;
use crate::ledger::backend;
use crate::maps::TRANSLATIONS;

/// Does what the packet has found of a flow: closes it, or stops waiting for it. 1 if that was possible.
#[inline(always)]
pub fn end(ctx: &TcContext) -> i32 {
    let mut found = Finding::default();
    // SAFETY: the program's context, and as many bytes as there is room for. One step at a time: on 6.1 the
    // verifier loses sight of what was checked together.
    let loaded = unsafe {
        bpf_skb_load_bytes(
            ctx.skb.skb.cast(),
            ETHERNET_LEN as u32,
            (&raw mut found).cast(),
            size_of::<Finding>() as u32,
        )
    };
    if loaded != 0 {
        return 0;
    }
    let Some(config) = backend::config() else {
        return 0;
    };
    let Some(flow) = flow::at(found.place) else {
        return 0;
    };
    if found.what == Finding::IDLE {
        return i32::from(stop_waiting(config, &found));
    }
    match table::retire(found.name, found.place) {
        Retired::Gone => return 1,
        Retired::Unknown => return 0,
        Retired::Established => {}
    }
    let over_at = clock::now() + config.settle_ns;
    let last = last_sent(found.place);
    let mut is_ours = false;
    // SAFETY: a map element. A flow that is established keeps its place.
    unsafe {
        if atomic::swap(&raw mut (*flow).busy, 1) != 0 {
            return 0;
        }
        if is_same(flow, &found) && table::end(found.name, found.place, over_at) {
            flow::close(config, flow, found.place);
            end_translation(found.place, last, over_at);
            is_ours = true;
        }
        (&raw mut (*flow).busy).write_volatile(0);
    }
    i32::from(is_ours)
}

/// Whether nothing has happened to the flow since it was looked at.
#[inline(always)]
unsafe fn is_same(flow: *const Flow, found: &Finding) -> bool {
    // SAFETY: the caller's: a map element.
    unsafe {
        (*flow).asked == found.asked
            && (*flow).next == found.next
            && (*flow).acked == found.acked
            && (*flow).sent == found.sent
            && (&raw const (*flow).heard_at).read_volatile() == found.heard_at
    }
}

/// memcached has read all that came on the flow, has nothing left to send, and waits for more: the backend does not
/// wait for it any more. What the flow has sent may have been a write, and settles from now on. The flow stays in
/// doubt: its next byte is waited for again.
#[inline(always)]
fn stop_waiting(config: &Config, found: &Finding) -> bool {
    let Some(flow) = flow::at(found.place) else {
        return false;
    };
    let mut is_ours = false;
    // SAFETY: a map element. The names of two connections in turn at one place do not agree in all numbers.
    unsafe {
        if atomic::swap(&raw mut (*flow).busy, 1) != 0 {
            return false;
        }
        let is_waited_for = (&raw const (*flow).owes).read_volatile() == Flow::OWES_ANY;
        if is_waited_for && is_same(flow, found) {
            backend::be_quiet(config, (*flow).backend as u8);
            doubt::stop_owing(flow);
            is_ours = is_same(flow, found);
            if !is_ours {
                // Doubt that arises elsewhere at this moment may have found that the backend waited already.
                doubt::wait_for_any(flow);
            }
        }
        (&raw mut (*flow).busy).write_volatile(0);
    }
    is_ours
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
