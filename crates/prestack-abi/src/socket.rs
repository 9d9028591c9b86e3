//! Where the kernel keeps what is asked about a TCP socket.

/// Offsets in bytes of fields of the kernel's structures. They differ from kernel to kernel: user space finds
/// them in the kernel's type information and sets them before it loads the programs, as constants, so that
/// the verifier can check each access. All are 0 where the kernel has no type information.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct SocketFields {
    /// `tcp_sock.rcv_nxt`: sequence number of the next byte (`u32`).
    pub rcv_nxt: u32,
    /// `tcp_sock.snd_nxt`: sequence number of the next byte that will be sent (`u32`).
    pub snd_nxt: u32,
    /// `tcp_sock.bytes_received`: bytes received in order (`u64`).
    pub bytes_received: u32,
    /// `tcp_sock.bytes_sent`: bytes sent (`u64`).
    pub bytes_sent: u32,
    /// `tcp_sock.out_of_order_queue`: root of a tree, a null pointer if nothing was received out of order.
    pub out_of_order_queue: u32,
    /// `tcp_request_sock.rcv_nxt`: sequence number of the next byte (`u32`).
    pub request_rcv_nxt: u32,
    /// `tcp_request_sock.snt_isn`: sequence number of the SYN-ACK (`u32`).
    pub request_snt_isn: u32,
}

impl SocketFields {
    /// Nothing is known.
    pub const UNKNOWN: Self = Self {
        rcv_nxt: 0,
        snd_nxt: 0,
        bytes_received: 0,
        bytes_sent: 0,
        out_of_order_queue: 0,
        request_rcv_nxt: 0,
        request_snt_isn: 0,
    };
}
