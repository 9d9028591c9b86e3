//! The datapath stands aside while following requests does not pay, comes back when it may, and nothing stale is
//! read whatever it does.

mod load;

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use load::{Load, Missing, Reader, Writers, under};
use prestack::maps::Controls;
use prestack::state::Instance;
use prestack_testbed::{MemcachedOptions, TcpClient, UdpClient, pace};
use prestack_tests::pinned::carry;
use prestack_tests::stage::{Stage, set, store, until_hit};

/// Clients that make up the load, in so many threads.
const CLIENTS: usize = 32;
const THREADS: usize = 2;
/// What `prestack status` says.
const ASIDE: &str = "standing aside";
const LIMIT: Duration = Duration::from_secs(20);
/// Much, where the clients here are to bring it.
const MUCH: [&str; 2] = ["--much", "2000"];

fn connections(stage: &Stage) -> Result<Vec<Vec<TcpClient>>> {
    let some = |_| (0..CLIENTS / THREADS).map(|_| stage.tcp()).collect();
    (0..THREADS).map(some).collect()
}

fn writers(stage: &Stage) -> Result<Vec<Box<dyn Load>>> {
    let boxed = |clients| Box::new(Writers(clients)) as Box<dyn Load>;
    Ok(connections(stage)?.into_iter().map(boxed).collect())
}

fn readers<'a>(stage: &Stage, hits: &'a AtomicBool) -> Result<Vec<Box<dyn Load + 'a>>> {
    let reader = |_| {
        let client = stage.udp()?;
        Ok(Box::new(Reader { client, hits }) as Box<dyn Load + 'a>)
    };
    (0..THREADS).map(reader).collect()
}

/// Sets `key` to the next number.
fn write(tcp: &mut TcpClient, key: &str, number: &Cell<u64>) -> Result<()> {
    let next = number.get() + 1;
    store(tcp, key.as_bytes(), next.to_string().as_bytes())?;
    number.set(next);
    Ok(())
}

