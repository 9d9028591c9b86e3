//! Connections that were used before prestack started.

use std::net::{IpAddr, SocketAddrV4};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use prestack_testbed::{Memcached, MemcachedOptions, TcpClient, Testbed};
use prestack_tests::crafted::{Crafted, MSS, SOURCE};
use prestack_tests::stage::{PORT, start_watching_prestack, store};

/// It is in no doubt any more soon after the start, though its client never pauses: memcached has read all that came
/// whenever it answers.
#[test]
fn a_busy_connection_of_before_is_certain_again() -> Result<()> {
    let bed = Testbed::new()?;
    let _memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
    let link = &bed.links[0];
    let (v4, v6) = (link.server4, link.server6);
    let mut clients = [(&bed.client, v4), (&bed.client, v6), (&bed.server, v4)]
        .map(|(end, address)| TcpClient::connect(end, (address, PORT).into()))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    for client in &mut clients {
        exchange(client)?;
    }
    let prestack = start_watching_prestack(&bed, 0, &["--max-age", "1s", "--always-on"])?;
    let start = Instant::now();
    while prestack.stats()?.get("regained")? < clients.len() as u64 {
        // Asking for the counters takes less than the settle time.
        let turn = Instant::now();
        while turn.elapsed() < Duration::from_millis(100) {
            for client in &mut clients {
                exchange(client)?;
            }
        }
        ensure!(start.elapsed() < Duration::from_secs(60), "in doubt");
    }
    Ok(())
}

/// The kernel sends less than a reply once it has held it back for so long.
const HELD_BACK: Duration = Duration::from_millis(200);

/// Its client is always one command ahead, and has room for a reply only when memcached has read the next command: what
/// the kernel then sends is no reply to that.
#[test]
fn a_reply_that_was_held_back_is_none_to_the_next_command() -> Result<()> {
    for _ in 0..5 {
        if hold_replies_back()? {
            return Ok(());
        }
    }
    bail!(
        "this machine pauses again and again for longer than the kernel holds a reply back: {HELD_BACK:?}"
    )
}

/// Returns whether all replies were held back until there was room for them: on a busy machine there may be too late.
fn hold_replies_back() -> Result<bool> {
    const LITTLE: u16 = MSS / 2;
    let bed = Testbed::new()?;
    let _memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
    let link = &bed.links[0];
    let (IpAddr::V4(server), client) = (link.server4, link.client4.to_string()) else {
        bail!("the server has no IPv4 address");
    };
    let source = SOURCE.to_string();
    bed.server.ip(["route", "add", &source, "via", &client])?;
    let mut writer = TcpClient::connect(&bed.client, (link.server4, PORT).into())?;
    // The reply fills a segment.
    let around = "VALUE key 0 000\r\n\r\nEND\r\n".len();
    store(&mut writer, b"key", &vec![b'x'; usize::from(MSS) - around])?;
    let get = b"get key\r\n";
    let mut crafted = Crafted::connect(&bed.client, SocketAddrV4::new(server, PORT))?;
    let ask = |crafted: &mut Crafted| {
        crafted.send(get, u16::MAX)?;
        ensure!(crafted.receive()?.len() == usize::from(MSS));
        anyhow::Ok(())
    };
    ask(&mut crafted)?;
    let prestack = start_watching_prestack(&bed, 0, &["--max-age", "1s", "--always-on"])?;
    ask(&mut crafted)?;
    ensure!(prestack.stats()?.get("doubted_requests")? == 1);
    // More than the settle time.
    sleep(Duration::from_millis(1_500));

    let mut since = Instant::now();
    crafted.send(get, LITTLE)?;
    for round in 0..4 {
        // The kernel acknowledges what came after 40 ms.
        sleep(Duration::from_millis(70));
        crafted.send(get, LITTLE)?;
        sleep(Duration::from_millis(20));
        crafted.send(b"", MSS)?;
        crafted.receive()?;
        if since.elapsed() >= HELD_BACK {
            return Ok(false);
        }
        since = Instant::now();
        let regained = prestack.stats()?.get("regained")?;
        ensure!(regained == 0, "after {round} rounds");
    }
    crafted.send(b"", u16::MAX)?;
    crafted.receive()?;
    let start = Instant::now();
    while prestack.stats()?.get("regained")? == 0 {
        ask(&mut crafted)?;
        ensure!(start.elapsed() < Duration::from_secs(10), "in doubt");
    }
    Ok(true)
}

fn exchange(client: &mut TcpClient) -> Result<()> {
    client.send(b"set key 0 0 1\r\nx\r\n")?;
    ensure!(client.line()? == b"STORED\r\n");
    Ok(())
}
