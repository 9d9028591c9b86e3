//! Segments of flows that are not known: what the host's sockets say. The sockets are real, the segments are
//! shown to the programs alone.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;
use std::{fs, io};

use nix::libc;
use prestack::doors::{DoorSpec, Transports};
use prestack_testbed::Namespace;
use prestack_tests::raw;

use super::connection::Connection;
use super::{assert_forgotten, assert_key_written, assert_untouched};
use crate::harness::{Datapath, Setup, wait};
use crate::packet::{ACK, FIN, PSH, PacketBuilder, RST, SYN};

/// A memcached that is at this address as well.
fn of(server: SocketAddr) -> Setup {
    let usual = Setup::default();
    let own = DoorSpec {
        address: Some(server.ip()),
        port: server.port(),
        backend: 0,
        serve_tcp: false,
        serve_udp: false,
        transports: Transports::all(Some(server.ip())),
    };
    Setup {
        doors: [vec![own], usual.doors.clone()].concat(),
        ..usual
    }
}

/// A cache with two keys, of a memcached at this address.
fn filled(server: SocketAddr) -> Datapath {
    let mut path = Datapath::with(&of(server));
    path.fill("key", "value");
    path.fill("other", "value");
    path
}

fn option<T: Copy>(socket: &impl AsRawFd, name: i32, value: T) {
    let len = size_of::<T>() as u32;
    // SAFETY: the value is as long as is said.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            name,
            (&raw const value).cast(),
            len,
        )
    };
    assert_eq!(set, 0, "option {name}: {}", io::Error::last_os_error());
}

/// The next sequence number of a queue of a socket in repair mode (include/uapi/linux/tcp.h).
fn number(socket: &TcpStream, queue: i32) -> u32 {
    option(socket, libc::TCP_REPAIR_QUEUE, queue);
    let (mut number, mut len) = (0_u32, 4);
    // SAFETY: there is room for as much as is said.
    let got = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_QUEUE_SEQ,
            (&raw mut number).cast(),
            &raw mut len,
        )
    };
    assert_eq!(got, 0, "{}", io::Error::last_os_error());
    number
}

/// A client that is connected, and its next sequence numbers.
struct Client {
    stream: TcpStream,
    next: u32,
    acknowledges: u32,
}

impl Client {
    fn connect(server: SocketAddr) -> Self {
        const RECEIVE: i32 = 1;
        const SEND: i32 = 2;
        /// Leave repair mode without a probe of the window.
        const OFF: i32 = -1;
        let stream = TcpStream::connect(server).expect("a connection");
        option(&stream, libc::TCP_REPAIR, 1);
        let (next, acknowledges) = (number(&stream, SEND), number(&stream, RECEIVE));
        option(&stream, libc::TCP_REPAIR, OFF);
        Self {
            stream,
            next,
            acknowledges,
        }
    }

    /// A segment that it might send next.
    fn segment(&self, flags: u8, data: &str) -> PacketBuilder {
        PacketBuilder::tcp(self.next, flags, data)
            .from(self.stream.local_addr().expect("an address"))
            .to(self.stream.peer_addr().expect("an address"))
            .acknowledging(self.acknowledges)
    }

    fn at(&self, offset: usize, data: &str) -> PacketBuilder {
        self.segment(ACK | PSH, data)
            .sequence(self.next.wrapping_add(offset as u32))
    }
}

fn listen(address: impl Into<IpAddr>) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((address.into(), 0)).expect("a port");
    let server = listener.local_addr().expect("an address");
    (listener, server)
}

