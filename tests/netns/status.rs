//! What `prestack status` tells, to people and to programs.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use prestack_testbed::{
    Memcached, MemcachedOptions, Namespace, Prestack, Signal, Testbed, binary, pace,
};
use prestack_tests::stage::{LASTING, Stage};
use serde_json::Value;

/// Exit statuses of `status --check`.
const WELL: i32 = 0;
const UNSERVED: i32 = 4;
const PROBLEMS: i32 = 5;

/// Runs one of prestack's commands in a namespace; returns its exit status and standard output.
fn ask(namespace: &Namespace, prestack: &Prestack, args: &[&str]) -> Result<(i32, String)> {
    let mut command = namespace.command(binary()?);
    command
        .args(args)
        .args(["--instance", prestack.instance().name()]);
    let output = command.output().context("running prestack")?;
    let status = output.status.code().context("no exit status")?;
    Ok((status, String::from_utf8(output.stdout)?))
}

/// Waits until `status --check` has this exit status; returns what it prints.
fn until(stage: &Stage, wanted: i32) -> Result<String> {
    pace::wait_for("an exit status", Duration::from_secs(10), || {
        let (status, text) = ask(&stage.bed.server, &stage.prestack, &["status", "--check"])?;
        Ok((status == wanted).then_some(text))
    })
}

#[test]
fn a_check_tells_by_its_exit_status() -> Result<()> {
    let mut stage = Stage::new()?;
    until(&stage, WELL)?;
    stage.prestack.signal(Signal::SIGSTOP)?;
    let text = until(&stage, UNSERVED)?;
    ensure!(text.contains("does not answer"), "{text}");
    // Without `--check` it is an answer like any other.
    let (status, again) = ask(&stage.bed.server, &stage.prestack, &["status"])?;
    assert_eq!(status, WELL);
    ensure!(again.contains("does not answer"), "{again}");
    stage.prestack.signal(Signal::SIGCONT)?;
    until(&stage, WELL)?;
    stage.memcached.kill()?;
    let text = until(&stage, UNSERVED)?;
    ensure!(text.contains("is gone"), "{text}");
    Ok(())
}

#[test]
fn a_check_tells_of_problems() -> Result<()> {
    let mut bed = Testbed::with_links(2)?;
    bed.links[1].free_client_dev();
    let memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
    let devs = bed.links.iter().map(|link| link.server_dev.as_str());
    let devs = devs.collect::<Vec<_>>().join(",");
    let args = ["--interface", &devs, "--mode", "native", "--no-watch-lo"];
    let prestack = Prestack::start(&bed.server, &[&args[..], &LASTING].concat())?;
    let stage = Stage {
        prestack,
        memcached,
        bed,
    };
    until(&stage, PROBLEMS)?;
    let (status, json) = ask(
        &stage.bed.server,
        &stage.prestack,
        &["status", "--check", "--json"],
    )?;
    assert_eq!(status, PROBLEMS);
    let json: Value = serde_json::from_str(&json)?;
    let answers = |at: usize| &json["interfaces"][at]["answers"];
    assert_eq!((answers(0), answers(1)), (&true.into(), &false.into()));
    Ok(())
}

#[test]
fn programs_are_told_the_same() -> Result<()> {
    let stage = Stage::new()?;
    let (_, json) = ask(&stage.bed.server, &stage.prestack, &["status", "--json"])?;
    let json: Value = serde_json::from_str(&json)?;
    assert_eq!(json["pid"], stage.prestack.pid());
    assert_eq!(json["daemon"], "running");
    assert_eq!(json["serving"], true);
    assert_eq!(json["elsewhere"], false);
    assert_eq!(json["interfaces"][0]["mode"], "native");
    let doors = json["backends"][0]["doors"].as_array().context("doors")?;
    let here = stage.server4();
    let door = doors
        .iter()
        .find(|door| door["address"] == here.ip().to_string());
    let door = door.context("the server's address")?;
    assert_eq!(
        (&door["port"], &door["udp"]),
        (&here.port().into(), &true.into())
    );
    Ok(())
}

#[test]
fn an_instance_in_another_network_namespace() -> Result<()> {
    let stage = Stage::new()?;
    let (_, here) = ask(&stage.bed.server, &stage.prestack, &["status"])?;
    ensure!(!here.contains("namespace"), "{here}");
    let (_, there) = ask(&stage.bed.client, &stage.prestack, &["status"])?;
    let words = format!("that of pid {}", stage.prestack.pid());
    ensure!(
        there.contains("namespace ") && there.contains(&words),
        "{there}"
    );
    let (status, done) = ask(&stage.bed.client, &stage.prestack, &["detach"])?;
    assert_eq!(status, 0);
    ensure!(done.contains("in another network namespace"), "{done}");
    Ok(())
}

#[test]
fn while_nothing_is_stored_it_says_so() -> Result<()> {
    const WORDS: &str = "nothing is stored for another";
    let settles = ["--memory", "32MiB", "--settle", "60s"];
    let stage = Stage::with(MemcachedOptions::default(), &settles)?;
    let (_, text) = ask(&stage.bed.server, &stage.prestack, &["status"])?;
    ensure!(text.contains(WORDS), "{text}");
    let stage = Stage::new()?;
    pace::wait_for("the settle time", Duration::from_secs(5), || {
        let (_, text) = ask(&stage.bed.server, &stage.prestack, &["status"])?;
        Ok((!text.contains(WORDS)).then_some(()))
    })
}
