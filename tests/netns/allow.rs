//! Who is served.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::Result;
use prestack_testbed::{MemcachedOptions, UdpClient};
use prestack_tests::stage::{LASTING, Stage, set, store, until_hit};

/// Not in the allow list of [`stage`].
const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 99));

fn stage() -> Result<Stage> {
    let allow = [&LASTING[..], &["--allow", "10.77.0.2/32"]].concat();
    let stage = Stage::with(MemcachedOptions::default(), &allow)?;
    stage.bed.add_client_address(0, STRANGER)?;
    Ok(stage)
}

#[test]
fn others_than_the_allowed_are_answered_by_memcached() -> Result<()> {
    let stage = stage()?;
    let mut friend = stage.udp()?;
    let mut stranger = UdpClient::connect_from(&stage.bed.client, STRANGER, stage.server4())?;
    store(&mut stage.behind()?, b"key", b"value")?;
    until_hit(&stage.prestack, &mut friend, b"key", b"value")?;
    let before = stage.hits()?;
    for _ in 0..5 {
        assert_eq!(stranger.get(b"key")?.as_deref(), Some(&b"value"[..]));
    }
    assert_eq!(stage.hits()?, before);
    friend.get(b"key")?;
    assert_eq!(stage.hits()?, before + 1);
    Ok(())
}

#[test]
fn writes_of_others_invalidate() -> Result<()> {
    let stage = stage()?;
    let mut friend = stage.udp()?;
    let mut stranger = UdpClient::connect_from(&stage.bed.client, STRANGER, stage.server4())?;
    store(&mut stage.behind()?, b"key", b"old")?;
    until_hit(&stage.prestack, &mut friend, b"key", b"old")?;
    assert_eq!(stranger.request(&set(b"key", b"new"))?, b"STORED\r\n");
    until_hit(&stage.prestack, &mut friend, b"key", b"new")
}

#[test]
fn neighbours_of_the_interface_are_served_and_nobody_else() -> Result<()> {
    let stage = Stage::new()?;
    let far = IpAddr::V4(Ipv4Addr::new(10, 99, 0, 1));
    stage
        .bed
        .client
        .ip(["address", "add", "10.99.0.1/32", "dev", "lo"])?;
    let client = stage.bed.links[0].client4.to_string();
    stage
        .bed
        .server
        .ip(["route", "add", "10.99.0.1/32", "via", &client])?;
    let mut far = UdpClient::connect_from(&stage.bed.client, far, stage.server4())?;
    store(&mut stage.behind()?, b"key", b"value")?;
    until_hit(&stage.prestack, &mut stage.udp()?, b"key", b"value")?;
    let before = stage.hits()?;
    for _ in 0..5 {
        assert_eq!(far.get(b"key")?.as_deref(), Some(&b"value"[..]));
    }
    assert_eq!(stage.hits()?, before);
    Ok(())
}
