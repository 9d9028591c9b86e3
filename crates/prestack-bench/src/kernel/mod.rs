//! Nanoseconds of a packet in `rx`, by `BPF_PROG_TEST_RUN`: the program alone, without driver and
//! stack.
//!
//! A program of our own makes each packet and hands it to `rx` by a tail call (crate
//! `prestack-bench-ebpf`). The same with a program that does nothing is taken off.

mod datapath;
pub(crate) mod flood;
mod form;
pub(crate) mod hit_rate;
mod measure;
mod packet;
mod peers;
mod programs;
mod scale;
mod segments;
mod sequence;
mod source;
mod tcp;

use std::fmt;

use anyhow::{Context, Result, ensure};
use prestack_testbed::cpu;
use serde::Serialize;

use crate::peer::Peer;
use crate::plot::{Line, Plot, Scale};
use crate::progress::Progress;
use crate::report::whole;
use crate::section::Section;
use crate::table::Table;
use form::Form;
use measure::Filled;
use packet::Layers;
use scale::Scaling;
pub(crate) use source::OBJECT;

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// A GET that is answered.
    Hit,
    /// The same in a buffer without room behind the packet, as veth has it.
    HitGrownAtHead,
    /// A GET for keys that are not there. memcached's answers are seen too, but not measured.
    Miss,
    /// The same request to a port that is nobody's.
    OtherPort,
}

/// Packets that are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind {
    form: Form,
    layers: Layers,
    fate: Fate,
}

impl Kind {
    const HIT: Self = Self::hit(Form::Get(1));
    const MISS: Self = Self::miss(Form::Get(1));

    const fn hit(form: Form) -> Self {
        Self::of(form, Layers::V4, Fate::Hit)
    }

    const fn miss(form: Form) -> Self {
        Self::of(form, Layers::V4, Fate::Miss)
    }

    const fn of(form: Form, layers: Layers, fate: Fate) -> Self {
        Self { form, layers, fate }
    }

    fn is_hit(&self) -> bool {
        matches!(self.fate, Fate::Hit | Fate::HitGrownAtHead)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.fate {
            Fate::Hit | Fate::HitGrownAtHead => "hit",
            Fate::Miss => "miss",
            Fate::OtherPort => "another port",
        })?;
        if self.form != Form::Get(1) {
            write!(f, ", {}", self.form)?;
        }
        f.write_str(match self.layers {
            Layers::V4 => "",
            Layers::Tagged => ", VLAN tag",
            Layers::V6 => ", IPv6",
        })?;
        if self.fate == Fate::HitGrownAtHead {
            f.write_str(", packet grown at its head")?;
        }
        Ok(())
    }
}

/// A cache, and what is measured on it.
#[derive(Clone, Copy, Debug)]
struct Setup {
    keys: u32,
    value_size: usize,
    memory_mib: u32,
    /// Misses first: the few that there are among hits are not answered, and would be in their way.
    kinds: &'static [Kind],
}

impl Setup {
    /// Whether hits on two CPUs are measured on it.
    fn scales(&self) -> bool {
        let Self {
            keys,
            value_size,
            memory_mib,
            kinds,
        } = self;
        scale::KEYS.contains(keys)
            && *value_size == 32
            && *memory_mib == DEFAULT
            && kinds.contains(&Kind::HIT)
    }
}

/// The default of `prestack run --memory`.
const DEFAULT: u32 = 256;

/// Every form of request that prestack answers, and what else can come. Keys in base64 are other keys: they have a cache
/// of their own, so that none holds more of them than it says.
const KINDS: [Kind; 18] = {
    use Form::{Binary, BinaryKey, Get, Gets, Meta, MetaFull};
    [
        Kind::of(Get(1), Layers::V4, Fate::OtherPort),
        Kind::MISS,
        Kind::miss(Gets),
        Kind::miss(Get(2)),
        Kind::miss(Get(8)),
        Kind::miss(Meta),
        Kind::miss(Binary),
        Kind::HIT,
        Kind::of(Get(1), Layers::V4, Fate::HitGrownAtHead),
        Kind::of(Get(1), Layers::Tagged, Fate::Hit),
        Kind::of(Get(1), Layers::V6, Fate::Hit),
        Kind::hit(Gets),
        Kind::hit(Get(2)),
        Kind::hit(Get(8)),
        Kind::hit(Meta),
        Kind::hit(MetaFull),
        Kind::hit(Binary),
        Kind::hit(BinaryKey),
    ]
};

