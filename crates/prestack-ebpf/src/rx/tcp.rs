//! TCP segments: what they write is invalidated; nothing is answered.
//!
//! A flow is followed from its handshake as long as every segment is in order and holds whole
//! commands that are understood. A segment of any other flow may contain anything: it empties the
//! cache of its backend.

use aya_ebpf::bindings::xdp_action::XDP_PASS;
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::generated::bpf_xdp_load_bytes;
use aya_ebpf::programs::XdpContext;
use prestack_abi::config::Config;
use prestack_abi::flow::{FlowKey, TcpFlow};
use prestack_proto::hash::backend_seed;
use prestack_proto::net::{TCP_ACK, TCP_FIN, TCP_LEN, TCP_RST, TCP_SYN, TCP_URG};
use prestack_proto::window::{WINDOW, Window};

use super::{again, commands};
use crate::ledger::backend::{self, Arrival};
use crate::maps::{FLOWS, count};
use crate::packet::{Headers, Packet};
use crate::scratch::{Walk, scratch};

/// TCP header (RFC 9293) up to the flags, fields in network byte order.
#[repr(C)]
struct Tcp {
    ports: u32,
    sequence: u32,
    acknowledgement: u32,
    offset: u8,
    flags: u8,
    window: u16,
    checksum: u16,
    urgent: u16,
}

const _: () = assert!(size_of::<Tcp>() == TCP_LEN);

/// Decides on a TCP segment: it always passes.
#[inline(always)]
pub fn segment(
    ctx: &XdpContext,
    packet: Packet,
    config: &Config,
    door: Arrival,
    headers: &Headers,
) -> u32 {
    match Segment::read(packet, headers) {
        None => backend::forget(config, door.backend),
        // Most segments without data are acknowledgements.
        Some(segment) if segment.len == 0 && segment.flags & (TCP_SYN | TCP_FIN | TCP_RST) == 0 => {
        }
        Some(_) => follow(ctx),
    }
    XDP_PASS
}

/// Follows a flow by one of its segments that has data, opens or closes. The steps are functions
/// side by side, not one in the other: together their stacks would be too large.
#[inline(always)]
fn follow(ctx: &XdpContext) {
    let Some(scratch) = scratch() else { return };
    // SAFETY: functions of ours, called with the program's context; this CPU's scratch.
    unsafe {
        (&raw mut (*scratch).walk.end).write_volatile(0);
        prestack_follow(ctx.ctx);
        if (&raw const (*scratch).walk.end).read_volatile() != 0 {
            commands::act_on_all();
            prestack_followed(ctx.ctx);
        }
    }
}

/// A TCP segment.
struct Segment {
    /// Sequence number of its first byte.
    sequence: u32,
    flags: u8,
    /// Position of its data.
    data: u64,
    /// Bytes of data.
    len: u64,
}

impl Segment {
    #[inline(always)]
    fn read(packet: Packet, headers: &Headers) -> Option<Self> {
        let tcp = packet.at::<Tcp>(headers.l4)?;
        // SAFETY: `at` checked the length.
        let (offset, flags, sequence) = unsafe { ((*tcp).offset, (*tcp).flags, (*tcp).sequence) };
        let header_len = u64::from(offset >> 4) * 4;
        if header_len < TCP_LEN as u64 || header_len > headers.l4_len {
            return None;
        }
        Some(Self {
            sequence: u32::from_be(sequence),
            flags,
            data: headers.l4 + header_len,
            len: headers.l4_len - header_len,
        })
    }
}

/// The segment of `ctx`, if it is for a backend.
#[inline(always)]
fn with_segment(
    ctx: *mut xdp_md,
    follow: impl FnOnce(&XdpContext, &Config, Arrival, &FlowKey, &Segment),
) {
    let ctx = XdpContext::new(ctx);
    let Some((config, packet, headers, door)) = again(&ctx) else {
        return;
    };
    let Some(segment) = Segment::read(packet, &headers) else {
        return;
    };
    let key = FlowKey {
        client: headers.addresses.source,
        server: headers.addresses.destination,
        client_port: headers.source_port(),
        server_port: headers.destination_port(),
    };
    follow(&ctx, config, door, &key, &segment);
}

/// Takes note of a flow's beginning and end; if its data is in order, starts the walk over the
/// commands. A global function (by its unmangled name): the verifier checks it once, and not again
/// on every path to it.
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn prestack_follow(ctx: *mut xdp_md) -> u64 {
    with_segment(ctx, |ctx, config, door, key, segment| {
        if segment.flags & TCP_SYN != 0 {
            if segment.len == 0 && segment.flags & TCP_ACK == 0 {
                let flow = TcpFlow {
                    next: segment.sequence.wrapping_add(1),
                    protocol: 0,
                };
                // SAFETY: as below.
                let known = unsafe { FLOWS.get(key) }.copied();
                if known.is_some_and(|known| known.next != flow.next || known.protocol != 0) {
                    // The kernel may know the connection, and take no notice of this.
                    backend::forget(config, door.backend);
                    let _ = FLOWS.remove(key);
                    return;
                }
                // Without room the flow is not followed, and its data empties the cache.
                let _ = FLOWS.insert(key, flow, 0);
            } else {
                backend::forget(config, door.backend);
            }
            return;
        }
        if segment.len > 0 {
            count!(tcp_passed);
            // SAFETY: the element may be given to another flow while it is read, and this one then
            // taken for in order only if the numbers agree by chance.
            let flow = unsafe { FLOWS.get(key) }.copied();
            if let Some(flow) = flow
                && flow.next == segment.sequence
                && segment.flags & (TCP_RST | TCP_URG) == 0
                && start(ctx, config, door, segment, flow.protocol)
            {
                return;
            }
            backend::forget(config, door.backend);
        }
        // Not followed, or closed.
        let _ = FLOWS.remove(key);
    });
    0
}

/// Ends the walk over a segment's commands: if they were not all understood, the flow is not
/// followed any more. A global function, like [`prestack_follow`].
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn prestack_followed(ctx: *mut xdp_md) -> u64 {
    with_segment(ctx, |_, config, door, key, segment| {
        let Some(scratch) = scratch() else { return };
        let is_understood = commands::are_understood();
        // SAFETY: this CPU's scratch.
        let protocol = unsafe { (&raw const (*scratch).walk.protocol).read_volatile() };
        if !is_understood {
            backend::forget(config, door.backend);
        }
        if is_understood && segment.flags & TCP_FIN == 0 {
            let flow = TcpFlow {
                next: segment.sequence.wrapping_add(segment.len as u32),
                protocol: protocol as u32,
            };
            let _ = FLOWS.insert(key, flow, 0);
        } else {
            let _ = FLOWS.remove(key);
        }
    });
    0
}

/// Loads a segment's data and starts the walk over its commands: false if that is not possible.
#[inline(always)]
fn start(
    ctx: &XdpContext,
    config: &Config,
    door: Arrival,
    segment: &Segment,
    protocol: u32,
) -> bool {
    let Some(scratch) = scratch() else {
        return false;
    };
    let len = segment.len;
    if len > WINDOW as u64 {
        return false;
    }
    // SAFETY: this CPU's scratch; the window holds WINDOW bytes.
    unsafe {
        let window = (*scratch).window.start().cast();
        if bpf_xdp_load_bytes(ctx.ctx, segment.data as u32, window, Window::size(len)) != 0 {
            return false;
        }
        let seed = backend_seed(config.seed, door.backend);
        Walk::start(scratch, Walk::COMMANDS, 0, len, door.backend, seed);
        (&raw mut (*scratch).walk.protocol).write_volatile(u64::from(protocol));
    }
    true
}
