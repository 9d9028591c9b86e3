//! The two servers, one with prestack before it, and sockets to both.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use prestack_testbed::{Memcached, MemcachedOptions, Prestack, TcpClient, Testbed, pace};
use prestack_tests::stage::{PORT, behind, start_prestack};

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Room for the answers to a batch.
const RECEIVE_BUFFER: usize = 8 << 20;

/// memcached in namespaces of its own, with prestack or without.
pub struct Server {
    /// prestack; it goes first.
    pub prestack: Option<Prestack>,
    args: Vec<String>,
    _memcached: Memcached,
    bed: Testbed,
}

impl Server {
    /// Starts memcached, and prestack with `prestack` as its arguments.
    pub fn start(prestack: Option<&[&str]>) -> Result<Self> {
        let bed = Testbed::new()?;
        // One thread, so that commands are executed in the order in which they come; memory enough
        // that no item has to go; and no thread that holds items while it orders them, for a number
        // is counted down in place, and so filled up with blanks, only while nobody else holds it.
        let options = MemcachedOptions {
            threads: 1,
            memory_mib: 1024,
            args: vec!["-o".into(), "no_lru_maintainer".into()],
            ..MemcachedOptions::default()
        };
        let memcached = Memcached::start(&bed.server, options)?;
        let args = prestack.unwrap_or_default();
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        let mut server = Self {
            prestack: None,
            args,
            _memcached: memcached,
            bed,
        };
        if prestack.is_some() {
            server.prestack = Some(server.start_prestack()?);
        }
        Ok(server)
    }

    fn start_prestack(&self) -> Result<Prestack> {
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        start_prestack(&self.bed, 0, &args)
    }

    /// Whether TCP connections depend on a prestack that was there before them.
    pub fn carries_connections(&self) -> bool {
        self.prestack
            .as_ref()
            .is_some_and(Prestack::carries_connections)
    }

    /// Ends prestack, if there is one, and starts it again.
    pub fn restart_prestack(&mut self) -> Result<()> {
        if let Some(mut prestack) = self.prestack.take() {
            prestack.stop()?;
            self.prestack = Some(self.start_prestack()?);
        }
        Ok(())
    }

    /// Its address in one of the two families.
    fn address(&self, v6: bool) -> SocketAddr {
        let link = &self.bed.links[0];
        (if v6 { link.server6 } else { link.server4 }, PORT).into()
    }

    /// A UDP socket that is connected to it.
    pub fn udp(&self, v6: bool) -> Result<UdpSocket> {
        let any: IpAddr = if v6 {
            Ipv6Addr::UNSPECIFIED.into()
        } else {
            Ipv4Addr::UNSPECIFIED.into()
        };
        let address = self.address(v6);
        let socket = self.bed.client.run(|| {
            let socket = UdpSocket::bind((any, 0))?;
            socket.connect(address)?;
            std::io::Result::Ok(socket)
        })?;
        setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER).context("a larger receive buffer")?;
        socket.set_read_timeout(Some(pace::patience(TIMEOUT)))?;
        Ok(socket)
    }

    /// A TCP connection to it.
    pub fn tcp(&self, v6: bool) -> Result<TcpStream> {
        let address = self.address(v6);
        let stream = self.bed.client.run(|| TcpStream::connect(address))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(pace::patience(TIMEOUT)))?;
        Ok(stream)
    }

    /// A client that prestack does not see.
    pub fn behind(&self) -> Result<TcpClient> {
        behind(&self.bed, Ipv4Addr::LOCALHOST.into(), PORT)
    }
}

/// The keys that memcached has found for GETs.
pub fn get_hits(client: &mut TcpClient) -> Result<u64> {
    client.send(b"stats\r\n")?;
    let mut hits = None;
    loop {
        let line = String::from_utf8(client.line()?)?;
        if line == "END\r\n" {
            return hits.context("memcached does not count its hits");
        }
        if let Some(count) = line.strip_prefix("STAT get_hits ") {
            hits = Some(count.trim_end().parse()?);
        }
    }
}

/// Connections to both servers on which the same is said.
pub struct Connections {
    streams: [TcpStream; 2],
    v6: bool,
}

impl Connections {
    /// Connects to both.
    pub fn open(servers: &[Server; 2], v6: bool) -> Result<Self> {
        let [a, b] = servers;
        Ok(Self {
            streams: [a.tcp(v6)?, b.tcp(v6)?],
            v6,
        })
    }

    /// Sends `pieces`, in as many segments, to both; returns what each answers until `end`, or until
    /// it closes the connection or both say no more, in which cases there are new ones afterwards.
    ///
    /// Both say no more if they take what was to be answered with `end` for the data of an odd write.
    pub fn exchange(
        &mut self,
        servers: &[Server; 2],
        pieces: &[&[u8]],
        end: &[u8],
    ) -> Result<[Vec<u8>; 2]> {
        for stream in &mut self.streams {
            for piece in pieces {
                stream.write_all(piece).context("sending")?;
            }
        }
        let mut answers = [Vec::new(), Vec::new()];
        let [a, b] = &mut answers;
        let ends = [
            read_until(&mut self.streams[0], end, a)?,
            read_until(&mut self.streams[1], end, b)?,
        ];
        if let [End::Silent, other] | [other, End::Silent] = ends
            && other != End::Silent
        {
            let [with, without] = answers.map(|answer| answer.escape_ascii().to_string());
            bail!(
                "one says no more over TCP\nwith prestack:    \"{with}\"\nwithout prestack: \"{without}\""
            );
        }
        if ends != [End::Said; 2] {
            *self = Self::open(servers, self.v6)?;
        }
        Ok(answers)
    }
}

/// Why no more was read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// What was to be said last was said.
    Said,
    /// The connection was closed.
    Closed,
    /// Nothing came for [`TIMEOUT`].
    Silent,
}

/// Reads until what was read ends with `end`, or nothing more comes.
fn read_until(stream: &mut TcpStream, end: &[u8], answer: &mut Vec<u8>) -> Result<End> {
    let mut buffer = [0; 16_384];
    while !answer.ends_with(end) {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(End::Closed),
            Ok(len) => answer.extend(&buffer[..len]),
            Err(e) if e.kind() == ErrorKind::ConnectionReset => return Ok(End::Closed),
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(End::Silent),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => bail!(
                "reading over TCP failed ({e}) after \"{}\"",
                answer[answer.len().saturating_sub(200)..].escape_ascii()
            ),
        }
    }
    Ok(End::Said)
}
