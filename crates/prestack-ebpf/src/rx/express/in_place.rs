//! Writing a reply over its request, in a way that can be undone: the steps that all forms but the plain GET
//! have in common. They run side by side, for together their stacks would be too large.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_TX};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::generated::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail};
use aya_ebpf::programs::XdpContext;
use prestack_abi::cache::MAX_REPLY;
use prestack_proto::checksum::add_word;
use prestack_proto::window::Source;

use super::head::Head;
use super::{ETHERNET_LEN, HEADER_WORDS, PAYLOAD, SHORTEST};
use crate::inbound::Inbound;
use crate::ledger::backend;
use crate::maps::count;
use crate::packet::Packet;
use crate::rx::room::cut;
use crate::scratch::{Scratch, scratch};

/// Where the words that are saved start: the last two bytes of a frame precede the payload. They are 0.
const SAVED_AT: u64 = PAYLOAD - 2;
/// Bytes of the shortest frame (`ETH_ZLEN` in include/uapi/linux/if_ether.h).
const SHORTEST_FRAME: u64 = 60;
/// Most words of a request, and where the last bytes are saved of one that is not made of whole words.
const MAX_WORDS: usize = 128;
const SAVED_TAIL: usize = MAX_WORDS;
/// Longest packet whose request is saved.
const MAX_LEN: u64 = SAVED_AT + 8 * MAX_WORDS as u64;

const _: () = assert!(PAYLOAD - 8 * (HEADER_WORDS as u64 - 1) == 2);
const _: () = assert!(MAX_WORDS < prestack_proto::window::WINDOW / 8);

/// The place of a word that is saved: a request in one piece is not parsed in the window.
#[inline(always)]
fn saved(scratch: *mut Scratch, i: usize) -> *mut u64 {
    // SAFETY: this CPU's scratch, and in bounds.
    unsafe { (&raw mut (*scratch).window.bytes).cast::<u64>().add(i) }
}

/// Saves the payload of a packet of `len` bytes, and returns its one's-complement sum, not folded. `None`
/// if it is too long.
#[inline(always)]
pub fn save(packet: Packet, scratch: *mut Scratch, len: u64) -> Option<u64> {
    if len > MAX_LEN {
        return None;
    }
    let mut sum = 0;
    let mut at = SAVED_AT;
    for i in 0..MAX_WORDS {
        if at + 8 > len {
            break;
        }
        let word: u64 = packet.read(at)?;
        // SAFETY: see `saved`. Volatile, or the compiler makes it a call to memcpy.
        unsafe { saved(scratch, i).write_volatile(word) };
        sum = add_word(sum, word);
        // What follows is the same however many words there were: it need not be verified for each.
        at = packet.forgotten(at + 8);
    }
    let rest = len - at;
    if rest != 0 {
        let word: u64 = packet.read(len - 8)?;
        // SAFETY: as above.
        unsafe { saved(scratch, SAVED_TAIL).write_volatile(word) };
        sum = add_word(sum, word >> (64 - 8 * (rest & 7)));
    }
    Some(sum)
}

/// Where this CPU keeps the head of the request.
#[inline(always)]
fn head_of(scratch: *mut Scratch) -> *mut Head {
    // SAFETY: this CPU's scratch; a head is made of its words.
    unsafe { (&raw mut (*scratch).in_place.head).cast() }
}

/// Makes room for a reply of `reply_len` bytes if the request's checksums hold and the reply may be sent.
/// Returns the length of the packet as it arrived, by how much it has grown, and whether at its head; 0 if
/// it is not to be answered: it is then as it was. A global function (by its unmangled name), as those that
/// follow: the verifier checks each on its own.
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn prestack_express_room(ctx: *mut xdp_md, reply_len: u64) -> u64 {
    make_room(&XdpContext::new(ctx), reply_len).unwrap_or(0)
}

