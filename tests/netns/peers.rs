//! Other caches in the benchmarks.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use prestack_bench::peer::Peer;
use prestack_bench::wire::pin_echo;
use prestack_testbed::{Testbed, UdpClient};
use prestack_tests::attached::nothing_attached;

/// A file of a BPF file system that goes away with this.
pub(crate) struct Pin(PathBuf);

impl Pin {
    pub(crate) fn new(name: &str) -> Self {
        Self(format!("/sys/fs/bpf/{name}-{}", std::process::id()).into())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A pinned program answers on a device for as long as it is put there. What is of the wrong kind is refused
/// by its path, and leaves nothing behind.
#[test]
fn a_pinned_program_takes_its_turn() -> Result<()> {
    let bed = Testbed::new()?;
    let dev = &bed.links[0].server_dev;
    let pin = Pin::new("echo");
    pin_echo(pin.path())?;
    let path = pin.path().to_str().context("the path is text")?;

    let peer: Peer = format!("echo={path}").parse()?;
    let attached = peer.attach(&bed.server, dev)?;
    let mut client = UdpClient::connect(&bed.client, (bed.links[0].server4, 11211).into())?;
    assert_eq!(client.request(b"get key\r\n")?, b"get key\r\n");
    drop(attached);
    nothing_attached(&bed.server, dev)?;

    let peer: Peer = format!("twice={path},{path}").parse()?;
    let refusal = peer.attach(&bed.server, dev).err();
    let refusal = format!("{:#}", refusal.context("XDP programs are not for TC")?);
    assert!(
        refusal.contains("twice") && refusal.contains(path),
        "{refusal}"
    );
    // Before anything is attached.
    assert!(refusal.contains("is no program for TC"), "{refusal}");
    nothing_attached(&bed.server, dev)?;
    Ok(())
}
