//! Several memcacheds behind one interface, and one memcached with several doors.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::Result;
use prestack_testbed::{Memcached, MemcachedOptions, TcpClient, Testbed, UdpClient};
use prestack_tests::pinned::carry;
use prestack_tests::stage::{LASTING, PORT, behind, set, start_prestack, store, until_hit};

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const SECOND_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 11));

fn listening_on(addresses: &[IpAddr], port: u16) -> MemcachedOptions {
    MemcachedOptions {
        port,
        udp_port: port,
        addresses: addresses.to_vec(),
        ..MemcachedOptions::default()
    }
}

#[test]
fn memcacheds_on_different_ports_do_not_mix() -> Result<()> {
    let bed = Testbed::new()?;
    let ports = [PORT, 11311];
    let _one = Memcached::start(&bed.server, listening_on(&[], ports[0]))?;
    let _two = Memcached::start(&bed.server, listening_on(&[], ports[1]))?;
    let args = [&LASTING[..], &["--port", "11211", "--port", "11311"]].concat();
    let prestack = start_prestack(&bed, 0, &args)?;
    let address = bed.links[0].server4;
    for (port, value) in [(ports[0], b"one"), (ports[1], b"two")] {
        store(&mut behind(&bed, LOCALHOST, port)?, b"key", value)?;
    }
    let mut one = UdpClient::connect(&bed.client, (address, ports[0]).into())?;
    let mut two = UdpClient::connect(&bed.client, (address, ports[1]).into())?;
    until_hit(&prestack, &mut one, b"key", b"one")?;
    until_hit(&prestack, &mut two, b"key", b"two")?;
    until_hit(&prestack, &mut one, b"key", b"one")?;

    assert_eq!(one.request(&set(b"key", b"new"))?, b"STORED\r\n");
    until_hit(&prestack, &mut two, b"key", b"two")?;
    until_hit(&prestack, &mut one, b"key", b"new")
}

#[test]
fn memcacheds_on_different_addresses_do_not_mix() -> Result<()> {
    let bed = Testbed::new()?;
    bed.add_server_address(0, SECOND_ADDRESS)?;
    let addresses = [bed.links[0].server4, SECOND_ADDRESS];
    let _one = Memcached::start(&bed.server, listening_on(&addresses[..1], PORT))?;
    let _two = Memcached::start(&bed.server, listening_on(&addresses[1..], PORT))?;
    let prestack = start_prestack(&bed, 0, &LASTING)?;
    for (address, value) in [(addresses[0], b"one"), (addresses[1], b"two")] {
        store(&mut behind(&bed, address, PORT)?, b"key", value)?;
    }
    let mut one = UdpClient::connect(&bed.client, (addresses[0], PORT).into())?;
    let mut two = UdpClient::connect(&bed.client, (addresses[1], PORT).into())?;
    until_hit(&prestack, &mut one, b"key", b"one")?;
    until_hit(&prestack, &mut two, b"key", b"two")?;
    until_hit(&prestack, &mut one, b"key", b"one")?;

    let mut writer = TcpClient::connect(&bed.client, (addresses[1], PORT).into())?;
    store(&mut writer, b"key", b"new")?;
    until_hit(&prestack, &mut one, b"key", b"one")?;
    until_hit(&prestack, &mut two, b"key", b"new")
}

