//! Clients on the server itself: what they write over the loopback interface is seen, though nobody is
//! served there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use prestack_testbed::bpf::attach_end;
use prestack_testbed::{Memcached, MemcachedOptions, TcpClient, Testbed, UdpClient, pace};
use prestack_tests::attached::{nothing_attached, nothing_linked};
use prestack_tests::binary::{self, Opcode, STORAGE};
use prestack_tests::kernel;
use prestack_tests::stage::{
    LASTING, PORT, Stage, behind, set, start_prestack, start_watching_prestack, store,
    until_all_hit, until_hit,
};

/// What an instance that has ended has left.
const NO_FILES: [PathBuf; 0] = [];

fn watching() -> Result<Stage> {
    Stage::watching(MemcachedOptions::default(), &LASTING)
}

/// A way in which a client on the server writes.
enum Writer {
    Text(TcpClient),
    Binary(TcpClient),
    /// Without reply, and then something that has one.
    Quiet(TcpClient),
    Udp(UdpClient),
}

impl Writer {
    /// Every way, to every kind of address of the server.
    fn all(stage: &Stage) -> Result<Vec<Self>> {
        let host = &stage.bed.server;
        let addresses = [
            IpAddr::from(Ipv4Addr::LOCALHOST),
            Ipv4Addr::new(127, 1, 2, 3).into(),
            Ipv6Addr::LOCALHOST.into(),
            stage.server4().ip(),
            stage.server6().ip(),
        ];
        let mut writers = Vec::new();
        for address in addresses {
            let server = (address, PORT).into();
            let tcp = || TcpClient::connect(host, server);
            writers.push(Self::Text(tcp()?));
            writers.push(Self::Binary(tcp()?));
            writers.push(Self::Quiet(tcp()?));
        }
        // To another address than the one it asked, the answer would not come to a connected socket.
        for address in [Ipv4Addr::LOCALHOST.into(), stage.server4().ip()] {
            writers.push(Self::Udp(UdpClient::connect(host, (address, PORT).into())?));
        }
        Ok(writers)
    }

    /// Writes, and waits until that has been answered.
    fn write(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        match self {
            Self::Text(client) => store(client, key, value),
            Self::Binary(client) => {
                client.send(&binary::request(Opcode::Set, &STORAGE, key, value))?;
                ensure!(binary::status(client, Opcode::Set)? == 0);
                Ok(())
            }
            Self::Quiet(client) => {
                let len = value.len();
                let key = String::from_utf8_lossy(key);
                let head = format!("set {key} 0 0 {len} noreply\r\n");
                client.send(&[head.as_bytes(), value, b"\r\nmn\r\n"].concat())?;
                ensure!(client.line()? == b"MN\r\n");
                Ok(())
            }
            Self::Udp(client) => {
                ensure!(client.request(&set(key, value))? == b"STORED\r\n");
                Ok(())
            }
        }
    }
}

/// Writes and reads in turns, a few thousand times; returns how many GETs read an old value, of how many
/// that were answered by the cache.
fn alternate(stage: &Stage) -> Result<(usize, u64)> {
    let mut writers = Writer::all(stage)?;
    let mut reader = stage.udp()?;
    let mut stale = 0;
    for round in 0..pace::volume(4_000) {
        let writer = round % writers.len();
        let value = round.to_string().into_bytes();
        writers[writer].write(b"key", &value)?;
        // The first fetches it, unless it is stale.
        for _ in 0..3 {
            stale += usize::from(reader.get(b"key")?.as_ref() != Some(&value));
        }
    }
    Ok((stale, stage.hits()?))
}

#[test]
fn what_clients_on_the_host_write_is_never_read_late() -> Result<()> {
    let stage = watching()?;
    let (stale, hits) = alternate(&stage)?;
    assert_eq!(stale, 0);
    ensure!(hits > pace::volume(1_000) as u64, "only {hits} hits");
    let stats = stage.prestack.stats()?;
    for counter in ["doubted_requests", "doubted_replies", "forgets"] {
        assert_eq!(stats.get(counter)?, 0, "{counter}");
    }
    Ok(())
}