#[inline(always)]
fn make_room(ctx: &XdpContext, reply_len: u64) -> Option<u64> {
    let (config, scratch) = (backend::config()?, scratch()?);
    let packet = ctx.packet(config);
    let (old_len, new_len) = (packet.len(), PAYLOAD + reply_len);
    if reply_len > MAX_REPLY as u64
        || new_len < SHORTEST_FRAME
        || new_len - ETHERNET_LEN as u64 > u64::from(config.mtu)
        || !packet.reaches(SHORTEST)
    {
        return None;
    }
    // SAFETY: just checked.
    let head = unsafe { Head::read(packet) };
    let payload = save(packet, scratch, old_len)?;
    if !head.checksums_hold(payload) {
        return None;
    }
    for i in 0..HEADER_WORDS {
        // SAFETY: this CPU's scratch. Volatile, or the compiler makes it a call to memcpy.
        unsafe { (&raw mut (*head_of(scratch)).0[i]).write_volatile(head.0[i]) };
    }
    if new_len <= old_len {
        return ctx.is_whole(old_len).then_some(old_len);
    }
    let growth = new_len - old_len;
    let mut shifted = 0;
    // SAFETY: `ctx.ctx` is the program's context.
    unsafe {
        if bpf_xdp_adjust_tail(ctx.ctx, growth as i32) != 0 {
            // It grows at its head: the headers are written anew in any case.
            if !ctx.is_whole(old_len) || bpf_xdp_adjust_head(ctx.ctx, -(growth as i32)) != 0 {
                return None;
            }
            shifted = SHIFTED;
        }
    }
    let room = old_len | growth << 16 | shifted;
    if ctx.packet(config).len() != new_len {
        // A frame that goes on in memory that cannot be read in place has grown there.
        take_away(ctx.ctx, room);
        return None;
    }
    Some(room)
}

/// In what [`prestack_express_room`] returns: the packet has grown at its head.
const SHIFTED: u64 = 1 << 32;

/// Takes away what was added.
#[inline(always)]
fn take_away(ctx: *mut xdp_md, room: u64) {
    let growth = (room >> 16 & 0xffff) as i32;
    // SAFETY: the program's context.
    unsafe {
        if room & SHIFTED != 0 {
            bpf_xdp_adjust_head(ctx, growth);
        } else if growth != 0 {
            bpf_xdp_adjust_tail(ctx, -growth);
        }
    }
}

/// Puts the request back, which is what [`prestack_express_room`] has found.
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn prestack_express_put_back(ctx: *mut xdp_md, room: u64) -> u64 {
    take_away(ctx, room);
    let (Some(config), Some(scratch)) = (backend::config(), scratch()) else {
        return 0;
    };
    let packet = XdpContext::new(ctx).packet(config);
    let len = room & 0xffff;
    // SAFETY: see `saved`.
    let word = |i| unsafe { saved(scratch, i).read_volatile() };
    let mut at = SAVED_AT;
    for i in 0..MAX_WORDS {
        if at + 8 > len {
            break;
        }
        packet.write(at, word(i));
        at = packet.forgotten(at + 8);
    }
    if at != len {
        packet.write(len - 8, word(SAVED_TAIL));
    }
    for i in 0..HEADER_WORDS - 1 {
        // SAFETY: this CPU's scratch.
        let word = unsafe { (&raw const (*head_of(scratch)).0[i]).read_volatile() };
        packet.write(8 * i as u64, word);
    }
    0
}

/// Writes the headers of the reply of `reply_len` bytes with this sum, which is in its place; returns the
/// action for the kernel.
#[inline(always)]
pub fn send(ctx: &XdpContext, reply_len: u64, sum: u16) -> u64 {
    // The packet reaches as far as was seen, so this cannot fail; neither a request nor a reply any more, it
    // must not go anywhere.
    let is_written = write_head(ctx, reply_len, sum).is_some();
    u64::from(if is_written { XDP_TX } else { XDP_DROP })
}

#[inline(always)]
fn write_head(ctx: &XdpContext, reply_len: u64, sum: u16) -> Option<()> {
    let (config, scratch) = (backend::config()?, scratch()?);
    let packet = ctx.packet(config);
    // SAFETY: this CPU's scratch. Volatile, or the compiler makes it a call to memcpy.
    let word = |i: usize| unsafe { (&raw const (*head_of(scratch)).0[i]).read_volatile() };
    let head = Head(core::array::from_fn(word));
    head.reply(reply_len, sum).write(packet)?;
    cut(ctx, packet, PAYLOAD + reply_len);
    count!(udp_hits);
    Some(())
}