/// The first data of an established connection whose handshake was not seen, or was forgotten.
#[test]
fn a_connection_that_has_sent_nothing() {
    for address in [
        IpAddr::from(Ipv4Addr::LOCALHOST),
        Ipv6Addr::LOCALHOST.into(),
    ] {
        let (_listener, server) = listen(address);
        let client = Client::connect(server);
        let mut path = filled(server);
        path.pass(&client.at(0, "delete key\r\n"));
        assert_key_written(&mut path);
        assert_eq!(path.stats().flows_adopted, 1);
        assert!(!path.can_fill("key", "old"), "the write is outstanding");
        let reply = client.segment(0, "").reversed();
        let reply = reply.sequence(client.acknowledges);
        let reply = reply.acknowledging(client.next.wrapping_add(12));
        path.tx(&reply.flags(ACK | PSH).payload("DELETED\r\n"));
        assert!(path.can_fill("key", "new"));
        path.pass(&client.at(12, "delete other\r\n"));
        path.assert_miss("other");
        assert_eq!(path.epoch(), 0);
    }
}

/// The same of a client on the host itself.
#[test]
fn a_local_connection_that_has_sent_nothing() {
    for address in [
        IpAddr::from(Ipv4Addr::LOCALHOST),
        Ipv6Addr::LOCALHOST.into(),
    ] {
        let (_listener, server) = listen(address);
        let client = Client::connect(server);
        let mut path = filled(server);
        path.lo(&client.at(0, "delete key\r\n"));
        assert_key_written(&mut path);
        let stats = path.stats();
        assert_eq!((stats.flows_adopted, stats.doubted_requests), (1, 0));
        assert!(!path.can_fill("key", "old"), "the write is outstanding");
        path.lo(&client.at(12, "delete other\r\n"));
        path.assert_miss("other");
        assert_eq!(path.epoch(), 0);
    }
}

#[test]
fn segments_that_have_changed_places() {
    let (_listener, server) = listen(Ipv4Addr::LOCALHOST);
    let client = Client::connect(server);
    let mut path = filled(server);
    path.pass(&client.at(5, "e key\r\nget x\r\n"));
    assert_untouched(&mut path);
    path.pass(&client.at(0, "delet"));
    assert_key_written(&mut path);
    assert_eq!(path.stats().holes_closed, 1);
}

/// What the kernel has got, and has not acknowledged yet: of a copy of it nothing becomes, however it is cut, and whatever
/// it says.
#[test]
fn copies_of_what_the_kernel_has_got() {
    const SENT: &str = "get x\r\nget y\r\nget z\r\n";
    for address in [
        IpAddr::from(Ipv4Addr::LOCALHOST),
        Ipv6Addr::LOCALHOST.into(),
    ] {
        let (listener, server) = listen(address);
        let mut client = Client::connect(server);
        let (mut accepted, _) = listener.accept().expect("a client");
        let mut path = filled(server);
        path.pass(&client.at(0, SENT));
        client.stream.write_all(SENT.as_bytes()).expect("sent");
        // It has come when it can be read.
        accepted
            .read_exact(&mut [0; SENT.len()])
            .expect("a request");
        path.pass(&client.at(10, " y\r\nget z\r\n"));
        path.pass(&client.at(7, "delete key\r\n"));
        path.pass(&client.at(0, "get x\r\ndelete key\r\n"));
        assert_eq!(path.stats().reparsed, 0);
        assert_untouched(&mut path);
        // Of a copy with more only that counts.
        path.pass(&client.at(7, "delete key\r\n..delete other\r\n"));
        assert_eq!(path.stats().doubted_requests, 0);
        path.assert_hit("key", "value");
        path.assert_miss("other");
        assert!(!path.can_fill("other", "old"), "the write is outstanding");
        // This one the kernel has not got.
        path.pass(&client.at(24, "lete key\r\n"));
        assert_eq!(path.stats().doubted_requests, 1);
    }
}

/// What the kernel drops.
#[test]
fn segments_that_no_connection_takes() {
    let (_listener, server) = listen(Ipv4Addr::LOCALHOST);
    let client = Client::connect(server);
    let mut path = filled(server);
    let flush = |flags| client.segment(flags, "flush_all\r\n");
    path.pass(&flush(ACK).acknowledging(client.acknowledges.wrapping_add(1)));
    path.pass(&flush(PSH));
    path.pass(&flush(ACK | RST));
    path.pass(&flush(ACK).client_port(1));
    path.pass(&flush(ACK).sequence(client.next.wrapping_sub(1 << 20)));
    path.pass(&client.segment(ACK | FIN, ""));
    assert_untouched(&mut path);
}

