//! The last answer of a connection, which was lost, is brought back: as much of it as fits the packet from which it is
//! sent again.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::generated::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail};
use aya_ebpf::programs::XdpContext;
use prestack_proto::net::TCP_LEN;
use prestack_proto::window::Source as _;
use prestack_translate::PART;

use super::element::{self, locked};
use super::kept;
use super::numbered::TIMESTAMPS_LEN;
use crate::inbound::Inbound as _;
use crate::ledger::backend;
use crate::scratch::scratch;

/// Bytes by which any packet can grow: XDP reserves 256 at its head, of which drivers take some.
const GROWTH: u64 = 200;

/// Brings what is to be sent again of the answer to the scratch's `numbered` and `answer`, and makes the packet
/// ready for it: 0 if there is nothing to send, or no room for any of it, or the segment is not all there.
///
/// A global function (by its unmangled name): the verifier checks it once.
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn prestack_hits_again(ctx: *mut xdp_md) -> u64 {
    u64::from(again(&XdpContext::new(ctx)).is_some())
}

#[inline(always)]
fn again(ctx: &XdpContext) -> Option<()> {
    let (scratch, config) = (scratch()?, backend::config()?);
    // SAFETY: this CPU's scratch.
    let (numbered, answer) = unsafe { (&mut (*scratch).numbered, &mut (*scratch).answer) };
    let (element, rest) = (
        element::at(numbered.place)?,
        kept::rest(config, numbered.place)?,
    );
    let segment = numbered.segment;
    // The kernel would drop what does not have all its data. Who can send no more than a short frame would hit the
    // request all the same with one that claims to be long.
    if ctx.whole_len() < numbered.l4 + numbered.header_len() + u64::from(segment.len) {
        return None;
    }
    let is_lacking = locked(element, |element, ends, translation| {
        // Another CPU may have seen meanwhile that it has come.
        if !translation.is_unacknowledged() {
            return 0;
        }
        numbered.again = translation.send_again(ends, &segment);
        let first = u64::from(numbered.again.offset / 8);
        for i in 0..u64::from(PART) / 8 {
            if 8 * i >= u64::from(numbered.again.len) {
                break;
            }
            let word = kept::word(element, rest, answer.forgotten(first + i));
            answer.set_word(8 * i, word);
        }
        1
    });
    if is_lacking == 0 {
        return None;
    }
    let options = if numbered.has_timestamps != 0 {
        TIMESTAMPS_LEN
    } else {
        0
    };
    let at = numbered.l4 + TCP_LEN as u64 + options;
    let most = fit(ctx, at, u64::from(numbered.again.len))?;
    numbered.again.shorten(most as u32);
    numbered.reply = numbered.again.reply;
    numbered.answer = numbered.again.len.into();
    Some(())
}

/// How many of `len` bytes the packet can hold from `at` on; `None` if none of them, or that is not sure before what
/// it holds is cut off, and it is as it was. What it held is not needed any more: whoever has sent it sends it again
/// until the answer has come.
#[inline(always)]
fn fit(ctx: &XdpContext, at: u64, len: u64) -> Option<u64> {
    let packet = ctx.packet(backend::config()?);
    let (old, whole, new) = (packet.len(), ctx.whole_len(), at + len);
    // SAFETY: the program's context.
    unsafe {
        // Whether it can grow at its head; that is done with the headers.
        let has_room = bpf_xdp_adjust_head(ctx.ctx, -(GROWTH as i32)) == 0
            && bpf_xdp_adjust_head(ctx.ctx, GROWTH as i32) == 0;
        let most = if has_room { old + GROWTH } else { old };
        if whole > old {
            // What is in other pieces of memory can only go, and does not come back.
            if most <= at || bpf_xdp_adjust_tail(ctx.ctx, -((whole - old) as i32)) != 0 {
                return None;
            }
        }
        if old >= new || bpf_xdp_adjust_tail(ctx.ctx, (new - old) as i32) == 0 {
            return Some(len);
        }
        (most > at).then_some(most.wrapping_sub(at))
    }
}
