//! prestack's programs with a cache of their own, attached to nothing.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use aya::maps::{Array, PerCpuArray, ProgramArray};
use aya::programs::{SchedClassifier, Xdp};
use aya::{Ebpf, EbpfLoader};
use nix::time::{ClockId, clock_gettime};
use prestack_abi::cache::{BUCKET_BYTES, Index};
use prestack_abi::config::{Attention, Config, Door, Link, MAPPED_V4, Net4, Net6};
use prestack_abi::control::CONTROLS;
use prestack_abi::extent::Extent;
use prestack_abi::names;
use prestack_abi::stats::Stats;

use crate::interrupt;

use super::packet::{Layers, NETWORK4, NETWORK6, PORT, SERVER_MAC, SERVER4, SERVER6, VLAN};
use super::programs::{Element, Ran, map_mut, program, program_mut, refused, run_once};

/// `XDP_PASS` (include/uapi/linux/bpf.h).
const XDP_PASS: u32 = 2;
/// The interface at which packets of a test run arrive, unless they say otherwise.
const LOOPBACK: u32 = 1;
/// Longer than any measurement, in ns: nothing that time brings about happens.
const HOUR: u64 = 3_600_000_000_000;
/// For how long an unanswered request is remembered, in ns, as `prestack run` sets it.
const REMEMBER: u64 = 130_000_000_000;

/// How often keys are asked for, at most: the cache grows meanwhile, and loses some.
const PASSES: u32 = 100;
/// Requests after which it is seen whether it should grow.
pub(super) const GROWS_AFTER: u32 = 100;

/// The loaded programs and maps.
pub(super) struct Datapath {
    ebpf: Ebpf,
    extent: Extent,
}

impl Datapath {
    /// Loads the `object` with a cache of `memory_mib` MiB.
    pub(super) fn load(object: &[u8], memory_mib: u32) -> Result<Self> {
        let buckets = ((u64::from(memory_mib) << 20) / BUCKET_BYTES as u64) as u32;
        let loaded = Self::with_buckets(object, buckets);
        loaded.with_context(|| format!("loading a cache of {memory_mib} MiB into the kernel"))
    }

    /// Loads the `object` with a cache of so many buckets.
    pub(super) fn with_buckets(object: &[u8], buckets: u32) -> Result<Self> {
        let extent = Extent::new(buckets);
        let buckets = extent.buckets();
        let mut ebpf = EbpfLoader::new()
            .map_max_entries(names::INDEX, buckets)
            .map_max_entries(names::BLOCKS, buckets)
            .load(object)?;
        program_mut::<Xdp>(&mut ebpf, names::RX)?
            .load()
            .map_err(|error| refused(names::RX, error))?;
        program_mut::<SchedClassifier>(&mut ebpf, names::TX)?
            .load()
            .map_err(|error| refused(names::TX, error))?;
        load_steps(&mut ebpf)?;
        let mut path = Self { ebpf, extent };
        path.configure(&config(extent.base))?;
        Ok(path)
    }

    /// Uses more of the cache if what is used is full, as the daemon has it.
    pub(super) fn grow(&mut self) -> Result<()> {
        let stats = self.stats()?;
        if !self.extent.is_full(&stats) {
            return Ok(());
        }
        let index: Array<_, Element<Index>> = map_mut(&mut self.ebpf, names::INDEX)?;
        let mut entries = 0;
        for bucket in 0..self.extent.in_use() {
            let Element(index) = index.get(&bucket, 0)?;
            entries += index.used();
        }
        self.extent.grow(entries);
        let config = self.config()?;
        let parts = self.extent.parts;
        let grown_ns =
            Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)?).as_nanos() as u64;
        self.configure(&Config {
            parts,
            grown_ns,
            ..config
        })
    }

    /// Has every entry be too old at once, so that every GET fetches it anew.
    pub(super) fn age(&mut self) -> Result<()> {
        let config = self.config()?;
        self.configure(&Config {
            max_age_ns: 1,
            refresh_age_ns: 1,
            ..config
        })
    }

    /// Nobody reads over UDP: what replies over TCP show is not stored.
    pub(super) fn skip_tcp_fills(&mut self) -> Result<()> {
        let config = self.config()?;
        self.configure(&Config {
            attention: Attention::Following as u32,
            ..config
        })
    }

    fn config(&mut self) -> Result<Config> {
        let map: Array<_, Element<Config>> = map_mut(&mut self.ebpf, names::CONFIG)?;
        let Element(config) = map.get(&0, 0)?;
        Ok(config)
    }

    fn configure(&mut self, config: &Config) -> Result<()> {
        let mut map: Array<_, Element<Config>> = map_mut(&mut self.ebpf, names::CONFIG)?;
        Ok(map.set(0, Element(*config), 0)?)
    }

    /// `tx`.
    pub(super) fn tx(&self) -> Result<&SchedClassifier> {
        program(&self.ebpf, names::TX)
    }

    /// `rx`.
    pub(super) fn rx(&self) -> Result<&Xdp> {
        program(&self.ebpf, names::RX)
    }

    /// Runs `rx` once.
    pub(super) fn run_rx(&self, packet: &[u8]) -> Result<Ran> {
        run_once(self.rx()?, packet)
    }

    /// Has keys asked for until all but a share of `strays` are in the cache. `lesson` gives the request
    /// and the answer for each.
    pub(super) fn teach(
        &mut self,
        keys: u32,
        strays: f64,
        lesson: impl Fn(u32) -> [Vec<u8>; 2],
    ) -> Result<()> {
        for _ in 0..PASSES {
            let mut missed = 0;
            for n in 0..keys {
                let [request, reply] = lesson(n);
                missed += u32::from(self.exchange(
                    &Layers::V4.to_server(PORT, n as u16, &request),
                    &Layers::V4.to_client(n as u16, &reply),
                )?);
                if n % GROWS_AFTER == 0 {
                    interrupt::check()?;
                    self.grow()?;
                }
            }
            if f64::from(missed) <= strays * f64::from(keys) {
                return Ok(());
            }
        }
        bail!("after {PASSES} passes over {keys} keys too few are in the cache")
    }

    /// Lets a request through and the answer out, as if memcached had given it. False if prestack answered.
    fn exchange(&self, request: &[u8], reply: &[u8]) -> Result<bool> {
        let passes = self.run_rx(request)?.action == XDP_PASS;
        if passes {
            self.answer(reply)?;
        }
        Ok(passes)
    }

    /// Lets an answer of memcached's out.
    pub(super) fn answer(&self, reply: &[u8]) -> Result<()> {
        run_once(self.tx()?, reply).map(|_| ())
    }

    /// The counters, added up over the CPUs.
    pub(super) fn stats(&self) -> Result<Stats> {
        let map = self.ebpf.map(names::STATS).context("there is no STATS")?;
        let map = PerCpuArray::<_, Element<Stats>>::try_from(map)?;
        let mut sum = Stats::default();
        for Element(stats) in map.get(&0, 0)?.iter() {
            sum.add(stats);
        }
        Ok(sum)
    }
}

