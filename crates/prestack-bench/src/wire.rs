//! Programs of the benchmarks' own on devices: a wire between two devices of a namespace, on which a share
//! of the frames is lost, and an echo.

use std::path::Path;

use anyhow::{Context, Result};
use aya::maps::{Array, PerCpuArray};
use aya::programs::links::FdLink;
use aya::programs::tc::{self, SchedClassifierLink};
use aya::programs::{SchedClassifier, TcAttachType, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};
use nix::net::if_::if_nametoindex;
use prestack_testbed::Namespace;

use crate::kernel::OBJECT;

/// The program of the object.
const WIRE: &str = "wire";
/// The program that is an echo.
const BOUNCE: &str = "bounce";

/// The wire; the devices are apart again when it is dropped.
pub struct Wire {
    ebpf: Ebpf,
    namespace: Namespace,
    links: Vec<SchedClassifierLink>,
}

impl Wire {
    /// Joins two devices of `namespace`.
    ///
    /// # Errors
    /// When the kernel refuses the program.
    pub fn new(namespace: &Namespace, ports: [&str; 2]) -> Result<Self> {
        let mut ebpf = EbpfLoader::new()
            .load(OBJECT)
            .context("loading the wire into the kernel")?;
        let links = namespace.run(|| join(&mut ebpf, ports))?;
        Ok(Self {
            ebpf,
            namespace: namespace.clone(),
            links,
        })
    }

    /// From now on this share of the frames is lost, each way.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_loss(&mut self, share: f64) -> Result<()> {
        let loss = (share * (1u64 << 32) as f64) as u64;
        Ok(wire_map(&mut self.ebpf)?.set(2, loss, 0)?)
    }

    /// Frames lost so far.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn lost(&self) -> Result<u64> {
        let map = self.ebpf.map("LOST").context("there is no map LOST")?;
        Ok(Array::<_, u64>::try_from(map)?.get(&0, 0)?)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let links = std::mem::take(&mut self.links);
        // Detaching names the device by its number, which is another's elsewhere.
        self.namespace.run(|| drop(links));
    }
}

/// An XDP program that sends every UDP datagram over IPv4 back; it goes away when this is dropped.
pub(crate) struct Echo {
    ebpf: Ebpf,
    _link: FdLink,
}

impl Echo {
    /// Attaches it to `dev` in `namespace`.
    pub(crate) fn new(namespace: &Namespace, dev: &str) -> Result<Self> {
        let mut ebpf = load_echo()?;
        let program = echo(&mut ebpf)?;
        let link = namespace.run(|| {
            let number = if_nametoindex(dev)?;
            let link = program.attach_to_if_index(number, XdpMode::Driver)?;
            anyhow::Ok(program.take_link(link)?)
        });
        let link = link.with_context(|| format!("attaching the echo to {dev}"))?;
        Ok(Self {
            ebpf,
            _link: link.try_into()?,
        })
    }

    /// Datagrams sent back so far.
    pub(crate) fn count(&self) -> Result<u64> {
        counted(&self.ebpf, "BOUNCED")
    }
}

/// What a program has counted in this map of its object, on all CPUs.
fn counted(ebpf: &Ebpf, map: &str) -> Result<u64> {
    let found = ebpf
        .map(map)
        .with_context(|| format!("there is no map {map}"))?;
    let counts = PerCpuArray::<_, u64>::try_from(found)?.get(&0, 0)?;
    Ok(counts.iter().sum())
}

/// Pins the echo at `path`, as a peer's program would be.
///
/// # Errors
/// When the kernel refuses, or `path` is not in a BPF file system.
pub fn pin_echo(path: &Path) -> Result<()> {
    let mut ebpf = load_echo()?;
    let pinned = echo(&mut ebpf)?.pin(path);
    pinned.with_context(|| format!("pinning the echo at {}", path.display()))
}

fn load_echo() -> Result<Ebpf> {
    let mut ebpf = EbpfLoader::new()
        .load(OBJECT)
        .context("loading the echo into the kernel")?;
    echo(&mut ebpf)?.load().context("loading the echo")?;
    Ok(ebpf)
}

fn echo(ebpf: &mut Ebpf) -> Result<&mut Xdp> {
    let program = ebpf.program_mut(BOUNCE);
    Ok(program.context("there is no program bounce")?.try_into()?)
}

fn join(ebpf: &mut Ebpf, ports: [&str; 2]) -> Result<Vec<SchedClassifierLink>> {
    for (i, port) in ports.into_iter().enumerate() {
        let number = if_nametoindex(port).with_context(|| format!("finding {port}"))?;
        wire_map(ebpf)?.set(i as u32, u64::from(number), 0)?;
    }
    let program = ebpf.program_mut(WIRE).context("there is no program wire")?;
    let program: &mut SchedClassifier = program.try_into()?;
    program.load().context("loading the wire")?;
    let mut links = Vec::new();
    for port in ports {
        // There is none where TCX is; and where there is one already that is as good.
        let _ = tc::qdisc_add_clsact(port);
        let link = program
            .attach(port, TcAttachType::Ingress)
            .with_context(|| format!("attaching the wire to {port}"))?;
        links.push(program.take_link(link)?);
    }
    Ok(links)
}

fn wire_map(ebpf: &mut Ebpf) -> Result<Array<&mut aya::maps::MapData, u64>> {
    let map = ebpf.map_mut("WIRE").context("there is no map WIRE")?;
    Ok(Array::try_from(map)?)
}
