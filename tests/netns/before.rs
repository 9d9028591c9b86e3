//! Connections that were used before prestack started.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use prestack_testbed::{Memcached, MemcachedOptions, TcpClient, Testbed};
use prestack_tests::stage::{PORT, start_watching_prestack};

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

fn exchange(client: &mut TcpClient) -> Result<()> {
    client.send(b"set key 0 0 1\r\nx\r\n")?;
    ensure!(client.line()? == b"STORED\r\n");
    Ok(())
}
