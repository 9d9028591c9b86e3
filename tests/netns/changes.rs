//! The host changes while prestack runs: the datapath is told at once.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use prestack_testbed::pace::{patience, wait_for};
use prestack_testbed::{Memcached, MemcachedOptions, Signal};
use prestack_tests::pinned::carry;
use prestack_tests::raw::{Raw, SYN, Segment};
use prestack_tests::stage::{LASTING, Stage, store, until_hit};

/// How often a test changes something. Each change is made as soon as the one before has shown: if
/// the host were only looked at once in a second, each would take that long.
const ROUNDS: u8 = 6;
/// What half of them may take; a busy machine may delay others.
const AT_ONCE: Duration = Duration::from_millis(500);

/// Makes the changes, one after the other, with `change` waiting until each has shown.
fn in_no_time(mut change: impl FnMut(u8) -> Result<()>) -> Result<()> {
    let mut took = (0..ROUNDS)
        .map(|round| {
            let start = Instant::now();
            change(round)?;
            Ok(start.elapsed())
        })
        .collect::<Result<Vec<_>>>()?;
    took.sort_unstable();
    let half = took[took.len() / 2 - 1];
    ensure!(half < patience(AT_ONCE), "the changes took {took:?}");
    Ok(())
}

#[test]
fn a_new_address_brings_its_subnet() -> Result<()> {
    let mut stage = Stage::new()?;
    let address = |round| Ipv4Addr::new(10, 100 + round, 0, 1);
    in_no_time(|round| {
        stage
            .bed
            .add_server_address(0, IpAddr::V4(address(round)))?;
        let allowed = format!("10.{}.0.0/24", 100 + round);
        wait_for("the subnet to be allowed", Duration::from_secs(10), || {
            let status = stage.prestack.instance().command(&["status"])?;
            Ok(status.contains(&allowed).then_some(()))
        })
    })?;
    let net = format!("{}/24", address(0));
    let dev = &stage.bed.links[0].server_dev;
    stage
        .bed
        .server
        .ip(["address", "delete", &net, "dev", dev])?;
    wait_for("the address to go", Duration::from_secs(10), || {
        let status = stage.prestack.instance().command(&["status"])?;
        Ok((!status.contains(&address(0).to_string())).then_some(()))
    })?;
    stage.prestack.signal(Signal::SIGTERM)?;
    let said = stage.prestack.wait()?;
    for words in [
        "served at 10.101.0.1:11211 from now on",
        "clients in 10.101.0.0/24 are served from now on",
        "no longer served at 10.100.0.1:11211",
        "clients in 10.100.0.0/24 are no longer served",
    ] {
        ensure!(said.contains(words), "{words} in {said}");
    }
    Ok(())
}

/// The address of a carried connection goes, and comes back: until the datapath is told so, nothing but a wildcard stands
/// for it.
#[test]
fn a_carried_connection_outlives_its_address() -> Result<()> {
    let settings = [&LASTING[..], &["--tcp-hits"]].concat();
    let stage = Stage::with(MemcachedOptions::default(), &settings)?;
    let mut tcp = stage.tcp()?;
    store(&mut tcp, b"key", b"value")?;
    until_hit(&stage.prestack, &mut stage.udp()?, b"key", b"value")?;
    carry(&stage.prestack, &mut tcp)?;

    let address = format!("{}/24", stage.server4().ip());
    let change = |what| {
        let dev = &stage.bed.links[0].server_dev;
        stage.bed.server.ip(["address", what, &address, "dev", dev])
    };
    let door = stage.server4().to_string();
    let until_known = |wanted| {
        wait_for("the address to count", Duration::from_secs(10), || {
            let status = stage.prestack.instance().command(&["status"])?;
            Ok((status.contains(&door) == wanted).then_some(()))
        })
    };
    change("delete")?;
    until_known(false)?;
    stage.prestack.signal(Signal::SIGSTOP)?;
    change("add")?;
    for n in 0..5 {
        let value = format!("new{n}").into_bytes();
        store(&mut tcp, b"key", &value)?;
        ensure!(tcp.get(b"key")? == Some(value));
    }
    stage.prestack.signal(Signal::SIGCONT)?;
    until_known(true)?;
    store(&mut tcp, b"key", b"newest")?;
    let answered = || stage.prestack.stats()?.get("tcp.hits");
    let before = answered()?;
    wait_for("a hit over TCP", Duration::from_secs(10), || {
        ensure!(tcp.get(b"key")?.as_deref() == Some(&b"newest"[..]));
        Ok((answered()? > before).then_some(()))
    })
}

