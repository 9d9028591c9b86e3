//! GETs and writes that are with memcached at the same time: it is stopped meanwhile.

use std::time::Duration;

use anyhow::{Result, ensure};
use prestack_testbed::{MemcachedOptions, UdpClient, pace};
use prestack_tests::stage::{Stage, set, store, until_hit};

/// Longer than any of these tests stops memcached.
const SETTLE: [&str; 6] = ["--memory", "8MiB", "--max-age", "60s", "--settle", "2s"];

fn stage(threads: u32) -> Result<Stage> {
    Stage::with(
        MemcachedOptions {
            threads,
            ..MemcachedOptions::default()
        },
        &SETTLE,
    )
}

fn get(key: &[u8]) -> Vec<u8> {
    [b"get ", key, b"\r\n"].concat()
}

/// Stores `old` under a number of keys that are not cached, while the cache serves.
fn uncached(stage: &Stage, keys: u32) -> Result<Vec<Vec<u8>>> {
    let mut behind = stage.behind()?;
    store(&mut behind, b"other", b"value")?;
    until_hit(&stage.prestack, &mut stage.udp()?, b"other", b"value")?;
    let keys: Vec<Vec<u8>> = (0..keys).map(|n| format!("key{n}").into_bytes()).collect();
    keys.iter()
        .try_for_each(|key| store(&mut behind, key, b"old"))?;
    Ok(keys)
}

fn always_new(client: &mut UdpClient, key: &[u8]) -> Result<()> {
    for _ in 0..20 {
        let got = client.get(key)?;
        ensure!(
            got.as_deref() == Some(b"new"),
            "{:?} is {got:?}",
            String::from_utf8_lossy(key)
        );
    }
    Ok(())
}

#[test]
fn a_get_overtaken_by_a_udp_write_does_not_fill() -> Result<()> {
    for threads in [1, 4] {
        let stage = stage(threads)?;
        let (mut reader, mut writer) = (stage.udp()?, stage.udp()?);
        for key in uncached(&stage, 20)? {
            stage.memcached.pause()?;
            let read = reader.send(&get(&key))?;
            let written = writer.send(&set(&key, b"new"))?;
            stage.memcached.resume()?;
            reader.items(read)?;
            assert_eq!(writer.receive(written)?, b"STORED\r\n");
            always_new(&mut reader, &key)?;
        }
    }
    Ok(())
}

#[test]
fn a_get_overtaken_by_a_tcp_write_does_not_fill() -> Result<()> {
    for threads in [1, 4] {
        let stage = stage(threads)?;
        let (mut reader, mut writer) = (stage.udp()?, stage.tcp()?);
        for key in uncached(&stage, 20)? {
            stage.memcached.pause()?;
            let read = reader.send(&get(&key))?;
            writer.send(&set(&key, b"new"))?;
            stage.memcached.resume()?;
            reader.items(read)?;
            assert_eq!(writer.line()?, b"STORED\r\n");
            always_new(&mut reader, &key)?;
        }
    }
    Ok(())
}

#[test]
fn a_get_behind_a_write_does_not_fill_too_early() -> Result<()> {
    for threads in [1, 4] {
        let stage = stage(threads)?;
        // A writer each: memcached's threads may answer in either order.
        let (mut reader, mut writer, mut other) = (stage.udp()?, stage.udp()?, stage.udp()?);
        for key in uncached(&stage, 20)? {
            stage.memcached.pause()?;
            let first = writer.send(&set(&key, b"first"))?;
            let read = reader.send(&get(&key))?;
            let second = other.send(&set(&key, b"new"))?;
            stage.memcached.resume()?;
            reader.items(read)?;
            assert_eq!(writer.receive(first)?, b"STORED\r\n");
            assert_eq!(other.receive(second)?, b"STORED\r\n");
            // Worker threads may do the two writes in either order.
            let last = stage.behind()?.get(&key)?;
            for _ in 0..20 {
                assert_eq!(reader.get(&key)?, last);
            }
        }
    }
    Ok(())
}

#[test]
fn a_write_invalidates_before_memcached_sees_it() -> Result<()> {
    let stage = stage(1)?;
    let (mut reader, mut udp, mut tcp) = (stage.udp()?, stage.udp()?, stage.tcp()?);
    store(&mut stage.behind()?, b"key", b"old")?;
    for over_tcp in [false, true] {
        let old = reader.get(b"key")?.unwrap_or_default();
        until_hit(&stage.prestack, &mut reader, b"key", &old)?;
        stage.memcached.pause()?;
        let written = if over_tcp {
            tcp.send(&set(b"key", b"new"))?;
            None
        } else {
            Some(udp.send(&set(b"key", b"new"))?)
        };
        let read = reader.send(&get(b"key"))?;
        assert!(reader.is_silent(pace::patience(Duration::from_millis(50)))?);
        stage.memcached.resume()?;
        match written {
            Some(id) => assert_eq!(udp.receive(id)?, b"STORED\r\n"),
            None => assert_eq!(tcp.line()?, b"STORED\r\n"),
        }
        reader.items(read)?;
        always_new(&mut reader, b"key")?;
    }
    Ok(())
}

#[test]
fn a_request_id_used_twice_at_once_mixes_nothing_up() -> Result<()> {
    let stage = stage(4)?;
    let mut client = stage.udp()?;
    let keys = uncached(&stage, 40)?;
    let mut behind = stage.behind()?;
    for (round, pair) in keys.chunks_exact(2).enumerate() {
        let id = round as u16;
        store(&mut behind, &pair[1], b"other")?;
        stage.memcached.pause()?;
        client.send_as(id, &get(&pair[0]))?;
        client.send_as(id, &get(&pair[1]))?;
        client.send_as(id, &get(b"missing"))?;
        stage.memcached.resume()?;
        let mut replies = [
            client.receive(id)?,
            client.receive(id)?,
            client.receive(id)?,
        ];
        replies.sort_by_key(Vec::len);
        assert_eq!(replies[0], b"END\r\n");
        assert!(replies[1].ends_with(b"\r\nold\r\nEND\r\n"));
        assert!(replies[2].ends_with(b"\r\nother\r\nEND\r\n"));
        for _ in 0..3 {
            assert_eq!(client.get(&pair[0])?.as_deref(), Some(&b"old"[..]));
            assert_eq!(client.get(&pair[1])?.as_deref(), Some(&b"other"[..]));
            assert_eq!(client.get(b"missing")?, None);
        }
    }
    Ok(())
}
