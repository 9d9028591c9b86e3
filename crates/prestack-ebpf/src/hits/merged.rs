//! Segments that the host has put together of several before XDP has seen them (GRO, in generic mode). What is sent in
//! the place of one would be taken apart again, with a wrong checksum, so nothing is.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use prestack_abi::config::Config;
use prestack_proto::checksum::fold;
use prestack_proto::net::PROTO_TCP;

use crate::inbound::Inbound as _;
use crate::ledger::backend;
use crate::rx::checksum::pseudo_header;
use crate::scratch::scratch;

/// Whether the checksum field has a partial checksum that is all right: the sum of the pseudo header alone, `pseudo`
/// before it is folded, as a stack on this host leaves it.
#[inline(always)]
pub fn is_partial_sum(config: &Config, field: u16, pseudo: u64) -> bool {
    field == fold(pseudo) && config.whole_sums == 0
}

/// 1 if the segment may be a merged one, and nothing must be sent in its place. A global function (by its unmangled
/// name): the verifier checks it once.
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn prestack_hits_is_merged(ctx: *mut xdp_md) -> u64 {
    u64::from(is_merged(&XdpContext::new(ctx)).unwrap_or(true))
}

#[inline(always)]
fn is_merged(ctx: &XdpContext) -> Option<bool> {
    let (scratch, config) = (scratch()?, backend::config()?);
    if config.whole_sums == 0 {
        return Some(false);
    }
    // SAFETY: this CPU's scratch.
    let (numbered, headers) = unsafe { (&(*scratch).numbered, &(*scratch).located.headers) };
    let field = ctx.packet(config).read::<u16>(headers.l4 + 16)?;
    let total = numbered.header_len() + u64::from(numbered.segment.len);
    let pseudo = pseudo_header(&headers.addresses, total as u16, PROTO_TCP);
    Some(field == fold(pseudo))
}
