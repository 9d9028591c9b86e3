//! More requests than a server can take, from one CPU: live frames (`BPF_F_TEST_XDP_LIVE_FRAMES`), Linux 5.18.

use std::ops::Range;

use anyhow::{Context, Result};
use aya::Ebpf;
use aya::maps::{Array, MapData};
use aya::programs::links::FdLink;
use aya::programs::{TestRun, TestRunAttrs, TestRunOptions, Xdp, XdpMode};
use nix::net::if_::if_nametoindex;
use prestack_testbed::Testbed;

use super::packet::{CLIENT_MAC, CLIENT4, PORT, SERVER_MAC, SERVER4};
use super::programs::{map_mut, program, program_mut, refused};
use super::source::{OBJECT, Requests, Source};
use crate::dataset::Dataset;

/// Frames that go through the kernel at once.
const BATCH: u32 = 64;

/// What takes the answers to floods at the client's end of a testbed, until it is dropped.
pub(crate) struct Sink {
    _ebpf: Ebpf,
    _link: FdLink,
}

impl Sink {
    /// Attaches it.
    ///
    /// # Errors
    /// When the kernel refuses the program.
    pub(crate) fn new(bed: &Testbed) -> Result<Self> {
        let dev = &bed.links[0].client_dev;
        let mut ebpf = Ebpf::load(OBJECT).context("loading the sink into the kernel")?;
        let sink = program_mut::<Xdp>(&mut ebpf, "sink")?;
        sink.load().map_err(|error| refused("sink", error))?;
        let link = bed.client.run(|| {
            let link = sink.attach_to_if_index(if_nametoindex(&dev[..])?, XdpMode::Driver)?;
            anyhow::Ok(FdLink::try_from(sink.take_link(link)?)?)
        });
        let link = link.with_context(|| format!("attaching the sink to {dev}"))?;
        Ok(Self {
            _ebpf: ebpf,
            _link: link,
        })
    }
}

/// A source of requests at the client's end of a testbed.
pub(crate) struct Flood<'a> {
    source: Source,
    bed: &'a Testbed,
}

impl<'a> Flood<'a> {
    /// Requests for these items of a dataset; those which it does not have are asked for too.
    ///
    /// # Errors
    /// When the kernel refuses the program.
    pub(crate) fn new(bed: &'a Testbed, dataset: &Dataset, items: Range<u32>) -> Result<Self> {
        let requests = Requests::gets(PORT, items);
        let dev = &bed.links[0].client_dev;
        let device = bed.client.run(|| if_nametoindex(&dev[..]))?;
        let mut source = Source::load_for(dataset, requests, device)?;
        let program = program_mut::<Xdp>(source.ebpf(), "flood")?;
        program.load().map_err(|error| refused("flood", error))?;
        Ok(Self { source, bed })
    }

    /// From now on no more than so many requests a second are sent.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn set_rate(&mut self, rate: Option<f64>) -> Result<()> {
        let interval = rate.map_or(0, |rate| (1e9 / rate) as u64);
        Ok(pace(self.source.ebpf())?.set(0, interval, 0)?)
    }

    /// How many requests were sent.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn sent(&mut self) -> Result<u64> {
        Ok(pace(self.source.ebpf())?.get(&2, 0)?)
    }

    /// Sends requests that are due, from the calling thread's CPU: it looks so often whether the next one is.
    ///
    /// # Errors
    /// When the kernel has no live frames.
    pub(crate) fn send(&mut self, looks: u32) -> Result<()> {
        let packet = self.source.buffer();
        let flood: &Xdp = program(self.source.ebpf(), "flood")?;
        // Where the calling thread is, there a device's number is looked up.
        let sent = self.bed.client.run(|| {
            flood.test_run(TestRunOptions {
                data_in: Some(&packet),
                repeat: looks,
                attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
                ..TestRunOptions::default()
            })
        });
        sent.context("sending live frames, which takes Linux 5.18")?;
        Ok(())
    }
}

fn pace(ebpf: &mut Ebpf) -> Result<Array<&mut MapData, u64>> {
    map_mut(ebpf, "PACE")
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
