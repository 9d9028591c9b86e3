//! Ending connections of the host from outside of their processes, as `ss -K` does: the kernel resets them.
//!
//! Asked to end what has a connection's addresses and ports, the kernel looks for a socket as it does for a
//! packet: where there is no such connection any more it finds the **listener**, and ends that. So it is asked
//! for its connections first, and then to end the very socket that it has named.

use std::{
    collections::HashSet,
    io,
    net::{Ipv4Addr, TcpListener},
};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};
use nix::libc;
use prestack_abi::{config::MAPPED_V4, flow::FlowKey};

/// `SOCK_DIAG_BY_FAMILY` (include/uapi/linux/sock_diag.h): sockets are described.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `SOCK_DESTROY` (there): a socket is ended.
const SOCK_DESTROY: u16 = 21;
/// `NLMSG_ERROR` (include/uapi/linux/netlink.h): an error number, 0 for success.
const NLMSG_ERROR: u16 = 2;
/// `NLMSG_DONE`: the end of a list, with an error number if it was cut short.
const NLMSG_DONE: u16 = 3;
/// `NLM_F_REQUEST`.
const REQUEST: u16 = 1;
/// `NLM_F_ACK`.
const ACK: u16 = 4;
/// `NLM_F_DUMP`: all that match.
const DUMP: u16 = 0x300;
/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Bytes of `struct inet_diag_sockid` (include/uapi/linux/inet_diag.h): ports, addresses, interface, cookie.
const ID: usize = 48;
/// Bytes before it in `struct inet_diag_req_v2`: family, protocol, extensions, states.
const BEFORE_ASKED: usize = 8;
/// Bytes before it in `struct inet_diag_msg`: family, state, timer, retransmissions.
const BEFORE_TOLD: usize = 4;
/// Bit of `TCP_LISTEN` (include/net/tcp_states.h) among states.
const LISTENERS: u32 = 1 << 10;
/// Every state but that.
const CONNECTIONS: u32 = !LISTENERS;
/// The families that TCP has. An IPv4 connection to a socket of IPv6 is in the second.
const FAMILIES: [u8; 2] = [libc::AF_INET as u8, libc::AF_INET6 as u8];

/// A TCP socket as the kernel names it: no later one has the same name.
#[derive(Clone, Debug)]
pub struct Connection {
    family: u8,
    id: [u8; ID],
}

impl Connection {
    /// Both ends, as the datapath names them.
    #[must_use]
    pub fn key(&self) -> FlowKey {
        let word = |at: usize| {
            let bytes = [0, 1, 2, 3].map(|byte| self.id[at + byte]);
            u32::from_ne_bytes(bytes)
        };
        let port = |at: usize| u16::from_ne_bytes([self.id[at], self.id[at + 1]]);
        // Addresses of IPv4 are the first word.
        let address = |at: usize| match i32::from(self.family) {
            libc::AF_INET => [0, 0, MAPPED_V4, word(at)],
            _ => [0, 4, 8, 12].map(|byte| word(at + byte)),
        };
        FlowKey {
            server: address(4),
            client: address(20),
            server_port: port(0),
            client_port: port(2),
        }
    }
}

/// Ends the host's connections, in the network namespace of the calling thread.
#[derive(Debug)]
pub struct Destroyer(Socket);

