//! Series of random packets, and what they are made of.

use std::time::{Duration, Instant};

use fastrand::Rng;
use prestack::doors::{DoorSpec, Transports};

use super::both::Both;
use crate::bytes::key_of;
use crate::harness::{Setup, random};
use crate::packet::SERVER4;

/// For how long random packets are compared.
const SPAN: Duration = Duration::from_secs(2);
/// Packets of one series.
pub(super) const SERIES: usize = 120;
/// A difference that shows so often is none of the clock, which may advance between two runs, and often does in a busy
/// emulated machine.
const REPETITIONS: usize = 12;

/// Another memcached's.
pub(super) const SECOND_PORT: u16 = 11311;

/// Runs series of random packets through two datapaths, each from a seed of its own.
pub(super) fn compare_at_random(series: fn(&mut Rng, &mut Both, &[Vec<u8>])) {
    let mut seeds = random();
    // The programs have to be loaded first.
    let mut start = None;
    let mut count = 0;
    while start.is_none_or(|start: Instant| start.elapsed() < SPAN) {
        let seed = seeds.u64(..);
        let run = || {
            let mut random = Rng::with_seed(seed);
            let keys = some_keys(&mut random);
            let mut both = Both::with(&some_setup(&mut random));
            series(&mut random, &mut both, &keys);
            both.compare(&keys);
            both.differences.into_iter().next()
        };
        if let Some(difference) = lasting_difference(run) {
            panic!("series {seed}: {difference}");
        }
        start.get_or_insert_with(Instant::now);
        count += 1;
    }
    println!("{count} series");
}

/// The difference that the last of some repetitions shows; `None` if one shows none.
pub(super) fn lasting_difference(mut run: impl FnMut() -> Option<String>) -> Option<String> {
    let mut difference = None;
    for _ in 0..REPETITIONS {
        difference = Some(run()?);
    }
    difference
}

fn some_keys(random: &mut Rng) -> Vec<Vec<u8>> {
    let mut keys: Vec<_> = [1, 3, 8, 13, 250].map(key_of).into();
    for _ in 0..3 {
        let len = random.usize(1..=251);
        keys.push((0..len).map(|_| random.u8(0x21..)).collect());
    }
    keys
}

fn some_setup(random: &mut Rng) -> Setup {
    let mut setup = Setup {
        buckets: 1024,
        ..Setup::default()
    };
    if random.u8(..4) != 0 {
        // What is odd then does not keep all that follows from being cached.
        setup.settle = Duration::ZERO;
    }
    setup.doors.push(DoorSpec {
        address: Some(SERVER4.into()),
        port: SECOND_PORT,
        backend: 3,
        serve_tcp: true,
        serve_udp: true,
        transports: Transports::all(Some(SERVER4.into())),
    });
    match random.u8(..16) {
        0 => setup.mtu = random.u32(60..600),
        1 => setup.serve_for = Duration::ZERO,
        2 => setup
            .allow
            .insert(0, "10.0.0.128/25".parse().expect("a network")),
        3 => setup.allow.clear(),
        4 => setup.serve_reserved_ports = true,
        5 => {
            setup.rate_interval = Duration::from_secs(1);
            setup.rate_burst = Duration::from_secs(5);
        }
        6 => setup.links.clear(),
        7 => setup.links[0].allow = random.u64(..) & !1,
        8 => setup.links.swap(0, 1),
        9 => setup.doors.retain(|door| door.address.is_none()),
        10 => setup.doors[0].serve_udp = false,
        11 => setup.doors.swap(0, 1),
        _ => {}
    }
    setup
}

pub(super) fn one_of<'a, T>(random: &mut Rng, all: &'a [T]) -> &'a T {
    &all[random.usize(..all.len())]
}

pub(super) fn is_rare(random: &mut Rng) -> bool {
    random.u8(..24) == 0
}

/// Changes, adds or takes away a byte, at times.
pub(super) fn garble(random: &mut Rng, bytes: &mut Vec<u8>) {
    const BYTES: &[u8] = b"\0\t\n\r !0129_gGs\x1f\x7f\x80\xff-+";
    if bytes.is_empty() || !is_rare(random) {
        return;
    }
    let at = random.usize(..bytes.len());
    let byte = *one_of(random, BYTES);
    match random.u8(..4) {
        0 => bytes.insert(at, byte),
        1 => drop(bytes.remove(at)),
        2 => bytes[at] ^= 1 << random.u8(..8),
        _ => bytes[at] = byte,
    }
}

pub(super) fn some_value(random: &mut Rng) -> Vec<u8> {
    const ODD: [&[u8]; 7] = [
        b"",
        b"\r\n",
        b"END\r\n",
        b"\r\nEND\r\nVALUE a 0 1\r\nx",
        b"STORED\r\n",
        b"a\r\nEND",
        b"get a\r\n",
    ];
    if random.bool() {
        return one_of(random, &ODD).to_vec();
    }
    let len = *one_of(
        random,
        &[3, 9, 10, 50, 64, 99, 200, 990, 1000, 1024, 1300, 1400],
    );
    let len = len + random.usize(..8);
    (0..len).map(|_| random.u8(..)).collect()
}

pub(super) fn set_of(key: &[u8], numbers: &str, value: &[u8], more: &str) -> Vec<u8> {
    let line = format!(" {numbers} {}{more}\r\n", value.len());
    [b"set ", key, line.as_bytes(), value, b"\r\n"].concat()
}