#[test]
fn a_write_through_any_door_invalidates() -> Result<()> {
    let bed = &Testbed::new()?;
    bed.add_server_address(0, SECOND_ADDRESS)?;
    let doors = [bed.links[0].server4, bed.links[0].server6, SECOND_ADDRESS];
    // Listening on all addresses, memcached would answer UDP from the first one only.
    let addresses = [&doors[..], &[LOCALHOST]].concat();
    let _memcached = Memcached::start(&bed.server, listening_on(&addresses, PORT))?;
    let prestack = start_prestack(bed, 0, &LASTING)?;
    let mut n = 0;
    for written in doors {
        for read in doors {
            let mut reader = UdpClient::connect(&bed.client, (read, PORT).into())?;
            let mut udp = UdpClient::connect(&bed.client, (written, PORT).into())?;
            let mut tcp = TcpClient::connect(&bed.client, (written, PORT).into())?;
            for over_tcp in [false, true] {
                let key = format!("key{n}").into_bytes();
                n += 1;
                store(&mut behind(bed, LOCALHOST, PORT)?, &key, b"old")?;
                until_hit(&prestack, &mut reader, &key, b"old")?;
                if over_tcp {
                    store(&mut tcp, &key, b"new")?;
                } else {
                    assert_eq!(udp.request(&set(&key, b"new"))?, b"STORED\r\n");
                }
                until_hit(&prestack, &mut reader, &key, b"new")?;
            }
        }
    }
    Ok(())
}

#[test]
fn a_write_through_another_interface_invalidates() -> Result<()> {
    let bed = Testbed::with_links(2)?;
    let _memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
    let second = ["--interface", &bed.links[1].server_dev];
    let prestack = start_prestack(&bed, 0, &[&second[..], &LASTING].concat())?;
    let clients = |link: usize| {
        let server = (bed.links[link].server4, PORT).into();
        anyhow::Ok((
            UdpClient::connect(&bed.client, server)?,
            TcpClient::connect(&bed.client, server)?,
        ))
    };
    let (mut first, _) = clients(0)?;
    let (mut udp, mut tcp) = clients(1)?;
    store(&mut behind(&bed, LOCALHOST, PORT)?, b"key", b"old")?;
    until_hit(&prestack, &mut first, b"key", b"old")?;
    until_hit(&prestack, &mut udp, b"key", b"old")?;
    assert_eq!(udp.request(&set(b"key", b"new"))?, b"STORED\r\n");
    until_hit(&prestack, &mut first, b"key", b"new")?;
    store(&mut tcp, b"key", b"newer")?;
    until_hit(&prestack, &mut first, b"key", b"newer")
}

#[test]
fn only_the_addresses_given_are_served() -> Result<()> {
    let bed = Testbed::new()?;
    bed.add_server_address(0, SECOND_ADDRESS)?;
    let address = bed.links[0].server4;
    let addresses = [address, SECOND_ADDRESS, LOCALHOST];
    let _memcached = Memcached::start(&bed.server, listening_on(&addresses, PORT))?;
    let given = ["--address", &address.to_string(), "--tcp-hits"];
    let prestack = start_prestack(&bed, 0, &[&given[..], &LASTING].concat())?;
    let mut served = UdpClient::connect(&bed.client, (address, PORT).into())?;
    let mut other = UdpClient::connect(&bed.client, (SECOND_ADDRESS, PORT).into())?;
    store(&mut behind(&bed, LOCALHOST, PORT)?, b"key", b"old")?;
    until_hit(&prestack, &mut served, b"key", b"old")?;
    let before = prestack.stats()?.get("udp.hits")?;
    for _ in 0..3 {
        assert_eq!(other.get(b"key")?.as_deref(), Some(&b"old"[..]));
    }
    assert_eq!(prestack.stats()?.get("udp.hits")?, before);
    // Nor over TCP, however often memcached has answered there.
    let mut other_tcp = TcpClient::connect(&bed.client, (SECOND_ADDRESS, PORT).into())?;
    for _ in 0..9 {
        assert_eq!(other_tcp.get(b"key")?.as_deref(), Some(&b"old"[..]));
    }
    assert_eq!(prestack.stats()?.get("flows_translated")?, 0);
    let mut served_tcp = TcpClient::connect(&bed.client, (address, PORT).into())?;
    carry(&prestack, &mut served_tcp)?;
    // It is the same memcached: a write through its other address counts.
    assert_eq!(other.request(&set(b"key", b"new"))?, b"STORED\r\n");
    until_hit(&prestack, &mut served, b"key", b"new")
}
