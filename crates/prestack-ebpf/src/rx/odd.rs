//! Packets that are not looked into.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use prestack_abi::requests::{Kind, Request};
use prestack_proto::net::UDP_LEN;
use prestack_proto::udp::Frame;

use super::datagram::request_to;
use super::{arrival, get};
use crate::inbound::Inbound;
use crate::ledger::backend;
use crate::ledger::requests::{self, Asker};
use crate::packet::{Sort, locate_first_fragment};
use crate::scratch::scratch;

/// Heeds a packet that is not looked into, be it for its frame, for IP options or extension headers, or because it is a
/// fragment: it may change anything, and if it is a datagram whose name it shows, memcached may answer.
#[inline(always)]
pub fn heed(ctx: &XdpContext) {
    // SAFETY: a function of ours, called with the program's context.
    let is_noted = unsafe { prestack_odd_datagram(ctx.ctx) };
    remember(is_noted);
}

/// Remembers what [`note`] has noted, if it has.
#[inline(always)]
pub fn remember(is_noted: u64) {
    if is_noted != 0 {
        requests::remember_noted(Asker::Client);
        requests::settle_doubted();
    }
}

/// A global function (by its unmangled name), like those of [`udp`](super::udp).
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn prestack_odd_datagram(ctx: *mut xdp_md) -> u64 {
    note(&XdpContext::new(ctx))
}

/// Empties the cache for a packet that is not looked into, and notes in scratch what is to be remembered of it; 0 if
/// nothing is. To remember it is a step of its own, so that their stacks do not add up.
#[inline(always)]
pub fn note<C: Inbound>(ctx: &C) -> u64 {
    u64::from(name(ctx).is_some())
}

#[inline(always)]
fn name<C: Inbound>(ctx: &C) -> Option<()> {
    let (scratch, config) = (scratch()?, backend::config()?);
    let packet = ctx.packet(config);
    let (headers, door) = match ctx.locate(packet) {
        Sort::Plain(headers) | Sort::Options(headers) => {
            let (headers, door) = arrival::<C>(config, packet, headers)?;
            backend::forget(config, door.backend);
            (headers, door)
        }
        Sort::Veiled(addresses) => {
            backend::forget_address(&addresses.destination);
            arrival::<C>(config, packet, locate_first_fragment(packet)?)?
        }
        Sort::Foreign | Sort::Short => return None,
    };
    if !headers.udp {
        return None;
    }
    let frame = Frame(packet.read(headers.l4 + UDP_LEN as u64)?);
    let (addresses, ports) = (&headers.addresses, headers.ports);
    let name = requests::name_of_request(config, door.backend, addresses, ports, frame.id());
    let request = Request {
        kind: Kind::Odd as u8,
        ..request_to(door)
    };
    get::note_request(scratch, &request, name);
    Some(())
}
