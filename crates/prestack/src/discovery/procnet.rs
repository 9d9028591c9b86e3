//! The kernel's tables of sockets, `/proc/net/{tcp,tcp6,udp,udp6,unix}`.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::{self, BufRead, BufReader},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use prestack_abi::flow::FlowKey;

/// The tables of the network namespace that the calling thread is in.
const TABLES: &str = "/proc/thread-self/net";

/// `TCP_LISTEN` (include/net/tcp_states.h).
const LISTEN: u8 = 0x0a;
/// States in which a FIN of this host is not acknowledged (there).
const FIN_WAIT1: u8 = 0x04;
const LAST_ACK: u8 = 0x09;
const CLOSING: u8 = 0x0b;
/// `TCP_CLOSE`: of a UDP socket, that it is not connected.
const UNCONNECTED: u8 = 0x07;

/// A transport protocol over which memcached is reached.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A socket on which requests arrive: a TCP listener or an unconnected UDP socket.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Socket {
    /// Its protocol.
    pub transport: Transport,
    /// The address it is bound to; unspecified for every address of the family.
    pub address: IpAddr,
    /// The port it is bound to, host byte order.
    pub port: u16,
    /// Inode of the socket, unique while the socket exists.
    pub inode: u64,
}

impl Socket {
    /// Whether a packet to `address` can reach the socket, as far as addresses go.
    #[must_use]
    pub fn takes(&self, address: IpAddr) -> bool {
        self.address == address
            || (self.address.is_unspecified() && self.address.is_ipv4() == address.is_ipv4())
    }

    /// Whether there is a packet that could reach either of both sockets, transports aside. Of two wildcards that is said
    /// whatever their families: to the datapath they are one.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let are_wildcards = self.address.is_unspecified() && other.address.is_unspecified();
        self.port == other.port
            && (are_wildcards || self.takes(other.address) || other.takes(self.address))
    }
}

#[cfg(test)]
impl Socket {
    /// The socket that a test means by its transport and address (`udp 10.0.0.1:11211`).
    pub fn sample(text: &str, inode: u64) -> Self {
        let (transport, address) = text.split_once(' ').expect("a transport");
        let address: std::net::SocketAddr = address.parse().expect("an address");
        Self {
            transport: match transport {
                "udp" => Transport::Udp,
                _ => Transport::Tcp,
            },
            address: address.ip(),
            port: address.port(),
            inode,
        }
    }
}

/// Every socket of the network namespace on which requests can arrive.
///
/// # Errors
/// A table cannot be read.
pub fn sockets() -> io::Result<Vec<Socket>> {
    let mut sockets = Vec::new();
    for (name, transport) in [
        ("tcp", Transport::Tcp),
        ("tcp6", Transport::Tcp),
        ("udp", Transport::Udp),
        ("udp6", Transport::Udp),
    ] {
        match File::open(format!("{TABLES}/{name}")) {
            Ok(table) => read_table(BufReader::new(table), transport, &mut sockets)?,
            // A kernel without IPv6 has no such table.
            Err(error) if error.kind() == io::ErrorKind::NotFound && name.ends_with('6') => {}
            Err(error) => {
                return Err(io::Error::new(
                    error.kind(),
                    format!("cannot read {TABLES}/{name}: {error}"),
                ));
            }
        }
    }
    Ok(sockets)
}

/// Paths of the listening unix sockets of the network namespace, by inode.
///
/// # Errors
/// The table cannot be read.
pub fn unix_sockets() -> io::Result<HashMap<u64, String>> {
    let table = BufReader::new(File::open(format!("{TABLES}/unix"))?);
    let mut paths = HashMap::new();
    for line in table.lines().skip(1) {
        paths.extend(parse_unix(&line?));
    }
    Ok(paths)
}

/// The TCP connections of the network namespace whose local port is one of `ports`, those that are being
/// opened or have just ended included.
///
/// # Errors
/// A table cannot be read.
pub fn connections(ports: &[u16]) -> io::Result<HashSet<FlowKey>> {
    Ok(standings(ports)?.into_keys().collect())
}

/// What is known of a TCP connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Standing {
    /// The process has read all that has come, and all that it has sent has been acknowledged.
    pub is_at_rest: bool,
    /// This host has closed it, and waits for the other end to acknowledge that: what is lost it sends again, though no
    /// process may have the socket any more.
    pub is_ending: bool,
}

