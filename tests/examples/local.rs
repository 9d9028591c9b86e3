//! What watching `lo` costs those who do something else there: a stream and an exchange of short messages
//! between two threads, and GETs to memcached over TCP, with prestack watching and not. In a testbed of its
//! own; to be run as root after `cargo xtask build`:
//!
//! ```text
//! cargo run --release --package prestack-tests --example local
//! ```

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use prestack_testbed::{Memcached, MemcachedOptions, Testbed};
use prestack_tests::classic::median;
use prestack_tests::stage::{PORT, start_prestack, start_watching_prestack};

/// How often each side is measured. They take turns.
const ROUNDS: usize = 9;
/// How long each measurement takes.
const DURATION: Duration = Duration::from_millis(1_200);
/// What prestack is told.
const ARGS: [&str; 2] = ["--memory", "32MiB"];
/// The settle time, which follows the start.
const SETTLED: Duration = Duration::from_millis(1_300);

/// Measures a rate.
type Measure = fn() -> Result<f64>;

/// What is done on `lo`, and the name of its rate.
const MEASUREMENTS: [(&str, Measure); 3] = [
    ("one TCP stream, MB/s", stream),
    ("64 bytes there and back, /s", messages),
    ("get over TCP, memcached, /s", gets),
];

fn main() -> Result<()> {
    let bed = Testbed::new()?;
    let _memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
    let mut rates = [const { (Vec::new(), Vec::new()) }; MEASUREMENTS.len()];
    for _ in 0..ROUNDS {
        for is_watched in [false, true] {
            let start = if is_watched {
                start_watching_prestack
            } else {
                start_prestack
            };
            let mut prestack = start(&bed, 0, &ARGS)?;
            thread::sleep(SETTLED);
            for ((_, measure), (without, with)) in MEASUREMENTS.iter().zip(&mut rates) {
                let side = if is_watched { with } else { without };
                side.push(bed.server.run(measure)?);
            }
            prestack.stop()?;
        }
    }
    println!("medians of {ROUNDS} rounds of {DURATION:?}:\n");
    println!("                              not watched    watched  ratio of a round");
    for ((what, _), (without, with)) in MEASUREMENTS.iter().zip(rates) {
        let ratios = with
            .iter()
            .zip(&without)
            .map(|(with, without)| with / without);
        let ratio = median(ratios.collect());
        let (without, with) = (median(without), median(with));
        println!("{what:28} {without:>12.0} {with:>10.0} {ratio:>17.2}");
    }
    Ok(())
}

/// MB/s of one sender.
fn stream() -> Result<f64> {
    let (mut stream, reader) = connect(|mut stream| {
        let mut buffer = vec![0; 1 << 20];
        while stream.read(&mut buffer)? != 0 {}
        Ok(())
    })?;
    let data = vec![0; 256 << 10];
    let rate = rate(|| Ok(stream.write_all(&data)?))? * data.len() as f64 / 1e6;
    finish(stream, reader)?;
    Ok(rate)
}

/// Messages per second that are sent back by a thread before the next is sent.
fn messages() -> Result<f64> {
    let mut message = [0; 64];
    let (mut stream, echo) = connect(|mut stream| {
        let mut message = [0; 64];
        while stream.read(&mut message[..1])? != 0 {
            stream.read_exact(&mut message[1..])?;
            stream.write_all(&message)?;
        }
        Ok(())
    })?;
    let rate = rate(|| {
        stream.write_all(&message)?;
        Ok(stream.read_exact(&mut message)?)
    })?;
    finish(stream, echo)?;
    Ok(rate)
}

/// GETs per second of one client, which sends each when the one before it is answered.
fn gets() -> Result<f64> {
    const HIT: &[u8] = b"VALUE k 0 5\r\nvalue\r\nEND\r\n";
    let mut stream = open((Ipv4Addr::LOCALHOST, PORT).into())?;
    let mut stored = [0; b"STORED\r\n".len()];
    stream.write_all(b"set k 0 0 5\r\nvalue\r\n")?;
    stream.read_exact(&mut stored)?;
    let mut answer = [0; HIT.len()];
    let rate = rate(|| {
        stream.write_all(b"get k\r\n")?;
        Ok(stream.read_exact(&mut answer)?)
    })?;
    ensure!(&stored == b"STORED\r\n" && answer == HIT, "a wrong answer");
    Ok(rate)
}

/// How often per second something is done.
fn rate(mut what: impl FnMut() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    let mut count = 0_u32;
    while start.elapsed() < DURATION {
        // The clock is looked at now and then.
        for _ in 0..100 {
            what()?;
        }
        count += 100;
    }
    Ok(f64::from(count) / start.elapsed().as_secs_f64())
}

type Peer = JoinHandle<std::io::Result<()>>;

/// A connection to a thread that does this with its end.
fn connect(
    peer: impl FnOnce(TcpStream) -> std::io::Result<()> + Send + 'static,
) -> Result<(TcpStream, Peer)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let stream = open(listener.local_addr()?)?;
    let (accepted, _) = listener.accept()?;
    accepted.set_nodelay(true)?;
    Ok((stream, thread::spawn(move || peer(accepted))))
}

fn open(server: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(server)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Lets the peer come to its end.
fn finish(stream: TcpStream, peer: Peer) -> Result<()> {
    drop(stream);
    let ended = peer.join().ok().context("the peer has panicked")?;
    Ok(ended?)
}
