//! What prestack cannot see is bounded by `max-age`.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use prestack_testbed::{MemcachedOptions, pace};
use prestack_tests::stage::{Stage, store, until_hit};

const MAX_AGE: Duration = Duration::from_millis(500);
/// Time for a GET to be answered once the entry is too old.
const SLACK: Duration = Duration::from_millis(100);

#[test]
fn an_unseen_change_shows_within_max_age() -> Result<()> {
    let args = ["--memory", "8MiB", "--max-age", "500ms"];
    let stage = Stage::with(MemcachedOptions::default(), &args)?;
    let (mut udp, mut behind) = (stage.udp()?, stage.behind()?);
    store(&mut behind, b"key", b"0")?;
    let mut served_old = 0;
    for round in 1..=4_u32 {
        let (old, new) = (
            (round - 1).to_string().into_bytes(),
            round.to_string().into_bytes(),
        );
        until_hit(&stage.prestack, &mut udp, b"key", &old)?;
        store(&mut behind, b"key", &new)?;
        let changed = Instant::now();
        // A hot key: asked for all the time, and refreshed while it is served.
        loop {
            let asked = changed.elapsed();
            let got = udp.get(b"key")?;
            if got.as_ref() == Some(&new) {
                break;
            }
            ensure!(got.as_ref() == Some(&old), "{got:?}");
            ensure!(
                asked < MAX_AGE + pace::patience(SLACK),
                "the old value after {asked:?}"
            );
            served_old += 1;
        }
        // Once seen, the new value stays.
        for _ in 0..20 {
            assert_eq!(udp.get(b"key")?.as_ref(), Some(&new));
        }
    }
    assert!(served_old > 0, "the cache never answered");
    Ok(())
}

#[test]
fn an_expired_item_is_gone_within_max_age() -> Result<()> {
    let args = ["--memory", "8MiB", "--max-age", "500ms"];
    let stage = Stage::with(MemcachedOptions::default(), &args)?;
    let (mut udp, mut behind) = (stage.udp()?, stage.behind()?);
    // memcached counts in whole seconds of a clock of its own.
    assert_eq!(behind.command(b"set key 0 2 3\r\nold\r\n")?, b"STORED\r\n");
    let mut hits = 0;
    pace::wait_for(
        "memcached to expire the item",
        Duration::from_secs(5),
        || {
            let before = stage.hits()?;
            udp.get(b"key")?;
            hits += stage.hits()? - before;
            Ok(behind.get(b"key")?.is_none().then_some(()))
        },
    )?;
    assert!(hits > 0, "the cache never answered");
    let expired = Instant::now();
    loop {
        let asked = expired.elapsed();
        if udp.get(b"key")?.is_none() {
            return Ok(());
        }
        ensure!(
            asked < MAX_AGE + pace::patience(SLACK),
            "served {asked:?} after its end"
        );
    }
}

#[test]
fn a_hot_key_is_fetched_once_per_max_age() -> Result<()> {
    let args = ["--memory", "8MiB", "--max-age", "500ms"];
    let stage = Stage::with(MemcachedOptions::default(), &args)?;
    let mut udp = stage.udp()?;
    store(&mut stage.behind()?, b"key", b"value")?;
    until_hit(&stage.prestack, &mut udp, b"key", b"value")?;
    let before = stage.prestack.stats()?;
    let (start, mut asked) = (Instant::now(), 0);
    while start.elapsed() < 6 * MAX_AGE {
        assert_eq!(udp.get(b"key")?.as_deref(), Some(&b"value"[..]));
        asked += 1;
    }
    let after = stage.prestack.stats()?;
    let rose = |name| anyhow::Ok(after.get(name)? - before.get(name)?);
    let (hits, fills) = (rose("udp.hits")?, rose("fills")?);
    assert!(fills >= 5, "fetched {fills} times in 6 times its age");
    assert!(fills <= 20, "fetched {fills} times in 6 times its age");
    // Emulated, a GET takes so long that few fit between two fetches.
    if !pace::is_slow() {
        assert!(hits * 10 > asked * 9, "{hits} of {asked} GETs hit");
    }
    Ok(())
}

/// memcached's clock advances once a second, and on a busy machine its thread may have to wait for the CPU as long. From
/// when memcached itself says that the item is gone, that is no excuse.
const GRANULARITY: Duration = Duration::from_secs(2);

#[test]
fn a_second_to_live_is_not_much_more() -> Result<()> {
    let args = ["--memory", "8MiB", "--max-age", "500ms", "--settle", "50ms"];
    let stage = Stage::with(MemcachedOptions::default(), &args)?;
    let (mut udp, mut tcp, mut behind) = (stage.udp()?, stage.tcp()?, stage.behind()?);
    let (mut hits, mut served) = (0, 0);
    for round in 0..8 {
        let set = b"set key 0 1 3\r\nold\r\n";
        let stored = Instant::now();
        let answer = match round % 3 {
            0 => udp.request(set)?,
            1 => tcp.command(set)?,
            _ => behind.command(set)?,
        };
        assert_eq!(answer, b"STORED\r\n");
        let stored_by = Instant::now();
        let mut gone = None;
        loop {
            let asked = Instant::now();
            let before = stage.hits()?;
            if udp.get(b"key")?.is_none() {
                break;
            }
            served += 1;
            hits += stage.hits()? - before;
            ensure!(
                asked - stored_by
                    < Duration::from_secs(1) + GRANULARITY + MAX_AGE + pace::patience(SLACK),
                "served {:?} after it was stored",
                asked - stored
            );
            if let Some(gone) = gone {
                let late = asked - gone;
                ensure!(
                    late < MAX_AGE + pace::patience(SLACK),
                    "served {late:?} after its end"
                );
            } else if behind.get(b"key")?.is_none() {
                gone = Some(Instant::now());
            }
        }
    }
    assert!(hits > 0, "the cache never answered, of {served} GETs");
    Ok(())
}

#[test]
fn a_shorter_time_to_live_invalidates() -> Result<()> {
    let stage = Stage::new()?;
    let (mut udp, mut behind) = (stage.udp()?, stage.behind()?);
    for command in [
        &b"touch key -1\r\n"[..],
        b"gat -1 key\r\n",
        b"mg key T-1 v\r\n",
    ] {
        for over_udp in [false, true] {
            let set = b"set key 0 100 3\r\nold\r\n";
            assert_eq!(behind.command(set)?, b"STORED\r\n");
            until_hit(&stage.prestack, &mut udp, b"key", b"old")?;
            if over_udp {
                stage.udp()?.request(command)?;
            } else {
                stage.tcp()?.command(command)?;
            }
            assert_eq!(udp.get(b"key")?, None, "{}", command.escape_ascii());
            assert_eq!(behind.get(b"key")?, None, "{}", command.escape_ascii());
        }
    }
    Ok(())
}
