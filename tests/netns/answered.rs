//! `--tcp-hits`: clients that are answered on their connections while the daemon goes, while they do not read, and to
//! their end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use prestack_testbed::{Memcached, MemcachedOptions, Prestack, TcpClient, Testbed, pace};
use prestack_tests::kernel;
use prestack_tests::pinned::carry;
use prestack_tests::stage::{LASTING, PORT, Stage, counted, start_prestack, store};

const HITS: [&str; 1] = ["--tcp-hits"];

fn stage(more: &[&str]) -> Result<Stage> {
    Stage::with(
        MemcachedOptions::default(),
        &[&LASTING[..], &HITS, more].concat(),
    )
}

fn tcp_hits(stage: &Stage) -> Result<u64> {
    stage.prestack.stats()?.get("tcp.hits")
}

/// Waits until so many more GETs have been answered over TCP.
fn until_more_hits(stage: &Stage, more: u64) -> Result<()> {
    let before = tcp_hits(stage)?;
    pace::wait_for("hits over TCP", Duration::from_secs(10), || {
        Ok((tcp_hits(stage)? >= before + more).then_some(()))
    })
}

/// Waits until so many connections are translated, and not closed.
fn until_translated(stage: &Stage, connections: &str) -> Result<()> {
    // That its client has reset one is believed when the daemon has not found its socket twice, 4 s apart.
    pace::wait_for(connections, Duration::from_secs(20), || {
        let status = stage.prestack.instance().command(&["status"])?;
        let wanted = format!("{connections} translated");
        Ok(status.contains(&wanted).then_some(()))
    })
}

/// Crashes and upgrades while clients read: they notice nothing, and are answered again.
#[test]
fn readers_go_on_while_the_daemon_goes() -> Result<()> {
    let mut stage = stage(&["--pin"])?;
    let mut clients = [stage.tcp()?, stage.tcp()?];
    store(&mut clients[0], b"key", b"value")?;
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let readers: Vec<_> = clients
            .iter_mut()
            .map(|client| {
                scope.spawn(|| -> Result<()> {
                    while !is_over.load(Ordering::SeqCst) {
                        ensure!(client.get(b"key")?.as_deref() == Some(&b"value"[..]));
                        thread::sleep(Duration::from_micros(200));
                    }
                    Ok(())
                })
            })
            .collect();
        let mut lives = || -> Result<()> {
            for is_crash in [true, false] {
                until_more_hits(&stage, 200)?;
                if is_crash {
                    stage.prestack.kill()?;
                } else {
                    stage.prestack.stop()?;
                }
                let interface = ["--interface", &stage.bed.links[0].server_dev];
                let same = ["--no-watch-lo", "--pin"];
                let args = [&interface[..], &LASTING, &HITS, &same].concat();
                stage.prestack.restart(&args)?;
            }
            until_more_hits(&stage, 200)
        };
        let lived = lives();
        is_over.store(true, Ordering::SeqCst);
        for reader in readers {
            reader.join().expect("no panic").context("a client")?;
        }
        lived
    })?;
    let stats = stage.prestack.stats()?;
    assert_eq!(stats.get("doubted_requests")?, 0);
    drop(clients);
    stage.prestack.instance().command(&["detach"])?;
    Ok(())
}

