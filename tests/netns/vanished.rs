//! Clients that vanish.

use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use prestack::destroy::Destroyer;
use prestack::discovery::procnet::connections;
use prestack_testbed::{MemcachedOptions, pace};
use prestack_tests::pinned::carry;
use prestack_tests::stage::{LASTING, PORT, Stage, store};

/// memcached owes a reply to a flush when its client vanishes, and the kernel gives up without a word:
/// keys are cached again.
#[test]
fn a_connection_that_ends_unseen() -> Result<()> {
    let stage = Stage::new()?;
    let (bed, link) = (&stage.bed, &stage.bed.links[0]);
    let mut udp = stage.udp()?;
    store(&mut stage.behind()?, b"key", b"value")?;
    bed.server
        .run(|| fs::write("/proc/sys/net/ipv4/tcp_retries2", "2"))?;
    let client = link.client4.to_string();
    let mut tcp = stage.tcp()?;
    stage.memcached.pause()?;
    tcp.send(b"set other 0 0 1\r\nx\r\nflush_all 1000\r\n")?;
    // Nothing reaches the client any more, nor leaves for it.
    std::thread::sleep(Duration::from_millis(300));
    bed.server.ip(["route", "add", "blackhole", &client])?;
    stage.memcached.resume()?;
    pace::wait_for("the kernel to give up", Duration::from_secs(30), || {
        let left = bed.server.run(|| connections(&[PORT]))?;
        let is_there = left
            .iter()
            .any(|key| IpAddr::from(key.client[3].to_ne_bytes()) == link.client4);
        Ok((!is_there).then_some(()))
    })?;
    bed.server.ip(["route", "del", "blackhole", &client])?;
    pace::wait_for("the cache to answer", Duration::from_secs(30), || {
        let before = stage.hits()?;
        assert_eq!(udp.get(b"key")?.as_deref(), Some(&b"value"[..]));
        Ok((stage.hits()? > before).then_some(()))
    })?;
    Ok(())
}

/// memcached waits for the rest of a line that does not come, on a connection that stays: keys are cached again.
#[test]
fn a_connection_that_says_no_more() -> Result<()> {
    let stage = Stage::with(MemcachedOptions::default(), &LASTING)?;
    let mut udp = stage.udp()?;
    let mut tcp = stage.tcp()?;
    store(&mut tcp, b"key", b"value")?;
    let mut hits = || {
        let before = stage.hits()?;
        assert_eq!(udp.get(b"key")?.as_deref(), Some(&b"value"[..]));
        Ok((stage.hits()? > before).then_some(()))
    };
    pace::wait_for("a hit", Duration::from_secs(10), &mut hits)?;
    tcp.send(b"\x01")?;
    pace::wait_for("doubt", Duration::from_secs(10), || {
        Ok(hits()?.is_none().then_some(()))
    })?;
    pace::wait_for("a hit again", Duration::from_secs(30), &mut hits)
}

/// A connection that is carried ends, and nothing of its end leaves: it is not carried for ever.
#[test]
fn a_carried_connection_that_ends_unseen() -> Result<()> {
    let args = [&LASTING[..], &["--tcp-hits"]].concat();
    let stage = Stage::with(MemcachedOptions::default(), &args)?;
    let server = &stage.bed.server;
    let client = stage.bed.links[0].client4.to_string();
    let mut tcp = stage.tcp()?;
    store(&mut tcp, b"key", b"value")?;
    carry(&stage.prestack, &mut tcp)?;
    server.ip(["route", "add", "blackhole", &client])?;
    let destroyed = server.run(|| -> Result<usize> {
        let destroyer = Destroyer::new()?;
        let mut destroyed = 0;
        for connection in destroyer.find(&connections(&[PORT])?)? {
            destroyed += usize::from(destroyer.destroy(&connection)?);
        }
        Ok(destroyed)
    })?;
    assert_eq!(destroyed, 1);
    let status = || stage.prestack.instance().command(&["status"]);
    assert!(status()?.contains("on: 1 connection translated"));
    pace::wait_for("a look at connections", Duration::from_secs(20), || {
        Ok(status()?
            .contains("on: 0 connections translated")
            .then_some(()))
    })
}