/// Without that the same is read late: what the test above shows is not a matter of course.
#[test]
fn without_watching_it_is_read_late() -> Result<()> {
    let (stale, _) = alternate(&Stage::new()?)?;
    ensure!(stale > 0);
    Ok(())
}

/// Segments of 64 KiB, full of commands, and a value that is longer than one.
#[test]
fn long_segments_are_followed() -> Result<()> {
    follow_long_segments(&watching()?, Ipv4Addr::LOCALHOST.into())
}

/// Segments that are longer than an IP header can say ("BIG TCP").
#[test]
fn longer_segments_are_followed() -> Result<()> {
    let stage = watching()?;
    stage
        .bed
        .server
        .ip(["link", "set", "lo", "gso_max_size", "400000"])?;
    follow_long_segments(&stage, Ipv6Addr::LOCALHOST.into())
}

fn follow_long_segments(stage: &Stage, address: IpAddr) -> Result<()> {
    let (mut local, mut reader) = (behind(&stage.bed, address, PORT)?, stage.udp()?);
    let key = |n: usize| format!("key{n}").into_bytes();
    let big = vec![b'x'; 700_000];
    // No more may be unanswered than are told apart; of those without reply as many as one likes. Values
    // are short enough for veth to have room for the reply.
    for (round, is_quiet, keys, len) in [
        (1, false, 500, 150),
        (2, true, 20_000, 1),
        (3, false, 500, 1),
    ] {
        let value = round.to_string().repeat(len).into_bytes();
        let mut commands = Vec::new();
        for n in 0..keys {
            let command = String::from_utf8(set(&key(n), &value))?;
            let end = if is_quiet { " noreply\r\n" } else { "\r\n" };
            commands.extend(command.replacen("\r\n", end, 1).into_bytes());
        }
        commands.extend(set(b"big", &big));
        local.send(&commands)?;
        for _ in 0..if is_quiet { 1 } else { keys + 1 } {
            assert_eq!(local.line()?, b"STORED\r\n");
        }
        let items: Vec<_> = (0..keys)
            .step_by(keys / 50 + 1)
            .map(|n| (key(n), value.clone()))
            .collect();
        until_all_hit(&stage.prestack, &mut reader, &items)?;
        assert_eq!(local.get(b"big")?.as_ref(), Some(&big));
    }
    let stats = stage.prestack.stats()?;
    for counter in ["doubted_requests", "doubted_replies", "forgets"] {
        assert_eq!(stats.get(counter)?, 0, "{counter}");
    }
    Ok(())
}

/// What a client on the host reads over TCP is cached for the others.
#[test]
fn reads_on_the_host_fill_the_cache() -> Result<()> {
    let stage = watching()?;
    let (mut local, mut reader) = (stage.behind()?, stage.udp()?);
    store(&mut local, b"key", b"value")?;
    // memcached was seen answering over UDP.
    assert_eq!(reader.get(b"other")?, None);
    let before = stage.prestack.stats()?.get("fills")?;
    pace::wait_for("a fill", std::time::Duration::from_secs(5), || {
        assert_eq!(local.get(b"key")?.as_deref(), Some(&b"value"[..]));
        Ok((stage.prestack.stats()?.get("fills")? > before).then_some(()))
    })?;
    let before = stage.hits()?;
    assert_eq!(reader.get(b"key")?.as_deref(), Some(&b"value"[..]));
    assert_eq!(stage.hits()?, before + 1);
    Ok(())
}

