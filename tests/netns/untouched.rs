//! `--tcp-hits`: connections of kinds that are never answered, beside ordinary ones that are.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrIn, SockaddrLike, SockaddrStorage, bind,
    connect, getsockname, getsockopt, sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use prestack_testbed::{Memcached, MemcachedOptions, TcpClient, Testbed, pace};
use prestack_tests::kernel;
use prestack_tests::stage::{LASTING, Stage, set, start_prestack, store};

/// GETs in a row on a connection that is not answered.
const GETS: u32 = 50;

/// An address of the client's from which all connections are signed.
const SIGNER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 3);

/// memcached and prestack with hits over TCP, and `net.ipv4.tcp_fastopen` as it was when memcached started.
fn stage(fast_open: Option<&str>) -> Result<Stage> {
    let bed = Testbed::new()?;
    if let Some(value) = fast_open {
        let setting = "/proc/sys/net/ipv4/tcp_fastopen";
        bed.server.run(|| fs::write(setting, value))?;
    }
    let memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
    let prestack = start_prestack(&bed, 0, &[&LASTING[..], &["--tcp-hits"]].concat())?;
    Ok(Stage {
        prestack,
        memcached,
        bed,
    })
}

fn tcp_hits(stage: &Stage) -> Result<u64> {
    stage.prestack.stats()?.get("tcp.hits")
}

/// Both connections write and read in turn. On the ordinary one GETs hit; on the other one, right after that, not one.
fn only_the_ordinary_one_is_hit(
    stage: &Stage,
    ordinary: &mut TcpClient,
    other: &mut TcpClient,
) -> Result<()> {
    for round in 0..3_u32 {
        let value = round.to_string().into_bytes();
        store(other, b"key", &value)?;
        let before = tcp_hits(stage)?;
        let wait = Duration::from_secs(10);
        pace::wait_for("a hit on the ordinary connection", wait, || {
            ensure!(ordinary.get(b"key")?.as_ref() == Some(&value));
            // Its replies may have been in doubt: then the key is cached once it has read for a while.
            ensure!(other.get(b"key")?.as_ref() == Some(&value));
            Ok((tcp_hits(stage)? > before).then_some(()))
        })?;
        let before = tcp_hits(stage)?;
        for _ in 0..GETS {
            ensure!(other.get(b"key")?.as_ref() == Some(&value));
            // Whatever is acknowledged later is: the connection is at rest.
            thread::sleep(Duration::from_millis(2));
        }
        ensure!(tcp_hits(stage)? == before, "it was answered");
        store(ordinary, b"key", b"written")?;
        ensure!(other.get(b"key")?.as_deref() == Some(&b"written"[..]));
    }
    Ok(())
}

/// A socket at the client's end that does not wait for ever; to be connected to memcached.
fn client_socket() -> Result<OwnedFd> {
    let (stream, none) = (SockType::Stream, SockFlag::empty());
    let socket = socket(AddressFamily::Inet, stream, none, None)?;
    let patience = pace::patience(Duration::from_secs(5)).as_secs();
    setsockopt(
        &socket,
        sockopt::SendTimeout,
        &TimeVal::new(patience as i64, 0),
    )?;
    Ok(socket)
}

fn server(stage: &Stage) -> Result<SocketAddrV4> {
    match stage.server4() {
        SocketAddr::V4(server) => Ok(server),
        SocketAddr::V6(_) => bail!("the server has no IPv4 address"),
    }
}

/// `struct tcp_md5sig` (include/uapi/linux/tcp.h).
#[repr(C)]
struct Signature {
    peer: libc::sockaddr_storage,
    flags: u8,
    prefix_len: u8,
    key_len: u16,
    interface: i32,
    key: [u8; libc::TCP_MD5SIG_MAXKEYLEN],
}

/// Has a socket sign what it sends to an address, and take from there only what is signed.
fn sign(socket: BorrowedFd<'_>, peer: Ipv4Addr) -> Result<(), Errno> {
    // SAFETY: made of integers.
    let mut signature: Signature = unsafe { std::mem::zeroed() };
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: libc::in_addr {
            s_addr: u32::from(peer).to_be(),
        },
        sin_zero: [0; 8],
    };
    // SAFETY: any address fits in a `sockaddr_storage`.
    unsafe {
        (&raw mut signature.peer)
            .cast::<libc::sockaddr_in>()
            .write(address)
    };
    signature.key_len = 6;
    signature.key[..6].copy_from_slice(b"secret");
    // SAFETY: the option's value is as long as is said.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_MD5SIG,
            (&raw const signature).cast(),
            size_of::<Signature>() as libc::socklen_t,
        )
    };
    Errno::result(set).map(drop)
}