#[test]
fn a_connection_that_was_used() {
    let (listener, server) = listen(Ipv4Addr::LOCALHOST);
    for has_server_sent in [false, true] {
        let mut client = Client::connect(server);
        let (mut accepted, _) = listener.accept().expect("a client");
        if has_server_sent {
            accepted.write_all(b"x").expect("a connection");
            client.stream.read_exact(&mut [0]).expect("a byte");
            client.acknowledges = client.acknowledges.wrapping_add(1);
        } else {
            client.stream.write_all(b"x").expect("a connection");
            accepted.read_exact(&mut [0]).expect("a byte");
            client.next = client.next.wrapping_add(1);
        }
        let mut path = filled(server);
        path.pass(&client.segment(ACK | PSH, "get key\r\n"));
        assert_forgotten(&mut path);
        assert_eq!(path.stats().doubted_requests, 1);
    }
}

/// One that the host will establish when it has this segment.
#[test]
fn a_connection_that_is_being_established() {
    let (listener, server) = listen(Ipv4Addr::LOCALHOST);
    // The host waits for data, as long as this many seconds.
    option(&listener, libc::TCP_DEFER_ACCEPT, 60);
    let client = Client::connect(server);
    let mut path = filled(server);
    let flush = client.segment(ACK, "flush_all\r\n");
    path.pass(&flush.acknowledging(client.acknowledges.wrapping_sub(1)));
    assert_eq!(path.stats().strays, 1);
    assert_untouched(&mut path);
    path.pass(&client.at(5, "e key\r\n"));
    path.pass(&client.at(0, "delet"));
    assert_key_written(&mut path);
    assert_eq!(path.stats().flows_adopted, 1);
}

/// A half-open flow of which something comes that it does not expect: whether the connection takes it, the
/// host's sockets tell.
#[test]
fn a_half_open_flow_that_is_established() {
    let (_listener, server) = listen(Ipv4Addr::LOCALHOST);
    let client = Client::connect(server);
    let mut path = filled(server);
    let agreed = client.segment(0, "").reversed().flags(SYN | ACK);
    path.tx(&agreed
        .sequence(client.acknowledges.wrapping_sub(1))
        .acknowledging(client.next));
    // The window was made wider by a segment that nothing showed to be to a client that exists.
    path.pass(&client.at(70_000, "x"));
    path.pass(&client.at(0, "delete key\r\n"));
    assert_key_written(&mut path);
    assert_eq!(path.stats().strays, 0);
}

/// More than is taken for replies that were missed by chance.
#[test]
fn replies_that_leave_where_they_are_not_seen() {
    const REPLY: usize = 100_000;
    let (listener, server) = listen(Ipv4Addr::LOCALHOST);
    let mut client = Client::connect(server);
    let (mut accepted, _) = listener.accept().expect("a client");
    let mut path = filled(server);
    path.pass(&client.at(0, "get x\r\n"));
    client.stream.write_all(b"get x\r\n").expect("a connection");
    accepted.read_exact(&mut [0; 7]).expect("a request");
    accepted.write_all(&[0; REPLY]).expect("a connection");
    client.stream.read_exact(&mut [0; REPLY]).expect("a reply");
    assert_untouched(&mut path);
    // What acknowledges what was never sent is dropped.
    let behind = |ahead: u32, data| {
        let acknowledges = client.acknowledges.wrapping_add(ahead);
        client.at(7, data).acknowledging(acknowledges)
    };
    path.pass(&behind(REPLY as u32 + 1, "delete key\r\n"));
    path.pass(&behind(1 << 30, "delete key\r\n"));
    let far = behind(REPLY as u32, "delete key\r\n");
    path.pass(&far.sequence(client.next.wrapping_add(1 << 30)));
    assert_untouched(&mut path);
    assert_eq!(path.stats().strays, 3);
    path.pass(&behind(REPLY as u32, "delete key\r\n"));
    assert_forgotten(&mut path);
}

