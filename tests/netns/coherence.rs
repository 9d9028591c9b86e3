//! Many clients read and write a few keys over both transports; afterwards every operation is
//! checked for linearizability, per key.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use prestack_testbed::{MemcachedOptions, TcpClient, UdpClient, pace};
use prestack_tests::history::{self, Operation, Time};
use prestack_tests::stage::{Stage, set, store};

const KEYS: u64 = 4;

/// Something that reads and writes values over one transport.
trait Client: Send {
    fn read(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>>;
    fn write(&mut self, command: &[u8]) -> Result<Vec<u8>>;
}

impl Client for UdpClient {
    fn read(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.get(key)
    }

    fn write(&mut self, command: &[u8]) -> Result<Vec<u8>> {
        self.request(command)
    }
}

impl Client for TcpClient {
    fn read(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.get(key)
    }

    fn write(&mut self, command: &[u8]) -> Result<Vec<u8>> {
        self.command(command)
    }
}

/// When a client writes.
#[derive(Clone, Copy)]
enum Writes {
    Never,
    /// One operation in so many.
    OneIn(u64),
    /// A few in a row, then none for so long: the cache comes to serve in between.
    Bursts(Duration),
}

/// A clock and a source of values that all clients share.
struct World {
    start: Instant,
    values: AtomicU64,
}

impl World {
    fn now(&self) -> Time {
        self.start.elapsed().as_nanos() as Time
    }
}

/// A number that looks random (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % n
    }
}

fn key(n: u64) -> Vec<u8> {
    format!("key{n}").into_bytes()
}

/// A value: its number, and as many more bytes as make its length differ from others'.
fn value(n: u64) -> Vec<u8> {
    format!("{n}:{}", "x".repeat((n * 7 % 90) as usize)).into_bytes()
}

/// The number of a value read, whose every byte must be as it was written.
fn number(read: &[u8]) -> Result<u64> {
    let digits = read.split(|&b| b == b':').next().unwrap_or_default();
    let n = std::str::from_utf8(digits)?
        .parse()
        .context("a torn value")?;
    ensure!(
        read == value(n),
        "a torn value: {:?}",
        String::from_utf8_lossy(read)
    );
    Ok(n)
}

/// A write in one of several forms that replace the whole value.
fn command(form: u64, key: &[u8], value: &[u8]) -> (Vec<u8>, &'static [u8]) {
    let len = value.len();
    let head = match form {
        0 => format!("ms {} {len}\r\n", String::from_utf8_lossy(key)),
        1 => format!("replace {} 0 0 {len}\r\n", String::from_utf8_lossy(key)),
        _ => return (set(key, value), b"STORED\r\n"),
    };
    let answer: &[u8] = if form == 0 { b"HD\r\n" } else { b"STORED\r\n" };
    ([head.as_bytes(), value, b"\r\n"].concat(), answer)
}

/// Reads and writes until `end`; returns what it did, with the key of each operation.
fn act(
    world: &World,
    client: &mut dyn Client,
    writes: Writes,
    mut random: Random,
    end: Time,
) -> Result<Vec<(u64, Operation)>> {
    let mut done = Vec::new();
    let mut burst = 0;
    let mut next_burst = 0;
    while world.now() < end {
        let k = random.below(KEYS);
        let write = match writes {
            Writes::Never => false,
            Writes::OneIn(n) => random.below(n) == 0,
            Writes::Bursts(pause) => {
                if world.now() >= next_burst {
                    burst = 10;
                    next_burst = world.now() + pause.as_nanos() as Time;
                }
                burst = u32::saturating_sub(burst, 1);
                burst > 0
            }
        };
        let start = world.now();
        let value = if write {
            let n = world.values.fetch_add(1, Ordering::Relaxed);
            let (command, answer) = command(random.below(4), &key(k), &value(n));
            let got = client.write(&command)?;
            ensure!(got == answer, "{:?}", String::from_utf8_lossy(&got));
            n
        } else {
            let read = client.read(&key(k))?;
            number(&read.with_context(|| format!("key{k} is gone"))?)?
        };
        let end = world.now();
        done.push((
            k,
            Operation {
                start,
                end,
                value,
                write,
            },
        ));
    }
    Ok(done)
}

/// Clients by their habits.
#[derive(Clone, Copy, Default)]
struct Crowd<'a> {
    udp: &'a [Writes],
    tcp: &'a [Writes],
    /// On the server itself, over its loopback interface.
    local_udp: &'a [Writes],
    local_tcp: &'a [Writes],
}