/// The same, with what is known of them.
///
/// # Errors
/// A table cannot be read.
pub fn standings(ports: &[u16]) -> io::Result<HashMap<FlowKey, Standing>> {
    let mut connections = HashMap::new();
    for name in ["tcp", "tcp6"] {
        match File::open(format!("{TABLES}/{name}")) {
            Ok(table) => {
                for line in BufReader::new(table).lines().skip(1) {
                    connections.extend(parse_connection(&line?, ports));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && name.ends_with('6') => {}
            Err(error) => return Err(error),
        }
    }
    Ok(connections)
}

/// Reads a line of a connection: how the datapath names it, and what is known of it.
fn parse_connection(line: &str, ports: &[u16]) -> Option<(FlowKey, Standing)> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let mut end = || {
        let (address, port) = fields.next()?.split_once(':')?;
        let port = u16::from_str_radix(port, 16).ok()?;
        Some((address, port))
    };
    let (server, client) = (end()?, end()?);
    if !ports.contains(&server.1) || client.1 == 0 {
        return None;
    }
    let words = |address: &str| {
        let bytes = match parse_address(address)? {
            IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
            IpAddr::V6(address) => address.octets(),
        };
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_ne_bytes(bytes.try_into().ok()?);
        }
        Some(words)
    };
    let key = FlowKey {
        client: words(client.0)?,
        server: words(server.0)?,
        client_port: client.1.to_be(),
        server_port: server.1.to_be(),
    };
    let state = u8::from_str_radix(fields.next()?, 16).ok()?;
    // The bytes that are sent and not acknowledged, and those that are received and not read.
    let is_at_rest = fields.next() == Some("00000000:00000000");
    let is_ending = [FIN_WAIT1, CLOSING, LAST_ACK].contains(&state);
    let standing = Standing {
        is_at_rest,
        is_ending,
    };
    Some((key, standing))
}

fn read_table(
    table: impl BufRead,
    transport: Transport,
    sockets: &mut Vec<Socket>,
) -> io::Result<()> {
    for line in table.lines().skip(1) {
        let Some((socket, state)) = parse(&line?, transport) else {
            continue;
        };
        match (transport, state) {
            (Transport::Tcp, LISTEN) | (Transport::Udp, UNCONNECTED) => sockets.push(socket),
            // The kernel lists every listener before the first connection, and there may be very
            // many connections.
            (Transport::Tcp, _) => break,
            (Transport::Udp, _) => {}
        }
    }
    Ok(())
}

/// Reads a line such as `0: 0100007F:2BCB 00000000:0000 0A …` with its state.
fn parse(line: &str, transport: Transport) -> Option<(Socket, u8)> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (address, port) = fields.next()?.split_once(':')?;
    let state = u8::from_str_radix(fields.nth(1)?, 16).ok()?;
    let socket = Socket {
        transport,
        address: parse_address(address)?,
        port: u16::from_str_radix(port, 16).ok()?,
        inode: fields.nth(5)?.parse().ok()?,
    };
    Some((socket, state))
}

/// Reads an address printed as one or four 32-bit words in the host's byte order.
fn parse_address(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| {
        let digits = hex.get(8 * at..8 * at + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    match hex.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut bytes = [0; 16];
            for at in 0..4 {
                bytes[4 * at..4 * at + 4].copy_from_slice(&word(at)?);
            }
            // A socket bound to a mapped address takes IPv4 packets.
            Some(IpAddr::from(Ipv6Addr::from(bytes)).to_canonical())
        }
        _ => None,
    }
}

