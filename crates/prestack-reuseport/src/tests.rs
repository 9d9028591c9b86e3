//! In a test program the functions of this library stand before the C library's, as they do in memcached.

use std::{
    fs::File,
    io::{ErrorKind, Read as _, Seek as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use super::*;

/// What `dup` makes of a descriptor.
fn duplicate<S: From<OwnedFd>>(fd: c_int) -> S {
    // SAFETY: `dup` takes any number; what it returns is nobody else's.
    let fd = unsafe {
        let fd = libc::dup(fd);
        assert!(fd >= 0);
        OwnedFd::from_raw_fd(fd)
    };
    fd.into()
}

fn option(fd: c_int, level: c_int, name: c_int) -> c_int {
    let (mut value, mut len): (c_int, _) = (0, 4);
    // SAFETY: there is room for a number.
    let got = unsafe { libc::getsockopt(fd, level, name, (&raw mut value).cast(), &raw mut len) };
    assert_eq!(got, 0);
    value
}

fn set_option(fd: c_int, name: c_int, value: c_int) {
    let (level, value) = (libc::SOL_SOCKET, (&raw const value).cast());
    // SAFETY: the value is a number.
    let set = unsafe { libc::setsockopt(fd, level, name, value, 4) };
    assert_eq!(set, 0);
}

/// The number of the socket, which its duplicates share.
fn cookie(fd: c_int) -> u64 {
    let (mut value, mut len): (u64, _) = (0, 8);
    let (level, name) = (libc::SOL_SOCKET, libc::SO_COOKIE);
    // SAFETY: there is room for a number of 64 bits.
    let got = unsafe { libc::getsockopt(fd, level, name, (&raw mut value).cast(), &raw mut len) };
    assert_eq!(got, 0);
    value
}

const ADDRESSES: [&str; 4] = ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0"];

#[test]
fn a_duplicate_of_a_bound_udp_socket_is_another_one_of_its_place() {
    for address in ADDRESSES {
        let one = UdpSocket::bind(address).expect("free");
        let two: UdpSocket = duplicate(one.as_raw_fd());
        let three: UdpSocket = duplicate(one.as_raw_fd());
        let four: UdpSocket = duplicate(two.as_raw_fd());
        let all = [&one, &two, &three, &four];
        for (at, socket) in all.iter().enumerate() {
            assert_eq!(socket.local_addr().unwrap(), one.local_addr().unwrap());
            for other in &all[at + 1..] {
                assert_ne!(cookie(socket.as_raw_fd()), cookie(other.as_raw_fd()));
            }
        }
    }
}

#[test]
fn datagrams_reach_all_of_them_and_those_of_a_client_the_same_one() {
    for address in [
        IpAddr::from(Ipv4Addr::LOCALHOST),
        Ipv6Addr::LOCALHOST.into(),
    ] {
        let one = UdpSocket::bind((address, 0)).expect("free");
        let sockets = [duplicate(one.as_raw_fd()), duplicate(one.as_raw_fd()), one];
        let server = sockets[0].local_addr().unwrap();
        for socket in &sockets {
            socket.set_nonblocking(true).unwrap();
        }
        let mut clients = [0; 3];
        for _ in 0..200 {
            let client = UdpSocket::bind((address, 0)).expect("a port");
            for _ in 0..3 {
                client.send_to(b"x", server).unwrap();
            }
            let received = sockets
                .each_ref()
                .map(|socket| (0..4).filter(|_| socket.recv(&mut [0; 8]).is_ok()).count());
            let reached = received.iter().position(|count| *count == 3);
            assert_eq!(received.iter().sum::<usize>(), 3);
            clients[reached.expect("one socket has them all")] += 1;
        }
        assert!(clients.iter().all(|&count| count > 20), "{clients:?}");
    }
}

#[test]
fn it_has_the_options_that_memcached_gives() {
    for address in ADDRESSES {
        let one = UdpSocket::bind(address).expect("free");
        let fd = one.as_raw_fd();
        one.set_nonblocking(true).unwrap();
        set_option(fd, libc::SO_REUSEADDR, 1);
        set_option(fd, libc::SO_SNDBUF, 65_536);
        let two: UdpSocket = duplicate(fd);
        for name in [libc::SO_REUSEADDR, libc::SO_SNDBUF, libc::SO_RCVBUF] {
            let of = |socket: &UdpSocket| option(socket.as_raw_fd(), libc::SOL_SOCKET, name);
            assert_eq!(of(&one), of(&two), "{name}");
        }
        if one.local_addr().unwrap().is_ipv6() {
            let of = |socket: &UdpSocket| {
                option(socket.as_raw_fd(), libc::IPPROTO_IPV6, libc::IPV6_V6ONLY)
            };
            assert_eq!(of(&one), of(&two));
        }
        let empty = two.recv(&mut [0; 8]).expect_err("nothing was sent");
        assert_eq!(empty.kind(), ErrorKind::WouldBlock);
    }
}

#[test]
fn anything_else_is_duplicated() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let again: TcpListener = duplicate(listener.as_raw_fd());
    assert_eq!(cookie(listener.as_raw_fd()), cookie(again.as_raw_fd()));
    assert_eq!(
        option(listener.as_raw_fd(), libc::SOL_SOCKET, libc::SO_REUSEPORT),
        0
    );

    let mut file = tempfile();
    file.write_all(b"abc").unwrap();
    let mut again: File = duplicate(file.as_raw_fd());
    again.rewind().unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "abc", "both have one position");

    // A UDP socket that was not bound here.
    let socket = UdpSocket::bind("127.0.0.1:0").expect("free");
    let fd = socket.as_raw_fd();
    set_option(fd, libc::SO_REUSEPORT, 0);
    let again: UdpSocket = duplicate(fd);
    assert_eq!(cookie(fd), cookie(again.as_raw_fd()));

    // SAFETY: `dup` takes any number.
    assert_eq!(unsafe { libc::dup(-1) }, -1);
    assert_eq!(
        std::io::Error::last_os_error().raw_os_error(),
        Some(libc::EBADF)
    );
}

/// A file that has no name.
fn tempfile() -> File {
    // SAFETY: the name ends in zero; the descriptor is nobody else's.
    unsafe {
        let fd = libc::memfd_create(c"test".as_ptr(), 0);
        assert!(fd >= 0);
        File::from_raw_fd(fd)
    }
}

/// Others may not have the address and port of a socket of this user.
#[test]
fn a_socket_that_cannot_join_is_shared() {
    const NOBODY: libc::c_long = 65_534;
    let one = UdpSocket::bind("127.0.0.1:0").expect("free");
    let fd = one.as_raw_fd();
    let duplicates = move || {
        // SAFETY: it takes an integer, and changes whose this thread's sockets are.
        unsafe { libc::syscall(libc::SYS_setfsuid, NOBODY) };
        let refused = group::join(fd).expect_err("of another user");
        assert_eq!(refused.raw_os_error(), Some(libc::EADDRINUSE));
        duplicate::<UdpSocket>(fd)
    };
    let two = std::thread::spawn(duplicates).join().expect("no panic");
    assert_eq!(cookie(fd), cookie(two.as_raw_fd()));
    one.send_to(b"x", one.local_addr().unwrap()).unwrap();
    assert_eq!(two.recv(&mut [0; 8]).unwrap(), 1);
}
