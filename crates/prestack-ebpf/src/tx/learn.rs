//! What a UDP reply teaches.

use aya_ebpf::helpers::generated::bpf_skb_load_bytes;
use aya_ebpf::programs::TcContext;
use prestack_abi::cache::MAX_REPLY;
use prestack_abi::config::Config;
use prestack_abi::requests::{KeyTicket, Kind, MULTI_KEYS, Request};
use prestack_proto::hash::{backend_seed, scan_key};
use prestack_proto::net::UDP_LEN;
use prestack_proto::text::reply::{END, END_LEN, Value, is_end, is_value, value};
use prestack_proto::udp::{FRAME_LEN, Frame};
use prestack_proto::verifier::opaque;
use prestack_proto::window::Window;

use crate::cache::fill::{self, Ticket, fill};
use crate::ledger::requests::{self, Reply};
use crate::ledger::{backend, tickets, writes};
use crate::maps::{KEY_TICKETS, count};
use crate::packet::Headers;
use crate::scratch::{Scratch, scratch};

/// Learns from a datagram of memcached's, which answers the request of this name.
#[inline(never)]
pub fn from_reply(ctx: &TcContext, headers: &Headers, udp_len: u64, frame: Frame, name: u64) {
    let (Some(scratch), Some(config)) = (scratch(), backend::config()) else {
        return;
    };
    let around = (UDP_LEN + FRAME_LEN) as u64;
    let len = udp_len.wrapping_sub(around);
    let is_whole = frame.is_single() && load(ctx, headers.l4 + around, len, scratch);
    // SAFETY: this CPU's scratch.
    let window = unsafe { &(*scratch).window };
    let item = if is_whole {
        value(window, 0, len)
    } else {
        None
    };
    // memcached answers a GET of several keys with one message for each hit; the last one, or one of
    // its own, ends in `END`. Only a message in one datagram shows that: data may end in `END` too.
    let ends = match &item {
        Some(item) => is_end(window, item.next, len),
        None => is_whole && !is_value(window, 0),
    };
    let ends_message = frame.sequence() + 1 >= frame.count();
    let reply = Reply {
        ends_one: if item.is_some() { ends } else { ends_message },
        ends_many: ends,
        ends_message,
        is_split: !frame.is_single(),
    };
    let Some((request, slot)) = requests::answered(name, reply) else {
        return;
    };
    if request.kind == Kind::Write as u8 {
        // A reply whose owner is in doubt ends nothing.
        if request.unanswered == 1 && frame.is_single() {
            writes::ended(config, request.key, request.version);
        }
    } else if request.kind <= Kind::MultiGet as u8 {
        learn(config, &request, slot, item, len, scratch);
    }
}

/// Loads the payload into the window; a longer one than can be stored is not looked at.
#[inline(always)]
fn load(ctx: &TcContext, at: u64, len: u64, scratch: *mut Scratch) -> bool {
    if len == 0 || len > MAX_REPLY as u64 {
        return false;
    }
    // SAFETY: this CPU's scratch; the window is longer than MAX_REPLY.
    unsafe {
        let window = (*scratch).window.start().cast();
        bpf_skb_load_bytes(ctx.skb.skb.cast(), at as u32, window, Window::size(len)) == 0
    }
}

/// The reply to a GET: an item fills the cache if there is a ticket for it; anything else means
/// that memcached does not have the key, or has nothing that can be stored.
#[inline(always)]
fn learn(
    config: &Config,
    request: &Request,
    slot: requests::Slot,
    item: Option<Value>,
    len: u64,
    scratch: *mut Scratch,
) {
    let Some(item) = item else {
        if request.kind == Kind::Get as u8 && request.key != 0 {
            fill::drop_key(config, request.key);
            tickets::release(config, request.key);
        }
        return;
    };
    // SAFETY: this CPU's scratch.
    let window = unsafe { &mut (*scratch).window };
    let seed = backend_seed(config.seed, request.backend);
    let key = scan_key(window, item.key, item.key_len, seed);
    let version = key.and_then(|key| ticket_version(request, slot, key));
    let (Some(key), Some(version)) = (key, version) else {
        count!(fills_refused);
        if request.tickets != 0 && request.kind == Kind::Get as u8 {
            tickets::release(config, request.key);
        }
        return;
    };
    let is_filled = if close(window, &item, len) {
        let ticket = Ticket {
            key,
            version,
            epoch: request.epoch,
            time: request.time,
            backend: request.backend,
        };
        fill(config, window, item.key_len, item.next + END_LEN, &ticket)
    } else {
        fill::drop_key(config, key);
        false
    };
    if is_filled {
        count!(fills);
    } else {
        count!(fills_refused);
    }
    tickets::release(config, key);
}

/// The version on the request's ticket for this key.
#[inline(always)]
fn ticket_version(request: &Request, slot: requests::Slot, key: u64) -> Option<u32> {
    if request.kind == Kind::Get as u8 {
        return (request.tickets != 0 && request.key == key).then_some(request.version);
    }
    let tickets = KEY_TICKETS.get_ptr_mut(slot)?;
    let count = u64::from(request.tickets);
    let serial = request.version;
    let sealed = KeyTicket::seal(key, serial);
    for i in 0..MULTI_KEYS as u64 {
        // Opaque, or the compiler counts down from `count`, whose bounds the verifier does not see.
        let i = opaque(i);
        if i >= MULTI_KEYS as u64 || i >= count {
            break;
        }
        // SAFETY: `tickets` is a map element.
        unsafe {
            let ticket = &raw const (*tickets).keys[i as usize];
            let version = (&raw const (*ticket).version).read_volatile();
            if (&raw const (*ticket).key).read_volatile() == sealed && version as u32 == serial {
                return Some((version >> 32) as u32);
            }
        }
    }
    None
}

/// Makes sure that `END\r\n`, and nothing else, follows the item; false if it does not fit.
#[inline(always)]
fn close(window: &mut Window, item: &Value, len: u64) -> bool {
    if item.next + END_LEN > MAX_REPLY as u64 {
        return false;
    }
    if is_end(window, item.next, len) {
        return true;
    }
    if item.next != len {
        return false;
    }
    window.set_word(item.next, END);
    true
}
