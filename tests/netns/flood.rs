//! SYNs from everywhere, of which no connection comes.

use std::fs;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use prestack_testbed::{MemcachedOptions, TcpClient, UdpClient, pace};
use prestack_tests::flood::{Flood, SOURCES};
use prestack_tests::pinned::carry;
use prestack_tests::stage::{Stage, set, store, until_hit};

use crate::mixed::HITS;

/// SYNs in all.
const SYNS: usize = 50_000;
/// SYNs between two pauses.
const BURST: u32 = 50;
/// Times that a GET is sent at most.
const TRIES: u32 = 4;
/// Writers that were connected before.
const WRITERS: usize = 4;
/// Connections that are carried, if there are hits over TCP.
const CARRIED: usize = 4;

/// Settings of all runs here.
const SETTINGS: [&str; 6] = ["--memory", "8MiB", "--max-age", "60s", "--settle", "1s"];

/// A flood goes on while clients read and write. Those that are connected notice nothing, and the cache
/// goes on to serve, carried connections as well; if the host answers SYNs with cookies, clients can connect as well.
fn survive(has_cookies: bool, more: &[&str]) -> Result<()> {
    let stage = Stage::with(
        MemcachedOptions {
            threads: 4,
            ..MemcachedOptions::default()
        },
        &[&SETTINGS[..], more].concat(),
    )?;
    let (bed, link) = (&stage.bed, &stage.bed.links[0]);
    let cookies = if has_cookies { "1" } else { "0" };
    bed.server
        .run(|| fs::write("/proc/sys/net/ipv4/tcp_syncookies", cookies))?;
    let sources = format!("{SOURCES}/16");
    let client = link.client4.to_string();
    bed.server.ip(["route", "add", &sources, "via", &client])?;

    let mut udp = stage.udp()?;
    store(&mut stage.behind()?, b"hot", b"value")?;
    until_hit(&stage.prestack, &mut udp, b"hot", b"value")?;
    let mut writers = (0..WRITERS)
        .map(|_| {
            let mut writer = stage.tcp()?;
            store(&mut writer, b"first", b"value")?;
            Ok(writer)
        })
        .collect::<Result<Vec<_>>>()?;
    let mut carried = Vec::new();
    if stage.prestack.carries_connections() {
        store(&mut stage.behind()?, b"key", b"value")?;
        for _ in 0..CARRIED {
            let mut client = stage.tcp()?;
            carry(&stage.prestack, &mut client)?;
            carried.push(client);
        }
    }
    // It says nothing until the flood is over.
    let mut silent = stage.tcp()?;
    let before = stage.prestack.stats()?;

    let SocketAddr::V4(server) = stage.server4() else {
        bail!("the server has no IPv4 address");
    };
    let flood = Flood::new(&bed.client)?;
    let is_over = AtomicBool::new(false);
    let mut rounds = 0;
    thread::scope(|scope| -> Result<()> {
        let flood = scope.spawn(|| {
            let sent = (0..pace::volume(SYNS) as u32).try_for_each(|number| {
                if number % BURST == 0 {
                    thread::sleep(Duration::from_millis(2));
                }
                flood.send(server, number)
            });
            is_over.store(true, Ordering::Release);
            sent
        });
        while !is_over.load(Ordering::Acquire) {
            rounds += 1;
            let writer = rounds as usize % WRITERS;
            round(&mut writers[writer], &mut udp, writer, rounds)?;
            if has_cookies && rounds % 8 == 0 {
                let mut late = stage.tcp().context("connecting")?;
                round(&mut late, &mut udp, WRITERS, rounds)?;
            }
            ensure!(read(&mut udp, b"hot")?.as_deref() == Some(&b"value"[..]));
            if !carried.is_empty() {
                let value = carried[rounds as usize % CARRIED].get(b"key");
                let value = value.context("a carried connection")?;
                ensure!(value.as_deref() == Some(&b"value"[..]), "got {value:?}");
            }
        }
        flood.join().expect("no panic")
    })?;
    round(&mut silent, &mut udp, WRITERS + 1, rounds)?;

    let after = stage.prestack.stats()?;
    let more = |name: &str| Ok::<_, anyhow::Error>(after.get(name)? - before.get(name)?);
    let (hits, displaced, adopted) = (
        more("udp.hits")?,
        more("flows_displaced")?,
        more("flows_adopted")?,
    );
    let carried_hits = more("tcp.hits")?;
    println!(
        "{rounds} rounds, {hits} hits, {carried_hits} over TCP, {displaced} displaced, {adopted} adopted"
    );
    for name in [
        "doubted_requests",
        "doubted_replies",
        "forgets",
        "flows_refused",
    ] {
        ensure!(more(name)? == 0, "{name}: {}", more(name)?);
    }
    ensure!(hits >= rounds, "the hot key was not served throughout");
    ensure!(
        carried.is_empty() || carried_hits > rounds / 2,
        "only {carried_hits} of {rounds} GETs on carried connections were answered"
    );
    if has_cookies && !pace::is_slow() {
        ensure!(displaced > SYNS as u64 / 2, "the flood was none");
        ensure!(adopted > 0, "the silent connection was not displaced");
    }
    Ok(())
}

/// Reads over UDP; again, if there is no answer: where the flood fills the receiver's ring, a datagram is lost, and on a
/// busy machine the next as well.
fn read(udp: &mut UdpClient, key: &[u8]) -> Result<Option<Vec<u8>>> {
    let tries = (1..TRIES).map(|_| udp.get(key)).find(Result::is_ok);
    tries.unwrap_or_else(|| udp.get(key))
}

/// Writes over TCP, and reads over UDP what was written.
fn round(writer: &mut TcpClient, udp: &mut UdpClient, key: usize, round: u64) -> Result<()> {
    let (key, value) = (format!("key{key}"), round.to_string());
    let answer = writer.command(&set(key.as_bytes(), value.as_bytes()))?;
    ensure!(answer == b"STORED\r\n");
    for _ in 0..2 {
        let got = read(udp, key.as_bytes())?;
        ensure!(
            got.as_deref() == Some(value.as_bytes()),
            "{key} is {got:?} in round {round}"
        );
    }
    Ok(())
}

#[test]
fn a_flood_of_syns_that_are_answered_with_cookies() -> Result<()> {
    survive(true, &[])
}

#[test]
fn a_flood_of_syns_while_connections_are_carried() -> Result<()> {
    survive(true, HITS)
}

#[test]
fn a_flood_of_syns() -> Result<()> {
    survive(false, &[])
}