const SETUPS: [Setup; 11] = {
    const HIT: Kind = Kind::HIT;
    const MISS: Kind = Kind::MISS;
    const fn setup(keys: u32, value_size: usize, memory_mib: u32, kinds: &'static [Kind]) -> Setup {
        Setup {
            keys,
            value_size,
            memory_mib,
            kinds,
        }
    }
    [
        setup(1_000, 32, DEFAULT, &KINDS),
        setup(1_000, 32, DEFAULT, &[Kind::hit(Form::MetaBase64)]),
        setup(1, 32, DEFAULT, &[HIT]),
        setup(10_000, 32, DEFAULT, &[HIT]),
        setup(100_000, 32, DEFAULT, &[MISS, HIT]),
        setup(1_000_000, 32, DEFAULT, &[MISS, HIT]),
        setup(1_000, 1, DEFAULT, &[HIT]),
        setup(1_000, 100, DEFAULT, &[HIT]),
        setup(1_000, 400, DEFAULT, &[HIT]),
        setup(1_000, 1_000, DEFAULT, &[HIT]),
        setup(1_000, 1_300, DEFAULT, &[HIT]),
    ]
};

/// All that is measured in the kernel.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Measured {
    costs: Vec<Cost>,
    /// Of hits on two CPUs; none where there is only one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    scaling: Vec<Scaling>,
}

/// What packets of a kind cost.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Cost {
    /// What it is, in words.
    packet: String,
    keys: u32,
    value_size: usize,
    /// Not known of other caches.
    memory_mib: Option<u32>,
    /// Making the packet and running `rx` on it, or `tx` if it is memcached's.
    rx_ns: f64,
    /// Making the packet and running a program on it that does nothing.
    echo_ns: f64,
    /// The difference: median of the rounds', which follow.
    net_ns: f64,
    rounds_net_ns: Vec<f64>,
}

impl Cost {
    /// The medians of rounds, each of which gives the time with a program and the time with one that does
    /// nothing; of so many keys, bytes of a value and MiB.
    fn new(packet: String, of: (u32, usize, u32), rounds: &[(f64, f64)]) -> Self {
        let (keys, value_size, memory_mib) = of;
        Self {
            memory_mib: Some(memory_mib),
            ..Self::of_unknown_memory(packet, (keys, value_size), rounds)
        }
    }

    /// The same, where the memory is not known.
    fn of_unknown_memory(packet: String, of: (u32, usize), rounds: &[(f64, f64)]) -> Self {
        let median = |of: fn(&(f64, f64)) -> f64| crate::outcome::median(rounds.iter().map(of));
        let (keys, value_size) = of;
        Self {
            packet,
            keys,
            value_size,
            memory_mib: None,
            rx_ns: median(|(program, _)| *program),
            echo_ns: median(|(_, echo)| *echo),
            net_ns: median(|(program, echo)| program - echo),
            rounds_net_ns: rounds
                .iter()
                .map(|(program, echo)| program - echo)
                .collect(),
        }
    }
}

/// Steps of [`run`] for its progress.
pub(crate) fn steps(rounds: u32, is_tcp_alone: bool, peers: &[Peer]) -> usize {
    let of_setup = |setup: &Setup| 1 + setup.kinds.len() * rounds as usize;
    let of_udp: usize = SETUPS.iter().map(of_setup).sum();
    let of_udp = of_udp + scale::KEYS.len() * scale::steps(rounds) + peers::steps(peers, rounds);
    tcp::steps(rounds) + if is_tcp_alone { 0 } else { of_udp }
}

