//! A library that `prestack memcached` preloads into stock memcached, and under which every worker thread
//! has a UDP socket of its own.
//!
//! memcached binds one UDP socket for each address, and hands duplicates of its descriptor (`dup`) to all
//! worker threads but the first: every datagram wakes them all, and they take turns at one queue. Under
//! this library a UDP socket that is bound becomes one of a group (`SO_REUSEPORT`), and `dup` of such a
//! socket makes another one of the group, with a queue of its own. The kernel chooses among them by a
//! hash of both addresses and ports, so that what comes from one client's socket always meets the same
//! thread.
//!
//! Whatever cannot be done is left as it would be without the library. Nothing is remembered: what a
//! descriptor is, the kernel is asked.

mod group;
mod next;

use std::{
    fmt::Display,
    io::{Write as _, stderr},
    os::fd::IntoRawFd as _,
};

use libc::{c_int, sockaddr, socklen_t};

/// `bind`, which puts UDP sockets into a group.
///
/// # Safety
///
/// The same as for the C library's: there are `len` bytes at `address`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bind(fd: c_int, address: *const sockaddr, len: socklen_t) -> c_int {
    if group::is_udp(fd)
        && let Err(error) = group::open(fd)
    {
        say(
            "cannot let memcached's threads have UDP sockets of their own",
            error,
        );
    }
    // SAFETY: the caller's.
    unsafe { next::bind(fd, address, len) }
}

/// `dup`, which for a socket of a group returns another one of it.
#[unsafe(no_mangle)]
pub extern "C" fn dup(fd: c_int) -> c_int {
    if group::is_open(fd) {
        match group::join(fd) {
            Ok(socket) => return socket.into_raw_fd(),
            Err(error) => say("a thread of memcached shares its UDP socket", error),
        }
    }
    next::dup(fd)
}

/// Says what is not as it should be; there is nobody to tell when standard error is closed.
fn say(what: &str, why: impl Display) {
    let _ = writeln!(stderr(), "prestack: {what}: {why}");
}

#[cfg(test)]
mod tests;
