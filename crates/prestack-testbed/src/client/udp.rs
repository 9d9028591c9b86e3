//! memcached's protocol over UDP.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::namespace::Namespace;
use crate::pace::patience;
use crate::reply::{self, Item};

/// Bytes of the frame before every datagram's payload.
const FRAME: usize = 8;
/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Request ids are not used again by the next socket, which may get the same port: a late answer
/// to the former would pass for one of its own.
static NEXT_ID: AtomicU16 = AtomicU16::new(1);

/// A client with one UDP socket.
pub struct UdpClient {
    socket: UdpSocket,
}

/// A datagram's frame and payload.
struct Datagram {
    id: u16,
    sequence: u16,
    count: u16,
    payload: Vec<u8>,
}

impl UdpClient {
    /// A client in `namespace` of the memcached at `server`.
    ///
    /// # Errors
    /// When there is no route.
    pub fn connect(namespace: &Namespace, server: SocketAddr) -> Result<Self> {
        let any: IpAddr = match server {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        Self::connect_from(namespace, any, server)
    }

    /// The same, with `source` as its address.
    ///
    /// # Errors
    /// When the namespace does not have the address, or there is no route.
    pub fn connect_from(namespace: &Namespace, source: IpAddr, server: SocketAddr) -> Result<Self> {
        let socket = namespace.run(|| {
            let socket = UdpSocket::bind((source, 0))?;
            socket.connect(server)?;
            std::io::Result::Ok(socket)
        });
        Ok(Self {
            socket: socket.with_context(|| format!("a UDP socket for {server}"))?,
        })
    }

    /// Sends `payload` as one request; returns its id.
    ///
    /// # Errors
    /// When the socket reports one.
    pub fn send(&mut self, payload: &[u8]) -> Result<u16> {
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        self.send_as(id, payload)?;
        Ok(id)
    }

    /// Sends `payload` as one request with this id.
    ///
    /// # Errors
    /// When the socket reports one.
    pub fn send_as(&mut self, id: u16, payload: &[u8]) -> Result<()> {
        let mut datagram = Vec::with_capacity(FRAME + payload.len());
        for word in [id, 0, 1, 0] {
            datagram.extend(word.to_be_bytes());
        }
        datagram.extend(payload);
        self.socket.send(&datagram).context("sending a datagram")?;
        Ok(())
    }

    /// The next message that answers the request `id`, its datagrams joined. (Several messages
    /// can answer a GET of several keys: see [`items`](Self::items).)
    ///
    /// # Errors
    /// When it does not come in time.
    pub fn receive(&mut self, id: u16) -> Result<Vec<u8>> {
        let deadline = Instant::now() + patience(TIMEOUT);
        let mut parts: Vec<Option<Vec<u8>>> = Vec::new();
        loop {
            let Some(datagram) = self.datagram(deadline)? else {
                bail!("no answer to request {id} within {:?}", patience(TIMEOUT));
            };
            if datagram.id != id {
                continue;
            }
            parts.resize(datagram.count.max(1).into(), None);
            let Some(part) = parts.get_mut(usize::from(datagram.sequence)) else {
                bail!("datagram {} of {}", datagram.sequence, datagram.count);
            };
            *part = Some(datagram.payload);
            if parts.iter().all(Option::is_some) {
                return Ok(parts.into_iter().flatten().flatten().collect());
            }
        }
    }

    /// Sends `payload` and receives one message.
    ///
    /// # Errors
    /// When no answer comes in time.
    pub fn request(&mut self, payload: &[u8]) -> Result<Vec<u8>> {
        let id = self.send(payload)?;
        let shown = String::from_utf8_lossy(&payload[..payload.len().min(60)]);
        self.receive(id).with_context(|| format!("asked {shown:?}"))
    }

    /// Reads until the request `id`, a GET, is answered to its end.
    ///
    /// # Errors
    /// When no answer comes in time, or it is not one to a GET.
    pub fn items(&mut self, id: u16) -> Result<Vec<Item>> {
        let mut reply = Vec::new();
        loop {
            reply.extend(self.receive(id)?);
            if let Some(items) = reply::parse(&reply)? {
                return Ok(items);
            }
        }
    }

    /// The value of `key`.
    ///
    /// # Errors
    /// When no answer comes in time, or it is for another key.
    pub fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let mut items = self.get_many(&[key])?;
        if items.len() > 1 || items.iter().any(|item| item.key != key) {
            bail!(
                "asked for {:?}, got {items:?}",
                String::from_utf8_lossy(key)
            );
        }
        Ok(items.pop().map(|item| item.value))
    }

    /// The items of those of `keys` that exist.
    ///
    /// # Errors
    /// When no answer comes in time.
    pub fn get_many(&mut self, keys: &[&[u8]]) -> Result<Vec<Item>> {
        let request = [b"get ", keys.join(&b' ').as_slice(), b"\r\n"].concat();
        let id = self.send(&request)?;
        self.items(id)
            .with_context(|| format!("asked {:?}", String::from_utf8_lossy(&request)))
    }

    /// Whether nothing at all arrives for `limit`.
    ///
    /// # Errors
    /// When the socket reports one.
    pub fn is_silent(&mut self, limit: Duration) -> Result<bool> {
        Ok(self.datagram(Instant::now() + limit)?.is_none())
    }

    /// The next datagram, or nothing when the time is up.
    fn datagram(&mut self, deadline: Instant) -> Result<Option<Datagram>> {
        let mut buffer = [0; 65_536];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.socket.set_read_timeout(Some(left))?;
            match self.socket.recv(&mut buffer) {
                Ok(len) => return Datagram::parse(&buffer[..len]).map(Some),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                // Nobody listened when an earlier request arrived.
                Err(e) if e.kind() == ErrorKind::ConnectionRefused => {}
                Err(e) => return Err(e).context("receiving a datagram"),
            }
        }
    }
}

impl Datagram {
    fn parse(bytes: &[u8]) -> Result<Self> {
        if bytes.len() < FRAME {
            bail!("a datagram of {} bytes has no frame", bytes.len());
        }
        let word = |at| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        Ok(Self {
            id: word(0),
            sequence: word(2),
            count: word(4),
            payload: bytes[FRAME..].into(),
        })
    }
}
