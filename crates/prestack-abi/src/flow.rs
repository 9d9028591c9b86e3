//! TCP flows whose bytes have been understood from the first to the last one seen.

/// Most flows that are followed; the least recently used is dropped, after which its data empties
/// the cache.
pub const MAX_FLOWS: usize = 65_536;

/// A TCP 4-tuple as it arrives; addresses and ports in network byte order, IPv4 mapped.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FlowKey {
    /// The client's address.
    pub client: [u32; 4],
    /// memcached's address.
    pub server: [u32; 4],
    /// The client's port.
    pub client_port: u16,
    /// memcached's port.
    pub server_port: u16,
}

/// A flow that is at a command boundary.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct TcpFlow {
    /// Sequence number of the next byte from the client.
    pub next: u32,
    /// 0 before the first byte, then [`TcpFlow::TEXT`] or [`TcpFlow::BINARY`]: memcached decides by
    /// the first byte of a connection.
    pub protocol: u32,
}

impl TcpFlow {
    /// The flow speaks the text protocol.
    pub const TEXT: u32 = 1;
    /// The flow speaks the binary protocol.
    pub const BINARY: u32 = 2;
}

const _: () = assert!(size_of::<FlowKey>() == 36);
