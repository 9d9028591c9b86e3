//! memcached goes away and comes back.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use prestack_abi::backend::{MAX_BACKENDS, MAX_SOCKETS};
use prestack_abi::names;
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

/// The sockets whose end the datapath notices: cookies, and numbers of backends.
fn watched_sockets(stage: &Stage) -> Result<HashMap<MapData, u64, u64>> {
    let path = stage.prestack.instance().pins().join(names::SOCKETS);
    Ok(HashMap::try_from(Map::HashMap(MapData::from_pin(path)?))?)
}

/// Waits until all of memcached's sockets are watched, and none of `others`.
fn until_watched(stage: &Stage, others: &BTreeSet<u64>) -> Result<BTreeSet<u64>> {
    let sockets = watched_sockets(stage)?;
    pace::wait_for("sockets to be watched", Duration::from_secs(10), || {
        let mut cookies = BTreeSet::new();
        for cookie in sockets.keys() {
            let cookie = cookie?;
            // It may be gone by now.
            if sockets.get(&cookie, 0).is_ok_and(|number| number == 0) {
                cookies.insert(cookie);
            }
        }
        let is_wanted = !cookies.is_empty()
            && cookies.is_disjoint(others)
            && (others.is_empty() || cookies.len() == others.len());
        Ok(is_wanted.then_some(cookies))
    })
}

/// There is no room for a moment: the sockets are watched once there is.
#[test]
fn sockets_that_could_not_be_watched_are_later() -> Result<()> {
    let args = [&LASTING[..], &["--tcp-hits"]].concat();
    let mut stage = Stage::with(MemcachedOptions::default(), &args)?;
    let first = until_watched(&stage, &BTreeSet::new())?;
    let mut sockets = watched_sockets(&stage)?;
    let nobodys = u64::from(MAX_BACKENDS) - 1;
    let unused = (1_u64 << 60..).take(MAX_SOCKETS);
    let inserted = unused.map(|cookie| sockets.insert(cookie, nobodys, 0));
    ensure!(inserted.filter(Result::is_err).count() >= first.len());
    stage.memcached.kill()?;
    stage.memcached = Memcached::start(&stage.bed.server, MemcachedOptions::default())?;
    until_watched(&stage, &first)?;
    pace::wait_for("no problem", Duration::from_secs(5), || {
        let status = stage.prestack.instance().command(&["status"])?;
        Ok((!status.contains("problem")).then_some(()))
    })?;

    let daemon = Pid::from_raw(stage.prestack.pid());
    let epoch = stage.prestack.stats()?.get("epoch")?;
    kill(daemon, Signal::SIGSTOP)?;
    stage.memcached.kill()?;
    let risen = stage.prestack.instance().stats()?.get("epoch")?;
    kill(daemon, Signal::SIGCONT)?;
    ensure!(risen > epoch, "the sockets were closed unnoticed");
    Ok(())
}

/// Sockets of a memcached that has ended meanwhile take no room in the next run.
#[test]
fn sockets_of_an_earlier_run_are_forgotten() -> Result<()> {
    let args = [&LASTING[..], &["--tcp-hits"]].concat();
    let mut stage = Stage::with(MemcachedOptions::default(), &args)?;
    let first = until_watched(&stage, &BTreeSet::new())?;
    stage.prestack.kill()?;
    stage.memcached.kill()?;
    stage.memcached = Memcached::start(&stage.bed.server, MemcachedOptions::default())?;
    let more = [
        "--no-watch-lo",
        "--interface",
        &stage.bed.links[0].server_dev,
    ];
    stage.prestack.restart(&[&args[..], &more].concat())?;
    until_watched(&stage, &first)?;
    Ok(())
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
