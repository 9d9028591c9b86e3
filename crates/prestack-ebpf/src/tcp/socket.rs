//! What the host's sockets say of a segment of a flow that is not known.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{__sk_buff, bpf_sock, bpf_sock_tuple};
use aya_ebpf::helpers::generated::{
    bpf_sk_release, bpf_skc_lookup_tcp, bpf_skc_to_tcp_request_sock, bpf_skc_to_tcp_sock,
    bpf_tcp_check_syncookie,
};
use core::ffi::c_void;
use prestack_abi::config::MAPPED_V4;
use prestack_abi::flow::FlowKey;
use prestack_abi::socket::SocketFields;
use prestack_proto::net::{IPV6_LEN, TCP_ACK, TCP_LEN};
use prestack_translate::Agreement;

use super::is_before;
use super::segment::Segment;
use crate::hits::numbered::TIMESTAMPS_LEN;
use crate::packet::{Headers, Packet};

/// States of a socket (`enum` in include/net/tcp_states.h).
const ESTABLISHED: u32 = 1;
const SYN_RECV: u32 = 3;
const TIME_WAIT: u32 = 6;
const CLOSE_WAIT: u32 = 8;
const LISTEN: u32 = 10;
const NEW_SYN_RECV: u32 = 12;
/// `tcp_sock.chrono_type` (`enum tcp_chrono` in include/net/tcp.h): up to this, sending waits for no window and no room.
const CHRONO_BUSY: u8 = 1;
const CHRONO_MASK: u8 = 3;
/// The network namespace of the device (`BPF_F_CURRENT_NETNS`).
const CURRENT_NETNS: u64 = u64::MAX;

/// Set by user space.
#[unsafe(no_mangle)]
static SOCKET_FIELDS: SocketFields = SocketFields::UNKNOWN;

/// What becomes of a segment of a flow that is not known.
#[derive(Clone, Copy)]
pub enum Taker {
    /// Nothing: no connection takes it.
    Nobody,
    /// A connection takes it on which nothing has been received or sent: the next byte from the client is
    /// `next`, that to it `sent`.
    Fresh { next: u32, sent: u32 },
    /// A connection may take it of which no more is known.
    Midway,
    /// A connection takes it that is a part of another one.
    Part,
}

/// Which socket of this host takes the segment, which has these headers.
///
/// A listener does if the segment ends a handshake that the kernel has kept no memory of (a SYN cookie).
#[inline(always)]
pub fn taker<C: EbpfContext>(
    ctx: &C,
    packet: Packet,
    headers: &Headers,
    segment: &Segment,
) -> Taker {
    // As many bytes as the longer of both IP headers has are there in any case, with those of TCP.
    let (Some(ip), Some(tcp)) = (
        packet.at::<[u8; IPV6_LEN]>(headers.l3),
        packet.at::<[u8; TCP_LEN]>(headers.l4),
    ) else {
        return Taker::Nobody;
    };
    // SAFETY: the socket is released. What is checked of the packet was checked to be there.
    unsafe {
        let socket = look_up(ctx, &segment.key);
        if socket.is_null() {
            return Taker::Nobody;
        }
        let state = (&raw const (*socket).state).read_volatile();
        let taker = if state == LISTEN {
            let (ip_len, tcp_len) = (IPV6_LEN as u32, TCP_LEN as u32);
            if bpf_tcp_check_syncookie(socket.cast(), ip.cast(), ip_len, tcp.cast(), tcp_len) == 0 {
                Taker::Fresh {
                    next: segment.sequence,
                    sent: segment.acknowledgement,
                }
            } else {
                Taker::Nobody
            }
        } else if state == NEW_SYN_RECV {
            of_request(socket, segment)
        } else if state == ESTABLISHED {
            of_connection(socket, segment)
        } else if state == TIME_WAIT {
            Taker::Nobody
        } else {
            Taker::Midway
        };
        bpf_sk_release(socket.cast());
        taker
    }
}

/// The socket that takes segments with this name, or null. It has to be released.
#[inline(always)]
fn look_up<C: EbpfContext>(ctx: &C, key: &FlowKey) -> *mut bpf_sock {
    let mut tuple = Tuple::of(key);
    // SAFETY: the program's context; the tuple is of the size given.
    unsafe {
        bpf_skc_lookup_tcp(
            ctx.as_ptr(),
            &raw mut tuple.tuple,
            tuple.size,
            CURRENT_NETNS,
            0,
        )
    }
}

