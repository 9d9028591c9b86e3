//! SYNs from addresses that nobody has.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::Result;
use prestack_testbed::Namespace;

use crate::raw::{Raw, SYN, Segment};

/// The addresses they come from: this and the 65,535 after it.
pub const SOURCES: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 0);

/// What sends them.
pub struct Flood(Raw);

impl Flood {
    /// A flood that comes out of `namespace`.
    ///
    /// # Errors
    /// Without root's privileges.
    pub fn new(namespace: &Namespace) -> Result<Self> {
        Raw::new(namespace).map(Self)
    }

    /// Sends a SYN to `server`, the `number`-th (below 2³²) of those that differ in address or port.
    ///
    /// # Errors
    /// When the kernel does not send it.
    pub fn send(&self, server: SocketAddrV4, number: u32) -> Result<()> {
        let source = Ipv4Addr::from(u32::from(SOURCES) + (number & 0xffff));
        self.0.send(&Segment {
            source: SocketAddrV4::new(source, 1024 + (number >> 16) as u16),
            server,
            sequence: 0x0707_0707,
            acknowledgement: 0,
            flags: SYN,
            window: 0x7210,
            mss: None,
            data: &[],
        })
    }
}