/// Reads a line such as `ffff…: 00000002 00000000 00010000 0001 01 12345 /run/memcached.sock`.
fn parse_unix(line: &str) -> Option<(u64, String)> {
    /// `__SO_ACCEPTCON`: the socket listens.
    const ACCEPTS: u32 = 1 << 16;
    let mut fields = line.split_ascii_whitespace();
    let flags = u32::from_str_radix(fields.nth(3)?, 16).ok()?;
    let inode = fields.nth(2)?.parse().ok()?;
    let path = fields.next().unwrap_or("(unnamed)");
    (flags & ACCEPTS != 0).then(|| (inode, path.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:2BCB 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 111 1 0000000000000000 100 0 0 10 0
   1: 0100000A:2BCC 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 112 1 0000000000000000 100 0 0 10 0
   2: 0100000A:2BCB 0200000A:8000 01 00000000:00000000 00:00000000 00000000     0        0 113 1 0000000000000000 20 4 30 10 -1
";
    const UDP6: &str = "\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
 4821: 00000000000000000000000000000000:2BCB 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 222 2 0000000000000000 0
 4822: 000080FE00000000000000000100A8C0:2BCB 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 223 2 0000000000000000 0
 4823: 0000000000000000FFFF00000100A8C0:2BCB 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 224 2 0000000000000000 0
 4824: 00000000000000000000000001000000:9999 00000000000000000000000001000000:2BCB 01 00000000:00000000 00:00000000 00000000     0        0 225 2 0000000000000000 0
";

    fn table(text: &str, transport: Transport) -> Vec<Socket> {
        let mut sockets = Vec::new();
        read_table(text.as_bytes(), transport, &mut sockets).expect("readable");
        sockets
    }

    fn socket(transport: Transport, address: &str, port: u16, inode: u64) -> Socket {
        Socket {
            transport,
            address: address.parse().expect("an address"),
            port,
            inode,
        }
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn listeners_are_read_and_connections_are_not() {
        assert_eq!(
            table(TCP, Transport::Tcp),
            [
                socket(Transport::Tcp, "0.0.0.0", 11211, 111),
                socket(Transport::Tcp, "10.0.0.1", 11212, 112),
            ]
        );
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn unconnected_udp_sockets_are_read_and_mapped_addresses_are_ipv4() {
        assert_eq!(
            table(UDP6, Transport::Udp),
            [
                socket(Transport::Udp, "::", 11211, 222),
                socket(Transport::Udp, "fe80::c0a8:1", 11211, 223),
                socket(Transport::Udp, "192.168.0.1", 11211, 224),
            ]
        );
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn connections_are_named_as_the_datapath_does() {
        let mapped = u32::from_ne_bytes([0, 0, 0xff, 0xff]);
        let address = |last| [0, 0, mapped, u32::from_ne_bytes([10, 0, 0, last])];
        let found: Vec<_> = TCP
            .lines()
            .filter_map(|l| parse_connection(l, &[11211]))
            .collect();
        let expected = FlowKey {
            client: address(2),
            server: address(1),
            client_port: 0x8000_u16.to_be(),
            server_port: 11211_u16.to_be(),
        };
        let standing = |is_at_rest, is_ending| Standing {
            is_at_rest,
            is_ending,
        };
        assert_eq!(found, [(expected, standing(true, false))]);
        let six = " 1: 0000000000000000FFFF00000100000A:2BCB 0000000000000000FFFF00000200000A:8000 01 \
             00000000:00000001 0";
        let found = parse_connection(six, &[11211]);
        assert_eq!(found, Some((expected, standing(false, false))));
        assert_eq!(parse_connection(six, &[11212]), None);
        // FIN_WAIT2 and TIME_WAIT wait for the other end's FIN, or for nothing.
        for (state, is_ending) in [(4, true), (5, false), (6, false), (9, true), (0xb, true)] {
            let line = six.replace(" 01 ", &format!(" {state:02X} "));
            let found = parse_connection(&line, &[11211]);
            assert_eq!(found, Some((expected, standing(false, is_ending))));
        }
    }

    #[test]
    fn malformed_lines_are_skipped() {
        let text = "header\n\n 0:\n 1: xx:yy zz 0A\n 2: 00:2BCB 00:0000 0A a b c d e f\n";
        assert_eq!(table(text, Transport::Tcp), []);
    }

    #[test]
    fn listening_unix_sockets_are_read() {
        let listening = "ffff8880: 00000002 00000000 00010000 0001 01 12345 /run/m.sock";
        assert_eq!(parse_unix(listening), Some((12345, "/run/m.sock".into())));
        let connected = "ffff8880: 00000003 00000000 00000000 0001 03 12346 /run/m.sock";
        assert_eq!(parse_unix(connected), None);
    }

    #[test]
    fn sockets_overlap_when_a_packet_could_reach_both() {
        let any = socket(Transport::Tcp, "0.0.0.0", 1, 1);
        let one = socket(Transport::Udp, "10.0.0.1", 1, 2);
        let two = socket(Transport::Udp, "10.0.0.2", 1, 3);
        let six = socket(Transport::Udp, "::", 1, 4);
        assert!(any.overlaps(&one) && one.overlaps(&any));
        assert!(!one.overlaps(&two) && !six.overlaps(&one));
        // A wildcard door stands for both families.
        assert!(any.overlaps(&six) && six.overlaps(&any));
        assert!(!any.overlaps(&Socket { port: 2, ..one }));
    }

    #[test]
    fn this_hosts_tables_can_be_read() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let found = sockets().expect("readable");
        assert!(
            found
                .iter()
                .any(|s| s.port == port && s.transport == Transport::Tcp)
        );
        unix_sockets().expect("readable");
    }
}
