//! What arrives for this host alone is answered, while its devices and their addresses change.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use prestack_testbed::pace::wait_for;
use prestack_testbed::{Memcached, MemcachedOptions, Testbed, UdpClient};
use prestack_tests::stage::{LASTING, PORT, Stage, behind, start_prestack, store, until_hit};

const VLAN_SERVER: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);
const VLAN_CLIENT: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 2);

/// Soon none of some GETs of `key` to `server` is answered, neither by the cache nor by memcached.
fn until_unanswered(stage: &Stage, server: SocketAddr) -> Result<()> {
    let mut client = UdpClient::connect(&stage.bed.client, server)?;
    wait_for("no GET to be answered", Duration::from_secs(10), || {
        let before = stage.hits()?;
        for _ in 0..20 {
            // That nobody takes it may be told when the next is sent.
            let _ = client.send(b"get key\r\n");
        }
        std::thread::sleep(Duration::from_millis(200));
        Ok((stage.hits()? == before).then_some(()))
    })
}

fn mac_of(stage: &Stage) -> Result<String> {
    let dev = &stage.bed.links[0].server_dev;
    let told = stage.bed.server.ip(["link", "show", "dev", dev])?;
    let mut words = told.split_whitespace();
    words.find(|word| *word == "link/ether");
    Ok(words.next().context("no MAC address")?.to_owned())
}

/// Has the client send frames for the server to this MAC address.
fn aim(stage: &Stage, mac: &str) -> Result<()> {
    let link = &stage.bed.links[0];
    let (address, dev) = (link.server4.to_string(), &link.client_dev);
    let neighbour = ["neigh", "replace", &address, "lladdr", mac, "dev", dev];
    let permanent = ["nud", "permanent"];
    stage
        .bed
        .client
        .ip(neighbour.into_iter().chain(permanent))?;
    Ok(())
}

#[test]
fn a_vlan_comes_and_goes() -> Result<()> {
    let stage = Stage::new()?;
    store(&mut stage.behind()?, b"key", b"value")?;
    let Some(dev) = stage.bed.add_vlan(0, 7, [VLAN_SERVER, VLAN_CLIENT])? else {
        println!("this kernel has no VLAN devices: nothing is tested");
        return Ok(());
    };
    let server = (VLAN_SERVER, PORT).into();
    let mut client = UdpClient::connect(&stage.bed.client, server)?;
    until_hit(&stage.prestack, &mut client, b"key", b"value")?;
    // Its addresses are not taken for ones at which writes go unseen.
    let status = stage.prestack.instance().command(&["status"])?;
    let unseen = status.lines().find(|line| line.starts_with("unseen"));
    ensure!(
        unseen.is_some_and(|line| !line.contains(&VLAN_SERVER.to_string())),
        "{status}"
    );
    // The interface under it is served as before.
    until_hit(&stage.prestack, &mut stage.udp()?, b"key", b"value")?;

    // A device that is down keeps its address.
    stage.bed.server.ip(["link", "set", &dev, "down"])?;
    until_unanswered(&stage, server)?;
    stage.bed.server.ip(["link", "set", &dev, "up"])?;
    until_hit(&stage.prestack, &mut client, b"key", b"value")?;

    // What is left knows the address, but not the VLAN.
    stage.bed.server.ip(["link", "delete", &dev])?;
    stage.bed.add_server_address(0, VLAN_SERVER.into())?;
    until_hit(&stage.prestack, &mut stage.udp()?, b"key", b"value")?;
    until_unanswered(&stage, server)
}

#[test]
fn another_mac_address() -> Result<()> {
    let stage = Stage::new()?;
    store(&mut stage.behind()?, b"key", b"value")?;
    until_hit(&stage.prestack, &mut stage.udp()?, b"key", b"value")?;
    let old = mac_of(&stage)?;
    aim(&stage, "02:00:00:00:00:55")?;
    until_unanswered(&stage, stage.server4())?;

    let dev = &stage.bed.links[0].server_dev;
    let new = "02:00:00:00:00:55";
    stage.bed.server.ip(["link", "set", dev, "address", new])?;
    until_hit(&stage.prestack, &mut stage.udp()?, b"key", b"value")?;
    aim(&stage, &old)?;
    until_unanswered(&stage, stage.server4())
}

/// The subnets of two interfaces are each served on their own.
#[test]
fn a_source_from_the_subnet_of_another_interface() -> Result<()> {
    for (more, is_served) in [(&[][..], false), (&["--allow", "10.0.0.0/8"], true)] {
        let bed = Testbed::with_links(2)?;
        let memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
        let [first, second] = [&bed.links[0], &bed.links[1]];
        let args = [&["--interface", &second.server_dev], &LASTING[..], more].concat();
        let prestack = start_prestack(&bed, 0, &args)?;
        store(
            &mut behind(&bed, Ipv4Addr::LOCALHOST.into(), PORT)?,
            b"key",
            b"value",
        )?;
        for link in [first, second] {
            let mut client = UdpClient::connect(&bed.client, (link.server4, PORT).into())?;
            until_hit(&prestack, &mut client, b"key", b"value")?;
        }
        // The client's address on the second, by way of the first.
        let server = (first.server4, PORT).into();
        let mut client = UdpClient::connect_from(&bed.client, second.client4, server)?;
        let before = prestack.stats()?.get("udp.hits")?;
        // Whether the kernel takes them depends on its reverse path filter.
        for _ in 0..5 {
            // That nobody takes it may be told when the next is sent.
            let _ = client.send(b"get key\r\n");
        }
        std::thread::sleep(Duration::from_millis(200));
        let hits = prestack.stats()?.get("udp.hits")? - before;
        ensure!(
            hits == if is_served { 5 } else { 0 },
            "{hits} hits with {more:?}"
        );
        drop((prestack, memcached));
    }
    Ok(())
}

/// What comes over the wire for a loopback address the kernel drops.
#[test]
fn a_neighbour_that_asks_for_a_loopback_address() -> Result<()> {
    let bed = Testbed::new()?;
    let memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
    let prestack = start_prestack(&bed, 0, &[&["--interface", "lo"], &LASTING[..]].concat())?;
    let server = (Ipv4Addr::LOCALHOST, PORT).into();
    store(
        &mut behind(&bed, Ipv4Addr::LOCALHOST.into(), PORT)?,
        b"key",
        b"value",
    )?;
    let link = &bed.links[0];
    let mut local = UdpClient::connect(&bed.server, server)?;
    until_hit(&prestack, &mut local, b"key", b"value")?;
    // To the client's kernel it is an address like others.
    bed.client.ip(["addr", "flush", "dev", "lo"])?;
    let by = ["via", &link.server4.to_string(), "dev", &link.client_dev].map(str::to_owned);
    let by = by.each_ref().map(String::as_str);
    bed.client
        .ip([&["route", "add", "127.0.0.1/32"], &by[..]].concat())?;
    bed.client
        .run(|| std::fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1"))?;
    let mut neighbour = UdpClient::connect_from(&bed.client, link.client4, server)?;
    let before = prestack.stats()?;
    for _ in 0..5 {
        neighbour.send(b"get key\r\n")?;
    }
    wait_for("the requests to be seen", Duration::from_secs(5), || {
        let now = prestack.stats()?;
        let more = |name: &str| anyhow::Ok(now.get(name)? - before.get(name)?);
        ensure!(more("udp.hits")? == 0, "a neighbour was answered");
        Ok((more("udp.passed")? + more("udp.misses")? == 5).then_some(()))
    })?;
    until_hit(&prestack, &mut local, b"key", b"value")?;
    drop((prestack, memcached));
    Ok(())
}
