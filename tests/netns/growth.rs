//! A cache that uses more of its memory as it fills, while clients read and write.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use prestack_testbed::{MemcachedOptions, UdpClient, pace};
use prestack_tests::stage::{Stage, set, store};

/// Room for some 60,000 small items, of which a sixteenth is used at first.
const ARGS: [&str; 6] = ["--memory", "8MiB", "--max-age", "60s", "--settle", "100ms"];
const MEMORY_KIB: f64 = 8192.0;
/// More than a quarter of the memory has room for.
const KEYS: usize = 30_000;
/// One in so many keys is written in each round.
const WRITES: usize = 100;

/// A key and its value after so many writes.
fn item(number: usize, written: usize) -> (Vec<u8>, Vec<u8>) {
    let key = format!("key-{number:06}").into_bytes();
    (key, format!("{number} written {written}").into_bytes())
}

/// How much of the memory is in use, in KiB.
fn in_use(stage: &Stage) -> Result<f64> {
    let status = stage.prestack.instance().command(&["status"])?;
    let row = status.lines().find(|line| line.starts_with("memory"));
    let row = row.with_context(|| status.clone())?;
    let size = row
        .split('(')
        .nth(1)
        .and_then(|rest| rest.strip_suffix(" in use)"));
    let (number, unit) = size
        .and_then(|size| size.split_once(' '))
        .with_context(|| row.to_owned())?;
    let factor = match unit {
        "KiB" => 1.0,
        "MiB" => 1024.0,
        _ => anyhow::bail!("{row}"),
    };
    Ok(number.parse::<f64>()? * factor)
}

/// Asks for every key once, and writes some of them; returns the share of hits.
fn round(
    stage: &Stage,
    client: &mut UdpClient,
    written: &mut [usize],
    round: usize,
) -> Result<f64> {
    let before = stage.hits()?;
    for (number, written) in written.iter_mut().enumerate() {
        if number % WRITES == round % WRITES {
            *written += 1;
            let (key, value) = item(number, *written);
            ensure!(client.request(&set(&key, &value))? == b"STORED\r\n");
        }
        let (key, value) = item(number, *written);
        let got = client.get(&key)?;
        ensure!(
            got.as_ref() == Some(&value),
            "{} instead of {}",
            got.as_deref().unwrap_or(b"nothing").escape_ascii(),
            value.escape_ascii()
        );
    }
    Ok((stage.hits()? - before) as f64 / written.len() as f64)
}

#[test]
fn it_grows_until_everything_hits_and_is_right_meanwhile() -> Result<()> {
    let stage = Stage::with(MemcachedOptions::default(), &ARGS)?;
    let mut written = vec![0; pace::volume(KEYS)];
    let mut behind = stage.behind()?;
    for number in 0..written.len() {
        let (key, value) = item(number, 0);
        store(&mut behind, &key, &value)?;
    }
    let first = in_use(&stage)?;
    assert!(first < MEMORY_KIB / 8.0, "{first} KiB are in use at first");

    let mut client = stage.udp()?;
    let start = Instant::now();
    let mut rounds = Vec::new();
    while rounds.last().is_none_or(|share| *share < 0.97) {
        ensure!(
            start.elapsed() < pace::patience(Duration::from_secs(60)),
            "{rounds:?}"
        );
        rounds.push(round(&stage, &mut client, &mut written, rounds.len())?);
        println!(
            "{} hits, {} KiB in use",
            rounds[rounds.len() - 1],
            in_use(&stage)?
        );
    }
    let last = in_use(&stage)?;
    assert!(last > first, "{first} KiB were in use, and are: {rounds:?}");
    Ok(())
}
