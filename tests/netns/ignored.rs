//! TCP that nobody reads over UDP is ignored while there is much of it, and nothing stale is read when
//! somebody comes.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use prestack_testbed::{MemcachedOptions, TcpClient, UdpClient, pace};
use prestack_tests::stage::{Stage, set};

/// Connections that write, from so many threads.
const CONNECTIONS: usize = 32;
const THREADS: usize = 2;
/// What `prestack status` says.
const IGNORED: &str = "not followed while nobody reads over UDP";
const LIMIT: Duration = Duration::from_secs(20);

/// Has connections write what nobody else does, each waiting for its reply, until told to stop.
fn load(mut clients: Vec<TcpClient>, stop: &AtomicBool) -> Result<()> {
    let write = set(b"load", b"value");
    while !stop.load(Ordering::Relaxed) {
        for client in &mut clients {
            client.send(&write)?;
        }
        for client in &mut clients {
            ensure!(client.line()? == b"STORED\r\n");
        }
    }
    Ok(())
}

/// Sets `key` to the next number.
fn write(tcp: &mut TcpClient, key: &str, number: &Cell<u64>) -> Result<()> {
    let next = number.get() + 1;
    let stored = tcp.command(&set(key.as_bytes(), next.to_string().as_bytes()))?;
    ensure!(stored == b"STORED\r\n");
    number.set(next);
    Ok(())
}

/// Sets `key` to the next number and reads it over UDP.
fn write_and_read(
    tcp: &mut TcpClient,
    udp: &mut UdpClient,
    key: &str,
    number: &Cell<u64>,
) -> Result<()> {
    write(tcp, key, number)?;
    read(udp, key, number)
}

/// Reads a key over UDP: it is as new as the last number written before, at least.
fn read(udp: &mut UdpClient, key: &str, number: &Cell<u64>) -> Result<()> {
    let least = number.get();
    let value = udp.get(key.as_bytes())?.context("it is there")?;
    let value: u64 = String::from_utf8(value)?.parse()?;
    ensure!(
        value >= least,
        "{key}: {value} was read after {least} was written"
    );
    Ok(())
}

fn is_ignored(stage: &Stage) -> Result<bool> {
    Ok(stage
        .prestack
        .instance()
        .command(&["status"])?
        .contains(IGNORED))
}

/// Runs `check` while connections do as much as they can.
fn under_load(stage: &Stage, check: impl FnOnce() -> Result<()>) -> Result<()> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let mut loads = Vec::new();
        for _ in 0..THREADS {
            let clients = (0..CONNECTIONS / THREADS).map(|_| stage.tcp());
            let clients = clients.collect::<Result<_>>()?;
            let stop = &stop;
            loads.push(scope.spawn(move || load(clients, stop)));
        }
        let checked = check();
        stop.store(true, Ordering::Relaxed);
        for load in loads {
            load.join().expect("the load does not panic")?;
        }
        checked
    })
}

#[test]
fn nothing_stale_is_read_by_who_comes_back() -> Result<()> {
    if pace::is_slow() {
        // There will never be much in an emulated machine.
        return Ok(());
    }
    let stage = Stage::with(MemcachedOptions::default(), &["--max-age", "1s"])?;
    let number = Cell::new(0);
    let (mut tcp, mut other, mut udp) = (stage.tcp()?, stage.tcp()?, stage.udp()?);
    // Before, so that the connection is known, and something may be in the cache.
    for _ in 0..100 {
        write_and_read(&mut tcp, &mut udp, "key", &number)?;
    }
    under_load(&stage, || {
        pace::wait_for("TCP to be ignored", LIMIT, || {
            Ok(is_ignored(&stage)?.then_some(()))
        })?;
        let before = stage.prestack.stats()?;
        ensure!(before.get("tcp.ignored")? > 0);
        // Nothing would be cached for a while in any case.
        thread::sleep(Duration::from_millis(1_500));
        // Without a reply, which would tell later that something went by.
        tcp.send(b"set unseen 0 0 1 noreply\r\nx\r\n")?;
        // Somebody reads, while somebody else goes on to write, unseen at first, until it is certain again
        // what that connection asks for.
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(4) {
            write_and_read(&mut other, &mut udp, "key", &number)?;
        }
        pace::wait_for("hits", LIMIT, || {
            for _ in 0..100 {
                read(&mut udp, "key", &number)?;
            }
            let hits = stage.prestack.stats()?.get("udp.hits")?;
            Ok((hits > before.get("udp.hits")? + 1_000).then_some(()))
        })?;
        // The first that is seen of a connection that has written.
        for _ in 0..1_000 {
            write_and_read(&mut tcp, &mut udp, "key", &number)?;
        }
        ensure!(!is_ignored(&stage)?, "it is not ignored any more");
        Ok(())
    })
}

/// It would be in doubt afterwards, and nothing would tell that it is not.
#[test]
fn it_is_followed_while_a_connection_wants_no_replies() -> Result<()> {
    let stage = Stage::with(MemcachedOptions::default(), &["--max-age", "1s"])?;
    let mut tcp = stage.tcp()?;
    under_load(&stage, || {
        for _ in 0..40 {
            tcp.send(b"set key 0 0 1 noreply\r\nx\r\n")?;
            thread::sleep(Duration::from_millis(100));
            ensure!(!is_ignored(&stage)?);
        }
        Ok(())
    })?;
    ensure!(stage.prestack.stats()?.get("tcp.ignored")? == 0);
    Ok(())
}

#[test]
fn it_is_followed_always_if_that_is_wanted() -> Result<()> {
    let args = ["--max-age", "1s", "--always-follow-tcp"];
    let stage = Stage::with(MemcachedOptions::default(), &args)?;
    under_load(&stage, || {
        thread::sleep(Duration::from_secs(4));
        ensure!(!is_ignored(&stage)?);
        Ok(())
    })?;
    ensure!(stage.prestack.stats()?.get("tcp.ignored")? == 0);
    Ok(())
}
