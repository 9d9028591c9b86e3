//! `flush_all` empties the cache at once, whoever's keys are in it. (That it also does so with
//! arguments, silently and in binary is among the tests of all writes.)

use std::time::{Duration, SystemTime};

use anyhow::{Result, ensure};
use prestack_testbed::{MemcachedOptions, pace};
use prestack_tests::stage::{Stage, store, until_all_hit, until_hit};

fn items() -> Vec<(Vec<u8>, Vec<u8>)> {
    (0..50)
        .map(|i| {
            (
                format!("key{i}").into_bytes(),
                format!("value{i}").into_bytes(),
            )
        })
        .collect()
}

/// Caches many items, calls `flush`, and reads nothing any more.
fn flushed_by(flush: impl FnOnce(&Stage) -> Result<Vec<u8>>) -> Result<()> {
    let stage = Stage::new()?;
    let (mut udp, mut behind) = (stage.udp()?, stage.behind()?);
    for (key, value) in items() {
        store(&mut behind, &key, &value)?;
    }
    until_all_hit(&stage.prestack, &mut udp, &items())?;
    assert_eq!(flush(&stage)?, b"OK\r\n");
    for (key, _) in items() {
        assert_eq!(udp.get(&key)?, None);
    }
    store(&mut behind, b"key0", b"new")?;
    until_hit(&stage.prestack, &mut udp, b"key0", b"new")
}

#[test]
fn flush_all_over_tcp() -> Result<()> {
    flushed_by(|stage| stage.tcp()?.command(b"flush_all\r\n"))
}

#[test]
fn flush_all_over_udp() -> Result<()> {
    flushed_by(|stage| stage.udp()?.request(b"flush_all\r\n"))
}

/// The cache answers until shortly before the time comes, and never once memcached has nothing any more.
fn flushed_later_by(ask: impl FnOnce(&Stage) -> Result<()>) -> Result<()> {
    let stage = Stage::new()?;
    let (mut udp, mut behind) = (stage.udp()?, stage.behind()?);
    store(&mut behind, b"key", b"old")?;
    until_hit(&stage.prestack, &mut udp, b"key", b"old")?;
    ask(&stage)?;
    // Soon cached again if it was forgotten.
    until_hit(&stage.prestack, &mut udp, b"key", b"old")?;
    pace::wait_for("memcached to flush", Duration::from_secs(10), || {
        let before = behind.get(b"key")?;
        let got = udp.get(b"key")?;
        ensure!(before.is_some() || got.is_none(), "served what is gone");
        Ok(before.is_none().then_some(()))
    })?;
    // What is stored in the second of the flush memcached flushes as well.
    std::thread::sleep(Duration::from_secs(2));
    store(&mut behind, b"new", b"value")?;
    until_hit(&stage.prestack, &mut udp, b"new", b"value")?;
    assert_eq!(udp.get(b"key")?, None);
    Ok(())
}

#[test]
fn delayed_over_tcp() -> Result<()> {
    flushed_later_by(|stage| {
        assert_eq!(stage.tcp()?.command(b"flush_all 5\r\n")?, b"OK\r\n");
        Ok(())
    })
}

#[test]
fn delayed_over_udp() -> Result<()> {
    flushed_later_by(|stage| {
        assert_eq!(stage.udp()?.request(b"flush_all 5\r\n")?, b"OK\r\n");
        Ok(())
    })
}

#[test]
fn delayed_silently() -> Result<()> {
    flushed_later_by(|stage| stage.udp()?.send(b"flush_all 5 noreply\r\n").map(drop))
}

#[test]
fn at_a_point_in_time() -> Result<()> {
    flushed_later_by(|stage| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        let command = format!("flush_all {}\r\n", now.as_secs() + 7);
        assert_eq!(stage.tcp()?.command(command.as_bytes())?, b"OK\r\n");
        Ok(())
    })
}

#[test]
fn prestack_flush_forgets_what_changed_unseen() -> Result<()> {
    let stage = Stage::with(MemcachedOptions::default(), &prestack_tests::stage::LASTING)?;
    let (mut udp, mut behind) = (stage.udp()?, stage.behind()?);
    store(&mut behind, b"key", b"old")?;
    until_hit(&stage.prestack, &mut udp, b"key", b"old")?;
    store(&mut behind, b"key", b"new")?;
    assert_eq!(
        udp.get(b"key")?.as_deref(),
        Some(&b"old"[..]),
        "the write was not seen"
    );
    stage.prestack.instance().command(&["flush"])?;
    until_hit(&stage.prestack, &mut udp, b"key", b"new")
}
