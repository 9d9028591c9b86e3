//! The plain GET of one key: what the main program finds out of it, and the function that answers it.

use aya_ebpf::bindings::xdp_action::XDP_PASS;
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use prestack_abi::config::{Config, MAPPED_V4};
use prestack_proto::MAX_KEY;
use prestack_proto::checksum::fold;
use prestack_proto::hash::{backend_seed, scan_and_sum_key};
use prestack_proto::net::{IPV4_LEN, IPV6_LEN};
use prestack_proto::udp::Frame;
use prestack_proto::verifier::opaque;
use prestack_proto::window::Source;

use super::allow::Network;
use super::datagram::Datagram;
use super::get;
use super::reply::PAYLOAD_AT;
use crate::inbound::Inbound as _;
use crate::ledger::backend::{self, Arrival};
use crate::ledger::requests;
use crate::packet::{Addresses, Headers, Ipv4, Ipv6, Packet};

/// `get ` as the four bytes read little-endian.
const GET: u32 = u32::from_le_bytes(*b"get ");
/// `\r\n` as the two bytes read little-endian.
const CRLF: u16 = u16::from_le_bytes(*b"\r\n");
/// Bytes of a plain single-key GET beside its key.
const AROUND_KEY: u64 = 6;

/// What is known of a plain single-key GET, in one register: the function that answers it is checked by
/// the verifier on its own, and what it needs else it reads from the packet.
#[derive(Clone, Copy)]
pub struct SingleGet {
    /// Hash of the key.
    hash: u64,
    /// From the least significant bit: position of the IP header (8 bits), whether it is IPv6 (1),
    /// the network of the source (7), backend (8), the door's flags (8), length of the key (8), whether
    /// this is the second time (1), and in the upper 16 bits the folded sum of the payload.
    packed: u64,
}

impl SingleGet {
    /// `Some` if the datagram is `get <key>\r\n` and nothing else: the ends of the key are known
    /// without a search.
    #[inline(always)]
    pub fn of(packet: Packet, datagram: &Datagram<'_>) -> Option<Self> {
        let at = datagram.payload;
        let len = packet.forgotten(datagram.len);
        if len <= AROUND_KEY {
            return None;
        }
        if len > AROUND_KEY + MAX_KEY as u64 {
            return None;
        }
        if packet.read::<u32>(at)? != GET || packet.read::<u16>(at + len - 2)? != CRLF {
            return None;
        }
        let key_len = len - AROUND_KEY;
        let (door, headers) = (datagram.door, datagram.headers);
        let seed = backend_seed(datagram.config.seed, door.backend);
        let scan = scan_and_sum_key(&packet, at + 4, key_len, seed)?;
        // Behind a key of odd length the two bytes of the line end lie in two words.
        let line_end = if key_len & 1 == 0 {
            CRLF
        } else {
            CRLF.swap_bytes()
        };
        let sum = fold(scan.sum + u64::from(GET) + u64::from(line_end));
        Some(Self {
            hash: scan.hash,
            packed: headers.l3
                | u64::from(headers.v6) << 8
                | (datagram.network & Network::BITS) << 9
                | u64::from(door.backend) << 16
                | u64::from(door.flags) << 24
                | key_len << 32
                | u64::from(sum) << 48,
        })
    }
}

/// The bit of a GET that is looked at for the second time.
const SECOND: u64 = 1 << 40;

impl SingleGet {
    /// Answers the GET, or lets it through.
    #[inline(always)]
    pub fn answer(self, ctx: &XdpContext) -> u32 {
        // SAFETY: a function of ours, called with the program's context.
        let get = |packed| unsafe { prestack_get(ctx.ctx, self.hash, packed) as u32 };
        let mut action = get(self.packed);
        if action == get::AGEING {
            if get::refresh() {
                requests::settle_doubted();
                return XDP_PASS;
            }
            action = get(self.packed | SECOND);
        }
        if action == get::MISS {
            get::missed();
        } else if action == get::STRANGE {
            get::strange();
        } else {
            return action;
        }
        requests::settle_doubted();
        XDP_PASS
    }
}

/// A global function (by its unmangled name): the verifier checks it once, for all arguments, and
/// not again on every path to it.
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn prestack_get(ctx: *mut xdp_md, hash: u64, packed: u64) -> u64 {
    let ctx = XdpContext::new(ctx);
    let Some(config) = backend::config() else {
        return u64::from(XDP_PASS);
    };
    let packet = ctx.packet(config);
    u64::from(answer_single(&ctx, config, packet, SingleGet { hash, packed }).unwrap_or(XDP_PASS))
}

#[inline(always)]
fn answer_single(
    ctx: &XdpContext,
    config: &'static Config,
    packet: Packet,
    get: SingleGet,
) -> Option<u32> {
    let packed = opaque(get.packed);
    let key_len = packed >> 32 & 0xff;
    let l3 = packed & 0x1f;
    let v6 = packed >> 8 & 1 != 0;
    let (l4, addresses) = if v6 {
        let ip = packet.at::<Ipv6>(l3)?;
        // SAFETY: `at` checked the length.
        let (source, destination) = unsafe { ((*ip).source, (*ip).destination) };
        let addresses = Addresses {
            source,
            destination,
        };
        (l3 + IPV6_LEN as u64, addresses)
    } else {
        let ip = packet.at::<Ipv4>(l3)?;
        // SAFETY: as above.
        let (source, destination) = unsafe { ((*ip).source, (*ip).destination) };
        let addresses = Addresses {
            source: [0, 0, MAPPED_V4, source],
            destination: [0, 0, MAPPED_V4, destination],
        };
        (l3 + IPV4_LEN as u64, addresses)
    };
    // From here on, one path for both families.
    let (l4, v6) = (packet.forgotten(l4), packet.forgotten(u64::from(v6)) != 0);
    let udp = packet.at::<[u64; 2]>(l4)?;
    // SAFETY: as above.
    let [header, frame] = unsafe { *udp };
    let headers = Headers {
        l3,
        l4,
        l4_len: PAYLOAD_AT + AROUND_KEY + key_len,
        v6,
        udp: true,
        ports: header as u32,
        addresses,
    };
    let datagram = Datagram {
        config,
        door: Arrival {
            backend: (packed >> 16) as u8,
            flags: (packed >> 24) as u8,
        },
        headers: &headers,
        frame: Frame(frame),
        payload: l4 + PAYLOAD_AT,
        len: AROUND_KEY + key_len,
        network: packed >> 9 & Network::BITS,
        zero: packet.zero,
    };
    let sum = packed >> 48;
    let is_second = packed & SECOND != 0;
    Some(get::get(
        ctx, packet, &datagram, key_len, get.hash, sum, is_second,
    ))
}