/// Measures prestack's `object` and peers, or what prestack does with TCP alone.
pub(crate) fn run(
    object: &[u8],
    rounds: u32,
    is_tcp_alone: bool,
    peers: &[Peer],
    progress: &Progress,
) -> Result<Measured> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "loading BPF programs takes root's privileges"
    );
    let measure_all = || {
        let cpus = cpu::all()?;
        // The last: the first ones have more to do.
        let last = *cpus.last().context("this process may use no CPU")?;
        cpu::pin_thread(&[last])?;
        let (mut costs, mut scaling) = (Vec::new(), Vec::new());
        for setup in if is_tcp_alone { &[][..] } else { &SETUPS } {
            let keys = whole(setup.keys.into());
            progress.step(&format!("filling the cache with {keys} keys"));
            let filled = Filled::new(object, *setup)?;
            for &kind in setup.kinds {
                costs.push(filled.measure(kind, rounds, progress)?);
            }
            if let ([.., other, _], true) = (&cpus[..], setup.scales()) {
                let cpus = [last, *other];
                scaling.extend(scale::measure(&filled, cpus, rounds, progress)?);
                cpu::pin_thread(&[last])?;
            }
        }
        if !is_tcp_alone {
            costs.extend(peers::run(peers, rounds, progress)?);
        }
        costs.extend(tcp::run(object, rounds, progress)?);
        scaling.sort_by_key(Scaling::keys);
        Ok(Measured { costs, scaling })
    };
    // A thread of its own, as it stays on one CPU.
    std::thread::scope(|scope| scope.spawn(measure_all).join()).expect("measuring does not panic")
}

/// The costs of what is not TCP, with a plot by bytes of the value, those of TCP, and those on two CPUs.
pub(crate) fn sections(measured: &Measured) -> Vec<Section> {
    let (tcp, udp): (Vec<&Cost>, Vec<&Cost>) = measured
        .costs
        .iter()
        .partition(|cost| cost.packet.starts_with(tcp::PREFIX));
    let section = |name, title, plot, costs: &[&Cost]| {
        (!costs.is_empty()).then(|| Section {
            name,
            title,
            setting: String::new(),
            plot,
            table: table(costs),
        })
    };
    let sections = [
        section(
            "kernel",
            "Nanoseconds in the kernel",
            hits_by_size(&udp),
            &udp,
        ),
        section("kernel-tcp", "Nanoseconds of a TCP segment", None, &tcp),
    ];
    let scale = (!measured.scaling.is_empty()).then(|| Section {
        name: "scale",
        title: "Hits on two CPUs at once",
        setting: String::new(),
        plot: None,
        table: scale::table(&measured.scaling),
    });
    sections.into_iter().chain([scale]).flatten().collect()
}

/// Net ns of a plain hit with 1,000 keys, by bytes of the value.
fn hits_by_size(costs: &[&Cost]) -> Option<Plot> {
    let is_hit = |cost: &&&Cost| cost.packet == Kind::HIT.to_string() && cost.keys == 1_000;
    let hits = costs.iter().filter(is_hit);
    let mut points: Vec<_> = hits
        .map(|cost| (cost.value_size as f64, cost.net_ns))
        .collect();
    points.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    let line = Line {
        name: "hit, 1,000 keys".to_owned(),
        points,
    };
    (line.points.len() > 1).then(|| Plot {
        axes: ["bytes of the value", "net ns"],
        scale: Scale::Linear,
        lines: vec![line],
    })
}

fn table(costs: &[&Cost]) -> Table {
    let head = "packet,keys,value,memory,program ns,echo ns,net ns";
    let mut table = Table::new(1, head.split(','));
    for cost in costs {
        table.row([
            cost.packet.clone(),
            whole(cost.keys.into()),
            format!("{} B", whole(cost.value_size as f64)),
            cost.memory_mib
                .map_or_else(String::new, |mib| format!("{mib} MiB")),
            format!("{:.0}", cost.rx_ns),
            format!("{:.0}", cost.echo_ns),
            format!("{:.0}", cost.net_ns),
        ]);
    }
    table
}
