//! Which memcached is meant.

use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::load::any_address;

/// How long memcached may take to be found at an address, where there are several.
const REACH_LIMIT: Duration = Duration::from_secs(1);
/// memcached's port, where none is given.
const PORT: u16 = 11211;

/// The address of `server`: `HOST` or `HOST:PORT`. Of several it is the first at which memcached is, over UDP or TCP.
pub(super) fn find(server: &str, is_udp: bool) -> Result<SocketAddr> {
    let addresses = addresses(server).with_context(|| format!("{server:?} is not HOST:PORT"))?;
    if let [address] = addresses[..] {
        return Ok(address);
    }
    first_reached(&addresses, is_udp).with_context(|| {
        format!("memcached is not at any address of {server}; --server takes one too")
    })
}

fn addresses(server: &str) -> io::Result<Vec<SocketAddr>> {
    // What is left of the last colon of an IPv6 address without a port is one without brackets, or half of one.
    let has_port = server
        .rsplit_once(':')
        .is_some_and(|(host, _)| !host.contains(':') || host.ends_with(']'));
    let addresses = if has_port {
        server.to_socket_addrs()?
    } else {
        let host = server.trim_start_matches('[').trim_end_matches(']');
        (host, PORT).to_socket_addrs()?
    };
    Ok(addresses.collect())
}

/// The first of these addresses at which something answers.
fn first_reached(addresses: &[SocketAddr], is_udp: bool) -> Result<SocketAddr> {
    let mut failures = Vec::new();
    for &address in addresses {
        let reached = if is_udp {
            answers(address)
        } else {
            TcpStream::connect_timeout(&address, REACH_LIMIT).map(drop)
        };
        match reached {
            Ok(()) => return Ok(address),
            Err(error) => failures.push(format!("{address}: {error}")),
        }
    }
    bail!("{}", failures.join(", "))
}

/// Fails when memcached does not answer there over UDP.
fn answers(address: SocketAddr) -> io::Result<()> {
    let socket = UdpSocket::bind(any_address(address))?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(REACH_LIMIT))?;
    socket.send(b"\0\0\0\0\0\x01\0\0version\r\n")?;
    socket.recv(&mut [0; 64]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread;

    #[test]
    fn a_server_without_a_port_has_memcacheds() {
        for (server, address) in [
            ("127.0.0.1", "127.0.0.1:11211"),
            ("127.0.0.1:1", "127.0.0.1:1"),
            ("::1", "[::1]:11211"),
            ("[::1]", "[::1]:11211"),
            ("[::1]:1", "[::1]:1"),
        ] {
            assert_eq!(addresses(server).unwrap(), [address.parse().unwrap()]);
        }
        let of_name = addresses("localhost").unwrap();
        assert!(of_name.iter().all(|address| address.port() == PORT));
        for server in ["", "127.0.0.1:x", "127.0.0.1:70000"] {
            assert!(addresses(server).is_err(), "{server:?}");
        }
    }

    #[test]
    fn the_first_address_at_which_something_answers_is_taken() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let there = listener.local_addr().unwrap();
        let nowhere = ([127, 0, 0, 1], 1).into();
        assert_eq!(first_reached(&[nowhere, there], false).unwrap(), there);
        let failure = first_reached(&[nowhere], false).unwrap_err().to_string();
        assert!(failure.starts_with("127.0.0.1:1: "), "{failure}");

        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let there = socket.local_addr().unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut request = [0; 64];
                let (len, client) = socket.recv_from(&mut request).unwrap();
                socket.send_to(&request[..len], client).unwrap();
            });
            assert_eq!(first_reached(&[nowhere, there], true).unwrap(), there);
        });
    }
}
