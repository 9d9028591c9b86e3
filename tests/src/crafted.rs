//! A TCP client whose segments, windows above all, are as a test wants them.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::libc;
use prestack_testbed::Namespace;

use crate::raw::{ACK, PSH, Raw, SYN, Segment};

/// An address that nobody has: the client's kernel takes no part.
pub const SOURCE: Ipv4Addr = Ipv4Addr::new(10, 201, 0, 1);

/// Bytes of data in a segment at most, which the client asks for.
pub const MSS: u16 = 1_000;

/// The client.
pub struct Crafted {
    raw: Raw,
    packets: OwnedFd,
    ends: [SocketAddrV4; 2],
    next: u32,
    acknowledged: u32,
}

impl Crafted {
    /// Connects from `namespace`, to which `server` has to have a route for [`SOURCE`].
    ///
    /// # Errors
    /// Without root's privileges, or when the server does not answer.
    pub fn connect(namespace: &Namespace, server: SocketAddrV4) -> Result<Self> {
        let mut client = Self {
            raw: Raw::new(namespace)?,
            packets: namespace.run(packets)?,
            ends: [SocketAddrV4::new(SOURCE, 40_000), server],
            next: 1_000,
            acknowledged: 0,
        };
        client.put(SYN, &[], u16::MAX)?;
        client.next += 1;
        let (sequence, _) = client.take(SYN | ACK)?;
        client.acknowledged = sequence.wrapping_add(1);
        client.put(ACK, &[], u16::MAX)?;
        Ok(client)
    }

    /// Sends data, acknowledges everything that was received, and has room for so many bytes.
    ///
    /// # Errors
    /// When the kernel does not send it.
    pub fn send(&mut self, data: &[u8], window: u16) -> Result<()> {
        self.put(if data.is_empty() { ACK } else { ACK | PSH }, data, window)?;
        self.next = self.next.wrapping_add(data.len() as u32);
        Ok(())
    }

    /// Sends data that is so many bytes further on than what comes next.
    ///
    /// # Errors
    /// When the kernel does not send it.
    pub fn send_ahead(&mut self, by: usize, data: &[u8]) -> Result<()> {
        let next = self.next;
        self.next = next.wrapping_add(by as u32);
        let sent = self.put(ACK | PSH, data, u16::MAX);
        self.next = next;
        sent
    }

    /// The next so many bytes have been [sent ahead](Self::send_ahead).
    pub fn skip(&mut self, by: usize) {
        self.next = self.next.wrapping_add(by as u32);
    }

    /// Receives the data that comes next, not acknowledged yet.
    ///
    /// # Errors
    /// When none comes.
    pub fn receive(&mut self) -> Result<Vec<u8>> {
        loop {
            let (sequence, data) = self.take(ACK)?;
            if !data.is_empty() && sequence == self.acknowledged {
                self.acknowledged = sequence.wrapping_add(data.len() as u32);
                return Ok(data);
            }
        }
    }

    fn put(&self, flags: u8, data: &[u8], window: u16) -> Result<()> {
        let [source, server] = self.ends;
        self.raw.send(&Segment {
            source,
            server,
            sequence: self.next,
            acknowledgement: self.acknowledged,
            flags,
            window,
            mss: (flags & SYN != 0).then_some(MSS),
            data,
        })
    }

    /// The sequence number and the data of the next segment that comes with these flags.
    fn take(&self, flags: u8) -> Result<(u32, Vec<u8>)> {
        let start = Instant::now();
        let mut buffer = [0; 4_096];
        while start.elapsed() < Duration::from_secs(5) {
            // SAFETY: the buffer is as long as is said.
            let len = unsafe {
                libc::recv(
                    self.packets.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    0,
                )
            };
            if len < 0 {
                // The time that `packets` sets is over.
                continue;
            }
            let packet = &buffer[..len as usize];
            let is_ours = packet.len() >= 40
                && packet[9] == 6
                && packet[16..20] == SOURCE.octets()
                && packet[33] & flags == flags;
            if is_ours {
                let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
                let data_at = 20 + usize::from(packet[32] >> 4) * 4;
                let sequence = u32::from_be_bytes(packet[24..28].try_into()?);
                let data = packet.get(data_at..total).context("a truncated packet")?;
                return Ok((sequence, data.to_vec()));
            }
        }
        anyhow::bail!("no segment has come")
    }
}

/// A socket that gets a copy of every IPv4 packet of the calling thread's namespace.
fn packets() -> Result<OwnedFd> {
    let protocol = i32::from((libc::ETH_P_IP as u16).to_be());
    // SAFETY: nothing is handed over, and the descriptor is nobody else's.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM, protocol) };
    ensure!(fd >= 0, io::Error::last_os_error());
    // SAFETY: it was just made.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let patience = nix::sys::time::TimeVal::new(0, 100_000);
    nix::sys::socket::setsockopt(&fd, nix::sys::socket::sockopt::ReceiveTimeout, &patience)?;
    Ok(fd)
}
