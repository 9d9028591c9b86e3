//! memcached goes away and comes back.

use std::time::Duration;

use anyhow::Result;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use prestack_testbed::{Memcached, MemcachedOptions, binary, pace};
use prestack_tests::stage::{LASTING, Stage, store, until_hit};

/// Reads `old` from the cache, puts another memcached in the place of the first, and never reads
/// `old` once the new one answers.
fn restarted(options: &MemcachedOptions, end: impl Fn(&mut Memcached) -> Result<()>) -> Result<()> {
    let mut stage = Stage::with(options.clone(), &LASTING)?;
    let mut udp = stage.udp()?;
    for round in 0..5 {
        let (gone, kept) = (format!("gone{round}"), format!("kept{round}"));
        store(&mut stage.behind()?, gone.as_bytes(), b"old")?;
        store(&mut stage.behind()?, kept.as_bytes(), b"old")?;
        until_hit(&stage.prestack, &mut udp, gone.as_bytes(), b"old")?;
        until_hit(&stage.prestack, &mut udp, kept.as_bytes(), b"old")?;

        end(&mut stage.memcached)?;
        stage.memcached = Memcached::start(&stage.bed.server, options.clone())?;
        assert_eq!(udp.get(gone.as_bytes())?, None, "round {round}");
        store(&mut stage.behind()?, kept.as_bytes(), b"new")?;
        for _ in 0..20 {
            assert_eq!(
                udp.get(kept.as_bytes())?.as_deref(),
                Some(&b"new"[..]),
                "round {round}"
            );
            assert_eq!(udp.get(gone.as_bytes())?, None, "round {round}");
        }
        until_hit(&stage.prestack, &mut udp, kept.as_bytes(), b"new")?;
    }
    Ok(())
}

#[test]
fn a_killed_memcached_takes_its_values_with_it() -> Result<()> {
    restarted(&MemcachedOptions::default(), Memcached::kill)
}

#[test]
fn a_stopped_memcached_takes_its_values_with_it() -> Result<()> {
    restarted(&MemcachedOptions::default(), Memcached::stop)
}

#[test]
fn so_does_one_with_a_socket_for_every_thread() -> Result<()> {
    for end in [Memcached::kill, Memcached::stop] {
        restarted(&with_sockets_for_threads()?, end)?;
    }
    Ok(())
}

fn with_sockets_for_threads() -> Result<MemcachedOptions> {
    Ok(MemcachedOptions {
        launcher: Some(binary()?),
        ..MemcachedOptions::default()
    })
}

/// The daemon is frozen, and then killed, while memcached is replaced: the cache is empty all the same.
fn unnoticed(options: &MemcachedOptions) -> Result<()> {
    let args = [&LASTING[..], &["--pin"]].concat();
    let mut stage = Stage::with(options.clone(), &args)?;
    let mut udp = stage.udp()?;
    let daemon = Pid::from_raw(stage.prestack.pid());
    store(&mut stage.behind()?, b"key", b"old")?;
    for is_last in [false, true] {
        until_hit(&stage.prestack, &mut udp, b"key", b"old")?;
        let epoch = stage.prestack.stats()?.get("epoch")?;
        kill(daemon, Signal::SIGSTOP)?;
        stage.memcached.kill()?;
        let risen = stage.prestack.instance().stats()?.get("epoch")?;
        assert!(risen > epoch, "the sockets were closed unnoticed");
        stage.memcached = Memcached::start(&stage.bed.server, options.clone())?;
        assert_eq!(udp.get(b"key")?, None);
        if is_last {
            stage.prestack.kill()?;
            assert_eq!(udp.get(b"key")?, None);
        } else {
            kill(daemon, Signal::SIGCONT)?;
            store(&mut stage.behind()?, b"key", b"old")?;
        }
    }
    stage.prestack.instance().command(&["detach"])?;
    Ok(())
}

#[test]
fn nobody_has_to_notice() -> Result<()> {
    unnoticed(&MemcachedOptions::default())
}

#[test]
fn nobody_has_to_notice_the_end_of_sockets_for_threads() -> Result<()> {
    unnoticed(&with_sockets_for_threads()?)
}

#[test]
fn a_memcached_that_is_gone_for_long_comes_back() -> Result<()> {
    let mut stage = Stage::new()?;
    let mut udp = stage.udp()?;
    store(&mut stage.behind()?, b"key", b"old")?;
    until_hit(&stage.prestack, &mut udp, b"key", b"old")?;
    stage.memcached.kill()?;
    // Sooner or later nobody answers.
    pace::wait_for("the cache to fall silent", Duration::from_secs(10), || {
        udp.send(b"get key\r\n")?;
        Ok(udp.is_silent(Duration::from_millis(100))?.then_some(()))
    })?;
    stage.memcached = Memcached::start(&stage.bed.server, MemcachedOptions::default())?;
    assert_eq!(udp.get(b"key")?, None);
    store(&mut stage.behind()?, b"key", b"new")?;
    until_hit(&stage.prestack, &mut udp, b"key", b"new")
}