impl Destroyer {
    /// Opens a socket to the kernel.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn new() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self(socket))
    }

    /// Those of these connections that there are, over whichever interface. One that comes or goes meanwhile may
    /// be missed.
    ///
    /// # Errors
    /// The kernel does not describe its sockets, for example because it was built without `CONFIG_INET_DIAG`
    /// (`EOPNOTSUPP`).
    pub fn find(&self, keys: &HashSet<FlowKey>) -> io::Result<Vec<Connection>> {
        let ports: HashSet<_> = keys.iter().map(|key| key.server_port).collect();
        let mut found = Vec::new();
        for port in ports {
            for family in FAMILIES {
                let there = self.list(family, CONNECTIONS, port)?;
                found.extend(
                    there
                        .into_iter()
                        .filter(|there| keys.contains(&there.key())),
                );
            }
        }
        Ok(found)
    }

    /// Has the kernel reset a connection, which memcached's end learns of as well. False if it has ended.
    ///
    /// # Errors
    /// The kernel refused, for example because it was built without `CONFIG_INET_DIAG_DESTROY`
    /// (`EOPNOTSUPP`).
    pub fn destroy(&self, connection: &Connection) -> io::Result<bool> {
        let Connection { family, id } = connection;
        let flags = REQUEST | ACK;
        self.0
            .send(&request(SOCK_DESTROY, flags, *family, u32::MAX, id), 0)?;
        let (reply, _) = self.0.recv_from_full()?;
        match messages(&reply).next() {
            Some((NLMSG_ERROR, body)) => match error_in(body)? {
                0 => Ok(true),
                // Nothing has its addresses and ports, or another socket does: the listener.
                libc::ENOENT | libc::ESTALE => Ok(false),
                error => Err(io::Error::from_raw_os_error(error)),
            },
            _ => Err(unexpected()),
        }
    }

    /// The sockets of a family in these states and with this local port, network byte order.
    fn list(&self, family: u8, states: u32, port: u16) -> io::Result<Vec<Connection>> {
        let mut id = [0; ID];
        id[..2].copy_from_slice(&port.to_ne_bytes());
        let flags = REQUEST | DUMP;
        self.0
            .send(&request(SOCK_DIAG_BY_FAMILY, flags, family, states, &id), 0)?;
        let mut found = Vec::new();
        loop {
            let (datagram, _) = self.0.recv_from_full()?;
            for (kind, body) in messages(&datagram) {
                match kind {
                    SOCK_DIAG_BY_FAMILY => found.push(read(body)?),
                    NLMSG_ERROR | NLMSG_DONE => {
                        return match error_in(body)? {
                            0 => Ok(found),
                            // The part of the kernel that knows TCP's sockets is missing.
                            libc::ENOENT => Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
                            error => Err(io::Error::from_raw_os_error(error)),
                        };
                    }
                    _ => return Err(unexpected()),
                }
            }
        }
    }
}

/// Checks that the kernel can end connections: by a listener that nobody knows of.
///
/// # Errors
/// It cannot, or it could not be tried.
pub fn check() -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port().to_be();
    let address = [0, 0, MAPPED_V4, u32::from(Ipv4Addr::LOCALHOST).to_be()];
    let destroyer = Destroyer::new()?;
    let there = destroyer.list(libc::AF_INET as u8, LISTENERS, port)?;
    let own = there.iter().find(|there| there.key().server == address);
    let own = own.ok_or_else(|| io::Error::other("the kernel does not list its listeners"))?;
    match destroyer.destroy(own)? {
        true => Ok(()),
        false => Err(io::Error::other("it does not find them")),
    }
}

/// A request, `struct nlmsghdr` and `struct inet_diag_req_v2`.
fn request(kind: u16, flags: u16, family: u8, states: u32, id: &[u8; ID]) -> Vec<u8> {
    let length = HEADER + BEFORE_ASKED + ID;
    let mut bytes = Vec::with_capacity(length);
    bytes.extend((length as u32).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // Sequence number and port id.
    bytes.extend([0; 8]);
    bytes.extend([family, libc::IPPROTO_TCP as u8, 0, 0]);
    bytes.extend(states.to_ne_bytes());
    bytes.extend(id);
    bytes
}

/// The messages in a datagram, by kind; what is cut off ends them.
fn messages(mut datagram: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*datagram.first_chunk()?) as usize;
        let kind = u16::from_ne_bytes(*datagram.get(4..)?.first_chunk()?);
        let body = datagram.get(HEADER..length)?;
        datagram = datagram
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
        Some((kind, body))
    })
}

/// Reads a `struct inet_diag_msg`.
fn read(body: &[u8]) -> io::Result<Connection> {
    let id = body.get(BEFORE_TOLD..).and_then(<[u8]>::first_chunk);
    let id = *id.ok_or_else(unexpected)?;
    Ok(Connection {
        family: body[0],
        id,
    })
}

/// The error number, 0 for success, that a message begins with.
fn error_in(body: &[u8]) -> io::Result<i32> {
    let number = body.first_chunk().ok_or_else(unexpected)?;
    Ok(-i32::from_ne_bytes(*number))
}

