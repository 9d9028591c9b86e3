//! Writes without a reply among GETs on one connection cost the readers no more than writes with one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use prestack_testbed::{MemcachedOptions, UdpClient};
use prestack_tests::stage::{PORT, Stage, set, store, until_hit};

use crate::clients::{are_installed, succeed};

/// Keys that are written and read.
const KEYS: u32 = 100;
/// Writes, one every 2 ms, each followed by a GET.
const WRITES: u32 = 1_500;
const PERIOD: Duration = Duration::from_millis(2);
/// As users run it: a write without a reply that were over by time alone would be so after a second, in
/// which five more of the same key have come.
const ARGS: [&str; 2] = ["--max-age", "1s"];
/// How much lower the hit rate may be: each of the misses after a write counts the more, the fewer reads the machine does
/// between two writes.
const MARGIN: f64 = 0.15;

/// A client of pymemcache's, whose writes wait for no reply unless told to.
const PYMEMCACHE: &str = r#"
import sys, time
from pymemcache.client.base import Client
noreply = sys.argv[3] == "noreply"
# Without no_delay the GET after a write without a reply waits for the delayed acknowledgement of the write.
client = Client(
    (sys.argv[1], int(sys.argv[2])), timeout=5, no_delay=True, **({} if noreply else {"default_noreply": False})
)
assert client.default_noreply == noreply
keys, writes, period = int(sys.argv[4]), int(sys.argv[5]), float(sys.argv[6])
start = time.monotonic()
for i in range(writes):
    client.set("key%d" % (i * 7 % keys), b"value%d" % i)
    assert client.get("key%d" % (i * 13 % keys)) is not None
    time.sleep(max(0, start + i * period - time.monotonic()))
print("done")
"#;

/// The share of a UDP reader's GETs that hit while `write` writes.
fn hit_rate(stage: &Stage, write: impl FnOnce() -> Result<()>) -> Result<f64> {
    let mut udp = stage.udp()?;
    let stop = AtomicBool::new(false);
    let before = stage.prestack.stats()?;
    let read = || -> Result<u64> {
        let mut random = fastrand::Rng::with_seed(1);
        let mut reads = 0;
        while !stop.load(Ordering::Relaxed) {
            read_one(&mut udp, random.u32(..KEYS))?;
            reads += 1;
        }
        Ok(reads)
    };
    let (written, reads) = thread::scope(|scope| {
        let reader = scope.spawn(read);
        let written = write();
        stop.store(true, Ordering::Relaxed);
        (written, reader.join().expect("the reader does not panic"))
    });
    written?;
    let after = stage.prestack.stats()?;
    let hits = after.get("udp.hits")? - before.get("udp.hits")?;
    Ok(hits as f64 / reads? as f64)
}

fn read_one(udp: &mut UdpClient, n: u32) -> Result<()> {
    let key = format!("key{n}");
    ensure!(udp.get(key.as_bytes())?.is_some(), "{key} is not there");
    Ok(())
}

fn stage() -> Result<Stage> {
    let stage = Stage::with(MemcachedOptions::default(), &ARGS)?;
    let mut tcp = stage.tcp()?;
    for n in 0..KEYS {
        store(&mut tcp, format!("key{n}").as_bytes(), b"first")?;
    }
    // Nothing is cached for the settle time after the start.
    until_hit(&stage.prestack, &mut stage.udp()?, b"key0", b"first")?;
    Ok(stage)
}

fn assert_alike(client: &str, with_reply: f64, without: f64) {
    println!("{client}: hit rate {with_reply:.3} with replies, {without:.3} without");
    // Else writes that never end could hide within the margin.
    assert!(with_reply > 2.0 * MARGIN, "{client}: {with_reply}");
    assert!(
        without > with_reply - MARGIN,
        "{client}: {without}, and {with_reply} where writes have replies"
    );
}

#[test]
fn pymemcache_alternates_writes_without_reply_and_gets() -> Result<()> {
    if !are_installed() {
        return Ok(());
    }
    let stage = stage()?;
    let (host, port) = (stage.server4().ip().to_string(), PORT.to_string());
    let numbers = [KEYS.to_string(), WRITES.to_string()];
    let period = PERIOD.as_secs_f64().to_string();
    let rate = |mode| {
        hit_rate(&stage, || {
            let args = ["-c", PYMEMCACHE, &host, &port, mode];
            let args = [&args[..], &[&numbers[0], &numbers[1], &period]].concat();
            let said = succeed(&stage, "/usr/bin/python3", &args)?;
            ensure!(said == "done\n", "{said}");
            Ok(())
        })
    };
    assert_alike("pymemcache", rate("reply")?, rate("noreply")?);
    Ok(())
}

#[test]
fn a_connection_alternates_writes_without_reply_and_gets() -> Result<()> {
    let stage = stage()?;
    let rate = |is_quiet: bool| {
        hit_rate(&stage, || {
            let mut tcp = stage.tcp()?;
            let start = Instant::now();
            for i in 0..WRITES {
                let key = format!("key{}", i * 7 % KEYS);
                if is_quiet {
                    tcp.send(format!("set {key} 0 0 5 noreply\r\nvalue\r\n").as_bytes())?;
                } else {
                    let answer = tcp.command(&set(key.as_bytes(), b"value"))?;
                    ensure!(answer == b"STORED\r\n");
                }
                let key = format!("key{}", i * 13 % KEYS);
                ensure!(tcp.get(key.as_bytes())?.is_some(), "{key} is not there");
                thread::sleep((start + i * PERIOD).saturating_duration_since(Instant::now()));
            }
            Ok(())
        })
    };
    assert_alike("a connection", rate(false)?, rate(true)?);
    Ok(())
}
