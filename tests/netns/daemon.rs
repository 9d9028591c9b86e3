//! The daemon's life: what is attached, and what happens to the cache when it goes.

use anyhow::Result;
use prestack_testbed::{Instance, Memcached, MemcachedOptions, TcpClient, Testbed, UdpClient};
use prestack_tests::attached::nothing_attached;
use prestack_tests::stage::{LASTING, PORT, Stage, behind, set, start_prestack, store, until_hit};

#[test]
fn it_says_what_it_serves() -> Result<()> {
    let stage = Stage::new()?;
    let dev = &stage.bed.links[0].server_dev;
    assert_eq!(
        stage.prestack.serving(),
        format!("serving 11211 on {dev} (native)")
    );
    Ok(())
}

#[test]
fn sigterm_detaches() -> Result<()> {
    let Stage {
        prestack,
        memcached,
        bed,
    } = Stage::new()?;
    let dev = &bed.links[0].server_dev;
    let server = (bed.links[0].server4, PORT).into();
    let mut udp = UdpClient::connect(&bed.client, server)?;
    let mut tcp = TcpClient::connect(&bed.client, server)?;
    store(
        &mut behind(&bed, [127, 0, 0, 1].into(), PORT)?,
        b"key",
        b"old",
    )?;
    until_hit(&prestack, &mut udp, b"key", b"old")?;
    assert!(nothing_attached(&bed.server, dev).is_err());

    prestack.stop()?;
    nothing_attached(&bed.server, dev)?;
    assert_eq!(udp.get(b"key")?.as_deref(), Some(&b"old"[..]));
    store(&mut tcp, b"key", b"new")?;
    assert_eq!(udp.get(b"key")?.as_deref(), Some(&b"new"[..]));

    // And again, on the same device.
    let prestack = start_prestack(&bed, 0, &LASTING)?;
    until_hit(&prestack, &mut udp, b"key", b"new")?;
    prestack.stop()?;
    nothing_attached(&bed.server, dev)?;
    drop(memcached);
    Ok(())
}

#[test]
fn a_killed_daemon_leaves_values_and_connections_intact() -> Result<()> {
    let Stage {
        prestack,
        memcached,
        bed,
    } = Stage::new()?;
    let dev = &bed.links[0].server_dev;
    let server = (bed.links[0].server4, PORT).into();
    let (mut udp, mut writer) = (
        UdpClient::connect(&bed.client, server)?,
        UdpClient::connect(&bed.client, server)?,
    );
    let mut tcp = TcpClient::connect(&bed.client, server)?;
    store(&mut tcp, b"key", b"0")?;
    until_hit(&prestack, &mut udp, b"key", b"0")?;

    let mut prestack = Some(prestack);
    for n in 1..200_u32 {
        if n == 50 {
            // In the middle of everything.
            if let Some(prestack) = prestack.take() {
                prestack.kill()?;
            }
        }
        let value = n.to_string().into_bytes();
        if n % 2 == 0 {
            store(&mut tcp, b"key", &value)?;
        } else {
            assert_eq!(writer.request(&set(b"key", &value))?, b"STORED\r\n");
        }
        assert_eq!(udp.get(b"key")?.as_ref(), Some(&value));
        assert_eq!(tcp.get(b"key")?.as_ref(), Some(&value));
    }
    nothing_attached(&bed.server, dev)?;

    // The next one starts as if nothing had been.
    let prestack = start_prestack(&bed, 0, &LASTING)?;
    until_hit(&prestack, &mut udp, b"key", b"199")?;
    drop(memcached);
    Ok(())
}

