//! Nanoseconds of a packet in `rx`, by `BPF_PROG_TEST_RUN`: the program alone, without driver and
//! stack.
//!
//! A program of our own makes each packet and hands it to `rx` by a tail call (crate
//! `prestack-bench-ebpf`). The same with a program that does nothing is taken off.

mod datapath;
mod form;
mod measure;
mod packet;
mod programs;
mod segments;
mod sequence;
mod source;
mod tcp;

use std::fmt::{self, Write};

use anyhow::{Context, Result, ensure};
use prestack_testbed::cpu;
use serde::Serialize;

use crate::progress::Progress;
use crate::report::whole;
use form::Form;
use measure::Filled;
use packet::Layers;
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

/// Every form of request that prestack answers, and what else can come.
const KINDS: [Kind; 19] = {
    use Form::{Binary, BinaryKey, Get, Gets, Meta, MetaBase64, MetaFull};
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
        Kind::hit(MetaBase64),
        Kind::hit(Binary),
        Kind::hit(BinaryKey),
    ]
};

const SETUPS: [Setup; 10] = {
    const HIT: Kind = Kind::HIT;
    const MISS: Kind = Kind::MISS;
    /// The default of `prestack run --memory`.
    const DEFAULT: u32 = 256;
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

/// What packets of a kind cost.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Cost {
    /// What it is, in words.
    packet: String,
    keys: u32,
    value_size: usize,
    memory_mib: u32,
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
        let median = |of: fn(&(f64, f64)) -> f64| crate::comparison::median(rounds.iter().map(of));
        let (keys, value_size, memory_mib) = of;
        Self {
            packet,
            keys,
            value_size,
            memory_mib,
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
pub(crate) fn steps(rounds: u32, is_tcp_alone: bool) -> usize {
    let of_setup = |setup: &Setup| 1 + setup.kinds.len() * rounds as usize;
    let of_udp: usize = SETUPS.iter().map(of_setup).sum();
    tcp::steps(rounds) + if is_tcp_alone { 0 } else { of_udp }
}

/// Measures prestack's `object`, or what it does with TCP alone.
pub(crate) fn run(
    object: &[u8],
    rounds: u32,
    is_tcp_alone: bool,
    progress: &Progress,
) -> Result<Vec<Cost>> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "loading BPF programs takes root's privileges"
    );
    let measure_all = || {
        cpu::pin_thread(&[last_cpu()?])?;
        let mut costs = Vec::new();
        for setup in if is_tcp_alone { &[][..] } else { &SETUPS } {
            let keys = whole(setup.keys.into());
            progress.step(&format!("filling the cache with {keys} keys"));
            let filled = Filled::new(object, *setup)?;
            for &kind in setup.kinds {
                costs.push(filled.measure(kind, rounds, progress)?);
            }
        }
        costs.extend(tcp::run(object, rounds, progress)?);
        Ok(costs)
    };
    // A thread of its own, as it stays on one CPU.
    std::thread::scope(|scope| scope.spawn(measure_all).join()).expect("measuring does not panic")
}

/// The last CPU that this process may use: the first ones have more to do.
fn last_cpu() -> Result<usize> {
    let cpus = cpu::all()?;
    cpus.last().copied().context("this process may use no CPU")
}

/// Net ns of a plain hit with 1,000 keys, by bytes of the value.
pub(crate) fn hits_by_size(costs: &[Cost]) -> Vec<(f64, f64)> {
    let is_hit = |cost: &&Cost| cost.packet == Kind::HIT.to_string() && cost.keys == 1_000;
    let mut points: Vec<_> = costs
        .iter()
        .filter(is_hit)
        .map(|cost| (cost.value_size as f64, cost.net_ns))
        .collect();
    points.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    points
}

/// The costs as a table.
pub(crate) fn table(costs: &[Cost]) -> String {
    let mut table = String::new();
    let mut row = |packet: &str, cells: [&str; 6]| {
        let [keys, value, memory, rx, echo, net] = cells;
        writeln!(
            table,
            "{packet:<33}{keys:>9}{value:>7}{memory:>9}{rx:>8}{echo:>8}{net:>8}"
        )
        .expect("a string takes everything");
    };
    row(
        "packet",
        ["keys", "value", "memory", "program", "echo", "net ns"],
    );
    for cost in costs {
        row(
            &cost.packet,
            [
                &whole(cost.keys.into()),
                &cost.value_size.to_string(),
                &format!("{} MiB", cost.memory_mib),
                &format!("{:.1}", cost.rx_ns),
                &format!("{:.1}", cost.echo_ns),
                &format!("{:.1}", cost.net_ns),
            ],
        );
    }
    table
}