/// What a connection says that is not established yet. It is by this segment, if that acknowledges the
/// SYN-ACK.
#[inline(always)]
unsafe fn of_request(socket: *mut bpf_sock, segment: &Segment) -> Taker {
    // SAFETY: the caller's: a socket that is held. The offsets are the kernel's own.
    unsafe {
        let Some(fields) = fields() else {
            return Taker::Midway;
        };
        let request: *const c_void = bpf_skc_to_tcp_request_sock(socket.cast()).cast();
        if request.is_null() {
            return Taker::Midway;
        }
        let next = field::<u32>(request, &raw const (*fields).request_rcv_nxt);
        let sent = field::<u32>(request, &raw const (*fields).request_snt_isn).wrapping_add(1);
        if segment.has(TCP_ACK) && segment.acknowledgement == sent {
            Taker::Fresh { next, sent }
        } else {
            Taker::Nobody
        }
    }
}

/// What a connection says that is established.
#[inline(always)]
unsafe fn of_connection(socket: *mut bpf_sock, segment: &Segment) -> Taker {
    // SAFETY: as in `of_request`.
    unsafe {
        let Some(fields) = fields() else {
            return Taker::Midway;
        };
        let connection: *const c_void = bpf_skc_to_tcp_sock(socket.cast()).cast();
        if connection.is_null() {
            return Taker::Midway;
        }
        if is_part(connection, fields) {
            return Taker::Part;
        }
        // The number first: the kernel counts the bytes before it moves on.
        let next = field::<u32>(connection, &raw const (*fields).rcv_nxt);
        let sent = field::<u32>(connection, &raw const (*fields).snd_nxt);
        let received = field::<u64>(connection, &raw const (*fields).bytes_received);
        let replied = field::<u64>(connection, &raw const (*fields).bytes_sent);
        let waiting = field::<*const c_void>(connection, &raw const (*fields).out_of_order_queue);
        if received | replied != 0 || !waiting.is_null() {
            Taker::Midway
        } else if segment.has(TCP_ACK) && !is_before(sent, segment.acknowledgement) {
            Taker::Fresh { next, sent }
        } else {
            // The kernel drops what acknowledges what was never sent.
            Taker::Nobody
        }
    }
}

/// How far before and behind the next byte that the kernel expects a segment may begin, in bytes, for [`takes`] to take
/// it for one that lies in the window, which is not asked for.
const NEAR_BEFORE: u32 = 1 << 20;
const NEAR_BEHIND: u32 = 1 << 24;

/// Whether the host's connection with the segment's name may take it, for a process to read: it acknowledges nothing that
/// was not sent, and begins about where data is expected. No, if the kernel does not say.
#[inline(always)]
pub fn takes<C: EbpfContext>(ctx: &C, segment: &Segment) -> bool {
    let Some(fields) = fields() else {
        return false;
    };
    // SAFETY: the socket is released. The offsets are the kernel's own.
    unsafe {
        let socket = look_up(ctx, &segment.key);
        if socket.is_null() {
            return false;
        }
        let mut is_taken = false;
        // What a process has closed is none, and neither is a listener.
        let connection: *const c_void = bpf_skc_to_tcp_sock(socket.cast()).cast();
        let state = (&raw const (*socket).state).read_volatile();
        let is_read = matches!(state, ESTABLISHED | SYN_RECV | CLOSE_WAIT);
        if !connection.is_null() && is_read {
            let next = field::<u32>(connection, &raw const (*fields).rcv_nxt);
            let sent = field::<u32>(connection, &raw const (*fields).snd_nxt);
            let from = segment
                .sequence
                .wrapping_sub(next.wrapping_sub(NEAR_BEFORE));
            is_taken = from < NEAR_BEFORE + NEAR_BEHIND
                && segment.has(TCP_ACK)
                && !is_before(sent, segment.acknowledgement);
        }
        bpf_sk_release(socket.cast());
        is_taken
    }
}

/// The sequence number behind the last byte that the connection with this name has got, and keeps for a process to
/// read; `None` if the kernel does not say.
#[inline(always)]
pub fn received<C: EbpfContext>(ctx: &C, key: &FlowKey) -> Option<u32> {
    ask(ctx, key, |connection, fields| {
        // SAFETY: a connection that is held. The offsets are the kernel's own.
        Some(unsafe { field::<u32>(connection, &raw const (*fields).rcv_nxt) })
    })
}

/// What the kernel says of a connection of which data leaves.
#[derive(Clone, Copy)]
pub struct Reading {
    /// The sequence number of the next byte that the process will read.
    pub next: u32,
    /// Whether the process is writing the data at this moment: what the kernel has held back leaves later, when the
    /// process may have read more.
    pub is_written: bool,
}