#[test]
fn two_instances_do_not_disturb_each_other() -> Result<()> {
    let bed = Testbed::with_links(2)?;
    let _memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
    let clients: Vec<_> = (0..2)
        .map(|link| UdpClient::connect(&bed.client, (bed.links[link].server4, PORT).into()))
        .collect::<Result<_>>()?;
    let [mut first, mut second] = <[UdpClient; 2]>::try_from(clients).ok().expect("two links");
    store(
        &mut behind(&bed, [127, 0, 0, 1].into(), PORT)?,
        b"key",
        b"value",
    )?;

    let one = start_prestack(&bed, 0, &LASTING)?;
    let two = start_prestack(&bed, 1, &LASTING)?;
    until_hit(&one, &mut first, b"key", b"value")?;
    until_hit(&two, &mut second, b"key", b"value")?;
    let before = two.stats()?.get("udp.hits")?;
    for _ in 0..5 {
        first.get(b"key")?;
    }
    assert_eq!(two.stats()?.get("udp.hits")?, before);

    one.stop()?;
    nothing_attached(&bed.server, &bed.links[0].server_dev)?;
    until_hit(&two, &mut second, b"key", b"value")?;
    let one = start_prestack(&bed, 0, &LASTING)?;
    until_hit(&one, &mut first, b"key", b"value")?;
    two.kill()?;
    nothing_attached(&bed.server, &bed.links[1].server_dev)?;
    until_hit(&one, &mut first, b"key", b"value")
}

#[test]
fn generic_mode_serves_as_well() -> Result<()> {
    let args = [&LASTING[..], &["--mode", "generic"]].concat();
    let stage = Stage::with(MemcachedOptions::default(), &args)?;
    let dev = &stage.bed.links[0].server_dev;
    assert_eq!(
        stage.prestack.serving(),
        format!("serving 11211 on {dev} (generic)")
    );
    let mut udp = stage.udp()?;
    store(&mut stage.behind()?, b"key", b"old")?;
    until_hit(&stage.prestack, &mut udp, b"key", b"old")?;
    store(&mut stage.tcp()?, b"key", b"new")?;
    until_hit(&stage.prestack, &mut udp, b"key", b"new")
}

#[test]
fn clsact_serves_as_well() -> Result<()> {
    let args = [&LASTING[..], &["--egress", "clsact"]].concat();
    let Stage {
        prestack,
        memcached,
        bed,
    } = Stage::with(MemcachedOptions::default(), &args)?;
    let dev = &bed.links[0].server_dev;
    let mut udp = UdpClient::connect(&bed.client, (bed.links[0].server4, PORT).into())?;
    store(
        &mut behind(&bed, [127, 0, 0, 1].into(), PORT)?,
        b"key",
        b"old",
    )?;
    until_hit(&prestack, &mut udp, b"key", b"old")?;
    prestack.stop()?;
    nothing_attached(&bed.server, dev)?;
    drop(memcached);
    Ok(())
}

/// An instance whose programs stay when its daemon ends: they go with this value.
struct Pinned(Instance);

impl Drop for Pinned {
    fn drop(&mut self) {
        // It may be detached already.
        let _ = self.0.command(&["detach"]);
    }
}

#[test]
fn pinned_programs_serve_nothing_without_a_daemon() -> Result<()> {
    let args = [&LASTING[..], &["--pin"]].concat();
    let Stage {
        prestack,
        memcached,
        bed,
    } = Stage::with(MemcachedOptions::default(), &args)?;
    let dev = &bed.links[0].server_dev;
    let mut udp = UdpClient::connect(&bed.client, (bed.links[0].server4, PORT).into())?;
    let mut behind = behind(&bed, [127, 0, 0, 1].into(), PORT)?;
    store(&mut behind, b"key", b"old")?;
    until_hit(&prestack, &mut udp, b"key", b"old")?;
    let pinned = Pinned(prestack.instance().clone());
    prestack.stop()?;
    assert!(nothing_attached(&bed.server, dev).is_err());
    store(&mut behind, b"key", b"new")?;
    for _ in 0..10 {
        assert_eq!(udp.get(b"key")?.as_deref(), Some(&b"new"[..]));
    }
    pinned.0.command(&["detach"])?;
    nothing_attached(&bed.server, dev)?;
    drop(memcached);
    Ok(())
}
