//! A testbed with memcached and prestack in it, and what the tests ask of them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use prestack_testbed::{
    Memcached, MemcachedOptions, Prestack, TcpClient, Testbed, UdpClient, pace,
};

/// memcached's port unless a test says otherwise.
pub const PORT: u16 = 11211;

/// Settings with which an entry outlives the test, so that nothing but an invalidation removes
/// it, and with which a key is soon cached again after a write. Tests that write while others
/// read must not use so short a settle time.
pub const LASTING: [&str; 6] = ["--memory", "32MiB", "--max-age", "60s", "--settle", "100ms"];

/// A testbed, stock memcached at its server's end and prestack before it.
pub struct Stage {
    /// prestack; it goes first.
    pub prestack: Prestack,
    /// memcached, on all addresses.
    pub memcached: Memcached,
    /// The namespaces.
    pub bed: Testbed,
}

impl Stage {
    /// Stock memcached with its defaults, and prestack with [`LASTING`].
    ///
    /// # Errors
    /// When one of them does not start.
    pub fn new() -> Result<Self> {
        Self::with(MemcachedOptions::default(), &LASTING)
    }

    /// memcached with `options`, and prestack with `args`, which does not watch the loopback interface:
    /// tests look [`behind`] it there.
    ///
    /// # Errors
    /// When one of them does not start.
    pub fn with(options: MemcachedOptions, args: &[&str]) -> Result<Self> {
        Self::watching(options, &[args, &["--no-watch-lo"]].concat())
    }

    /// memcached with `options`, and prestack with `args`, which watches the loopback interface as well
    /// unless they say something else.
    ///
    /// # Errors
    /// When one of them does not start.
    pub fn watching(options: MemcachedOptions, args: &[&str]) -> Result<Self> {
        let bed = Testbed::new()?;
        let memcached = Memcached::start(&bed.server, options)?;
        let prestack = start_watching_prestack(&bed, 0, args)?;
        Ok(Self {
            prestack,
            memcached,
            bed,
        })
    }

    /// memcached's IPv4 address as clients see it.
    #[must_use]
    pub fn server4(&self) -> SocketAddr {
        (self.bed.links[0].server4, PORT).into()
    }

    /// memcached's IPv6 address as clients see it.
    #[must_use]
    pub fn server6(&self) -> SocketAddr {
        (self.bed.links[0].server6, PORT).into()
    }

    /// A new UDP client at the client's end.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn udp(&self) -> Result<UdpClient> {
        UdpClient::connect(&self.bed.client, self.server4())
    }

    /// A new TCP client at the client's end.
    ///
    /// # Errors
    /// When nobody accepts.
    pub fn tcp(&self) -> Result<TcpClient> {
        TcpClient::connect(&self.bed.client, self.server4())
    }

    /// A connection to memcached over the server's own loopback interface, which prestack is told not
    /// to watch: it tells and changes what memcached holds behind prestack's back.
    ///
    /// # Errors
    /// When nobody accepts.
    pub fn behind(&self) -> Result<TcpClient> {
        behind(&self.bed, Ipv4Addr::LOCALHOST.into(), PORT)
    }

    /// GETs that the cache has answered.
    ///
    /// # Errors
    /// When prestack does not tell.
    pub fn hits(&self) -> Result<u64> {
        self.prestack.stats()?.get("udp.hits")
    }
}

/// Starts prestack on the `link`-th pair of `bed`. It does not watch the loopback interface, over which
/// tests look [`behind`] it.
///
/// # Errors
/// When it does not come to serve.
pub fn start_prestack(bed: &Testbed, link: usize, args: &[&str]) -> Result<Prestack> {
    start_watching_prestack(bed, link, &[args, &["--no-watch-lo"]].concat())
}

/// Starts prestack on the `link`-th pair of `bed`, with the loopback interface watched unless `args` say
/// something else.
///
/// # Errors
/// When it does not come to serve.
pub fn start_watching_prestack(bed: &Testbed, link: usize, args: &[&str]) -> Result<Prestack> {
    let interface = ["--interface", &bed.links[link].server_dev];
    Prestack::start(&bed.server, &[&interface[..], args].concat())
}

/// A connection to the memcached at `address` of the server, from the server itself.
///
/// # Errors
/// When nobody accepts.
pub fn behind(bed: &Testbed, address: IpAddr, port: u16) -> Result<TcpClient> {
    TcpClient::connect(&bed.server, (address, port).into())
}

/// Stores an item, which must succeed.
///
/// # Errors
/// When memcached answers anything but `STORED`.
pub fn store(client: &mut TcpClient, key: &[u8], value: &[u8]) -> Result<()> {
    let answer = client.command(&set(key, value))?;
    ensure!(
        answer == b"STORED\r\n",
        "{}",
        String::from_utf8_lossy(&answer)
    );
    Ok(())
}

/// One of the numbers that memcached counts by (`stats`).
///
/// # Errors
/// When it does not tell.
pub fn counted(memcached: &mut TcpClient, name: &str) -> Result<u64> {
    memcached.send(b"stats\r\n")?;
    let (start, mut number) = (format!("STAT {name} "), None);
    loop {
        let line = String::from_utf8(memcached.line()?)?;
        if line == "END\r\n" {
            return number.with_context(|| format!("memcached does not count {name}"));
        }
        if let Some(count) = line.strip_prefix(&start) {
            number = Some(count.trim_end().parse()?);
        }
    }
}

/// A text command that sets `key` to `value`.
#[must_use]
pub fn set(key: &[u8], value: &[u8]) -> Vec<u8> {
    let len = value.len().to_string();
    [
        b"set ",
        key,
        b" 0 0 ",
        len.as_bytes(),
        b"\r\n",
        value,
        b"\r\n",
    ]
    .concat()
}

/// Asks for `keys`, which must all have the values given, until one round of GETs is answered by
/// the cache alone.
///
/// # Errors
/// When a value differs, or that does not happen in time.
pub fn until_all_hit(
    prestack: &Prestack,
    client: &mut UdpClient,
    items: &[(Vec<u8>, Vec<u8>)],
) -> Result<()> {
    pace::wait_for("the cache to answer", Duration::from_secs(10), || {
        let before = prestack.stats()?.get("udp.hits")?;
        for (key, value) in items {
            let got = client.get(key)?;
            ensure!(
                got.as_ref() == Some(value),
                "{:?} is {:?} instead of {:?}",
                String::from_utf8_lossy(key),
                got.map(|got| String::from_utf8_lossy(&got).into_owned()),
                String::from_utf8_lossy(value)
            );
        }
        let hits = prestack.stats()?.get("udp.hits")? - before;
        Ok((hits >= items.len() as u64).then_some(()))
    })
}

/// [`until_all_hit`] of one item.
///
/// # Errors
/// When a value differs, or that does not happen in time.
pub fn until_hit(
    prestack: &Prestack,
    client: &mut UdpClient,
    key: &[u8],
    value: &[u8],
) -> Result<()> {
    until_all_hit(prestack, client, &[(key.to_vec(), value.to_vec())])
}