fn unexpected() -> io::Error {
    io::Error::other("the kernel answered something else")
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, TcpStream};

    use super::*;

    fn words(address: Ipv6Addr) -> [u32; 4] {
        let octets = address.octets();
        [0, 4, 8, 12].map(|at| u32::from_ne_bytes([0, 1, 2, 3].map(|byte| octets[at + byte])))
    }

    #[test]
    fn a_request_names_a_socket() {
        let id = std::array::from_fn(|at| at as u8);
        let bytes = request(SOCK_DESTROY, REQUEST | ACK, FAMILIES[1], LISTENERS, &id);
        assert_eq!(bytes[..4], 72_u32.to_ne_bytes());
        assert_eq!(
            bytes[4..8],
            [21_u16.to_ne_bytes(), 5_u16.to_ne_bytes()].concat()
        );
        assert_eq!(bytes[16..20], [10, 6, 0, 0]);
        assert_eq!(bytes[20..24], 0x400_u32.to_ne_bytes());
        assert_eq!(bytes[24..], id);
    }

    #[test]
    fn ends_are_read() {
        let mut body = vec![2, 1, 0, 0, 0x2b, 0xcb, 0x12, 0x34];
        body.extend([10, 0, 0, 1].iter().chain(&[0; 12]));
        body.extend([10, 0, 0, 2].iter().chain(&[0; 12]));
        body.extend([7; 12]);
        let v4 = FlowKey {
            server: words(Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped()),
            client: words(Ipv4Addr::new(10, 0, 0, 2).to_ipv6_mapped()),
            server_port: 11211_u16.to_be(),
            client_port: 0x1234_u16.to_be(),
        };
        assert_eq!(read(&body).expect("a socket").key(), v4);
        let (server, client) = ("fe80::1".parse(), "fe80::2".parse());
        let [server, client] = [server, client].map(|a| a.expect("an address"));
        body[0] = 10;
        body[8..24].copy_from_slice(&Ipv6Addr::octets(&server));
        body[24..40].copy_from_slice(&client.octets());
        let v6 = FlowKey {
            server: words(server),
            client: words(client),
            ..v4
        };
        assert_eq!(read(&body).expect("a socket").key(), v6);
        assert!(read(&body[..BEFORE_TOLD + ID - 1]).is_err());
    }

    #[test]
    fn messages_are_told_apart() {
        let message = |kind: u16, body: &[u8]| {
            let length = (HEADER + body.len()) as u32;
            let header = [
                &length.to_ne_bytes()[..],
                &kind.to_ne_bytes(),
                &[0; 10],
                body,
            ];
            header.concat()
        };
        let mut datagram = message(SOCK_DIAG_BY_FAMILY, b"abc");
        datagram.push(0);
        datagram.extend(message(NLMSG_DONE, &(-libc::ENOENT).to_ne_bytes()));
        let all: Vec<_> = messages(&datagram).collect();
        assert_eq!(all.len(), 2);
        assert_eq!(all[0], (SOCK_DIAG_BY_FAMILY, &b"abc"[..]));
        assert_eq!(all[1].0, NLMSG_DONE);
        assert_eq!(error_in(all[1].1).expect("a number"), libc::ENOENT);
        assert_eq!(messages(&datagram[..datagram.len() - 1]).count(), 1);
        assert!(error_in(b"abc").is_err());
    }

    #[test]
    fn connections_are_found() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("an address");
        let clients = [(); 2].map(|()| TcpStream::connect(address).expect("accepted"));
        let key = |client: &TcpStream| {
            let client = client.local_addr().expect("an address");
            FlowKey {
                server: words(Ipv4Addr::LOCALHOST.to_ipv6_mapped()),
                client: words(Ipv4Addr::LOCALHOST.to_ipv6_mapped()),
                server_port: address.port().to_be(),
                client_port: client.port().to_be(),
            }
        };
        let wanted = HashSet::from([key(&clients[1])]);
        let found = Destroyer::new().expect("a socket").find(&wanted);
        let found: Vec<_> = found.expect("listed").iter().map(Connection::key).collect();
        assert_eq!(found, [key(&clients[1])]);
    }
}
