//! Which requests may be answered, by their frames: XDP also sees what the kernel would not deliver, to
//! other MAC addresses and with tags of VLANs that nobody here is in.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use prestack_abi::config::{Config, Link, MAX_LINKS};
use prestack_proto::net::{ETHERNET_LEN, ETHERTYPE_QINQ, VLAN_LEN};
use prestack_proto::verifier::opaque;

use super::allow::{self, Network};
use crate::inbound::Inbound as _;
use crate::ledger::backend;
use crate::maps::STATS;
use crate::packet::{Headers, Packet};

/// Whether a reply may be sent to where a request came from: it has arrived on a link of this host, from
/// a source of a network that is served there, and nobody else can get the reply.
#[inline(always)]
pub fn admits(
    ctx: &XdpContext,
    config: &Config,
    packet: Packet,
    headers: &Headers,
    network: Network,
) -> bool {
    // Most hosts have one link for the traffic that matters: it spares them the call. One condition, not
    // many: each would be a path for the verifier.
    let first = &config.links[0];
    if let Some(macs) = packet.read::<u64>(0) {
        let unusual = (headers.l3 ^ ETHERNET_LEN as u64)
            | (ctx.ingress_ifindex() as u64 ^ first.place)
            | (macs & Link::MAC ^ first.mac)
            | u64::from(!network.is_among(first.allow));
        if opaque(unusual) == 0 && !allow::is_spoof_prone(config, headers.ports, macs) {
            return true;
        }
    }
    let asked = headers.l3
        | network.bits() << 8
        | u64::from(headers.ports) << 16
        | u64::from(headers.udp) << 48;
    // SAFETY: a function of ours, called with the program's context.
    unsafe { prestack_admits(ctx.ctx, asked) != 0 }
}

/// What [`admits`] says, and why not in the counters. `asked` are the position of the IP header (8 bits),
/// the network of the source (8), the ports (32) and whether it is UDP (1), in one for want of stack. A
/// global function (by its unmangled name): the verifier checks it once, for all arguments, and not again on
/// every path to it.
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn prestack_admits(ctx: *mut xdp_md, asked: u64) -> u64 {
    let ctx = XdpContext::new(ctx);
    let Some(config) = backend::config() else {
        return 0;
    };
    let packet = ctx.packet(config);
    let networks = networks(&ctx, config, packet, asked & 0xff).unwrap_or(0);
    let network = Network::from_bits(asked >> 8);
    let macs = packet.read::<u64>(0);
    let ports = (asked >> 16) as u32;
    let is_spoof_prone = macs.is_none_or(|macs| allow::is_spoof_prone(config, ports, macs));
    if network.is_among(networks) && !is_spoof_prone {
        return 1;
    }
    // One look-up for all counters: each takes its part of the stack.
    let Some(stats) = STATS.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: this CPU's element; programs do not interrupt one another.
    unsafe {
        if !network.is_some() {
            // Over UDP whoever lets it through counts it, were the key there or not.
            (*stats).not_allowed += u64::from(asked >> 48 & 1 == 0);
        } else if is_spoof_prone {
            (*stats).spoof_prone += 1;
        } else {
            (*stats).wrong_link += 1;
        }
    }
    0
}

/// The networks of the allow list, a bit each, whose hosts may be served on the link over which this
/// frame came; `None` if it is for no link of this host.
#[inline(always)]
fn networks(ctx: &XdpContext, config: &Config, packet: Packet, l3: u64) -> Option<u64> {
    const ONE_TAG: u64 = (ETHERNET_LEN + VLAN_LEN) as u64;
    let mac = packet.read::<u64>(0)? & Link::MAC;
    let outer = if l3 < ONE_TAG { 0 } else { tag(packet, 12)? };
    let inner = if l3 <= ONE_TAG { 0 } else { tag(packet, 16)? };
    let place = Link::place(ctx.ingress_ifindex() as u32, outer, inner);
    for i in 0..MAX_LINKS {
        if i as u64 >= config.links_len {
            break;
        }
        let link = &config.links[i];
        if link.place == place && link.mac == mac {
            return Some(link.allow);
        }
    }
    None
}

/// The VLAN tag at a position, as links have it.
#[inline(always)]
fn tag(packet: Packet, at: u64) -> Option<u32> {
    let [ethertype, control] = packet.read::<[u16; 2]>(at)?;
    Some(Link::tag(
        ethertype == ETHERTYPE_QINQ.to_be(),
        u16::from_be(control),
    ))
}
