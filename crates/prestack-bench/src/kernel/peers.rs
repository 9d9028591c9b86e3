//! Nanoseconds of a GET in other caches' programs.

use anyhow::{Context, Result};

use super::Cost;
use super::form::Form;
use super::measure::{XDP_TX, typical};
use super::packet::{Layers, PORT};
use super::programs::run_once;
use super::source::{KEY_SIZE, Requests, Source};
use crate::dataset::Dataset;
use crate::peer::Peer;
use crate::progress::Progress;
use crate::report::whole;

/// Numbers of keys.
const KEYS: [u32; 3] = [1, 1_000, 100_000];
/// Bytes of a value.
const VALUE_SIZE: usize = 32;
/// GETs whose fate is looked at before each measurement.
const SAMPLE: u32 = 100;

/// Steps of [`run`] for its progress.
pub(super) fn steps(peers: &[Peer], rounds: u32) -> usize {
    peers.len() * KEYS.len() * (1 + rounds as usize)
}

/// Measures each of the peers. What their caches hold and how old it may be is their own affair: of each
/// row it is told how many of the GETs were answered.
pub(super) fn run(peers: &[Peer], rounds: u32, progress: &Progress) -> Result<Vec<Cost>> {
    let mut costs = Vec::new();
    for peer in peers {
        for keys in KEYS {
            let cost = measure(peer, keys, rounds, progress);
            costs.push(cost.with_context(|| format!("measuring {}", peer.name))?);
        }
    }
    Ok(costs)
}

fn measure(peer: &Peer, keys: u32, rounds: u32, progress: &Progress) -> Result<Cost> {
    let name = format!("{}, {} keys", peer.name, whole(keys.into()));
    progress.step(&format!("{name}: filling its cache"));
    let (xdp, tc) = (peer.program()?, peer.tc_program()?);
    let dataset = Dataset::new(keys, KEY_SIZE, VALUE_SIZE)?;
    let form = Form::Get(1);
    let requests = Requests::gets(PORT, 0..keys);
    for n in 0..keys {
        let id = n as u16;
        let ran = run_once(&xdp, &requests.packet(&dataset, &[n], id))?;
        if let (Some(tc), true) = (&tc, ran.action != XDP_TX) {
            run_once(tc, &Layers::V4.to_client(id, &form.hit(&dataset, &[n])))?;
        }
    }
    let mut answered = 0;
    for n in (0..SAMPLE).map(|i| i % keys) {
        let ran = run_once(&xdp, &requests.packet(&dataset, &[n], n as u16))?;
        answered += u32::from(ran.action == XDP_TX);
    }
    let mut source = Source::load(&dataset, requests)?;
    source.suit(&xdp)?;
    let mut round = || {
        source.aim(None)?;
        let echo = typical(&mut source)?;
        source.aim(Some(&xdp))?;
        anyhow::Ok((typical(&mut source)?, echo))
    };
    // The first runs find caches cold.
    round()?;
    let mut costs = Vec::new();
    for number in 1..=rounds {
        progress.step(&format!("{name}: round {number}"));
        costs.push(round()?);
    }
    let packet = format!("{}: get, {answered} of {SAMPLE} answered", peer.name);
    Ok(Cost::of_unknown_memory(packet, (keys, VALUE_SIZE), &costs))
}
