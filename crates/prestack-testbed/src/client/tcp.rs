//! memcached's protocol over TCP.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};

use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::socket::{setsockopt, sockopt};

use crate::namespace::Namespace;
use crate::pace::patience;
use crate::reply::{self, Item};

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A client with one TCP connection.
pub struct TcpClient {
    stream: BufReader<TcpStream>,
}

impl TcpClient {
    /// A client in `namespace` of the memcached at `server`.
    ///
    /// # Errors
    /// When nobody accepts.
    pub fn connect(namespace: &Namespace, server: SocketAddr) -> Result<Self> {
        namespace.run(|| Self::connect_here(server))
    }

    /// A client in the caller's namespace.
    ///
    /// # Errors
    /// When nobody accepts.
    pub fn connect_here(server: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&server, patience(TIMEOUT))
            .with_context(|| format!("connecting to {server}"))?;
        Self::over(stream)
    }

    /// A client over a connection that has been made some other way.
    ///
    /// # Errors
    /// When the socket reports one.
    pub fn over(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience(TIMEOUT)))?;
        stream.set_write_timeout(Some(patience(TIMEOUT)))?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    /// The client's end of the connection.
    ///
    /// # Errors
    /// When the socket reports one.
    pub fn local_address(&self) -> Result<IpAddr> {
        Ok(self.stream.get_ref().local_addr()?.ip())
    }

    /// The port of the client's end of the connection.
    ///
    /// # Errors
    /// When the socket reports one.
    pub fn local_port(&self) -> Result<u16> {
        Ok(self.stream.get_ref().local_addr()?.port())
    }

    /// Says that nothing more will be sent.
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn end_sending(&self) -> Result<()> {
        let stream = self.stream.get_ref();
        stream.shutdown(Shutdown::Write).context("closing one half")
    }

    /// Resets the connection.
    ///
    /// # Errors
    /// When the socket reports one.
    pub fn reset(self) -> Result<()> {
        let linger = nix::libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        setsockopt(self.stream.get_ref(), sockopt::Linger, &linger).context("no time to linger")
    }

    /// Waits until the connection has ended; whether it was reset.
    ///
    /// # Errors
    /// When it does not end in time, or something comes.
    pub fn is_reset(&mut self) -> Result<bool> {
        let mut byte = [0];
        match self.stream.read(&mut byte) {
            Ok(0) => Ok(false),
            Ok(_) => bail!("got {byte:?} instead of an end"),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(true),
            Err(error) => Err(error).context("waiting for the end of a connection"),
        }
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.get_mut().write_all(bytes).context("sending")
    }

    /// The next line, with its end.
    ///
    /// # Errors
    /// When it does not come in time, or the connection is broken.
    pub fn line(&mut self) -> Result<Vec<u8>> {
        let mut line = Vec::new();
        self.stream
            .read_until(b'\n', &mut line)
            .context("waiting for a line")?;
        if !line.ends_with(b"\r\n") {
            bail!(
                "the connection ended after {:?}",
                String::from_utf8_lossy(&line)
            );
        }
        Ok(line)
    }

    /// The next `len` bytes.
    ///
    /// # Errors
    /// When they do not come in time, or the connection is broken.
    pub fn bytes(&mut self, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.stream
            .read_exact(&mut bytes)
            .with_context(|| format!("waiting for {len} bytes"))?;
        Ok(bytes)
    }

    /// Sends a command and receives one line, with its end.
    ///
    /// # Errors
    /// When no answer comes in time, or the connection is broken.
    pub fn command(&mut self, command: &[u8]) -> Result<Vec<u8>> {
        self.send(command)?;
        let shown = String::from_utf8_lossy(&command[..command.len().min(60)]);
        self.line().with_context(|| format!("asked {shown:?}"))
    }

    /// The value of `key`.
    ///
    /// # Errors
    /// When no answer comes in time, or it is not one to a GET.
    pub fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.send(&[b"get ", key, b"\r\n"].concat())?;
        let mut items = self.items()?;
        if items.len() > 1 || items.iter().any(|item| item.key != key) {
            bail!(
                "asked for {:?}, got {items:?}",
                String::from_utf8_lossy(key)
            );
        }
        Ok(items.pop().map(|item| item.value))
    }

    /// Reads a reply to a GET to its end.
    ///
    /// # Errors
    /// When no answer comes in time, or it is not one to a GET.
    pub fn items(&mut self) -> Result<Vec<Item>> {
        let mut reply = Vec::new();
        loop {
            reply.extend(self.line()?);
            if let Some(items) = reply::parse(&reply)? {
                return Ok(items);
            }
        }
    }
}
