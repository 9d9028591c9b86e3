//! SYNs from addresses that nobody has.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Result, ensure};
use nix::libc;
use prestack_testbed::Namespace;

/// The addresses they come from: this and the 65,535 after it.
pub const SOURCES: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 0);

/// A socket that sends packets as they are.
pub struct Flood(OwnedFd);

impl Flood {
    /// A flood that comes out of `namespace`.
    ///
    /// # Errors
    /// Without root's privileges.
    pub fn new(namespace: &Namespace) -> Result<Self> {
        namespace.run(|| {
            // SAFETY: nothing is handed over, and the descriptor is nobody else's.
            unsafe {
                let fd = libc::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW);
                ensure!(fd >= 0, io::Error::last_os_error());
                Ok(Self(OwnedFd::from_raw_fd(fd)))
            }
        })
    }

    /// Sends a SYN to `server`, the `number`-th (below 2³²) of those that differ in address or port.
    ///
    /// # Errors
    /// When the kernel does not send it.
    pub fn send(&self, server: SocketAddrV4, number: u32) -> Result<()> {
        let source = Ipv4Addr::from(u32::from(SOURCES) + (number & 0xffff));
        let packet = syn(
            SocketAddrV4::new(source, 1024 + (number >> 16) as u16),
            server,
        );
        let to = libc::sockaddr_in {
            sin_family: libc::AF_INET as u16,
            sin_port: 0,
            sin_addr: libc::in_addr {
                s_addr: u32::from_ne_bytes(server.ip().octets()),
            },
            sin_zero: [0; 8],
        };
        // SAFETY: both are as long as is said.
        let sent = unsafe {
            libc::sendto(
                self.0.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                0,
                (&raw const to).cast(),
                size_of_val(&to) as u32,
            )
        };
        ensure!(sent == packet.len() as isize, io::Error::last_os_error());
        Ok(())
    }
}

/// An IPv4 packet with a SYN; the kernel fills in the checksum of the IP header.
fn syn(source: SocketAddrV4, server: SocketAddrV4) -> [u8; 40] {
    const PROTOCOL: u8 = 6;
    let mut packet = [0; 40];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&40_u16.to_be_bytes());
    packet[8] = 64;
    packet[9] = PROTOCOL;
    packet[12..16].copy_from_slice(&source.ip().octets());
    packet[16..20].copy_from_slice(&server.ip().octets());
    packet[20..22].copy_from_slice(&source.port().to_be_bytes());
    packet[22..24].copy_from_slice(&server.port().to_be_bytes());
    packet[24..28].copy_from_slice(&[7; 4]);
    // Five words of header, SYN, and a window.
    packet[32..36].copy_from_slice(&[0x50, 0x02, 0x72, 0x10]);
    // The pseudo header: addresses, protocol, length.
    let mut sum = u32::from(PROTOCOL) + 20;
    for pair in packet[12..].chunks_exact(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    packet[36..38].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    packet
}
