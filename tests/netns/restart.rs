//! memcached goes away and comes back.

use std::time::Duration;

use anyhow::Result;
use prestack_testbed::{Memcached, MemcachedOptions, pace};
use prestack_tests::stage::{Stage, store, until_hit};

/// Reads `old` from the cache, puts another memcached in the place of the first, and never reads
/// `old` once the new one answers.
fn restarted(options: &MemcachedOptions, end: impl Fn(Memcached) -> Result<()>) -> Result<()> {
    let Stage {
        prestack,
        mut memcached,
        bed,
    } = Stage::new()?;
    let server = (bed.links[0].server4, options.port).into();
    let mut udp = prestack_testbed::UdpClient::connect(&bed.client, server)?;
    let behind = || prestack_tests::stage::behind(&bed, [127, 0, 0, 1].into(), options.port);
    for round in 0..5 {
        let (gone, kept) = (format!("gone{round}"), format!("kept{round}"));
        store(&mut behind()?, gone.as_bytes(), b"old")?;
        store(&mut behind()?, kept.as_bytes(), b"old")?;
        until_hit(&prestack, &mut udp, gone.as_bytes(), b"old")?;
        until_hit(&prestack, &mut udp, kept.as_bytes(), b"old")?;

        end(memcached)?;
        memcached = Memcached::start(&bed.server, options.clone())?;
        assert_eq!(udp.get(gone.as_bytes())?, None, "round {round}");
        store(&mut behind()?, kept.as_bytes(), b"new")?;
        for _ in 0..20 {
            assert_eq!(
                udp.get(kept.as_bytes())?.as_deref(),
                Some(&b"new"[..]),
                "round {round}"
            );
            assert_eq!(udp.get(gone.as_bytes())?, None, "round {round}");
        }
        until_hit(&prestack, &mut udp, kept.as_bytes(), b"new")?;
    }
    drop(memcached);
    Ok(())
}

#[test]
fn a_killed_memcached_takes_its_values_with_it() -> Result<()> {
    restarted(&MemcachedOptions::default(), |memcached| {
        memcached.kill()?;
        Ok(())
    })
}

#[test]
fn a_stopped_memcached_takes_its_values_with_it() -> Result<()> {
    restarted(&MemcachedOptions::default(), Memcached::stop)
}

#[test]
fn a_memcached_that_is_gone_for_long_comes_back() -> Result<()> {
    let Stage {
        prestack,
        memcached,
        bed,
    } = Stage::new()?;
    let server = (bed.links[0].server4, 11211).into();
    let mut udp = prestack_testbed::UdpClient::connect(&bed.client, server)?;
    let behind = || prestack_tests::stage::behind(&bed, [127, 0, 0, 1].into(), 11211);
    store(&mut behind()?, b"key", b"old")?;
    until_hit(&prestack, &mut udp, b"key", b"old")?;
    memcached.kill()?;
    // Sooner or later nobody answers.
    pace::wait_for("the cache to fall silent", Duration::from_secs(10), || {
        udp.send(b"get key\r\n")?;
        Ok(udp.is_silent(Duration::from_millis(100))?.then_some(()))
    })?;
    let _memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
    assert_eq!(udp.get(b"key")?, None);
    store(&mut behind()?, b"key", b"new")?;
    until_hit(&prestack, &mut udp, b"key", b"new")
}