/// What the connection with this name says; `None` if the kernel does not.
#[inline(always)]
pub fn reading<C: EbpfContext>(ctx: &C, key: &FlowKey) -> Option<Reading> {
    // SAFETY: a connection that is held. The offsets are the kernel's own.
    ask(ctx, key, |connection, fields| unsafe {
        // Of a part of another connection that takes everything at once; it is that one that is read.
        if is_part(connection, fields) {
            return None;
        }
        // A process that reads may send what was held back as well, but then sending waited for the window, or
        // for what is unacknowledged, and that is nothing when an exchange begins.
        let is_owned = field::<u32>(connection, &raw const (*fields).owned) != 0;
        let waits_for = bits(connection, &raw const (*fields).chrono_bit) & CHRONO_MASK;
        Some(Reading {
            next: field::<u32>(connection, &raw const (*fields).copied_seq),
            is_written: is_owned && waits_for <= CHRONO_BUSY,
        })
    })
}

/// What the established connection with this name answers, which is held meanwhile; `None` if there is none, or if the
/// kernel does not say where it keeps what is asked.
#[inline(always)]
fn ask<C: EbpfContext, T>(
    ctx: &C,
    key: &FlowKey,
    answer: impl FnOnce(*const c_void, *const SocketFields) -> Option<T>,
) -> Option<T> {
    let fields = fields()?;
    // SAFETY: the socket is released.
    unsafe {
        let socket = look_up(ctx, key);
        if socket.is_null() {
            return None;
        }
        // A listener, or what is left of a closed connection, is none.
        let connection: *const c_void = bpf_skc_to_tcp_sock(socket.cast()).cast();
        let state = (&raw const (*socket).state).read_volatile();
        let mut answered = None;
        if !connection.is_null() && state == ESTABLISHED {
            answered = answer(connection, fields);
        }
        bpf_sk_release(socket.cast());
        answered
    }
}

/// Whether a connection is a part of a Multipath TCP connection.
///
/// # Safety
///
/// `connection` is a `tcp_sock` that is held; the offsets are the kernel's own.
#[inline(always)]
unsafe fn is_part(connection: *const c_void, fields: *const SocketFields) -> bool {
    // SAFETY: the caller's.
    unsafe {
        (&raw const (*fields).is_mptcp).read_volatile() != 0
            && field::<u8>(connection, &raw const (*fields).is_mptcp) != 0
    }
}

/// The lower four bits of `tcp_sock.ecn_flags`: explicit congestion notification as in RFC 3168.
const PLAIN_ECN: u8 = 0x0f;

/// Whether the socket itself goes by the addresses and ports that its segments show: where they are translated (NAT)
/// nobody finds it by these.
///
/// # Safety
///
/// `socket` is that of a connection, and is held.
#[inline(always)]
unsafe fn goes_by(socket: *mut bpf_sock, key: &FlowKey) -> bool {
    /// `AF_INET` (include/linux/socket.h).
    const INET: u32 = 2;
    // SAFETY: the caller's.
    unsafe {
        // Of one family alone they are of use; all are read, at positions that the verifier knows.
        let (client4, server4) = (
            (&raw const (*socket).dst_ip4).read_volatile(),
            (&raw const (*socket).src_ip4).read_volatile(),
        );
        let mut other4 = (client4 ^ key.client[3]) | (server4 ^ key.server[3]);
        for (i, mapped) in [0, 0, MAPPED_V4].into_iter().enumerate() {
            other4 |= (mapped ^ key.client[i]) | (mapped ^ key.server[i]);
        }
        let mut other6 = 0;
        for i in 0..4 {
            let client6 = (&raw const (*socket).dst_ip6[i]).read_volatile();
            let server6 = (&raw const (*socket).src_ip6[i]).read_volatile();
            other6 |= (client6 ^ key.client[i]) | (server6 ^ key.server[i]);
        }
        let family = (&raw const (*socket).family).read_volatile();
        let other = if family == INET { other4 } else { other6 };
        // The one in network byte order, the other in the host's.
        let client_port = (&raw const (*socket).dst_port).read_volatile();
        let server_port = (&raw const (*socket).src_port).read_volatile() as u16;
        other | u32::from(client_port ^ key.client_port) == 0
            && server_port.to_be() == key.server_port
    }
}

