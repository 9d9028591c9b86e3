//! Plain segments: IPv4 without tags or options, through the first door of the configuration, of a flow
//! that is in order and in no doubt. Nearly all are; they are followed in fewer steps (`express` of the
//! two streams) than what takes them as they come, cut, repeated or out of order.

use prestack_abi::config::{Config, Door, MAPPED_V4};
use prestack_abi::flow::{Flow, FlowKey};
use prestack_proto::net::{
    ETHERNET_LEN, ETHERTYPE_IPV4, IPV4_FRAGMENT, IPV4_LEN, PROTO_TCP, TCP_ACK, TCP_FIN, TCP_LEN,
    TCP_RST, TCP_SYN, TCP_URG,
};
use prestack_proto::verifier::opaque;

use super::segment::name_of;
use super::{flow, table};
use crate::clock;
use crate::packet::Packet;

/// Position of the TCP header.
const L4: u64 = (ETHERNET_LEN + IPV4_LEN) as u64;
/// Position behind a TCP header without options.
const SHORTEST: u64 = L4 + TCP_LEN as u64;

const _: () = assert!(L4 == 34 && SHORTEST == 54);

/// A plain segment, and its flow.
pub struct Plain {
    pub flow: *mut Flow,
    /// The flow's place in `FLOWS`.
    pub place: u32,
    pub backend: u8,
    pub sequence: u32,
    pub acknowledgement: u32,
    /// The window field.
    pub window: u32,
    /// Position of its data in the packet.
    pub data: u64,
    /// Bytes of data.
    pub len: u64,
    pub now: u64,
}

impl Plain {
    /// The segment in a packet of `frame_len` bytes, if it is plain; with `is_reply` the source is
    /// memcached.
    #[inline(always)]
    pub fn read(packet: Packet, config: &Config, frame_len: u64, is_reply: bool) -> Option<Self> {
        const TYPES: u64 = (ETHERTYPE_IPV4.to_be() as u64) | 0x45 << 16;
        const NO_FRAGMENT: u64 = (IPV4_FRAGMENT.to_be() as u64) << 32 | 0xff << 56;
        const TCP: u64 = (PROTO_TCP as u64) << 56;
        const NOT_PLAIN: u64 = (TCP_SYN | TCP_FIN | TCP_RST | TCP_URG) as u64;
        if !packet.reaches(SHORTEST) {
            return None;
        }
        // SAFETY: just checked.
        let word = |at| unsafe { packet.fixed::<u64>(at) };
        let (types, lengths) = (word(8), word(16));
        let (addresses, ports, last) = (word(26), word(34), word(42));
        let flags = last >> 40 & 0xff;
        let unusual = (types >> 32 & 0x00ff_ffff ^ TYPES)
            | (lengths & NO_FRAGMENT ^ TCP)
            | (flags & NOT_PLAIN)
            | (flags & TCP_ACK as u64 ^ TCP_ACK as u64);
        if unusual != 0 {
            return None;
        }
        let (source, destination) = (addresses as u32, (addresses >> 32) as u32);
        let (source_port, destination_port) = (ports as u16, (ports >> 16) as u16);
        let (client, server) = if is_reply {
            (destination, source)
        } else {
            (source, destination)
        };
        let (client_port, server_port) = if is_reply {
            (destination_port, source_port)
        } else {
            (source_port, destination_port)
        };
        let door = &config.doors[0];
        if u64::from(door.port ^ server_port)
            | u64::from(door.address[3] ^ server)
            | u64::from(door.address[2] ^ MAPPED_V4)
            | u64::from(door.address[0] | door.address[1])
            | u64::from((door.flags ^ Door::HAS_TCP4) & (Door::HAS_TCP4 | Door::ANY_ADDRESS))
            != 0
            || config.doors_len == 0
        {
            return None;
        }
        let header_len = (last >> 36 & 0x0f) * 4;
        let total = u64::from((lengths as u16).swap_bytes());
        let before = IPV4_LEN as u64 + header_len;
        if header_len < TCP_LEN as u64 || total < before {
            return None;
        }
        // What is shorter than it says the kernel drops.
        if frame_len < ETHERNET_LEN as u64 + total {
            return None;
        }
        let key = FlowKey {
            client: [0, 0, MAPPED_V4, client],
            server: [0, 0, MAPPED_V4, server],
            client_port,
            server_port,
        };
        let now = clock::now();
        let known = table::find(name_of(config, &key), now)?;
        // A half-open flow may be displaced at any moment.
        if known.is_half_open {
            return None;
        }
        let place = known.place;
        let flow = flow::at(place)?;
        // SAFETY: a map element.
        let unusual = unsafe {
            u64::from((*flow).state ^ Flow::OPEN)
                | u64::from((*flow).is_seen ^ 1)
                | u64::from((&raw const (*flow).doubt).read_volatile())
        };
        if unusual != 0 {
            return None;
        }
        Some(Self {
            flow,
            place,
            backend: door.backend,
            sequence: ((ports >> 32) as u32).swap_bytes(),
            acknowledgement: (last as u32).swap_bytes(),
            window: u32::from(((last >> 48) as u16).swap_bytes()),
            data: L4 + header_len,
            len: total - before,
            now,
        })
    }

    /// Sequence number behind its data.
    #[inline(always)]
    pub fn end(&self) -> u32 {
        self.sequence.wrapping_add(self.len as u32)
    }
}

/// The data of a segment, read from its first byte on.
#[derive(Clone, Copy)]
pub struct Data {
    start: u64,
    end: u64,
}

impl Data {
    /// The data of a segment in a packet.
    #[inline(always)]
    pub fn of(packet: Packet, plain: &Plain) -> Self {
        Self {
            start: opaque(packet.start + (opaque(plain.data) & 0x7f)),
            end: packet.end,
        }
    }

    /// The eight bytes at `at`, a number that the compiler knows.
    #[inline(always)]
    pub fn word(self, at: u64) -> Option<u64> {
        if self.start + at + 8 > self.end {
            return None;
        }
        // SAFETY: just checked. BPF reads words at any address.
        Some(unsafe { *((self.start + at) as *const u64) })
    }
}
