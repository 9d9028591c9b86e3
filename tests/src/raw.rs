//! TCP segments that are sent as they are.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Result, ensure};
use nix::libc;
use prestack_testbed::Namespace;

/// Flags of TCP (RFC 9293, section 3.1): the connection begins.
pub const SYN: u8 = 0x02;
/// The receiver is to hand the data on.
pub const PSH: u8 = 0x08;
/// The acknowledgement number counts.
pub const ACK: u8 = 0x10;

/// The number of TCP in IPv4 headers.
const PROTOCOL: u8 = 6;

/// A segment of a client's.
pub struct Segment<'a> {
    /// Where it comes from.
    pub source: SocketAddrV4,
    /// Where it goes.
    pub server: SocketAddrV4,
    /// Sequence number of its first byte.
    pub sequence: u32,
    /// Sequence number of the byte that is expected next.
    pub acknowledgement: u32,
    /// [`SYN`], [`PSH`], [`ACK`].
    pub flags: u8,
    /// In bytes: no scale is asked for.
    pub window: u16,
    /// The option that says how many bytes of data a segment to the client may have.
    pub mss: Option<u16>,
    /// What it carries.
    pub data: &'a [u8],
}

impl Segment<'_> {
    /// The IPv4 packet; the kernel fills in the checksum of its header.
    fn packet(&self) -> Vec<u8> {
        let mut tcp = Vec::new();
        tcp.extend(self.source.port().to_be_bytes());
        tcp.extend(self.server.port().to_be_bytes());
        tcp.extend(self.sequence.to_be_bytes());
        tcp.extend(self.acknowledgement.to_be_bytes());
        let words: u8 = if self.mss.is_some() { 6 } else { 5 };
        tcp.extend([words << 4, self.flags]);
        tcp.extend(self.window.to_be_bytes());
        tcp.extend([0; 4]);
        if let Some(mss) = self.mss {
            tcp.extend([2, 4]);
            tcp.extend(mss.to_be_bytes());
        }
        tcp.extend(self.data);
        let [from, to] = [self.source, self.server].map(|end| end.ip().octets());
        let checksum = checksum(&[&from, &to, &tcp], u32::from(PROTOCOL) + tcp.len() as u32);
        tcp[16..18].copy_from_slice(&checksum.to_be_bytes());
        let mut packet = vec![0; 20];
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&(20 + tcp.len() as u16).to_be_bytes());
        // "Don't fragment", as Linux sets it.
        packet[6] = 0x40;
        packet[8] = 64;
        packet[9] = PROTOCOL;
        packet[12..16].copy_from_slice(&from);
        packet[16..20].copy_from_slice(&to);
        packet.extend(tcp);
        packet
    }
}

/// The Internet checksum (RFC 1071) of parts, of which only the last may have an odd length, and `sum`.
fn checksum(parts: &[&[u8]], mut sum: u32) -> u16 {
    for pair in parts.iter().flat_map(|part| part.chunks(2)) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// A socket that sends packets as they are.
pub struct Raw(OwnedFd);

impl Raw {
    /// One whose packets come out of `namespace`.
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

    /// Sends a segment.
    ///
    /// # Errors
    /// When the kernel does not send it.
    pub fn send(&self, segment: &Segment<'_>) -> Result<()> {
        Ok(send(&self.0, &segment.packet(), *segment.server.ip())?)
    }
}

/// Sends an IPv4 packet as it is, out of a raw socket.
///
/// # Errors
/// When the kernel does not send it, or not all of it.
pub fn send(socket: &OwnedFd, packet: &[u8], to: Ipv4Addr) -> io::Result<()> {
    let to = libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: 0,
        sin_addr: libc::in_addr {
            s_addr: u32::from_ne_bytes(to.octets()),
        },
        sin_zero: [0; 8],
    };
    // SAFETY: both are as long as is said.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            packet.as_ptr().cast(),
            packet.len(),
            0,
            (&raw const to).cast(),
            size_of_val(&to) as u32,
        )
    };
    match usize::try_from(sent) {
        Ok(sent) if sent == packet.len() => Ok(()),
        Ok(_) => Err(io::ErrorKind::WriteZero.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}
