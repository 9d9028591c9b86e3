//! The classic demonstration: an item is set once over TCP and read twice over UDP; one GET reaches
//! memcached, the other is answered in the kernel. And what that is worth to one client that asks for
//! one thing after the other, on the loopback interface, which every machine has.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use prestack_testbed::{
    Memcached, MemcachedOptions, Namespace, Prestack, TcpClient, UdpClient, pace,
};

use crate::stage::{PORT, counted, store};

const KEY: &[u8] = b"key";
const VALUE: &[u8] = b"value";

/// What prestack is told: the loopback interface has generic XDP alone.
const ARGS: [&str; 6] = [
    "--interface",
    "lo",
    "--mode",
    "generic",
    "--memory",
    "32MiB",
];

/// A write over TCP, and the start of prestack, keep the cache from learning for the settle time, which
/// is a second by default.
const SETTLED: Duration = Duration::from_millis(1_300);

/// A network namespace with memcached in it, reached over its loopback interface.
pub struct Classic {
    _memcached: Memcached,
    namespace: Namespace,
}

impl Classic {
    /// Starts memcached.
    ///
    /// # Errors
    /// Without root's privileges, or without memcached.
    pub fn new() -> Result<Self> {
        let namespace = Namespace::new()?;
        let memcached = Memcached::start(&namespace, MemcachedOptions::default())?;
        Ok(Self {
            _memcached: memcached,
            namespace,
        })
    }

    /// Sets the item over TCP, with prestack running, and reads it twice over UDP; returns how many
    /// GETs memcached has counted after each of the three.
    ///
    /// # Errors
    /// When prestack does not start, or an answer is wrong.
    pub fn demonstrate(&self) -> Result<[u64; 3]> {
        let mut prestack = Prestack::start(&self.namespace, &ARGS)?;
        let mut udp = UdpClient::connect(&self.namespace, server())?;
        store(&mut self.tcp()?, KEY, VALUE)?;
        thread::sleep(SETTLED);
        let mut counts = [self.gets()?; 3];
        for count in &mut counts[1..] {
            ensure!(udp.get(KEY)?.as_deref() == Some(VALUE), "a wrong value");
            *count = self.gets()?;
        }
        prestack.stop()?;
        Ok(counts)
    }

    /// A new connection: prestack does not follow one that was there before it, and takes all that is
    /// said on it for a write.
    fn tcp(&self) -> Result<TcpClient> {
        TcpClient::connect(&self.namespace, server())
    }

    /// The GETs that memcached has counted.
    fn gets(&self) -> Result<u64> {
        counted(&mut self.tcp()?, "cmd_get")
    }

    /// GETs per second of one client that sends each when the one before it is answered: `count` of
    /// them without prestack, and `count` with it.
    ///
    /// # Errors
    /// When prestack does not start, or an answer is wrong, or hardly any comes from the cache.
    pub fn rates(&self, count: u32) -> Result<(f64, f64)> {
        store(&mut self.tcp()?, KEY, VALUE)?;
        let without = self.rate(count)?;

        let mut prestack = Prestack::start(&self.namespace, &ARGS)?;
        thread::sleep(SETTLED);
        let before = self.gets()?;
        let with = self.rate(count)?;
        let reached = self.gets()? - before;
        ensure!(
            reached < u64::from(count) / 10,
            "{reached} of {count} GETs reached memcached"
        );
        prestack.stop()?;
        Ok((without, with))
    }

    fn rate(&self, count: u32) -> Result<f64> {
        let socket = self.namespace.run(|| -> std::io::Result<UdpSocket> {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            socket.connect(server())?;
            Ok(socket)
        })?;
        socket.set_read_timeout(Some(pace::patience(Duration::from_secs(2))))?;
        let frame = |id: u16| [&id.to_be_bytes()[..], &[0, 0, 0, 1, 0, 0]].concat();
        let text = [&b"VALUE key 0 5\r\n"[..], VALUE, b"\r\nEND\r\n"].concat();
        let mut buffer = [0; 100];
        let start = Instant::now();
        for id in (0..=u16::MAX).cycle().take(count as usize) {
            let frame = frame(id);
            socket.send(&[&frame[..], b"get ", KEY, b"\r\n"].concat())?;
            let len = socket.recv(&mut buffer).context("no answer to a GET")?;
            ensure!(
                buffer[..len] == [frame, text.clone()].concat(),
                "a wrong answer: {:?}",
                buffer[..len].escape_ascii().to_string()
            );
        }
        Ok(f64::from(count) / start.elapsed().as_secs_f64())
    }
}

fn server() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, PORT).into()
}

/// The one in the middle.
#[must_use]
pub fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}