/// Lets a crowd loose on memcached with one thread, and with several.
fn contend(crowd: Crowd<'_>, args: &[&str]) -> Result<()> {
    for threads in [1, 4] {
        contend_with_threads(
            threads,
            crowd,
            &[&["--always-on", "--memory", "8MiB"], args].concat(),
        )
        .with_context(|| format!("{threads} threads"))?;
    }
    Ok(())
}

fn contend_with_threads(threads: u32, crowd: Crowd<'_>, args: &[&str]) -> Result<()> {
    let options = MemcachedOptions {
        threads,
        ..MemcachedOptions::default()
    };
    let stage = Stage::watching(options, args)?;
    let mut behind = stage.behind()?;
    for k in 0..KEYS {
        store(&mut behind, &key(k), &value(k))?;
    }
    let mut clients: Vec<(Box<dyn Client>, Writes)> = Vec::new();
    for &writes in crowd.udp {
        clients.push((Box::new(stage.udp()?), writes));
    }
    for &writes in crowd.tcp {
        clients.push((Box::new(stage.tcp()?), writes));
    }
    let (host, outside) = (&stage.bed.server, stage.server4());
    for &writes in crowd.local_udp {
        clients.push((Box::new(UdpClient::connect(host, outside)?), writes));
    }
    for &writes in crowd.local_tcp {
        clients.push((Box::new(stage.behind()?), writes));
        clients.push((Box::new(TcpClient::connect(host, outside)?), writes));
    }

    let world = World {
        start: Instant::now(),
        values: AtomicU64::new(KEYS),
    };
    let end = world.now() + Duration::from_secs(8).as_nanos() as Time;
    let histories = thread::scope(|scope| {
        let threads: Vec<_> = clients
            .iter_mut()
            .enumerate()
            .map(|(i, (client, writes))| {
                let (world, random) = (&world, Random(0x9e37_79b9 * (i as u64 + 1)));
                scope.spawn(move || act(world, client.as_mut(), *writes, random, end))
            })
            .collect();
        threads
            .into_iter()
            .map(|t| t.join().expect("no panic"))
            .collect::<Result<Vec<_>>>()
    })?;

    let all: Vec<(u64, Operation)> = histories.into_iter().flatten().collect();
    for k in 0..KEYS {
        let first = Operation {
            start: 0,
            end: 0,
            value: k,
            write: true,
        };
        let of_key = all
            .iter()
            .filter(|(key, _)| *key == k)
            .map(|(_, operation)| *operation);
        let history: Vec<Operation> = std::iter::once(first).chain(of_key).collect();
        history::check(&history).with_context(|| format!("key{k}"))?;
    }
    let writes = all.iter().filter(|(_, operation)| operation.write).count();
    let hits = stage.hits()?;
    println!("{} operations, {writes} writes, {hits} hits", all.len());
    if writes < pace::volume(100) || hits < pace::volume(1_000) as u64 {
        bail!("too little happened: {writes} writes, {hits} hits");
    }
    Ok(())
}

#[test]
fn writes_over_udp() -> Result<()> {
    let clients = [
        Writes::OneIn(10),
        Writes::OneIn(100),
        Writes::Never,
        Writes::Never,
    ];
    contend(
        Crowd {
            udp: &clients,
            ..Crowd::default()
        },
        &[],
    )
}

#[test]
fn writes_over_tcp() -> Result<()> {
    let udp = [Writes::Never, Writes::Never, Writes::Never];
    let tcp = [
        Writes::Bursts(Duration::from_millis(1_500)),
        Writes::Bursts(Duration::from_millis(700)),
    ];
    let crowd = Crowd {
        udp: &udp,
        tcp: &tcp,
        ..Crowd::default()
    };
    contend(crowd, &["--max-age", "250ms"])
}

/// The others read over the interface that is served. Nothing expires meanwhile.
#[test]
fn writes_on_the_host_itself() -> Result<()> {
    let crowd = Crowd {
        udp: &[Writes::Never, Writes::Never, Writes::OneIn(100)],
        tcp: &[Writes::Never],
        local_udp: &[Writes::OneIn(100)],
        local_tcp: &[Writes::OneIn(100)],
    };
    contend(crowd, &["--max-age", "60s", "--settle", "250ms"])
}

#[test]
fn writes_over_both() -> Result<()> {
    let pause = Duration::from_millis(1_000);
    let udp = [
        Writes::Bursts(pause),
        Writes::Never,
        Writes::Never,
        Writes::Never,
    ];
    let tcp = [Writes::Bursts(pause), Writes::Bursts(pause)];
    let crowd = Crowd {
        udp: &udp,
        tcp: &tcp,
        ..Crowd::default()
    };
    contend(crowd, &["--max-age", "250ms"])
}
