//! UDP sockets that share an address and port, each with a queue of its own.

use std::{
    io, mem,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
};

use libc::{c_int, c_void, sockaddr_storage, socklen_t};

use crate::next;

/// An option that is a number.
#[derive(Clone, Copy)]
struct Number {
    level: c_int,
    name: c_int,
}

impl Number {
    const DOMAIN: Self = Self::of_socket(libc::SO_DOMAIN);
    const TYPE: Self = Self::of_socket(libc::SO_TYPE);
    const PROTOCOL: Self = Self::of_socket(libc::SO_PROTOCOL);
    const REUSE_ADDRESS: Self = Self::of_socket(libc::SO_REUSEADDR);
    const REUSE_PORT: Self = Self::of_socket(libc::SO_REUSEPORT);
    const SEND_BUFFER: Self = Self::of_socket(libc::SO_SNDBUF);
    const IPV6_ONLY: Self = Self {
        level: libc::IPPROTO_IPV6,
        name: libc::IPV6_V6ONLY,
    };

    const fn of_socket(name: c_int) -> Self {
        Self {
            level: libc::SOL_SOCKET,
            name,
        }
    }

    fn get(self, fd: RawFd) -> io::Result<c_int> {
        let mut value: c_int = 0;
        let mut len = size_of::<c_int>() as socklen_t;
        // SAFETY: `value` has room for as many bytes as `len` says.
        check(unsafe {
            libc::getsockopt(
                fd,
                self.level,
                self.name,
                (&raw mut value).cast::<c_void>(),
                &raw mut len,
            )
        })?;
        Ok(value)
    }

    fn set(self, fd: RawFd, value: c_int) -> io::Result<()> {
        // SAFETY: the value is a number, and as long as is said.
        check(unsafe {
            libc::setsockopt(
                fd,
                self.level,
                self.name,
                (&raw const value).cast::<c_void>(),
                size_of::<c_int>() as socklen_t,
            )
        })?;
        Ok(())
    }
}

/// Whether it is a socket for UDP over IPv4 or IPv6.
pub fn is_udp(fd: RawFd) -> bool {
    let is = |number: Number, value| number.get(fd).is_ok_and(|found| found == value);
    is(Number::TYPE, libc::SOCK_DGRAM) && is(Number::PROTOCOL, libc::IPPROTO_UDP)
}

/// Lets others have the address and port that the socket is about to be bound to.
pub fn open(fd: RawFd) -> io::Result<()> {
    Number::REUSE_PORT.set(fd, 1)
}

/// Whether it is a UDP socket that lets others have its address and port.
pub fn is_open(fd: RawFd) -> bool {
    is_udp(fd) && Number::REUSE_PORT.get(fd).is_ok_and(|open| open != 0)
}

/// Makes another socket with the address, port and options of this one.
pub fn join(fd: RawFd) -> io::Result<OwnedFd> {
    let domain = Number::DOMAIN.get(fd)?;
    // SAFETY: three integers; the descriptor that comes of it is nobody else's.
    let socket = unsafe {
        let new = check(libc::socket(domain, libc::SOCK_DGRAM, libc::IPPROTO_UDP))?;
        OwnedFd::from_raw_fd(new)
    };
    let new = socket.as_raw_fd();
    // What memcached sets on a UDP socket (`new_socket`, `server_socket` and `maximize_sndbuf` in
    // memcached.c).
    // SAFETY: integers alone.
    unsafe {
        let flags = check(libc::fcntl(fd, libc::F_GETFL))?;
        check(libc::fcntl(new, libc::F_SETFL, flags))?;
    }
    Number::REUSE_ADDRESS.set(new, Number::REUSE_ADDRESS.get(fd)?)?;
    // The kernel tells twice what it was told, which is what it allows for its own needs.
    Number::SEND_BUFFER.set(new, Number::SEND_BUFFER.get(fd)? / 2)?;
    if domain == libc::AF_INET6 {
        Number::IPV6_ONLY.set(new, Number::IPV6_ONLY.get(fd)?)?;
    }
    open(new)?;
    bind_like(fd, new)?;
    Ok(socket)
}

/// Binds a socket to the address and port of another one.
fn bind_like(fd: RawFd, new: RawFd) -> io::Result<()> {
    // SAFETY: all zeros are an address, of no family.
    let mut address: sockaddr_storage = unsafe { mem::zeroed() };
    let mut len = size_of::<sockaddr_storage>() as socklen_t;
    let address = (&raw mut address).cast();
    // SAFETY: `address` has room for as many bytes as `len` says, and holds as many as it says then.
    unsafe {
        check(libc::getsockname(fd, address, &raw mut len))?;
        check(next::bind(new, address, len))?;
    }
    Ok(())
}

/// What a system call has returned, or its error.
fn check(returned: c_int) -> io::Result<c_int> {
    if returned < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(returned)
}
