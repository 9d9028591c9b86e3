//! Where the kernel keeps what is asked about a TCP socket.

/// Offsets in bytes of fields of the kernel's structures. They differ from kernel to kernel: user space finds
/// them in the kernel's type information and sets them before it loads the programs, as constants, so that
/// the verifier can check each access. All are 0 where the kernel has no type information.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct SocketFields {
    /// `tcp_sock.rcv_nxt`: sequence number of the next byte (`u32`).
    pub rcv_nxt: u32,
    /// `tcp_sock.copied_seq`: sequence number of the next byte that the process will read (`u32`).
    pub copied_seq: u32,
    /// `sock.sk_lock.owned`: an `int` that is not 0 while a process is at the socket.
    pub owned: u32,
    /// `tcp_sock.chrono_type`: offset in bits of two bits, what sending waits for (`enum tcp_chrono` in
    /// include/net/tcp.h).
    pub chrono_bit: u32,
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
    /// `tcp_sock.mss_cache`: bytes of data in a full segment, options not counted (`u32`).
    pub mss_cache: u32,
    /// `tcp_sock.rx_opt.tstamp_ok`: offset in bits of one bit, whether segments have timestamps.
    pub tstamp_ok_bit: u32,
    /// `tcp_sock.rx_opt.snd_wscale`: offset in bits of four bits, the shift of the peer's window.
    pub snd_wscale_bit: u32,
    /// `tcp_sock.rx_opt.rcv_wscale`: offset in bits of four bits, the shift of the own window.
    pub rcv_wscale_bit: u32,
    /// `tcp_sock.md5sig_info`: a pointer, null if segments are not signed (RFC 2385). 0 if the kernel cannot.
    pub md5sig_info: u32,
    /// `tcp_sock.ao_info`: a pointer, null if segments are not signed (RFC 5925). 0 if the kernel cannot.
    pub ao_info: u32,
    /// `tcp_sock.is_mptcp`: one byte, whether the connection is part of a Multipath TCP one. 0 if the kernel
    /// cannot.
    pub is_mptcp: u32,
    /// `tcp_sock.ecn_flags`: one byte, `TCP_ECN_OK` to `TCP_ECN_SEEN` (include/net/tcp.h) in the lower four bits,
    /// in the others what accurate ECN has agreed to. 0 if it is a bit field, as on kernels without that.
    pub ecn_flags: u32,
    /// `tcp_sock.syn_data_acked`: offset in bits of one bit, whether data has come with the SYN (TCP Fast Open).
    pub syn_data_acked_bit: u32,
}

impl SocketFields {
    /// Nothing is known.
    pub const UNKNOWN: Self = Self {
        rcv_nxt: 0,
        copied_seq: 0,
        owned: 0,
        chrono_bit: 0,
        snd_nxt: 0,
        bytes_received: 0,
        bytes_sent: 0,
        out_of_order_queue: 0,
        request_rcv_nxt: 0,
        request_snt_isn: 0,
        mss_cache: 0,
        tstamp_ok_bit: 0,
        snd_wscale_bit: 0,
        rcv_wscale_bit: 0,
        md5sig_info: 0,
        ao_info: 0,
        is_mptcp: 0,
        ecn_flags: 0,
        syn_data_acked_bit: 0,
    };
}
