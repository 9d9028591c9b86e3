//! What `prestack status` tells, to people and to programs.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use prestack_testbed::{
    Memcached, MemcachedOptions, Namespace, Prestack, Signal, Testbed, binary, pace,
};
use prestack_tests::stage::{LASTING, PORT, Stage, start_prestack};
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
    let dev = stage.bed.links[0].server_dev.clone();
    stage.bed.server.ip(["link", "set", &dev, "down"])?;
    let text = until(&stage, PROBLEMS)?;
    ensure!(text.contains(&format!("interface {dev} is down")), "{text}");
    ensure!(
        text.contains(&format!("{dev} (native, tcx; down)")),
        "{text}"
    );
    stage.bed.server.ip(["link", "set", &dev, "up"])?;
    until(&stage, WELL)?;
    stage.memcached.kill()?;
    let text = until(&stage, UNSERVED)?;
    ensure!(text.contains("is gone"), "{text}");
    Ok(())
}

/// A memcached that comes back at another address is not missed where it was. Of two, one that goes is.
#[test]
fn a_memcached_that_has_moved_is_not_missed() -> Result<()> {
    let bed = Testbed::new()?;
    let at = |address: IpAddr| MemcachedOptions {
        addresses: vec![address],
        ..MemcachedOptions::default()
    };
    let [first, second] = [bed.links[0].server4, bed.links[0].server6];
    let memcached = Memcached::start(&bed.server, at(first))?;
    let prestack = start_prestack(&bed, 0, &LASTING)?;
    let mut stage = Stage {
        prestack,
        memcached,
        bed,
    };
    until(&stage, WELL)?;
    stage.memcached.kill()?;
    until(&stage, UNSERVED)?;
    stage.memcached = Memcached::start(&stage.bed.server, at(second))?;
    let text = until(&stage, WELL)?;
    ensure!(!text.contains("is gone"), "{text}");
    let mut other = Memcached::start(&stage.bed.server, at(first))?;
    pace::wait_for("both", Duration::from_secs(10), || {
        let text = until(&stage, WELL)?;
        Ok((text.matches("\nbackend ").count() == 2).then_some(()))
    })?;
    other.kill()?;
    let text = until(&stage, UNSERVED)?;
    ensure!(text.contains("is gone"), "{text}");
    // It is logged where each is served that comes; and of one that is not, why.
    let local = Memcached::start(&stage.bed.server, at(Ipv4Addr::LOCALHOST.into()))?;
    let words = format!("memcached {} is not served", local.pid());
    pace::wait_for("the problem", Duration::from_secs(10), || {
        Ok(until(&stage, UNSERVED)?.contains(&words).then_some(()))
    })?;
    stage.prestack.signal(Signal::SIGTERM)?;
    let said = stage.prestack.wait()?;
    let served = format!(
        "(pid {}) is served at [{second}]:{PORT}",
        stage.memcached.pid()
    );
    ensure!(said.contains(&served), "{said}");
    let local = format!("memcached (pid {})", local.pid());
    let mut lines = said.lines().filter(|line| line.contains(&local));
    let line = lines.next().unwrap_or_default();
    ensure!(
        line.contains("listens only at 127.0.0.1") && lines.next().is_none(),
        "{said}"
    );
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
