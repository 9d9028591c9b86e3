//! `--tcp-hits`: what the kernel has got before a connection can be answered stays at its place.

use std::net::{IpAddr, SocketAddrV4};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use prestack_testbed::pace::wait_for;
use prestack_testbed::{Memcached, MemcachedOptions, TcpClient, Testbed, UdpClient};
use prestack_tests::crafted::{Crafted, SOURCE};
use prestack_tests::stage::{LASTING, PORT, start_prestack, store, until_hit};

/// Sends a command, and receives its reply, or those to it and to what follows.
fn exchange(client: &mut Crafted, command: &[u8], replies: &[u8]) -> Result<()> {
    client.send(command, u16::MAX)?;
    let mut received = Vec::new();
    while received.len() < replies.len() {
        received.extend(client.receive()?);
        client.send(b"", u16::MAX)?;
    }
    ensure!(received == replies, "{}", received.escape_ascii());
    Ok(())
}

/// Before prestack starts a command arrives before others that are lost. When those come again, one by one, the connection
/// is followed again, and the last of them could be answered: but then the kernel would not get it, and what it has would
/// follow at a place where it never was.
#[test]
fn what_came_too_early_is_not_moved() -> Result<()> {
    const MISS: &[u8] = b"get x\r\n";
    const MISSES: usize = 6;
    const GET: &[u8] = b"get key\r\n";
    const SET: &[u8] = b"set other 0 0 1\r\nb\r\n";
    let bed = Testbed::new()?;
    let _memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
    let more = ["--tcp-hits", "--always-on", "--allow", "10.0.0.0/8"];
    // The client does not close its connection.
    let at_end = ["--drain-timeout", "0s"];
    let link = &bed.links[0];
    let (IpAddr::V4(server), client) = (link.server4, link.client4.to_string()) else {
        bail!("the server has no IPv4 address");
    };
    let source = SOURCE.to_string();
    bed.server.ip(["route", "add", &source, "via", &client])?;
    let address = (link.server4, PORT).into();
    store(
        &mut TcpClient::connect(&bed.client, address)?,
        b"key",
        b"value",
    )?;

    let mut crafted = Crafted::connect(&bed.client, SocketAddrV4::new(server, PORT))?;
    exchange(&mut crafted, b"noise\r\n", b"ERROR\r\n")?;
    let missing = MISSES * MISS.len() + GET.len();
    crafted.send_ahead(missing, SET)?;
    let prestack = start_prestack(&bed, 0, &[&LASTING[..], &more, &at_end].concat())?;
    for _ in 0..MISSES {
        exchange(&mut crafted, MISS, b"END\r\n")?;
        sleep(Duration::from_millis(50));
    }
    ensure!(prestack.stats()?.get("regained")? == 1);
    until_hit(
        &prestack,
        &mut UdpClient::connect(&bed.client, address)?,
        b"key",
        b"value",
    )?;
    let replies = b"VALUE key 0 5\r\nvalue\r\nEND\r\nSTORED\r\n";
    exchange(&mut crafted, GET, replies)?;
    ensure!(prestack.stats()?.get("tcp.hits")? == 0);
    // From then on nothing stands in the way.
    crafted.skip(SET.len());
    wait_for("a hit over TCP", Duration::from_secs(10), || {
        exchange(&mut crafted, GET, b"VALUE key 0 5\r\nvalue\r\nEND\r\n")?;
        Ok((prestack.stats()?.get("tcp.hits")? > 0).then_some(()))
    })
}