/// memcached has a loopback address of its own, where it is watched and not served.
#[test]
fn a_loopback_address_is_a_door() -> Result<()> {
    let bed = Testbed::new()?;
    let outside = bed.links[0].server4;
    let options = MemcachedOptions {
        addresses: vec![outside, Ipv4Addr::LOCALHOST.into()],
        ..MemcachedOptions::default()
    };
    let _memcached = Memcached::start(&bed.server, options)?;
    let prestack = start_watching_prestack(&bed, 0, &LASTING)?;
    let status = prestack.instance().command(&["status"])?;
    ensure!(status.contains("watched at 127.0.0.1:11211"), "{status}");
    let mut reader = UdpClient::connect(&bed.client, (outside, PORT).into())?;
    let local = (Ipv4Addr::LOCALHOST, PORT).into();
    let (mut tcp, mut udp) = (
        TcpClient::connect(&bed.server, local)?,
        UdpClient::connect(&bed.server, local)?,
    );
    for round in 0..50_u32 {
        let value = round.to_string().into_bytes();
        if round % 2 == 0 {
            store(&mut tcp, b"key", &value)?;
        } else {
            assert_eq!(udp.request(&set(b"key", &value))?, b"STORED\r\n");
        }
        until_hit(&prestack, &mut reader, b"key", &value)?;
    }
    Ok(())
}

#[test]
fn status_says_what_is_seen() -> Result<()> {
    let line = |status: &str, start: &str| {
        let mut lines = status.lines();
        lines
            .find(|line| line.starts_with(start))
            .unwrap_or_default()
            .to_owned()
    };
    let stage = watching()?;
    let status = stage.prestack.instance().command(&["status"])?;
    ensure!(
        line(&status, "interfaces").contains("lo (watched, "),
        "{status}"
    );
    assert_eq!(line(&status, "unseen"), "", "{status}");
    drop(stage);

    let stage = Stage::new()?;
    let status = stage.prestack.instance().command(&["status"])?;
    ensure!(!line(&status, "interfaces").contains("lo "), "{status}");
    let unseen = line(&status, "unseen");
    ensure!(
        unseen.contains(" lo (") && !unseen.contains("127.0.0.1"),
        "{status}"
    );
    Ok(())
}

/// The interface list of an instance that serves the loopback interface itself.
#[test]
fn it_is_not_watched_where_it_is_served() -> Result<()> {
    let bed = Testbed::new()?;
    let _memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
    let args = [&LASTING[..], &["--interface", "lo"]].concat();
    let mut prestack = start_watching_prestack(&bed, 0, &args)?;
    let status = prestack.instance().command(&["status"])?;
    ensure!(
        !status.contains("lo (watched") && status.contains("lo (generic"),
        "{status}"
    );
    prestack.stop()?;
    nothing_attached(&bed.server, "lo")
}

#[test]
fn nothing_is_left_on_the_loopback_interface() -> Result<()> {
    for egress in ["tcx", "clsact"] {
        if egress == "tcx" && kernel::version() < (6, 6) {
            continue;
        }
        let args = [&LASTING[..], &["--egress", egress]].concat();
        let mut stage = Stage::watching(MemcachedOptions::default(), &args)?;
        let (mut local, mut reader) = (stage.behind()?, stage.udp()?);
        store(&mut local, b"key", b"old")?;
        until_hit(&stage.prestack, &mut reader, b"key", b"old")?;
        store(&mut local, b"key", b"new")?;
        until_hit(&stage.prestack, &mut reader, b"key", b"new")?;
        let host = &stage.bed.server;
        ensure!(nothing_attached(host, "lo").is_err());
        stage.prestack.stop()?;
        nothing_attached(host, "lo")?;
        ensure!(!qdiscs(&stage.bed)?.contains("clsact"));

        // Of one that is killed a filter may stay; it does no harm, and the next start removes it.
        let mut killed = start_watching_prestack(&stage.bed, 0, &args)?;
        killed.kill()?;
        nothing_linked(host, "lo")?;
        assert_eq!(nothing_attached(host, "lo").is_err(), egress == "clsact");
        store(&mut local, b"key", b"newer")?;
        assert_eq!(reader.get(b"key")?.as_deref(), Some(&b"newer"[..]));
        killed.instance().command(&["detach"])?;
        nothing_attached(host, "lo")?;
        assert_eq!(killed.instance().files()?, NO_FILES);
        ensure!(!qdiscs(&stage.bed)?.contains("clsact"));
    }
    Ok(())
}