/// The same over UDP.
fn write_over_udp(udp: &mut UdpClient, key: &str, number: &Cell<u64>) -> Result<()> {
    let next = number.get() + 1;
    let stored = udp.request(&set(key.as_bytes(), next.to_string().as_bytes()))?;
    ensure!(stored == b"STORED\r\n");
    number.set(next);
    Ok(())
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

fn status(stage: &Stage) -> Result<String> {
    stage.prestack.instance().command(&["status"])
}

fn is_aside(stage: &Stage) -> Result<bool> {
    Ok(status(stage)?.contains(ASIDE))
}

fn wait_until_aside(stage: &Stage) -> Result<()> {
    pace::wait_for("the datapath to stand aside", LIMIT, || {
        Ok(is_aside(stage)?.then_some(()))
    })
}

fn wait_until_awake(stage: &Stage) -> Result<()> {
    pace::wait_for("the datapath to attend", LIMIT, || {
        Ok((!is_aside(stage)?).then_some(()))
    })
}

#[test]
fn nothing_stale_is_read_by_who_comes_back() -> Result<()> {
    if pace::is_slow() {
        // There will never be much in an emulated machine.
        return Ok(());
    }
    let settings = [&MUCH[..], &["--max-age", "1s"]].concat();
    let stage = Stage::with(MemcachedOptions::default(), &settings)?;
    let number = Cell::new(0);
    let (mut tcp, mut other, mut udp) = (stage.tcp()?, stage.tcp()?, stage.udp()?);
    // Before, so that the connection is known, and something may be in the cache.
    for _ in 0..100 {
        write(&mut tcp, "key", &number)?;
        read(&mut udp, "key", &number)?;
    }
    // Else it would be this reader who could not be answered often enough.
    thread::sleep(Duration::from_millis(1_500));
    let stop = AtomicBool::new(false);
    let before = Cell::new(0);
    under(writers(&stage)?, &stop, || {
        wait_until_aside(&stage)?;
        ensure!(status(&stage)?.contains("nobody reads"));
        let stats = stage.prestack.stats()?;
        ensure!(stats.get("aside.others")? > 0 && stats.get("aside.now")? == 1);
        before.set(stats.get("udp.hits")?);
        // Nothing would be cached for a while in any case.
        thread::sleep(Duration::from_millis(1_500));
        // Without a reply, which would tell later that something went by.
        tcp.send(b"set unseen 0 0 1 noreply\r\nx\r\n")?;
        // Somebody reads, while somebody else goes on to write, unseen at first, until it is certain again
        // what that connection asks for.
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(3) {
            write(&mut other, "key", &number)?;
            read(&mut udp, "key", &number)?;
        }
        ensure!(!is_aside(&stage)?, "somebody reads");
        Ok(())
    })?;
    // Under that load it would not pay to follow what this reader asks for.
    pace::wait_for("hits", LIMIT, || {
        for _ in 0..100 {
            read(&mut udp, "key", &number)?;
        }
        Ok((stage.hits()? > before.get() + 1_000).then_some(()))
    })?;
    // The first that is seen of a connection that has written.
    for _ in 0..1_000 {
        write(&mut tcp, "key", &number)?;
        read(&mut udp, "key", &number)?;
    }
    ensure!(!is_aside(&stage)?, "somebody reads");
    Ok(())
}

#[test]
fn misses_are_let_by_until_they_become_hits() -> Result<()> {
    let settings = [
        &MUCH[..],
        &["--max-age", "1s", "--settle", "100ms", "--rest", "4s"],
    ]
    .concat();
    let stage = Stage::with(MemcachedOptions::default(), &settings)?;
    store(&mut stage.tcp()?, b"there", b"value")?;
    let (stop, hits) = (AtomicBool::new(false), AtomicBool::new(false));
    under(readers(&stage, &hits)?, &stop, || {
        wait_until_aside(&stage)?;
        let said = status(&stage)?;
        ensure!(
            said.contains("0.0 % of requests could be answered; next trial in "),
            "{said}"
        );
        // It is not for long that it is tried again.
        let awake = stage.prestack.stats()?;
        wait_until_awake(&stage)?;
        let aside = stage.prestack.stats()?;
        ensure!(aside.get("aside.udp_gets")? > awake.get("aside.udp_gets")?);
        ensure!(aside.get("udp.hits")? == 0);
        wait_until_aside(&stage)?;
        hits.store(true, Ordering::Relaxed);
        wait_until_awake(&stage)?;
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(6) {
            ensure!(!is_aside(&stage)?, "it pays");
            thread::sleep(Duration::from_millis(100));
        }
        let stats = stage.prestack.stats()?;
        ensure!(stats.get("udp.hits")? > 10_000 / if pace::is_slow() { 50 } else { 1 });
        hits.store(false, Ordering::Relaxed);
        wait_until_aside(&stage)
    })
}

#[test]
fn what_was_cached_before_is_not_served_after() -> Result<()> {
    let settings = ["--max-age", "1m", "--settle", "1s", "--rest", "4s"];
    let settings = [&MUCH[..], &settings].concat();
    let stage = Stage::with(MemcachedOptions::default(), &settings)?;
    let mut udp = stage.udp()?;
    store(&mut stage.tcp()?, b"key", b"old")?;
    until_hit(&stage.prestack, &mut udp, b"key", b"old")?;
    let (stop, hits) = (AtomicBool::new(false), AtomicBool::new(false));
    under(readers(&stage, &hits)?, &stop, || {
        wait_until_aside(&stage)?;
        ensure!(udp.request(&set(b"key", b"new"))? == b"STORED\r\n");
        wait_until_awake(&stage)?;
        while !is_aside(&stage)? {
            assert_eq!(udp.get(b"key")?.as_deref(), Some(&b"new"[..]));
        }
        Ok(())
    })
}

/// What is known of connections is out of date: of one that wrote unseen, the next write would seem to come early.
#[test]
fn what_a_connection_of_before_writes_is_seen_before_memcached_has_it() -> Result<()> {
    let settings = ["--max-age", "1m", "--settle", "100ms", "--rest", "1m"];
    let settings = [&MUCH[..], &settings].concat();
    let stage = Stage::with(MemcachedOptions::default(), &settings)?;
    let mut tcp = stage.tcp()?;
    store(&mut tcp, b"key", b"old")?;
    let (stop, hits) = (AtomicBool::new(false), AtomicBool::new(false));
    under(readers(&stage, &hits)?, &stop, || {
        wait_until_aside(&stage)?;
        // Without a reply: the next segment would acknowledge that.
        tcp.send(b"set other 0 0 1 noreply\r\nx\r\n")?;
        // Longer than the kernel delays an acknowledgement.
        thread::sleep(Duration::from_millis(300));
        ensure!(is_aside(&stage)?, "the rest is not over");
        Ok(())
    })?;
    wait_until_awake(&stage)?;
    let mut reader = UdpClient::connect(&stage.bed.client, stage.server6())?;
    until_hit(&stage.prestack, &mut reader, b"key", b"old")?;
    // No reply or acknowledgement leaves from now on that could show that something came.
    let client = stage.bed.links[0].client4.to_string();
    stage
        .bed
        .server
        .ip(["route", "add", "blackhole", &client])?;
    tcp.send(&set(b"key", b"new"))?;
    let mut behind = stage.behind()?;
    pace::wait_for("the write", LIMIT, || {
        let is_written = behind.get(b"key")?.as_deref() == Some(b"new");
        Ok(is_written.then_some(()))
    })?;
    assert_eq!(reader.get(b"key")?.as_deref(), Some(&b"new"[..]));
    Ok(())
}

/// The settle time of closed flows, whose data is not heeded, and then that of what was not seen.
#[test]
fn two_settle_times_go_by_until_somebody_is_served_again() -> Result<()> {
    const SETTLE: Duration = Duration::from_secs(3);
    let settings = ["--max-age", "1m", "--settle", "3s", "--rest", "1m"];
    let settings = [&MUCH[..], &settings].concat();
    let stage = Stage::with(MemcachedOptions::default(), &settings)?;
    let mut tcp = stage.tcp()?;
    store(&mut tcp, b"key", b"value")?;
    let (stop, hits) = (AtomicBool::new(false), AtomicBool::new(false));
    // Flows are closed after the last moment at which it was awake.
    let awake = Cell::new(Instant::now());
    let aside = Cell::new(awake.get());
    let has_become = |wanted: bool, before: &Cell<Instant>| {
        let now = Instant::now();
        if is_aside(&stage)? == wanted {
            return Ok(Some(()));
        }
        before.set(now);
        Ok(None)
    };
    under(readers(&stage, &hits)?, &stop, || {
        pace::wait_for("it to stand aside", LIMIT, || has_become(true, &awake))
    })?;
    pace::wait_for("it to attend", LIMIT, || has_become(false, &aside))?;
    let took = awake.get().elapsed();
    ensure!(took >= SETTLE, "requests are followed after {took:?}");
    until_hit(&stage.prestack, &mut stage.udp()?, b"key", b"value")?;
    let took = aside.get().elapsed();
    ensure!(took >= SETTLE, "one is served {took:?} later");
    Ok(())
}

#[test]
fn nothing_stale_is_read_while_it_comes_and_goes() -> Result<()> {
    let settings = [&MUCH[..], &["--max-age", "1s", "--rest", "1s"]].concat();
    let stage = Stage::with(MemcachedOptions::default(), &settings)?;
    let number = Cell::new(0);
    let (mut tcp, mut udp, mut reader) = (stage.tcp()?, stage.udp()?, stage.udp()?);
    let (stop, hits) = (AtomicBool::new(false), AtomicBool::new(false));
    let served = Cell::new(0);
    under(readers(&stage, &hits)?, &stop, || {
        for _ in 0..3 {
            for is_awaited in [true, false] {
                pace::wait_for("a change", LIMIT, || {
                    let before = stage.hits()?;
                    for _ in 0..20 {
                        write(&mut tcp, "key", &number)?;
                        read(&mut reader, "key", &number)?;
                        write_over_udp(&mut udp, "key", &number)?;
                        // Whoever reads once more may be served.
                        for _ in 0..4 {
                            read(&mut reader, "key", &number)?;
                        }
                        thread::sleep(Duration::from_millis(5));
                    }
                    served.set(served.get() + stage.hits()? - before);
                    Ok((is_aside(&stage)? == is_awaited).then_some(()))
                })?;
            }
        }
        Ok(())
    })?;
    ensure!(served.get() > 0, "nothing was served in between");
    Ok(())
}

/// It would be in doubt afterwards, and nothing would tell that it is not.
#[test]
fn requests_are_followed_while_a_connection_wants_no_replies() -> Result<()> {
    let settings = [&MUCH[..], &["--max-age", "1s"]].concat();
    let stage = Stage::with(MemcachedOptions::default(), &settings)?;
    let mut tcp = stage.tcp()?;
    let stop = AtomicBool::new(false);
    under(writers(&stage)?, &stop, || {
        for _ in 0..40 {
            tcp.send(b"set key 0 0 1 noreply\r\nx\r\n")?;
            thread::sleep(Duration::from_millis(100));
            ensure!(!is_aside(&stage)?);
        }
        Ok(())
    })?;
    ensure!(stage.prestack.stats()?.get("aside.others")? == 0);
    Ok(())
}

#[test]
fn requests_are_followed_always_if_that_is_wanted() -> Result<()> {
    let settings = [&MUCH[..], &["--max-age", "1s", "--always-on"]].concat();
    let stage = Stage::with(MemcachedOptions::default(), &settings)?;
    let stop = AtomicBool::new(false);
    under(writers(&stage)?, &stop, || {
        // Longer than the trial, of two settle times and 2 s, after which it would stand aside.
        thread::sleep(Duration::from_secs(6));
        ensure!(!is_aside(&stage)?);
        Ok(())
    })?;
    ensure!(stage.prestack.stats()?.get("aside.others")? == 0);
    Ok(())
}

/// Settings with which GETs are answered over TCP.
const TCP_HITS: [&str; 7] = [
    "--max-age",
    "1s",
    "--tcp-hits",
    "--rest",
    "1m",
    "--drain-timeout",
    "2s",
];

#[test]
fn connections_that_are_carried_are_followed() -> Result<()> {
    let settings = [&MUCH[..], &TCP_HITS].concat();
    let stage = Stage::with(MemcachedOptions::default(), &settings)?;
    let mut tcp = stage.tcp()?;
    store(&mut tcp, b"key", b"value")?;
    carry(&stage.prestack, &mut tcp)?;
    let stop = AtomicBool::new(false);
    let missing = connections(&stage)?.into_iter();
    let missing = missing.map(|clients| Box::new(Missing(clients)) as Box<dyn Load>);
    under(missing.collect(), &stop, || {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(10) {
            ensure!(!is_aside(&stage)?, "a connection is carried");
            assert_eq!(tcp.get(b"key")?.as_deref(), Some(&b"value"[..]));
            thread::sleep(Duration::from_millis(20));
        }
        drop(tcp);
        wait_until_aside(&stage)
    })
}

/// Whether the daemon crashes while flows are closed, or before they were.
#[test]
fn after_a_crash_aside_everything_is_forgotten_first() -> Result<()> {
    for has_closed in [true, false] {
        crash_aside(has_closed)?;
    }
    Ok(())
}

fn crash_aside(has_closed: bool) -> Result<()> {
    let settings = [&MUCH[..], &TCP_HITS, &["--settle", "3s", "--no-watch-lo"]].concat();
    let mut stage = Stage::watching(MemcachedOptions::default(), &settings)?;
    let number = Cell::new(0);
    let (mut tcp, mut udp) = (stage.tcp()?, stage.udp()?);
    for _ in 0..100 {
        write(&mut tcp, "key", &number)?;
        read(&mut udp, "key", &number)?;
    }
    if has_closed {
        let stop = AtomicBool::new(false);
        under(writers(&stage)?, &stop, || wait_until_aside(&stage))?;
        stage.prestack.kill()?;
    } else {
        stage.prestack.kill()?;
        let instance = Instance::new(
            stage
                .prestack
                .instance()
                .name()
                .parse()
                .map_err(anyhow::Error::msg)?,
        );
        let state = instance.state()?.context("it has a state")?;
        Controls::open(&state.maps)?.stand_aside();
    }
    // Nobody follows that, and nobody is served.
    for _ in 0..100 {
        write(&mut tcp, "key", &number)?;
        read(&mut udp, "key", &number)?;
    }
    ensure!(stage.prestack.stats()?.get("aside.now")? == 1);
    let interface = ["--interface", &stage.bed.links[0].server_dev];
    stage
        .prestack
        .restart(&[&interface[..], &settings].concat())?;
    // What is known of connections is out of date until they are closed, and have settled.
    ensure!(has_closed || stage.prestack.stats()?.get("aside.now")? == 1);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(12) {
        // Not before the key may be cached.
        if start.elapsed() > Duration::from_millis(7_500) {
            write(&mut tcp, "key", &number)?;
        }
        read(&mut udp, "key", &number)?;
    }
    ensure!(!is_aside(&stage)?, "there is next to nothing");
    let value = number.get().to_string();
    until_hit(&stage.prestack, &mut udp, b"key", value.as_bytes())?;
    for _ in 0..1_000 {
        write(&mut tcp, "key", &number)?;
        read(&mut udp, "key", &number)?;
    }
    stage.prestack.check_tcp_hits().or_else(|_| {
        // Its connection has to earn that anew.
        carry(&stage.prestack, &mut tcp)
    })
}