/// More addresses than can be handled, while memcached is another one.
#[test]
fn what_is_too_much_is_told_and_made_up_for() -> Result<()> {
    let mut stage = Stage::new()?;
    let mut udp = stage.udp()?;
    store(&mut stage.behind()?, b"key", b"old")?;
    until_hit(&stage.prestack, &mut udp, b"key", b"old")?;
    let addresses = || (100..170).map(|host| Ipv4Addr::new(10, 77, 0, host));
    for address in addresses() {
        stage.bed.add_server_address(0, address.into())?;
    }
    let until_told = |wanted| {
        wait_for(
            "what is too much to be told",
            Duration::from_secs(10),
            || {
                let status = stage.prestack.instance().command(&["status"])?;
                let is_told = status.contains("can be handled");
                Ok((is_told == wanted).then_some(status))
            },
        )
    };
    until_told(true)?;
    stage.memcached.kill()?;
    stage.memcached = Memcached::start(&stage.bed.server, MemcachedOptions::default())?;
    let pid = stage.memcached.pid().to_string();
    wait_for("memcached to be found", Duration::from_secs(10), || {
        let status = stage.prestack.instance().command(&["status"])?;
        Ok(status.contains(&pid).then_some(()))
    })?;
    ensure!(udp.get(b"key")?.is_none(), "stale");
    for address in addresses() {
        let address = format!("{address}/24");
        let dev = &stage.bed.links[0].server_dev;
        stage
            .bed
            .server
            .ip(["address", "delete", &address, "dev", dev])?;
    }
    until_told(false)?;
    store(&mut stage.behind()?, b"key", b"new")?;
    until_hit(&stage.prestack, &mut udp, b"key", b"new")?;
    stage.prestack.signal(Signal::SIGTERM)?;
    let said = stage.prestack.wait()?;
    let line = format!("memcached (pid {pid}) is served at ");
    ensure!(said.contains(&line), "{said}");
    Ok(())
}

#[test]
fn no_reply_exceeds_a_new_mtu() -> Result<()> {
    let stage = Stage::new()?;
    // Keys so long that the reply to all of them is little longer than the request: the packet has
    // room for it everywhere.
    let keys: Vec<_> = (0..5)
        .map(|n| format!("{n}{}", "k".repeat(229)).into_bytes())
        .collect();
    let keys: Vec<_> = keys.iter().map(Vec::as_slice).collect();
    let (mut udp, mut behind) = (stage.udp()?, stage.behind()?);
    for key in &keys {
        store(&mut behind, key, b"0123456789")?;
        until_hit(&stage.prestack, &mut udp, key, b"0123456789")?;
    }
    let mut until_served = |served| {
        wait_for("the new MTU to count", Duration::from_secs(10), || {
            let before = stage.hits()?;
            ensure!(udp.get_many(&keys)?.len() == keys.len());
            Ok(((stage.hits()? > before) == served).then_some(()))
        })
    };
    until_served(true)?;
    in_no_time(|round| {
        // The reply has 1,316 bytes with its headers. The client takes them at any time, so that
        // none is lost before the new MTU counts.
        let mtu = ["1280", "1500"][usize::from(round % 2)];
        let dev = &stage.bed.links[0].server_dev;
        stage.bed.server.ip(["link", "set", dev, "mtu", mtu])?;
        until_served(mtu == "1500")
    })
}

/// From then on data that comes with a SYN may be a write.
#[test]
fn fast_open_is_noticed() -> Result<()> {
    let stage = Stage::new()?;
    let mut udp = stage.udp()?;
    store(&mut stage.tcp()?, b"key", b"value")?;
    until_hit(&stage.prestack, &mut udp, b"key", b"value")?;
    let raw = Raw::new(&stage.bed.client)?;
    let (SocketAddr::V4(server), IpAddr::V4(client)) =
        (stage.server4(), stage.bed.links[0].client4)
    else {
        bail!("these are addresses of IPv4");
    };
    let attempt = || {
        raw.send(&Segment {
            source: SocketAddrV4::new(client, 4000),
            server,
            sequence: 1,
            acknowledgement: 0,
            flags: SYN,
            window: 1000,
            mss: None,
            data: b"set key 0 0 1\r\n1\r\n",
        })
    };
    let emptied = || stage.prestack.stats()?.get("epoch");
    let before = emptied()?;
    attempt()?;
    ensure!(udp.get(b"key")?.as_deref() == Some(&b"value"[..]));
    ensure!(
        emptied()? == before,
        "data that the kernel drops was heeded"
    );
    stage
        .bed
        .server
        .run(|| fs::write("/proc/sys/net/ipv4/tcp_fastopen", "1027"))?;
    let until_emptied = |before| {
        wait_for("an empty cache", Duration::from_secs(10), || {
            Ok((emptied()? > before).then_some(()))
        })
    };
    until_emptied(before)?;
    until_hit(&stage.prestack, &mut udp, b"key", b"value")?;
    let before = emptied()?;
    attempt()?;
    until_emptied(before)
}