/// With SYN cookies the host agrees to more than one SYN of a name, and keeps none: the client may go on with the first.
#[test]
fn a_half_open_flow_of_another_syn() {
    for ahead in [1_u32, 1000, 1 << 20, 1 << 30, 0_u32.wrapping_sub(1000)] {
        let (_listener, server) = listen(Ipv4Addr::LOCALHOST);
        let client = Client::connect(server);
        let mut path = filled(server);
        let agreed = client.segment(0, "").reversed().flags(SYN | ACK);
        let sequence = client.acknowledges.wrapping_sub(1).wrapping_add(ahead);
        path.tx(&agreed
            .sequence(sequence)
            .acknowledging(client.next.wrapping_add(ahead)));
        path.pass(&client.at(0, "get x\r\n"));
        path.pass(&client.at(7, "delete key\r\n"));
        path.assert_miss("key");
    }
}

/// A client that is in doubt, and what reads its commands.
struct Doubted {
    path: Datapath,
    client: Client,
    accepted: TcpStream,
}

impl Doubted {
    fn new(address: IpAddr) -> Self {
        let (listener, server) = listen(address);
        let mut client = Client::connect(server);
        let (mut accepted, _) = listener.accept().expect("a client");
        client.stream.write_all(b"x").expect("a connection");
        accepted.read_exact(&mut [0]).expect("a byte");
        client.next = client.next.wrapping_add(1);
        let path = Datapath::with(&Setup {
            settle: SETTLE,
            ..of(server)
        });
        Self {
            path,
            client,
            accepted,
        }
    }

    /// The client asks, and memcached reads it; then, or without having done so, it answers.
    fn exchange(&mut self, is_read: bool) {
        const REQUEST: &str = "get x\r\n";
        const REPLY: &str = "END\r\n";
        let client = &mut self.client;
        client.stream.write_all(REQUEST.as_bytes()).expect("sent");
        self.path.pass(&client.at(0, REQUEST));
        if is_read {
            let mut request = [0; REQUEST.len()];
            self.accepted.read_exact(&mut request).expect("a request");
        }
        client.next = client.next.wrapping_add(REQUEST.len() as u32);
        let reply = client.segment(0, "").reversed().flags(ACK | PSH);
        let reply = reply.sequence(client.acknowledges);
        self.path
            .tx(&reply.acknowledging(client.next).payload(REPLY));
        client.acknowledges = client.acknowledges.wrapping_add(REPLY.len() as u32);
    }

    fn regained(&self) -> u64 {
        self.path.stats().regained
    }
}

const SETTLE: Duration = Duration::from_millis(100);

/// A client that never pauses is not in doubt for long: memcached reads a command only when it has answered those
/// before. What it has answered late may be learnt from when it has settled.
#[test]
fn replies_to_all_that_was_read() {
    for address in [
        IpAddr::from(Ipv4Addr::LOCALHOST),
        Ipv6Addr::LOCALHOST.into(),
    ] {
        let mut doubted = Doubted::new(address);
        // The connection is taken up by the first, which is no exchange as nothing was seen to leave.
        for number in 0..3 {
            assert_eq!(doubted.regained(), 0, "after {number}");
            doubted.exchange(true);
        }
        assert_eq!(doubted.regained(), 1);
        assert!(!doubted.path.can_fill("key", "old"));
        wait(SETTLE * 3);
        assert!(doubted.path.can_fill("key", "new"));
    }
}

/// What somebody has sent in the client's name does not keep its connection in doubt, wherever it lies, and though it be
/// what the connection was taken up by.
#[test]
fn a_segment_far_ahead() {
    for is_first in [true, false] {
        for far in [500 << 20, 3 << 29] {
            let mut doubted = Doubted::new(Ipv4Addr::LOCALHOST.into());
            if !is_first {
                doubted.exchange(true);
            }
            doubted.path.pass(&doubted.client.at(far, "noise\r\n"));
            for _ in 0..6 {
                doubted.exchange(true);
            }
            assert_eq!(doubted.regained(), 1, "{is_first} {far}");
        }
    }
}

