//! Checksums of requests: what the kernel would drop is not answered.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use prestack_proto::checksum::{add_word, fold};
use prestack_proto::net::{IPV4_LEN, PROTO_UDP};
use prestack_proto::verifier::opaque;
use prestack_proto::window::Source;

use super::MAX_L4;
use crate::inbound::Inbound as _;
use crate::ledger::backend;
use crate::packet::{Addresses, Headers, Ipv6, Packet};

/// Most words of a UDP datagram that is verified: the longest single-key GET has 33 and headers.
const MAX_WORDS: u64 = 192;

/// Sum of the pseudo header (RFC 768, RFC 9293 3.1, RFC 8200 8.1) of `len` bytes of a protocol, not folded. The
/// zero words of a mapped IPv4 address add nothing; its marker is all ones, which adds nothing either.
#[inline(always)]
pub fn pseudo_header(addresses: &Addresses, len: u16, protocol: u8) -> u64 {
    let mut sum = u64::from(u16::to_be(u16::from(protocol))) + u64::from(len.to_be());
    for i in 0..4 {
        sum += u64::from(addresses.source[i]) + u64::from(addresses.destination[i]);
    }
    sum
}

/// Whether the IPv4 header's and the UDP checksum of a request hold. A datagram from a stack on
/// this host may have a partial checksum, the sum of its pseudo header alone.
#[inline(always)]
pub fn hold(ctx: &XdpContext, headers: &Headers) -> bool {
    // SAFETY: a function of ours, called with the program's context.
    unsafe {
        prestack_checksums_hold(
            ctx.ctx,
            headers.l3,
            headers.l4,
            headers.l4_len,
            u64::from(headers.v6),
        ) != 0
    }
}

/// [`hold`] for a datagram of which the sum of all that follows the frame is known.
#[inline(always)]
pub fn hold_given(packet: Packet, headers: &Headers, payload_sum: u64) -> bool {
    given_sum_holds(packet, headers, payload_sum).is_some()
}

#[inline(always)]
fn given_sum_holds(packet: Packet, headers: &Headers, payload_sum: u64) -> Option<()> {
    if !headers.v6 {
        let ip = packet.at::<[u32; IPV4_LEN / 4]>(headers.l3)?;
        // SAFETY: `at` checked the length.
        let ip = unsafe { &*ip };
        let mut sum = 0;
        for word in ip {
            sum += u64::from(*word);
        }
        if fold(sum) != 0xffff {
            return None;
        }
    }
    let udp = packet.at::<[u64; 2]>(headers.l4)?;
    // SAFETY: as above: the UDP header and the frame.
    let [header, frame] = unsafe { *udp };
    let pseudo = pseudo_header(&headers.addresses, headers.l4_len as u16, PROTO_UDP);
    let field = (header >> 48) as u16;
    let sum = add_word(add_word(pseudo + payload_sum, header), frame);
    let is_right = if field == 0 {
        !headers.v6
    } else {
        fold(sum) == 0xffff || field == fold(pseudo)
    };
    is_right.then_some(())
}

/// A global function (by its unmangled name): the verifier checks it once, for all arguments, and
/// not again on every path to it.
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn prestack_checksums_hold(
    ctx: *mut xdp_md,
    l3: u64,
    l4: u64,
    udp_len: u64,
    v6: u64,
) -> u64 {
    let Some(config) = backend::config() else {
        return 0;
    };
    let packet = XdpContext::new(ctx).packet(config);
    u64::from(sums_hold(packet, l3, l4, udp_len, v6 != 0).is_some())
}

#[inline(always)]
fn sums_hold(packet: Packet, l3: u64, l4: u64, udp_len: u64, v6: bool) -> Option<()> {
    if l3 > MAX_L4 || l4 > MAX_L4 || udp_len > MAX_WORDS * 8 {
        return None;
    }
    let mut sum = u64::from(u16::to_be(u16::from(PROTO_UDP))) + u64::from((udp_len as u16).to_be());
    if v6 {
        let ip = packet.at::<Ipv6>(l3)?;
        // SAFETY: `at` checked the length.
        let (source, destination) = unsafe { (&(*ip).source, &(*ip).destination) };
        for i in 0..4 {
            sum += u64::from(source[i]) + u64::from(destination[i]);
        }
    } else {
        let ip = packet.at::<[u32; IPV4_LEN / 4]>(l3)?;
        // SAFETY: as above.
        let ip = unsafe { &*ip };
        let addresses = u64::from(ip[3]) + u64::from(ip[4]);
        if fold(u64::from(ip[0]) + u64::from(ip[1]) + u64::from(ip[2]) + addresses) != 0xffff {
            return None;
        }
        sum += addresses;
    }
    let field: u16 = packet.read(l4 + 6)?;
    if field == 0 {
        return if v6 { None } else { Some(()) };
    }
    if field == fold(sum) {
        return Some(());
    }
    let mut done = 0;
    for _ in 0..MAX_WORDS {
        if done + 8 > udp_len {
            break;
        }
        sum = add_word(sum, packet.word(l4 + done)?);
        done += 8;
    }
    let rest = udp_len - done;
    if rest >= 8 {
        return None;
    }
    if rest > 0 {
        let last = opaque(l4 + udp_len - 8);
        if last > MAX_L4 + MAX_WORDS * 8 {
            return None;
        }
        sum = add_word(sum, packet.word(last)? >> (8 * (8 - rest)));
    }
    (fold(sum) == 0xffff).then_some(())
}
