//! What the operator has decided.

/// When requests are answered at all.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Non-zero while requests are answered. Translation goes on without.
    pub is_serving: u64,
    /// ns for which the kernel may wait for an acknowledgement that it does not see, before a request is
    /// passed: less than the shortest retransmission timeout (200 ms, `TCP_RTO_MIN` in include/net/tcp.h).
    pub forward_after: u64,
    /// ns after which a request is passed, so that memcached and the host see that the connection is in use.
    pub trickle: u64,
    /// ns for which an answer is not sent again because of the client's acknowledgements, once it was.
    pub resend_after: u64,
    /// Bytes of the longest answer that can be kept.
    pub room: u64,
}