/// But one of which something is unread may be ahead, however slow it is.
#[test]
fn replies_while_something_is_unread() {
    let mut doubted = Doubted::new(Ipv4Addr::LOCALHOST.into());
    wait(SETTLE * 3);
    doubted.exchange(true);
    doubted.exchange(false);
    wait(SETTLE * 3);
    doubted.exchange(false);
    assert_eq!(doubted.regained(), 0);
    doubted.accepted.read_exact(&mut [0; 14]).expect("the rest");
    doubted.exchange(true);
    assert_eq!(doubted.regained(), 0);
    doubted.exchange(true);
    assert_eq!(doubted.regained(), 1);
}

/// Nothing is learnt while it may be a write that is unread, whatever leaves meanwhile.
#[test]
fn what_is_unread_is_waited_for() {
    let mut doubted = Doubted::new(Ipv4Addr::LOCALHOST.into());
    doubted.exchange(false);
    wait(SETTLE * 3);
    assert!(!doubted.path.can_fill("key", "old"));
    doubted.accepted.read_exact(&mut [0; 7]).expect("the rest");
    doubted.exchange(true);
    wait(SETTLE * 3);
    assert!(doubted.path.can_fill("key", "new"));
}

/// Where its replies leave unseen, too, whatever the numbers were before.
#[test]
fn what_a_connection_with_unseen_replies_has_not_read_is_waited_for() {
    const UNSEEN: usize = 100_000;
    // The numbers are the kernel's: several connections, as some would do by chance.
    for _ in 0..6 {
        let (listener, server) = listen(Ipv4Addr::LOCALHOST);
        let mut client = Client::connect(server);
        let (mut accepted, _) = listener.accept().expect("a client");
        let mut path = Datapath::with(&Setup {
            settle: SETTLE,
            ..of(server)
        });
        path.pass(&client.at(0, "get x\r\n"));
        client.stream.write_all(b"get x\r\n").expect("sent");
        accepted.read_exact(&mut [0; 7]).expect("a request");
        accepted.write_all(&vec![0; UNSEEN]).expect("sent");
        let mut reply = vec![0; UNSEEN];
        client.stream.read_exact(&mut reply).expect("a reply");
        client.acknowledges = client.acknowledges.wrapping_add(UNSEEN as u32);
        path.pass(&client.at(7, "delete key\r\n"));
        client.stream.write_all(b"delete key\r\n").expect("sent");
        wait(SETTLE * 2);
        assert_eq!(path.kernel().backend().waits, 1);
        // More of the reply before it leaves.
        accepted.write_all(b"more").expect("sent");
        let more = client.segment(0, "").reversed().flags(ACK | PSH);
        let more = more.sequence(client.acknowledges).payload("more");
        path.tx(&more.acknowledging(client.next.wrapping_add(19)));
        assert_eq!(path.kernel().backend().waits, 1);
        wait(SETTLE * 2);
        assert!(!path.can_fill("key", "old"));
    }
}

/// A filter of this host answers a segment of a connection that is at rest with a reset that looks like the socket's, and
/// lets the next one through.
#[test]
fn a_connection_that_a_filter_seemed_to_end() {
    let (listener, server) = listen(Ipv4Addr::LOCALHOST);
    let mut client = Client::connect(server);
    let (mut accepted, _) = listener.accept().expect("a client");
    let mut path = filled(server);
    path.pass(&client.at(0, "get x\r\n"));
    client.stream.write_all(b"get x\r\n").expect("sent");
    accepted.read_exact(&mut [0; 7]).expect("a request");
    client.next = client.next.wrapping_add(7);
    let reset = client.segment(0, "").reversed().flags(RST);
    path.tx(&reset.sequence(client.acknowledges));
    path.pass(&client.at(0, "delete key\r\n"));
    assert_forgotten(&mut path);
    // But not one that has no socket.
    let mut path = filled(server);
    let mut gone = Connection::open(&path, 1);
    gone.exchange(&path, "get x\r\n", "END\r\n");
    path.tx(&gone.answer(RST, ""));
    path.pass(&gone.segment(ACK | PSH, "delete key\r\n"));
    assert_untouched(&mut path);
    assert_eq!(path.stats().strays, 1);
}

