//! A TCP segment, as the programs' steps hand it on in scratch memory.

use prestack_abi::config::Config;
use prestack_abi::flow::FlowKey;
use prestack_proto::hash;
use prestack_proto::net::TCP_LEN;

use crate::packet::{Headers, Packet};

/// TCP header (RFC 9293), fields in network byte order.
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

/// A segment of a flow.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Segment {
    /// Who talks to whom.
    pub key: FlowKey,
    /// Sequence number of its first byte.
    pub sequence: u32,
    /// What it acknowledges.
    pub acknowledgement: u32,
    /// The window field.
    pub window: u32,
    /// Its flags.
    pub flags: u32,
    /// Which backend.
    pub backend: u32,
    /// The flow's place in `FLOWS`.
    pub flow: u32,
    /// Non-zero if the kernel was asked what it has of it.
    pub is_asked: u32,
    /// Position of its data in the packet.
    pub data: u64,
    /// Bytes of data.
    pub len: u64,
    /// Bytes of it that have been dealt with.
    pub at: u64,
    /// Sequence number of the first byte of the window.
    pub window_sequence: u64,
    /// Where its data goes, or is, among what the flow keeps.
    pub kept: u64,
    /// What it may be a copy of.
    pub copy_of: u64,
    /// Bytes of the window that the reply is in which is to be learnt from, 0 for none.
    pub learn: u64,
}

impl Segment {
    /// Most bytes of data, one below a power of two: what offloads put together (`GSO_MAX_SIZE` in
    /// include/linux/netdevice.h).
    pub const MAX_LEN: u64 = (1 << 19) - 1;

    /// The segment in a packet: `None` if its header is not whole, with which the kernel drops it. With
    /// `is_reply` the source is memcached.
    #[inline(always)]
    pub fn read(packet: Packet, headers: &Headers, backend: u8, is_reply: bool) -> Option<Self> {
        let tcp = packet.at::<Tcp>(headers.l4)?;
        // SAFETY: `at` checked the length.
        let tcp = unsafe { &*tcp };
        let header_len = u64::from(tcp.offset >> 4) * 4;
        if header_len < TCP_LEN as u64 || header_len > headers.l4_len {
            return None;
        }
        let addresses = &headers.addresses;
        let (source, destination) = (addresses.source, addresses.destination);
        let ports = (headers.source_port(), headers.destination_port());
        let key = if is_reply {
            FlowKey {
                client: destination,
                server: source,
                client_port: ports.1,
                server_port: ports.0,
            }
        } else {
            FlowKey {
                client: source,
                server: destination,
                client_port: ports.0,
                server_port: ports.1,
            }
        };
        Some(Self {
            key,
            sequence: u32::from_be(tcp.sequence),
            acknowledgement: u32::from_be(tcp.acknowledgement),
            window: u32::from(u16::from_be(tcp.window)),
            flags: u32::from(tcp.flags),
            backend: u32::from(backend),
            flow: 0,
            is_asked: 0,
            data: headers.l4 + header_len,
            len: headers.l4_len - header_len,
            at: 0,
            window_sequence: 0,
            kept: 0,
            copy_of: 0,
            learn: 0,
        })
    }

    /// Whether one of these flags is set.
    #[inline(always)]
    pub fn has(&self, flags: u8) -> bool {
        self.flags & u32::from(flags) != 0
    }

    /// Sequence number behind its data.
    #[inline(always)]
    pub fn end(&self) -> u32 {
        self.sequence.wrapping_add(self.len as u32)
    }

    /// The name of its flow.
    #[inline(always)]
    pub fn name(&self, config: &Config) -> u64 {
        name_of(config, &self.key)
    }
}

/// The name of a flow.
#[inline(always)]
pub fn name_of(config: &Config, key: &FlowKey) -> u64 {
    let word = |a: u32, b: u32| u64::from(a) << 32 | u64::from(b);
    let FlowKey { client, server, .. } = key;
    let mut name = hash::mix(config.seed, word(client[0], client[1]));
    name = hash::mix(name, word(client[2], client[3]));
    name = hash::mix(name, word(server[0], server[1]));
    name = hash::mix(name, word(server[2], server[3]));
    let ports = u64::from(key.client_port) << 16 | u64::from(key.server_port);
    hash::finish(name, ports) | 1
}
