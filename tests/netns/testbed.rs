//! The testbed itself.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use prestack_testbed::{
    Memcached, MemcachedOptions, Prestack, TcpClient, Testbed, UdpClient, binary,
};
use prestack_tests::attached::nothing_attached;

#[test]
fn memcached_answers_over_both_protocols_and_both_families() -> Result<()> {
    let bed = Testbed::new()?;
    let _memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
    let link = &bed.links[0];
    for address in [link.server4, link.server6] {
        let server = (address, 11211).into();
        let mut tcp = TcpClient::connect(&bed.client, server)?;
        assert_eq!(tcp.command(b"set key 5 0 3\r\nabc\r\n")?, b"STORED\r\n");
        assert_eq!(tcp.get(b"key")?.as_deref(), Some(&b"abc"[..]));
        let mut udp = UdpClient::connect(&bed.client, server)?;
        assert_eq!(udp.get(b"key")?.as_deref(), Some(&b"abc"[..]));
        assert_eq!(udp.get(b"other")?, None);
        let big = vec![b'x'; 5000];
        let set = [b"set big 0 0 5000\r\n", big.as_slice(), b"\r\n"].concat();
        assert_eq!(tcp.command(&set)?, b"STORED\r\n");
        let items = udp.get_many(&[b"key", b"other", b"big"])?;
        assert_eq!(items.len(), 2);
        assert_eq!(
            (items[0].flags, items[0].value.as_slice()),
            (5, &b"abc"[..])
        );
        assert_eq!(items[1].value, big);
    }
    Ok(())
}

#[test]
fn nothing_is_left_of_a_testbed() -> Result<()> {
    let bed = Testbed::with_links(2)?;
    let memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
    let process = format!("/proc/{}", memcached.pid());
    let namespace = bed.server.path();
    assert!(Path::new(&process).exists() && Path::new(&namespace).exists());
    drop((bed, memcached));
    assert!(!Path::new(&process).exists());
    Ok(())
}

/// One that serves, but nobody hears of it, is killed, and what it has pinned does not go by itself.
#[test]
fn nothing_is_left_of_a_prestack_that_does_not_come_to_serve() -> Result<()> {
    let bed = Testbed::new()?;
    let _memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
    let dev = &bed.links[0].server_dev;
    let prestack = binary()?
        .canonicalize()
        .context("finding the binary's path")?;
    let folder = tempfile::tempdir()?;
    let mute = folder.path().join("prestack");
    let script = format!(
        "#!/bin/sh\nexec '{}' \"$@\" > /dev/null\n",
        prestack.display()
    );
    fs::write(&mute, script)?;
    fs::set_permissions(&mute, Permissions::from_mode(0o755))?;
    let args = ["--pin", "--interface", dev.as_str()];
    let started = Prestack::start_binary(mute, &bed.server, &args);
    ensure!(started.is_err(), "it came to serve");
    let own = format!("ps-{}-", std::process::id());
    for folder in ["/run/prestack", "/sys/fs/bpf/prestack"] {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            ensure!(!name.starts_with(&own), "{} is left", path.display());
        }
    }
    nothing_attached(&bed.server, dev)
}