/// A program that lets everything go on, and nothing come to programs behind it, hides no writes.
#[test]
fn programs_that_were_there_before_do_not_hide_writes() -> Result<()> {
    for egress in ["clsact", "tcx"] {
        let is_tcx = egress == "tcx";
        if is_tcx && kernel::version() < (6, 6) {
            continue;
        }
        let bed = Testbed::new()?;
        let memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
        let link = if is_tcx {
            Some(attach_end(&bed.server, "lo")?)
        } else {
            tc(&bed, &["qdisc", "add", "dev", "lo", "clsact"])?;
            let filter = ["filter", "add", "dev", "lo", "egress", "prio", "2"];
            // A match without an action: `TC_ACT_OK`.
            let all = ["bpf", "bytecode", "1,6 0 0 4294967295", "flowid", "1:1"];
            tc(&bed, &[&filter[..], &all].concat())?;
            None
        };
        let args = [&LASTING[..], &["--egress", egress]].concat();
        let prestack = start_watching_prestack(&bed, 0, &args)?;
        let mut reader = UdpClient::connect(&bed.client, (bed.links[0].server4, PORT).into())?;
        let mut local = TcpClient::connect(&bed.server, (Ipv4Addr::LOCALHOST, PORT).into())?;
        for value in [&b"1"[..], b"2", b"3"] {
            store(&mut local, b"key", value)?;
            assert_eq!(reader.get(b"key")?.as_deref(), Some(value), "{egress}");
            until_hit(&prestack, &mut reader, b"key", value)?;
        }
        drop((prestack, memcached, link));
    }
    Ok(())
}

#[test]
fn pinned_it_goes_on_to_watch() -> Result<()> {
    let args = [&LASTING[..], &["--pin"]].concat();
    let mut stage = Stage::watching(MemcachedOptions::default(), &args)?;
    let (mut local, mut reader) = (stage.behind()?, stage.udp()?);
    store(&mut local, b"key", b"old")?;
    until_hit(&stage.prestack, &mut reader, b"key", b"old")?;
    stage.prestack.stop()?;
    let host = &stage.bed.server;
    ensure!(nothing_attached(host, "lo").is_err());
    store(&mut local, b"key", b"new")?;
    assert_eq!(reader.get(b"key")?.as_deref(), Some(&b"new"[..]));
    stage.prestack.instance().command(&["detach"])?;
    nothing_attached(host, "lo")
}

/// Somebody removes programs by other means: that is noticed, they are put back, and what came meanwhile is forgotten.
#[test]
fn programs_that_somebody_removes_are_put_back() -> Result<()> {
    let bed = Testbed::new()?;
    let _memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
    let args = [&LASTING[..], &["--egress", "clsact"]].concat();
    let prestack = start_watching_prestack(&bed, 0, &args)?;
    let link = &bed.links[0];
    let mut reader = UdpClient::connect(&bed.client, (link.server4, PORT).into())?;
    // What a connection has sent unseen leaves it in doubt.
    let local = || TcpClient::connect(&bed.server, (Ipv4Addr::LOCALHOST, PORT).into());
    for (round, dev) in ["lo", &link.server_dev, "lo"].into_iter().enumerate() {
        let key = format!("key{round}").into_bytes();
        store(&mut local()?, &key, b"old")?;
        until_hit(&prestack, &mut reader, &key, b"old")?;
        let mut remove = bed.server.command("tc");
        let removed = remove.args(["qdisc", "del", "dev", dev, "clsact"]).status();
        ensure!(
            removed?.success(),
            "the qdisc of {dev} could not be removed"
        );
        store(&mut local()?, &key, b"new")?;
        pace::wait_for("the programs to be back", Duration::from_secs(10), || {
            let mut list = bed.server.command("tc");
            let listed = list
                .args(["filter", "show", "dev", dev, "egress"])
                .output()?;
            Ok(String::from_utf8_lossy(&listed.stdout)
                .contains("bpf")
                .then_some(()))
        })?;
        // What they have not seen is forgotten a moment later.
        pace::wait_for("the new value", Duration::from_secs(10), || {
            Ok((reader.get(&key)?.as_deref() == Some(&b"new"[..])).then_some(()))
        })?;
        until_hit(&prestack, &mut reader, &key, b"new")?;
        store(&mut local()?, &key, b"newer")?;
        assert_eq!(reader.get(&key)?.as_deref(), Some(&b"newer"[..]), "{dev}");
    }
    Ok(())
}

