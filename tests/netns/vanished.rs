//! Clients that vanish.

use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use prestack::discovery::procnet::connections;
use prestack_testbed::pace;
use prestack_tests::stage::{PORT, Stage, store};

/// memcached owes a reply to a flush when its client vanishes, and the kernel gives up without a word:
/// keys are cached again.
#[test]
fn a_connection_that_ends_unseen() -> Result<()> {
    let stage = Stage::new()?;
    let (bed, link) = (&stage.bed, &stage.bed.links[0]);
    let mut udp = stage.udp()?;
    store(&mut stage.behind()?, b"key", b"value")?;
    bed.server
        .run(|| fs::write("/proc/sys/net/ipv4/tcp_retries2", "2"))?;
    let client = link.client4.to_string();
    let mut tcp = stage.tcp()?;
    stage.memcached.pause()?;
    tcp.send(b"set other 0 0 1\r\nx\r\nflush_all 1000\r\n")?;
    // Nothing reaches the client any more, nor leaves for it.
    std::thread::sleep(Duration::from_millis(300));
    bed.server.ip(["route", "add", "blackhole", &client])?;
    stage.memcached.resume()?;
    pace::wait_for("the kernel to give up", Duration::from_secs(30), || {
        let left = bed.server.run(|| connections(&[PORT]))?;
        let is_there = left
            .iter()
            .any(|key| IpAddr::from(key.client[3].to_ne_bytes()) == link.client4);
        Ok((!is_there).then_some(()))
    })?;
    bed.server.ip(["route", "del", "blackhole", &client])?;
    pace::wait_for("the cache to answer", Duration::from_secs(30), || {
        let before = stage.hits()?;
        assert_eq!(udp.get(b"key")?.as_deref(), Some(&b"value"[..]));
        Ok((stage.hits()? > before).then_some(()))
    })?;
    Ok(())
}