/// What memcached has closed it reads no more, though the kernel still has it.
#[test]
fn data_that_crosses_the_end() {
    let (listener, server) = listen(Ipv4Addr::LOCALHOST);
    let mut client = Client::connect(server);
    let (accepted, _) = listener.accept().expect("a client");
    let mut path = filled(server);
    path.pass(&client.at(0, "get x\r\n"));
    client.next = client.next.wrapping_add(7);
    drop(accepted);
    let end = client.segment(0, "").reversed().flags(ACK | FIN);
    path.tx(&end.sequence(client.acknowledges).acknowledging(client.next));
    path.pass(&client.at(0, "delete key\r\n"));
    assert_untouched(&mut path);
    assert_eq!(path.stats().strays, 1);
}

/// A raw socket that sends and sees TCP segments over IPv4.
struct Raw(OwnedFd);

impl Raw {
    fn open() -> Self {
        // SAFETY: nothing is handed over, and the descriptor is nobody else's.
        unsafe {
            let fd = libc::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_TCP);
            assert!(fd >= 0, "{}", io::Error::last_os_error());
            let on = 1_i32;
            let set = libc::setsockopt(
                fd,
                libc::IPPROTO_IP,
                libc::IP_HDRINCL,
                (&raw const on).cast(),
                4,
            );
            assert_eq!(set, 0);
            Self(OwnedFd::from_raw_fd(fd))
        }
    }

    /// Sends an IPv4 packet to the host itself.
    fn send(&self, packet: &[u8]) {
        raw::send(&self.0, packet, Ipv4Addr::LOCALHOST).expect("it is sent");
    }

    /// The next segment that has these flags, from its TCP header on.
    fn receive(&self, flags: u8) -> Vec<u8> {
        loop {
            let mut packet = [0_u8; 2048];
            // SAFETY: there is room for as much as is said.
            let len = unsafe {
                libc::recv(
                    self.0.as_raw_fd(),
                    packet.as_mut_ptr().cast(),
                    packet.len(),
                    0,
                )
            };
            let len = usize::try_from(len).expect("a segment");
            if packet[20 + 13] == flags {
                return packet[20..len].to_vec();
            }
        }
    }
}

/// The host keeps no memory of handshakes: what ends one shows by its cookie that it was agreed to.
#[test]
fn a_connection_by_a_syn_cookie() {
    let host = Namespace::new().expect("a namespace");
    let (listener, raw) = host.run(|| {
        fs::write("/proc/sys/net/ipv4/tcp_syncookies", "2").expect("a setting");
        (listen(Ipv4Addr::LOCALHOST), Raw::open())
    });
    let (_listener, server) = listener;
    let mut path = filled(server);
    let mut connection = Connection::new(40_000);
    let client = SocketAddr::from((Ipv4Addr::LOCALHOST, 40_000));
    let at = |packet: PacketBuilder| packet.from(client).to(server);
    let programs = &path.kernel().programs;
    host.run(|| {
        raw.send(&at(connection.segment(SYN, "")).build()[14..]);
        let answer = raw.receive(SYN | ACK);
        let isn = u32::from_be_bytes(answer[4..8].try_into().expect("four bytes"));
        connection.server = isn.wrapping_add(1);
        connection.client = connection.client.wrapping_add(1);
        let mut forged = connection.clone();
        // The lowest bits of a cookie stand for the greatest segment.
        forged.server = forged.server.wrapping_add(1 << 20);
        programs.rx(&at(forged.segment(ACK, "flush_all\r\n")).build());
        programs.rx(&at(connection.segment(ACK | PSH, "delete key\r\n")).build());
        connection.client = connection.client.wrapping_add(12);
        // From now on the flow is known.
        programs.rx(&at(connection.segment(ACK | PSH, "get other\r\n")).build());
    });
    assert_key_written(&mut path);
    let stats = path.stats();
    assert_eq!((stats.strays, stats.flows_adopted), (1, 1), "{stats:?}");
}