/// memcached's sockets that listen for TCP over IPv4: they are this process's as well from here on.
fn listeners(memcached: &Memcached) -> Result<Vec<OwnedFd>> {
    let owned = |returned: libc::c_long| -> Result<OwnedFd> {
        ensure!(returned >= 0, io::Error::last_os_error());
        // SAFETY: it was just made.
        Ok(unsafe { OwnedFd::from_raw_fd(returned as i32) })
    };
    let pid = memcached.pid();
    // SAFETY: a system call that takes integers.
    let process = owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    let mut listeners = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let fd: i32 = entry?.file_name().to_string_lossy().parse()?;
        // SAFETY: as above.
        let fd =
            owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0) })?;
        // Others are no sockets, or do not listen.
        if getsockopt(&fd, sockopt::AcceptConn) == Ok(true)
            && getsockname::<SockaddrStorage>(fd.as_raw_fd())?.family() == Some(AddressFamily::Inet)
        {
            listeners.push(fd);
        }
    }
    ensure!(!listeners.is_empty(), "memcached does not listen");
    Ok(listeners)
}

/// Connections that sign their segments (RFC 2385): an answer without a signature would be dropped by the client.
#[test]
fn signed_connections() -> Result<()> {
    let stage = stage(None)?;
    stage.bed.add_client_address(0, SIGNER.into())?;
    for listener in listeners(&stage.memcached)? {
        match sign(listener.as_fd(), SIGNER) {
            // The kernel of a virtual machine may have no signatures.
            Err(Errno::ENOPROTOOPT) if pace::is_slow() => return Ok(()),
            Err(Errno::ENOPROTOOPT) => {
                bail!("this kernel has no TCP signatures (CONFIG_TCP_MD5SIG)")
            }
            signed => signed?,
        }
    }
    let server = server(&stage)?;
    let mut signed = stage.bed.client.run(|| -> Result<_> {
        let socket = client_socket()?;
        bind(
            socket.as_raw_fd(),
            &SockaddrIn::from(SocketAddrV4::new(SIGNER, 0)),
        )?;
        sign(socket.as_fd(), *server.ip())?;
        connect(socket.as_raw_fd(), &SockaddrIn::from(server)).context("connecting")?;
        TcpClient::over(TcpStream::from(socket))
    })?;
    only_the_ordinary_one_is_hit(&stage, &mut stage.tcp()?, &mut signed)
}

/// Connections whose client has sent data with its SYN (RFC 7413), which memcached may have answered before the
/// handshake was over.
#[test]
fn connections_that_begin_with_data() -> Result<()> {
    // 1 for clients, 2 for servers, 0x400 for all that listen, whether they ask for it or not.
    let stage = stage(Some("1027"))?;
    let mut ordinary = stage.tcp()?;
    store(&mut ordinary, b"key", b"value")?;
    let server = server(&stage)?;
    let begin = |data: &[u8]| {
        stage.bed.client.run(|| -> Result<_> {
            let (socket, server) = (client_socket()?, SockaddrIn::from(server));
            let fast = MsgFlags::from_bits_retain(libc::MSG_FASTOPEN);
            let sent = sendto(socket.as_raw_fd(), data, &server, fast)?;
            ensure!(sent == data.len(), "only {sent} bytes were sent");
            TcpClient::over(TcpStream::from(socket))
        })
    };
    // The first one asks for a cookie; those that follow have it.
    for begun in 0..3 {
        let mut client = begin(b"get key\r\n")?;
        let items = client.items()?;
        ensure!(items.len() == 1 && items[0].value == b"value", "{items:?}");
        let begun_so = stage
            .bed
            .server
            .run(|| kernel::counted("TCPFastOpenPassive"))?;
        ensure!(begun_so == begun, "{begun_so} connections began with data");
    }
    let mut writer = begin(&set(b"key", b"other"))?;
    ensure!(writer.line()? == b"STORED\r\n");
    ensure!(ordinary.get(b"key")?.as_deref() == Some(&b"other"[..]));
    only_the_ordinary_one_is_hit(&stage, &mut ordinary, &mut writer)?;
    let mut reader = begin(b"get key\r\n")?;
    ensure!(reader.items()?[0].value == b"written");
    only_the_ordinary_one_is_hit(&stage, &mut ordinary, &mut reader)
}
