//! Offload features of network devices, through the ethtool ioctl.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::libc;

use crate::namespace::Namespace;

/// Work that the kernel leaves to a device, or does for many segments at once.
#[derive(Clone, Copy, Debug)]
pub enum Offload {
    /// Checksums of what is sent (`ETHTOOL_STXCSUM`).
    Checksum,
    /// Joining received segments (`ETHTOOL_SGRO`).
    Gro,
    /// Cutting what is sent into segments (`ETHTOOL_STSO`).
    Tso,
}

/// `struct ethtool_value` of linux/ethtool.h.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

impl Offload {
    /// Switches it on or off for the device `dev` in `namespace`.
    ///
    /// # Errors
    /// When there is no such device, or it cannot be switched.
    pub fn set(self, namespace: &Namespace, dev: &str, on: bool) -> Result<()> {
        const ETHTOOL_STXCSUM: u32 = 0x17;
        const ETHTOOL_STSO: u32 = 0x1f;
        const ETHTOOL_SGRO: u32 = 0x2c;
        let command = match self {
            Self::Checksum => ETHTOOL_STXCSUM,
            Self::Gro => ETHTOOL_SGRO,
            Self::Tso => ETHTOOL_STSO,
        };
        let mut value = Value {
            command,
            data: u32::from(on),
        };
        namespace
            .run(|| ioctl(dev, &mut value))
            .with_context(|| format!("setting offload {self:?} of {dev} to {on}"))
    }
}

/// Has the device `dev` in `namespace` send VLAN tags in the frame, where XDP at the other end finds
/// them, and not beside it.
pub(crate) fn tag_in_frame(namespace: &Namespace, dev: &str) -> Result<()> {
    const ETHTOOL_GFLAGS: u32 = 0x25;
    const ETHTOOL_SFLAGS: u32 = 0x26;
    const ETH_FLAG_TXVLAN: u32 = 1 << 7;
    let mut value = Value {
        command: ETHTOOL_GFLAGS,
        data: 0,
    };
    namespace
        .run(|| {
            ioctl(dev, &mut value)?;
            value.command = ETHTOOL_SFLAGS;
            value.data &= !ETH_FLAG_TXVLAN;
            ioctl(dev, &mut value)
        })
        .with_context(|| format!("switching off VLAN offload of {dev}"))
}

fn ioctl(dev: &str, value: &mut Value) -> Result<()> {
    if dev.len() >= libc::IFNAMSIZ {
        bail!("device name {dev} is too long");
    }
    // SAFETY: socket has no preconditions; the result is checked.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    let fd = Errno::result(fd).context("opening a socket")?;
    // SAFETY: the descriptor was just made and nothing else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: an ifreq of zero bytes is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(dev.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = std::ptr::from_mut(value).cast();
    // SAFETY: the request has a name that ends in NUL and points to an ethtool_value, which is
    // what these ethtool commands take; both outlive the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    Errno::result(done)?;
    Ok(())
}
