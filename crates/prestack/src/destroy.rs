//! Ending connections of the host from outside of their processes, as `ss -K` does: the kernel resets them.

use std::{
    io,
    net::{Ipv4Addr, TcpListener},
};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};
use nix::libc;
use prestack_abi::{config::MAPPED_V4, flow::FlowKey};

/// `SOCK_DESTROY` (include/uapi/linux/sock_diag.h).
const SOCK_DESTROY: u16 = 21;
/// `NLMSG_ERROR` (include/uapi/linux/netlink.h).
const NLMSG_ERROR: u16 = 2;
/// `NLM_F_REQUEST` and `NLM_F_ACK`.
const REQUEST_ACK: u16 = 1 | 4;
/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Bytes of `struct inet_diag_req_v2` (include/uapi/linux/inet_diag.h).
const BODY: usize = 56;
/// `INET_DIAG_NOCOOKIE`: whichever socket it is.
const NO_COOKIE: [u8; 8] = [0xff; 8];

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

    /// Has the kernel reset a connection, which memcached's end learns of as well. False if there is none.
    ///
    /// # Errors
    /// The kernel refused, for example because it was built without `CONFIG_INET_DIAG_DESTROY`
    /// (`EOPNOTSUPP`).
    pub fn destroy(&self, connection: &FlowKey) -> io::Result<bool> {
        self.0.send(&request(connection), 0)?;
        let (reply, _) = self.0.recv_from_full()?;
        match error_of(&reply)? {
            0 => Ok(true),
            libc::ENOENT => Ok(false),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

/// Checks that the kernel can end connections: by a listener that nobody knows of.
///
/// # Errors
/// It cannot, or it could not be tried.
pub fn check() -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    let listener = FlowKey {
        server: mapped(Ipv4Addr::LOCALHOST),
        client: mapped(Ipv4Addr::UNSPECIFIED),
        server_port: port.to_be(),
        client_port: 0,
    };
    match Destroyer::new()?.destroy(&listener)? {
        true => Ok(()),
        // The part of the kernel that knows TCP's sockets is missing.
        false => Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
    }
}

fn mapped(address: Ipv4Addr) -> [u32; 4] {
    [0, 0, MAPPED_V4, u32::from(address).to_be()]
}

/// The request, `struct nlmsghdr` and `struct inet_diag_req_v2`.
fn request(connection: &FlowKey) -> [u8; HEADER + BODY] {
    let is_v4 = connection.server[..3] == [0, 0, MAPPED_V4];
    let family = if is_v4 { libc::AF_INET } else { libc::AF_INET6 };
    // Addresses of IPv4 are the first word.
    let address = |words: [u32; 4]| if is_v4 { [words[3], 0, 0, 0] } else { words };
    let mut bytes = Vec::with_capacity(HEADER + BODY);
    bytes.extend(((HEADER + BODY) as u32).to_ne_bytes());
    bytes.extend(SOCK_DESTROY.to_ne_bytes());
    bytes.extend(REQUEST_ACK.to_ne_bytes());
    // Sequence number and port id.
    bytes.extend([0; 8]);
    bytes.extend([family as u8, libc::IPPROTO_TCP as u8, 0, 0]);
    // States: all.
    bytes.extend([0xff; 4]);
    bytes.extend(connection.server_port.to_ne_bytes());
    bytes.extend(connection.client_port.to_ne_bytes());
    for word in address(connection.server) {
        bytes.extend(word.to_ne_bytes());
    }
    for word in address(connection.client) {
        bytes.extend(word.to_ne_bytes());
    }
    // Interface: any.
    bytes.extend([0; 4]);
    bytes.extend(NO_COOKIE);
    let mut message = [0; HEADER + BODY];
    message.copy_from_slice(&bytes);
    message
}

/// The error number in a reply, 0 if there is none.
fn error_of(reply: &[u8]) -> io::Result<i32> {
    let field = |at: usize| reply.get(at..at + 4).and_then(|b| b.try_into().ok());
    let kind = reply.get(4..6).map(|b| u16::from_ne_bytes([b[0], b[1]]));
    match (kind, field(HEADER)) {
        (Some(NLMSG_ERROR), Some(error)) => Ok(-i32::from_ne_bytes(error)),
        _ => Err(io::Error::other("the kernel answered something else")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_both_ends_in_network_byte_order() {
        let key = FlowKey {
            client: mapped([10, 0, 0, 2].into()),
            server: mapped([10, 0, 0, 1].into()),
            client_port: 0x1234_u16.to_be(),
            server_port: 11211_u16.to_be(),
        };
        let bytes = request(&key);
        assert_eq!(bytes[16..18], [2, 6]);
        assert_eq!(bytes[24..28], [0x2b, 0xcb, 0x12, 0x34]);
        assert_eq!(bytes[28..34], [10, 0, 0, 1, 0, 0]);
        assert_eq!(bytes[44..50], [10, 0, 0, 2, 0, 0]);
        let mut v6 = key;
        v6.server = [0x20_u32.to_be(), 0, 0, 1_u32.to_be()];
        let bytes = request(&v6);
        assert_eq!((bytes[16], bytes[31], bytes[43]), (10, 0x20, 1));
    }

    #[test]
    fn errors_are_read() {
        let mut reply = [0; 36];
        reply[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
        assert_eq!(error_of(&reply).expect("an answer"), 0);
        reply[16..20].copy_from_slice(&(-libc::ENOENT).to_ne_bytes());
        assert_eq!(error_of(&reply).expect("an answer"), libc::ENOENT);
        assert!(error_of(&reply[..18]).is_err());
        reply[4] = 3;
        assert!(error_of(&reply).is_err());
    }
}
