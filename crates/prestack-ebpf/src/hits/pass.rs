//! A segment passes to the kernel, in its numbers.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use prestack_abi::translated::Translated;
use prestack_proto::net::{TCP_FIN, TCP_LEN, TCP_RST};
use prestack_proto::verifier::opaque;
use prestack_translate::{MAX_BLOCKS, apply, difference};

use super::element::{self, locked};
use super::numbered::{MAX_BLOCKS_AT, change_of_block};
use crate::clock;
use crate::inbound::Inbound as _;
use crate::ledger::backend;
use crate::packet::Packet;
use crate::scratch::scratch;

/// The segment passes: whether it has to be [rewritten](prestack_hits_rewrite).
///
/// A global function (by its unmangled name): the verifier checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn prestack_hits_pass() -> u64 {
    let (Some(scratch), Some(config)) = (scratch(), backend::config()) else {
        return 0;
    };
    let now = clock::now();
    // SAFETY: this CPU's scratch.
    let numbered = unsafe { &mut (*scratch).numbered };
    let Some(element) = element::at(numbered.place) else {
        return 0;
    };
    let segment = numbered.segment;
    let is_serving = config.policy.is_serving != 0;
    let count = numbered.found.count;
    let result = locked(element, |element, ends, translation| {
        if translation.is_active == 0 {
            let scale = translation.agreement.server_scale();
            if !segment.has(TCP_RST) && ends.would_heed(&segment, scale) {
                ends.take(&segment);
            }
            return 0;
        }
        let passing = translation.pass(ends, &segment, is_serving, now);
        numbered.sequence = passing.sequence;
        numbered.acknowledgement = passing.acknowledgement;
        numbered.window = passing.window;
        for i in 0..MAX_BLOCKS as usize {
            if i as u64 >= count {
                break;
            }
            numbered.blocks[i] = translation.pass_block(&segment, numbered.blocks[i]);
        }
        // One that the kernel takes is the last that was passed.
        let end = passing.sequence.wrapping_add(segment.length());
        let is_fin = segment.has(TCP_FIN) && end == ends.next;
        element::note_fin(element, is_fin, Translated::CLIENT);
        CHANGED | element::has_ended(element, ends, translation)
    });
    if result & element::ENDED != 0 {
        element::end(config, numbered.place, now);
    }
    result & CHANGED
}

const CHANGED: u64 = 1;

/// Writes the kernel's numbers into the packet; 0 if that did not work out.
///
/// The checksum is changed by what the numbers change, which is right for a whole one. A partial one (of a
/// local stack: the sum of the pseudo header) the kernel does not look at.
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn prestack_hits_rewrite(ctx: *mut xdp_md) -> u64 {
    let Some(config) = backend::config() else {
        return 0;
    };
    let packet = XdpContext::new(ctx).packet(config);
    u64::from(rewrite(packet).is_some())
}

#[inline(always)]
fn rewrite(packet: Packet) -> Option<()> {
    let scratch = scratch()?;
    // SAFETY: this CPU's scratch.
    let numbered = unsafe { &(*scratch).numbered };
    let segment = &numbered.segment;
    let l4 = numbered.l4;
    let mut change = difference(segment.sequence, numbered.sequence)
        + difference(segment.acknowledgement, numbered.acknowledgement);
    let count = numbered.found.count;
    let blocks = l4 + TCP_LEN as u64 + (opaque(numbered.found.blocks) & MAX_BLOCKS_AT);
    for i in 0..MAX_BLOCKS as usize {
        if i as u64 >= count {
            break;
        }
        let at = blocks + 8 * i as u64;
        let old: u64 = packet.read(at)?;
        let block = numbered.blocks[i];
        let new = u64::from(block.start.to_be()) | u64::from(block.end.to_be()) << 32;
        change += change_of_block(old, new, numbered.found.blocks);
        packet.write(at, new)?;
    }
    let tcp = packet.at::<[u32; 5]>(l4)?;
    // SAFETY: `at` checked the length.
    unsafe {
        (*tcp)[1] = numbered.sequence.to_be();
        (*tcp)[2] = numbered.acknowledgement.to_be();
        let old = (*tcp)[3];
        let new = old & 0xffff | u32::from((numbered.window as u16).to_be()) << 16;
        change += u64::from(!old) + u64::from(new);
        (*tcp)[3] = new;
        let last = (*tcp)[4];
        (*tcp)[4] = last & 0xffff_0000 | u32::from(apply(last as u16, change));
    }
    Some(())
}