/// What the two ends of the connection with this name have agreed to whose segment this is: not servable if the kernel
/// does not say, if segments are signed, if the connection is a part of another one, if it began with data (TCP Fast
/// Open), or if its socket has another name. `None` while the kernel has data that came too early: if what is missing
/// before it were answered, it would stand at the wrong place.
///
/// # Safety
///
/// `skb` is the program's context.
#[inline(always)]
pub unsafe fn agreement(skb: *mut __sk_buff, key: &FlowKey) -> Option<Agreement> {
    // SAFETY: the caller's: the context, with the socket that sends. The offsets are the kernel's own.
    unsafe {
        let socket = (*skb).__bindgen_anon_2.sk;
        if socket.is_null() || !goes_by(socket, key) {
            return Some(Agreement::default());
        }
        let connection: *const c_void = bpf_skc_to_tcp_sock(socket.cast()).cast();
        let Some(fields) = fields().filter(|_| !connection.is_null()) else {
            return Some(Agreement::default());
        };
        let has = |offset: *const u32| offset.read_volatile() != 0;
        let is_set = |offset: *const u32| {
            has(offset) && !field::<*const c_void>(connection, offset).is_null()
        };
        let is_signed =
            is_set(&raw const (*fields).md5sig_info) || is_set(&raw const (*fields).ao_info);
        let is_part = is_part(connection, fields);
        let counts_marks = has(&raw const (*fields).ecn_flags)
            && field::<u8>(connection, &raw const (*fields).ecn_flags) & !PLAIN_ECN != 0;
        let began_with_data = bits(connection, &raw const (*fields).syn_data_acked_bit) & 1 != 0;
        let is_special = is_signed || is_part || counts_marks || began_with_data;
        if !has(&raw const (*fields).mss_cache) || is_special {
            return Some(Agreement::default());
        }
        let waiting = field::<*const c_void>(connection, &raw const (*fields).out_of_order_queue);
        if !waiting.is_null() {
            return None;
        }
        let has_timestamps = bits(connection, &raw const (*fields).tstamp_ok_bit) & 1 != 0;
        let mss = field::<u32>(connection, &raw const (*fields).mss_cache);
        let (timestamps, options) = if has_timestamps {
            (Agreement::TIMESTAMPS, TIMESTAMPS_LEN as u32)
        } else {
            (0, 0)
        };
        Some(Agreement {
            mss: (mss + options) as u16,
            client_shift: bits(connection, &raw const (*fields).snd_wscale_bit) & 0xf,
            server_shift: bits(connection, &raw const (*fields).rcv_wscale_bit) & 0xf,
            flags: Agreement::SERVABLE | timestamps,
        })
    }
}

/// A bit field of a structure of the kernel's, at this offset in bits, and what is behind it in its byte.
///
/// # Safety
///
/// There is such a field, within one byte.
#[inline(always)]
unsafe fn bits(structure: *const c_void, offset: *const u32) -> u8 {
    // SAFETY: the caller's. Volatile: the kernel may be changing it.
    unsafe {
        let offset = offset.read_volatile();
        let byte = structure.byte_add(offset as usize / 8).cast::<u8>();
        byte.read_volatile() >> (offset % 8)
    }
}

/// The offsets of fields, if they are known.
#[inline(always)]
fn fields() -> Option<*const SocketFields> {
    let fields = &raw const SOCKET_FIELDS;
    // SAFETY: a static. Volatile, for user space has set it.
    let is_known = unsafe { (&raw const (*fields).rcv_nxt).read_volatile() != 0 };
    is_known.then_some(fields)
}

/// A field of a structure of the kernel's.
///
/// # Safety
///
/// There is such a field at this offset.
#[inline(always)]
unsafe fn field<T>(structure: *const c_void, offset: *const u32) -> T {
    // SAFETY: the caller's. Volatile: the kernel may be changing it.
    unsafe {
        let offset = offset.read_volatile() as usize;
        structure.byte_add(offset).cast::<T>().read_volatile()
    }
}

/// A 4-tuple as the kernel looks it up.
struct Tuple {
    tuple: bpf_sock_tuple,
    size: u32,
}

impl Tuple {
    #[inline(always)]
    fn of(key: &FlowKey) -> Self {
        // SAFETY: a union of integers, set in full.
        let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
        let [a, b, c, d] = key.client;
        let size = if a == 0 && b == 0 && c == MAPPED_V4 {
            tuple.__bindgen_anon_1.ipv4.saddr = d;
            tuple.__bindgen_anon_1.ipv4.daddr = key.server[3];
            tuple.__bindgen_anon_1.ipv4.sport = key.client_port;
            tuple.__bindgen_anon_1.ipv4.dport = key.server_port;
            12
        } else {
            tuple.__bindgen_anon_1.ipv6.saddr = key.client;
            tuple.__bindgen_anon_1.ipv6.daddr = key.server;
            tuple.__bindgen_anon_1.ipv6.sport = key.client_port;
            tuple.__bindgen_anon_1.ipv6.dport = key.server_port;
            36
        };
        Self { tuple, size }
    }
}