/// Where what XDP returns is lost.
#[test]
fn who_gets_no_answer_is_not_left_waiting() -> Result<()> {
    let mut bed = Testbed::new()?;
    bed.lose_answers(0)?;
    let memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
    let prestack = start_prestack(&bed, 0, &[&LASTING[..], &HITS].concat())?;
    let stage = Stage {
        prestack,
        memcached,
        bed,
    };
    let mut client = stage.tcp()?;
    store(&mut client, b"key", b"value")?;
    pace::wait_for("an answer that is lost", Duration::from_secs(10), || {
        client.send(b"get key\r\n")?;
        thread::sleep(Duration::from_millis(20));
        if tcp_hits(&stage)? != 0 {
            return Ok(Some(()));
        }
        ensure!(client.items()?.len() == 1);
        Ok(None)
    })?;
    ensure!(client.is_reset()?, "the connection was closed");
    let before = tcp_hits(&stage)?;
    let mut next = stage.tcp()?;
    for n in 0..100_u32 {
        let value = n.to_string().into_bytes();
        store(&mut next, b"key", &value)?;
        ensure!(next.get(b"key")?.as_ref() == Some(&value));
        ensure!(next.get(b"key")?.as_ref() == Some(&value));
    }
    assert_eq!(tcp_hits(&stage)?, before);
    // Answers over UDP go the same way.
    let mut udp = stage.udp()?;
    for _ in 0..100 {
        ensure!(udp.get(b"key")?.as_deref() == Some(&b"99"[..]));
        thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(stage.hits()?, 0);
    let status = stage.prestack.instance().command(&["status"])?;
    ensure!(status.contains("tcp hits    off: "), "{status}");
    ensure!(!status.contains("draining"), "{status}");
    ensure!(status.contains("--mode generic"), "{status}");
    Ok(())
}

/// The same over one of two links: connections over the other have got answers.
#[test]
fn who_alone_gets_no_answer_is_not_left_waiting() -> Result<()> {
    const BAD: usize = 1;
    let mut bed = Testbed::with_links(2)?;
    bed.lose_answers(BAD)?;
    let memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
    let devs: Vec<_> = bed.links.iter().map(|l| l.server_dev.as_str()).collect();
    let devs = devs.join(",");
    let args = ["--interface", &devs, "--no-watch-lo", "--always-on"];
    let prestack = Prestack::start(&bed.server, &[&args, &LASTING[..], &HITS].concat())?;
    let stage = Stage {
        prestack,
        memcached,
        bed,
    };
    let mut good = stage.tcp()?;
    store(&mut good, b"key", b"value")?;
    carry_on(&stage, &mut good, b"value")?;
    let bad = || {
        let server = (stage.bed.links[BAD].server4, PORT).into();
        TcpClient::connect(&stage.bed.client, server)
    };
    let problem = || -> Result<bool> {
        let status = stage.prestack.instance().command(&["status"])?;
        Ok(status.contains("do not arrive"))
    };
    // The third one is one too many.
    for round in 0..3 {
        ensure!(!problem()?, "hits have stopped in round {round}");
        let mut client = bad()?;
        loop {
            let before = tcp_hits(&stage)?;
            client.send(b"get key\r\n")?;
            thread::sleep(Duration::from_millis(20));
            if tcp_hits(&stage)? > before {
                break;
            }
            ensure!(client.items()?.len() == 1);
        }
        ensure!(client.is_reset()?, "the connection was closed");
        // The other one is none of those.
        ensure!(good.get(b"key")?.as_deref() == Some(&b"value"[..]));
    }
    pace::wait_for("the end of hits", Duration::from_secs(5), || {
        Ok(problem()?.then_some(()))
    })?;
    let before = tcp_hits(&stage)?;
    let mut next = bad()?;
    for _ in 0..20 {
        ensure!(next.get(b"key")?.as_deref() == Some(&b"value"[..]));
        ensure!(good.get(b"key")?.as_deref() == Some(&b"value"[..]));
    }
    assert_eq!(tcp_hits(&stage)?, before);
    Ok(())
}

/// Nothing is answered for which the client has no room to spare.
#[test]
fn a_client_that_does_not_read() -> Result<()> {
    let stage = stage(&[])?;
    stage
        .bed
        .client
        .run(|| std::fs::write("/proc/sys/net/ipv4/tcp_rmem", "4096 40000 40000"))?;
    let mut writer = stage.tcp()?;
    let value = vec![b'x'; 120];
    store(&mut writer, b"key", &value)?;
    store(&mut writer, b"large", &vec![b'y'; 100_000])?;
    for large in [false, true] {
        let mut client = stage.tcp()?;
        carry(&stage.prestack, &mut client)?;
        let before = tcp_hits(&stage)?;
        if large {
            client.send(b"get large\r\n")?;
        }
        for _ in 0..200 {
            client.send(b"get key\r\n")?;
            thread::sleep(Duration::from_millis(1));
        }
        let given = tcp_hits(&stage)? - before;
        ensure!(given < 120, "{given} answers fit no window");
        ensure!(large || given > 0, "nothing was answered");
        if large {
            ensure!(client.items()?[0].value.len() == 100_000);
        }
        for _ in 0..200 {
            ensure!(client.items()?[0].value == value);
        }
    }
    assert_eq!(stage.prestack.stats()?.get("doubted_requests")?, 0);
    Ok(())
}

/// A client with a small buffer, full of what it has not read, takes the acknowledgement that comes with an answer and
/// throws its data away, which lies in its window.
#[test]
fn a_client_that_throws_away_what_it_has_no_memory_for() -> Result<()> {
    let stage = stage(&[])?;
    let host = &stage.bed.client;
    host.run(|| std::fs::write("/proc/sys/net/ipv4/tcp_rmem", "4096 4096 4096"))?;
    let mut client = stage.tcp()?;
    let value = vec![b'x'; 120];
    store(&mut client, b"key", &value)?;
    // Time enough for it to be cached.
    for _ in 0..100 {
        ensure!(client.get(b"key")?.as_deref() == Some(&value[..]));
        thread::sleep(Duration::from_millis(2));
    }
    for round in 0..20 {
        // memcached's own answers soon wait for the window, and nothing need be thrown away.
        let before = host.run(thrown_away)?;
        let mut asked = 0;
        while asked < 50 && host.run(thrown_away)? == before {
            client.send(b"get key\r\n")?;
            asked += 1;
            thread::sleep(Duration::from_millis(1));
        }
        for item in 0..asked {
            let items = client
                .items()
                .with_context(|| format!("answer {item} of {asked}, round {round}"))?;
            ensure!(items[0].value == value);
        }
    }
    Ok(())
}

/// How many segments this network namespace has thrown away although they were in the window.
fn thrown_away() -> Result<u64> {
    kernel::counted("TCPRcvQDrop")
}

/// GETs on the connection are answered again.
fn carry_on(stage: &Stage, client: &mut TcpClient, value: &[u8]) -> Result<()> {
    let before = tcp_hits(stage)?;
    pace::wait_for("a hit over TCP", Duration::from_secs(5), || {
        ensure!(client.get(b"key")?.as_deref() == Some(value));
        Ok((tcp_hits(stage)? > before).then_some(()))
    })
}

/// Over TCP it is served all the same, at all addresses or at one, and is seen to end and to come back.
#[test]
fn a_memcached_without_udp() -> Result<()> {
    for is_everywhere in [true, false] {
        let bed = Testbed::new()?;
        let mut options = MemcachedOptions {
            udp_port: 0,
            ..MemcachedOptions::default()
        };
        if !is_everywhere {
            options.addresses.push(bed.links[0].server4);
        }
        let memcached = Memcached::start(&bed.server, options.clone())?;
        let prestack = start_prestack(&bed, 0, &[&LASTING[..], &HITS].concat())?;
        let mut stage = Stage {
            prestack,
            memcached,
            bed,
        };
        for value in [&b"1"[..], b"2"] {
            let mut client = stage.tcp()?;
            store(&mut client, b"key", value)?;
            carry_on(&stage, &mut client, value)?;
            let status = stage.prestack.instance().command(&["status"])?;
            ensure!(status.contains("served at"), "{status}");
            drop(client);
            stage.memcached.kill()?;
            stage.memcached = Memcached::start(&stage.bed.server, options.clone())?;
        }
    }
    Ok(())
}

/// A connection that was used before prestack started is answered once it is certain what it is at.
#[test]
fn a_connection_of_before() -> Result<()> {
    let bed = Testbed::new()?;
    let memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
    let mut older = TcpClient::connect(&bed.client, (bed.links[0].server4, PORT).into())?;
    store(&mut older, b"key", b"value")?;
    let prestack = start_prestack(&bed, 0, &[&LASTING[..], &HITS].concat())?;
    let stage = Stage {
        prestack,
        memcached,
        bed,
    };
    // It is closed before prestack ends, which would wait for that.
    let mut client = older;
    carry_on(&stage, &mut client, b"value")?;
    assert_eq!(stage.prestack.stats()?.get("regained")?, 1);
    for value in [&b"1"[..], b"2"] {
        store(&mut client, b"key", value)?;
        carry_on(&stage, &mut client, value)?;
    }
    Ok(())
}

/// Of a connection on which all GETs hit one in a while (`--tcp-trickle`) reaches memcached, and no more.
#[test]
fn one_request_in_a_while_passes() -> Result<()> {
    const WHILES: u64 = 5;
    let stage = stage(&["--tcp-trickle", "1s"])?;
    let (mut client, mut behind) = (stage.tcp()?, stage.behind()?);
    store(&mut client, b"key", b"value")?;
    carry(&stage.prestack, &mut client)?;
    let before = (tcp_hits(&stage)?, counted(&mut behind, "cmd_get")?);
    let start = Instant::now();
    let mut asked = 0;
    while start.elapsed() < Duration::from_secs(WHILES) {
        ensure!(client.get(b"key")?.as_deref() == Some(&b"value"[..]));
        asked += 1;
        // Time enough for the client's kernel to acknowledge without a request: else one passes for that alone.
        thread::sleep(Duration::from_millis(60));
    }
    let hits = tcp_hits(&stage)? - before.0;
    let passed = counted(&mut behind, "cmd_get")? - before.1;
    println!("{asked} GETs: {hits} hits, {passed} passed");
    assert_eq!(hits + passed, asked);
    ensure!(passed + 2 >= WHILES, "only {passed} passed");
    // A slow machine acknowledges late.
    ensure!(
        pace::is_slow() || passed <= 2 * WHILES + 2,
        "{passed} passed"
    );
    ensure!(hits > 2 * passed, "only {hits} hits, and {passed} passed");
    Ok(())
}

/// One end closes, or half of it, or resets the connection, with answers under way or without.
#[test]
fn connections_end() -> Result<()> {
    let stage = stage(&[])?;
    let mut writer = stage.tcp()?;
    store(&mut writer, b"key", b"value")?;
    for is_asked in [false, true] {
        let mut client = stage.tcp()?;
        carry(&stage.prestack, &mut client)?;
        if is_asked {
            client.send(b"get key\r\n")?;
        }
        client.end_sending()?;
        if is_asked {
            ensure!(client.items()?.len() == 1);
        }
        ensure!(!client.is_reset()?, "it was reset");
        until_translated(&stage, "0 connections")?;
    }
    for is_asked in [false, true] {
        let mut client = stage.tcp()?;
        carry(&stage.prestack, &mut client)?;
        if is_asked {
            client.send(b"get key\r\nget nothing\r\n")?;
        }
        client.reset()?;
        until_translated(&stage, "0 connections")?;
    }
    let mut client = stage.tcp()?;
    carry(&stage.prestack, &mut client)?;
    client.send(b"get key\r\n")?;
    ensure!(client.items()?.len() == 1);
    client.send(b"quit\r\n")?;
    ensure!(!client.is_reset()?, "it was reset");
    drop(client);
    until_translated(&stage, "0 connections")?;
    assert_eq!(stage.prestack.stats()?.get("doubted_requests")?, 0);
    Ok(())
}