/// Loads the programs that follow TCP flows, and lets the others hand over to them.
fn load_steps(ebpf: &mut Ebpf) -> Result<()> {
    program_mut::<Xdp>(ebpf, names::RX_TCP)?
        .load()
        .map_err(|error| refused(names::RX_TCP, error))?;
    program_mut::<SchedClassifier>(ebpf, names::TX_TCP)?
        .load()
        .map_err(|error| refused(names::TX_TCP, error))?;
    let rx = program::<Xdp>(ebpf, names::RX_TCP)?.fd()?.try_clone()?;
    let tx = program::<SchedClassifier>(ebpf, names::TX_TCP)?;
    let tx = tx.fd()?.try_clone()?;
    for (name, program) in [(names::RX_STEPS, rx), (names::TX_STEPS, tx)] {
        let mut map: ProgramArray<_> = map_mut(ebpf, name)?;
        map.set(0, &program, 0)?;
    }
    Ok(())
}

/// The counters that have changed.
pub(super) fn changes(before: &Stats, after: &Stats) -> HashMap<&'static str, u64> {
    let pairs = before.iter().zip(after.iter());
    pairs
        .map(|((name, before), (_, after))| (name, after - before))
        .filter(|(_, change)| *change != 0)
        .collect()
}

/// As `prestack run` configures a memcached that listens on all addresses of a host with an IPv4
/// and an IPv6 address.
fn config(base: u32) -> Config {
    let mut config = Config {
        seed: 0x0123_4567_89ab_cdef,
        serve_until: u64::MAX,
        max_age_ns: HOUR,
        refresh_age_ns: HOUR,
        settle_ns: HOUR,
        remember_ns: REMEMBER,
        base,
        controls: CONTROLS as u32,
        mtu: 1500,
        doors_len: 3,
        allow4_len: 1,
        allow6_len: 1,
        links_len: 2,
        ..Config::empty()
    };
    let door = |address, flags| Door {
        address,
        port: PORT.to_be(),
        backend: 0,
        flags,
    };
    let v4 = [0, 0, MAPPED_V4, u32::from_ne_bytes(SERVER4)];
    let serves = Door::SERVED | Door::SERVE_TCP;
    let both = Door::HAS_TCP4 | Door::HAS_TCP6;
    config.doors[0] = door(v4, serves | Door::HAS_TCP4);
    config.doors[1] = door(words(SERVER6), serves | Door::HAS_TCP6);
    config.doors[2] = door([0; 4], Door::ANY_ADDRESS | both);
    config.add_port(PORT);
    let (address, mask) = NETWORK4;
    config.allow4[0] = Net4 {
        address: u32::from_ne_bytes(address),
        mask: u32::from_ne_bytes(mask),
    };
    let (address, mask) = NETWORK6;
    config.allow6[0] = Net6 {
        address: words(address),
        mask: words(mask),
    };
    let [a, b, c, d, e, f] = SERVER_MAC;
    for (number, tag) in [0, Link::tag(false, VLAN)].into_iter().enumerate() {
        config.links[number] = Link {
            place: Link::place(LOOPBACK, 0, tag),
            mac: u64::from_ne_bytes([a, b, c, d, e, f, 0, 0]),
            allow: u64::MAX,
        };
    }
    config
}

/// An IPv6 address in four words, in network byte order.
fn words(address: [u8; 16]) -> [u32; 4] {
    std::array::from_fn(|i| {
        let bytes = [0, 1, 2, 3].map(|byte| address[4 * i + byte]);
        u32::from_ne_bytes(bytes)
    })
}
