//! `prestack bench`, as briefly as it can be: whether its results make sense and nothing of it stays, not how
//! fast anything is.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::Ebpf;
use aya::programs::Xdp;
use prestack::object::OBJECT;
use prestack_bench::wire::pin_echo;
use prestack_testbed::{binary, pace};
use serde_json::Value;

use crate::peers::Pin;

/// What a run of `prestack bench` printed, and what it said on standard error if it failed.
fn bench(args: &[&str]) -> Result<(Value, Option<String>)> {
    let mut command = Command::new(binary()?);
    command.args(["bench", "--rounds", "1", "--seconds", "1", "--json"]);
    command
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = command.spawn().context("running `prestack bench`")?;
    let pid = child.id();
    let output = Child::wait_with_output(child)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    nothing_left(pid)?;
    let json = serde_json::from_slice(&output.stdout);
    let json = json.with_context(|| format!("`prestack bench` said: {said}"))?;
    Ok((json, (!output.status.success()).then_some(said)))
}

/// Fails when a device, an instance or a pinned program of this process's testbeds stays. The kernel removes the devices of
/// a namespace some time after the last process in it has ended.
fn nothing_left(pid: u32) -> Result<()> {
    let mut left = Vec::new();
    let gone = pace::wait_for("all of the bench to go", Duration::from_secs(10), || {
        left = left_by(pid)?;
        Ok(left.is_empty().then_some(()))
    });
    gone.with_context(|| format!("still there: {left:?}"))
}

/// What there is of this process's testbeds.
fn left_by(pid: u32) -> Result<Vec<String>> {
    // A device with threaded NAPI has kernel threads of its name.
    let mut left = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = std::fs::read_to_string(entry?.path().join("comm")).unwrap_or_default();
        if [format!("napi/vs{pid}-"), format!("napi/vc{pid}-")]
            .iter()
            .any(|start| name.starts_with(start))
        {
            left.push(name.trim().to_owned());
        }
    }
    for folder in ["/run/prestack", "/sys/fs/bpf", "/sys/fs/bpf/prestack"] {
        let entries = std::fs::read_dir(folder).into_iter().flatten();
        for entry in entries {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.starts_with(&format!("ps-{pid}-")) {
                left.push(Path::new(folder).join(name).display().to_string());
            }
        }
    }
    Ok(left)
}

fn number(value: &Value) -> Result<f64> {
    value
        .as_f64()
        .with_context(|| format!("{value} is no number"))
}

/// In a flood the echo and prestack answer, memcached sees nothing of what they do, and misses among hits reach
/// memcached.
#[test]
fn a_flood_is_answered_and_misses_reach_memcached() -> Result<()> {
    if pace::is_slow() {
        return Ok(());
    }
    let (json, failure) = bench(&["--only", "open-loop", "--keys", "1000"])?;
    assert_eq!(failure, None);
    let how = &json["how"];
    assert_eq!((&how["rounds"], &how["seconds"]), (&1.into(), &1.into()));
    ensure!(
        how["date"].is_string() && how["prestack"].is_string(),
        "{how}"
    );
    let floods = json["overload"]["floods"].as_array().context("floods")?;
    assert_eq!(floods.len(), 3, "{json:#}");
    for flood in floods {
        let of = |name: &str| number(&flood[name]);
        ensure!(of("offered")? > 1_000.0 && of("busy")? > 0.0, "{flood}");
        if flood["side"] == "memcached" {
            ensure!(of("at_xdp")? == 0.0 && of("memcached")? > 0.0, "{flood}");
        } else {
            ensure!(of("at_xdp")? > 1_000.0, "{flood}");
            ensure!(of("memcached")? < 0.02 * of("at_xdp")?, "{flood}");
        }
        ensure!(of("at_xdp")? <= 1.05 * of("offered")?, "{flood}");
    }
    let mixtures = json["overload"]["mixtures"]
        .as_array()
        .context("mixtures")?;
    assert_eq!(mixtures.len(), 4, "{json:#}");
    let lowest = &mixtures[0];
    for mixture in mixtures {
        let of = |side: &str, name: &str| number(&mixture[side][name]);
        let hits = of("with", "at_xdp")?;
        let misses = of("with", "memcached")?;
        ensure!(hits > 0.0 && misses > 0.0, "{mixture}");
        // One of ten is a miss; hits are no more than were sent.
        ensure!(misses < 0.15 * hits, "{mixture}");
        if mixture["rate"] == lowest["rate"] {
            // It is no flood: memcached has time for them.
            ensure!(misses > 0.5 * hits / 9.0, "{mixture}");
        }
        ensure!(of("alone", "at_xdp")? == 0.0, "{mixture}");
    }
    Ok(())
}

/// A peer takes its turn in the closed loop: here one that lets everything pass.
#[test]
fn a_peer_takes_its_turn_in_the_closed_loop() -> Result<()> {
    if pace::is_slow() {
        return Ok(());
    }
    let pin = Pin::new("idle");
    let mut ebpf = Ebpf::load(OBJECT).context("loading prestack's programs")?;
    let pass = ebpf
        .program_mut("pass")
        .context("there is no program pass")?;
    let pass: &mut Xdp = pass.try_into()?;
    pass.load()?;
    pass.pin(pin.path())?;
    let peer = format!("idle={}", pin.path().display());
    let args = ["--only", "closed-loop", "--keys", "1000"];
    let (json, failure) = bench(&[&args[..], &["--always-on", "--peer", &peer]].concat())?;
    assert_eq!(failure, None);
    for comparison in json["comparisons"].as_array().context("comparisons")? {
        let [name, side] = &comparison["peers"][0].as_array().context("a peer")?[..] else {
            anyhow::bail!("a peer is a name and what it did: {comparison}");
        };
        ensure!(name == "idle" && number(&side["rate"])? > 0.0, "{side}");
        // What timed out and was answered late may look like a hit.
        ensure!(number(&side["hit_ratio"])? < 0.05, "{side}");
        let with = &comparison["with"];
        ensure!(
            number(&with["rate"])? > 0.0 && number(&with["wrong"])? == 0.0,
            "{with}"
        );
        ensure!(number(&with["hit_ratio"])? > 0.3, "{with}");
    }
    Ok(())
}

/// One that sends requests back gives wrong answers: the run fails and says whose they were.
#[test]
fn a_peer_that_answers_wrong_fails_the_run() -> Result<()> {
    if pace::is_slow() {
        return Ok(());
    }
    let pin = Pin::new("wrong");
    pin_echo(pin.path())?;
    let peer = format!("parrot={}", pin.path().display());
    let args = ["--only", "closed-loop", "--keys", "1000", "--peer", &peer];
    let failure = bench(&args);
    let failure = format!("{:#}", failure.err().context("it is no success")?);
    ensure!(
        failure.contains("the peer parrot") && failure.contains("were not memcached's"),
        "{failure}"
    );
    Ok(())
}