/// It serves all the same, and says what it does not see.
#[test]
fn a_loopback_interface_that_cannot_be_watched() -> Result<()> {
    let bed = Testbed::new()?;
    let _memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
    for change in [["down"].as_slice(), &["name", "loop"], &["up"]] {
        let dev = if change == ["up"] { "loop" } else { "lo" };
        bed.server.ip(["link", "set", dev].iter().chain(change))?;
    }
    let mut prestack = start_watching_prestack(&bed, 0, &LASTING)?;
    let mut reader = UdpClient::connect(&bed.client, (bed.links[0].server4, PORT).into())?;
    let mut writer = TcpClient::connect(&bed.client, (bed.links[0].server4, PORT).into())?;
    store(&mut writer, b"key", b"value")?;
    until_hit(&prestack, &mut reader, b"key", b"value")?;
    let status = prestack.instance().command(&["status"])?;
    let has = |start: &str, words: &str| {
        let mut lines = status.lines();
        lines.any(|line| line.starts_with(start) && line.contains(words))
    };
    ensure!(has("problem", "on this host are not seen"), "{status}");
    ensure!(has("unseen", " lo ("), "{status}");
    prestack.stop()?;
    nothing_attached(&bed.server, "loop")
}

/// Two instances watch it at the same time.
#[test]
fn two_instances_watch_the_same_loopback_interface() -> Result<()> {
    let bed = Testbed::with_links(2)?;
    let _memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
    let mut one = start_watching_prestack(&bed, 0, &LASTING)?;
    let two = start_watching_prestack(&bed, 1, &LASTING)?;
    let reader =
        |link: usize| UdpClient::connect(&bed.client, (bed.links[link].server4, PORT).into());
    let (mut first, mut second) = (reader(0)?, reader(1)?);
    let mut local = TcpClient::connect(&bed.server, (Ipv4Addr::LOCALHOST, PORT).into())?;
    for value in [&b"1"[..], b"2", b"3"] {
        store(&mut local, b"key", value)?;
        until_hit(&one, &mut first, b"key", value)?;
        until_hit(&two, &mut second, b"key", value)?;
    }
    one.stop()?;
    store(&mut local, b"key", b"4")?;
    until_hit(&two, &mut second, b"key", b"4")?;
    ensure!(nothing_attached(&bed.server, "lo").is_err());
    drop(two);
    nothing_attached(&bed.server, "lo")
}

/// Switched off, nothing is attached there.
#[test]
fn it_can_be_switched_off() -> Result<()> {
    let bed = Testbed::new()?;
    let _memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
    let _prestack = start_prestack(&bed, 0, &LASTING)?;
    nothing_attached(&bed.server, "lo")
}

fn qdiscs(bed: &Testbed) -> Result<String> {
    tc(bed, &["qdisc", "show", "dev", "lo"])
}

fn tc(bed: &Testbed, args: &[&str]) -> Result<String> {
    let output = bed.server.command("tc").args(args).output()?;
    if !output.status.success() {
        bail!(
            "tc {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
