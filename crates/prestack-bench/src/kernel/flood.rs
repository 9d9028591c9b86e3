//! More requests than a server can take, from one CPU: live frames (`BPF_F_TEST_XDP_LIVE_FRAMES`), Linux 5.18.

use anyhow::{Context, Result};
use aya::programs::links::FdLink;
use aya::programs::{TestRun, TestRunAttrs, TestRunOptions, Xdp, XdpMode};
use nix::net::if_::if_nametoindex;
use prestack_testbed::Testbed;

use super::packet::{CLIENT_MAC, CLIENT4, PORT, SERVER_MAC, SERVER4};
use super::programs::{program, program_mut, refused};
use super::source::{Requests, Source};
use crate::dataset::Dataset;

/// Frames that go through the kernel at once.
const BATCH: u32 = 64;

/// A source of requests at the client's end of a testbed, and what takes the answers there.
pub(crate) struct Flood<'a> {
    source: Source,
    bed: &'a Testbed,
    _sink: FdLink,
}

impl<'a> Flood<'a> {
    /// Requests for the `keys` first items of a dataset; those which it does not have are asked for too.
    ///
    /// # Errors
    /// When the kernel refuses the programs.
    pub(crate) fn new(bed: &'a Testbed, dataset: &Dataset, keys: u32) -> Result<Self> {
        let requests = Requests::gets(PORT, keys);
        let dev = &bed.links[0].client_dev;
        let device = bed.client.run(|| if_nametoindex(&dev[..]))?;
        let mut source = Source::load_for(dataset, requests, device)?;
        for name in ["flood", "sink"] {
            let program = program_mut::<Xdp>(source.ebpf(), name)?;
            program.load().map_err(|error| refused(name, error))?;
        }
        let sink = program_mut::<Xdp>(source.ebpf(), "sink")?;
        let sink = bed.client.run(|| {
            let link = sink.attach_to_if_index(device, XdpMode::Driver)?;
            anyhow::Ok(FdLink::try_from(sink.take_link(link)?)?)
        });
        Ok(Self {
            source,
            bed,
            _sink: sink.with_context(|| format!("attaching the sink to {dev}"))?,
        })
    }

    /// Sends so many requests, as fast as can be, from the calling thread's CPU.
    ///
    /// # Errors
    /// When the kernel has no live frames.
    pub(crate) fn send(&mut self, requests: u32) -> Result<()> {
        let packet = self.source.buffer();
        let flood: &Xdp = program(self.source.ebpf(), "flood")?;
        // Where the calling thread is, there a device's number is looked up.
        let sent = self.bed.client.run(|| {
            flood.test_run(TestRunOptions {
                data_in: Some(&packet),
                repeat: requests,
                attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
                ..TestRunOptions::default()
            })
        });
        sent.context("sending live frames, which takes Linux 5.18")?;
        Ok(())
    }
}

/// Gives a testbed's ends the addresses of the flood's packets.
///
/// # Errors
/// When `ip` fails.
pub(crate) fn address(bed: &mut Testbed) -> Result<()> {
    bed.links[0].free_client_dev();
    let bed = &*bed;
    let link = &bed.links[0];
    let mac = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
    for (namespace, dev, own) in [
        (&bed.server, &link.server_dev, SERVER_MAC),
        (&bed.client, &link.client_dev, CLIENT_MAC),
    ] {
        namespace.ip(["link", "set", dev, "address", &mac(own)])?;
    }
    bed.add_server_address(0, SERVER4.into())?;
    bed.add_client_address(0, CLIENT4.into())?;
    let client = std::net::Ipv4Addr::from(CLIENT4).to_string();
    let neighbour = ["neighbour", "replace", &client, "lladdr", &mac(CLIENT_MAC)];
    let on = ["dev", &link.server_dev, "nud", "permanent"];
    bed.server.ip(neighbour.into_iter().chain(on))?;
    Ok(())
}
