//! Packet sockets (packet(7)) that take whole frames from a device and give them to it.
//!
//! A frame that the host's own stack has sent need not be one that could go over a wire: its checksum may
//! be left to the device, it may be many segments in one, and its VLAN tag may stand beside it. All of that
//! is lost on an ordinary packet socket. Here the first two travel in a header before the frame
//! (`PACKET_VNET_HDR`), as between a virtual machine and its host, and the tag is put back into it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc;

/// `struct virtio_net_hdr`, before every frame.
pub(super) const HEADER: usize = 10;
/// Of the header: the length of the frame's headers, and where the checksum starts, in the host's order.
const HEADERS_LEN: usize = 2;
const CHECKSUM_START: usize = 6;
/// Where a VLAN tag is in a frame.
const TAG: usize = 12;
const TAG_LEN: usize = 4;
/// The longest frame: the kernel joins segments to at most 64 KiB, but for the headers.
pub(super) const LONGEST: usize = HEADER + 65_536 + 256;
/// What may wait to be relayed.
const BUFFER: libc::c_int = 64 << 20;

/// A VLAN tag of number 0: its protocol, and a priority.
pub(super) const PRIORITY: [u16; 2] = [0x8100, 1 << 13];

/// linux/if_packet.h.
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
const TP_STATUS_VLAN_VALID: u32 = 1 << 4;
const TP_STATUS_VLAN_TPID_VALID: u32 = 1 << 6;

/// `struct tpacket_auxdata` of linux/if_packet.h.
#[repr(C)]
#[derive(Clone, Copy)]
struct Auxiliary {
    status: u32,
    len: u32,
    snaplen: u32,
    mac: u16,
    net: u16,
    vlan_tci: u16,
    vlan_tpid: u16,
}

/// Room for one control message with an [`Auxiliary`].
#[repr(C, align(8))]
struct Control([u8; 64]);

/// A packet socket bound to a device.
pub(super) struct Socket(OwnedFd);

impl Socket {
    /// Opens a socket for the frames that come in at `dev` of the caller's namespace.
    pub(super) fn open(dev: &str) -> Result<Self> {
        let number = nix::net::if_::if_nametoindex(dev)?;
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // Without a protocol it receives nothing before it is bound.
        // SAFETY: socket has no preconditions; the result is checked.
        let fd = Errno::result(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })?;
        // SAFETY: the descriptor was just made and nothing else owns it.
        let socket = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        socket.set(libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
        socket.set(libc::SOL_PACKET, libc::PACKET_AUXDATA, 1)?;
        socket.set(libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)?;
        socket.set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER)?;
        socket.set(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, BUFFER)?;
        // SAFETY: a sockaddr_ll of zero bytes is valid.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = number as i32;
        let len = size_of_val(&address) as libc::socklen_t;
        // SAFETY: the address is a sockaddr_ll of this length, and outlives the call.
        let bound = unsafe { libc::bind(fd, (&raw const address).cast(), len) };
        Errno::result(bound).with_context(|| format!("binding a packet socket to {dev}"))?;
        Ok(socket)
    }

    fn set(&self, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> Result<()> {
        let len = size_of_val(&value) as libc::socklen_t;
        // SAFETY: these options take an int, which outlives the call.
        let done = unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                level,
                name,
                (&raw const value).cast(),
                len,
            )
        };
        Errno::result(done).with_context(|| format!("option {name} of a packet socket"))?;
        Ok(())
    }

    /// The next frame, behind its header, by way of `buffer`; nothing if none waits.
    pub(super) fn receive(&self, buffer: &mut [u8; LONGEST]) -> io::Result<Option<Vec<u8>>> {
        let mut control = Control([0; 64]);
        let mut part = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        };
        // SAFETY: a msghdr of zero bytes is valid.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = control.0.len();
        // SAFETY: the message points to buffers of the lengths it tells, which outlive the call.
        let len = unsafe { libc::recvmsg(self.0.as_raw_fd(), &raw mut message, 0) };
        let len = match Errno::result(len) {
            Ok(len) => len as usize,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut frame = buffer[..len].to_vec();
        if let Some(tag) = tag(&message) {
            put_tag(&mut frame, tag);
        }
        Ok(Some(frame))
    }

    /// Sends a frame behind its header; whether the kernel had room for it.
    pub(super) fn send(&self, frame: &[u8]) -> io::Result<bool> {
        // SAFETY: the buffer is of the length told, and outlives the call.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        match Errno::result(sent) {
            Ok(_) => Ok(true),
            Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::EINTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The VLAN tag that stood beside the frame of `message`: protocol and tag.
fn tag(message: &libc::msghdr) -> Option<[u16; 2]> {
    // SAFETY: the kernel has filled the control buffer of the message, or set its length to 0.
    let header = unsafe { libc::CMSG_FIRSTHDR(message).as_ref() }?;
    if (header.cmsg_level, header.cmsg_type) != (libc::SOL_PACKET, libc::PACKET_AUXDATA) {
        return None;
    }
    // SAFETY: a message of this type has an Auxiliary as its data, perhaps unaligned.
    let auxiliary = unsafe { libc::CMSG_DATA(header).cast::<Auxiliary>().read_unaligned() };
    let known = TP_STATUS_VLAN_VALID | TP_STATUS_VLAN_TPID_VALID;
    (auxiliary.status & known == known).then_some([auxiliary.vlan_tpid, auxiliary.vlan_tci])
}

/// Puts a VLAN tag (protocol and tag) into a frame, which has its header before it.
pub(super) fn put_tag(frame: &mut Vec<u8>, tag: [u16; 2]) {
    let at = HEADER + TAG;
    frame.splice(at..at, tag.map(u16::to_be_bytes).concat());
    for place in [HEADERS_LEN, CHECKSUM_START] {
        let field = &mut frame[place..place + 2];
        let value = u16::from_ne_bytes([field[0], field[1]]);
        if value != 0 {
            field.copy_from_slice(&(value + TAG_LEN as u16).to_ne_bytes());
        }
    }
}
