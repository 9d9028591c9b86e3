//! `--tcp-hits`: pins that are not seen, or that nothing is written down about, are neither forgotten nor
//! removed under a connection.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use prestack_testbed::{MemcachedOptions, Namespace, Process, TcpClient, binary};
use prestack_tests::attached::nothing_attached;
use prestack_tests::pinned::{Pinned, carry, hide_pins, nothing_left};
use prestack_tests::stage::{LASTING, Stage, store};

const HITS: [&str; 4] = ["--tcp-hits", "--no-watch-lo", "--drain-timeout", "1m"];

/// A stage, and a client whose connection it carries.
fn stage() -> Result<(Stage, TcpClient)> {
    let args = [&LASTING[..], &HITS].concat();
    let stage = Stage::watching(MemcachedOptions::default(), &args)?;
    let mut tcp = stage.tcp()?;
    store(&mut tcp, b"key", b"value")?;
    carry(&stage.prestack, &mut tcp)?;
    Ok((stage, tcp))
}

/// The state file, if there is one.
fn state(stage: &Stage) -> Result<Option<PathBuf>> {
    let files = stage.prestack.instance().files()?;
    let is_state = |path: &PathBuf| path.extension().is_some_and(|end| end == "json");
    Ok(files.into_iter().find(is_state))
}

/// Runs a command of prestack on the stage's instance in a network namespace, and where no pins are seen if
/// they are to be hidden: it must fail with these words, and change nothing. Returns all that it says.
fn refused(
    stage: &Stage,
    namespace: &Namespace,
    is_hidden: bool,
    args: &[&str],
    words: &[&str],
) -> Result<String> {
    let instance = stage.prestack.instance();
    let before = (Pinned::by(instance)?, state(stage)?);
    let mut command = namespace.command(binary()?);
    command.args(args).args(["--instance", instance.name()]);
    if is_hidden {
        hide_pins(&mut command);
    }
    let (status, said) = Process::spawn(command)?.wait(Duration::from_secs(20))?;
    ensure!(!status.success(), "{args:?} succeeded: {said}");
    for word in words {
        ensure!(said.contains(word), "no {word:?} in: {said}");
    }
    assert_eq!((Pinned::by(instance)?, state(stage)?), before);
    Ok(said)
}

fn restart(stage: &mut Stage) -> Result<()> {
    let interface = ["--interface", &stage.bed.links[0].server_dev];
    let args = [&interface[..], &LASTING, &HITS].concat();
    stage.prestack.restart(&args)
}

/// Ends it with `detach`, which resets the connection.
fn ends(stage: &Stage, mut tcp: TcpClient) -> Result<()> {
    let instance = stage.prestack.instance();
    let done = instance.command(&["detach", "--drain-timeout", "0s"])?;
    ensure!(done.contains("reset 1 connection"), "{done}");
    ensure!(tcp.is_reset()?, "the connection was closed");
    nothing_attached(&stage.bed.server, &stage.bed.links[0].server_dev)?;
    nothing_left(instance)
}

#[test]
fn detach_does_not_take_hidden_pins_for_none() -> Result<()> {
    let (mut stage, mut tcp) = stage()?;
    let words = ["BPF file system", "nsenter"];
    // A daemon that would leave the connections to `detach` goes on.
    let at_once = ["detach", "--drain-timeout", "0s"];
    refused(&stage, &stage.bed.server, true, &at_once, &words)?;
    ensure!(
        stage
            .prestack
            .instance()
            .command(&["status"])?
            .contains("on: 1 connection")
    );

    stage.prestack.kill()?;
    refused(&stage, &stage.bed.server, true, &["detach"], &words)?;
    store(&mut tcp, b"key", b"dead")?;
    restart(&mut stage)?;
    assert_eq!(tcp.get(b"key")?.as_deref(), Some(&b"dead"[..]));
    ends(&stage, tcp)?;
    // A start finds it out before it loads the programs, which takes seconds.
    let dev = &stage.bed.links[0].server_dev;
    for why in ["--tcp-hits", "--pin"] {
        let run = ["run", "--interface", dev, why];
        let words = [&words[..], &["container", why]].concat();
        let said = refused(&stage, &stage.bed.server, true, &run, &words)?;
        ensure!(!said.contains("loading"), "{said}");
    }
    Ok(())
}

#[test]
fn another_network_namespace_ends_nothing() -> Result<()> {
    let (mut stage, mut tcp) = stage()?;
    stage.prestack.kill()?;
    let elsewhere = &stage.bed.client;
    let words = ["another network namespace", "nsenter"];
    refused(&stage, elsewhere, false, &["detach"], &words)?;
    refused(&stage, elsewhere, true, &["detach"], &words)?;
    let interface = ["run", "--interface", &stage.bed.links[0].client_dev];
    let run = [&interface[..], &LASTING, &HITS].concat();
    refused(&stage, elsewhere, false, &run, &words)?;
    store(&mut tcp, b"key", b"dead")?;
    ends(&stage, tcp)
}

#[test]
fn without_a_state_file_connections_are_ended_in_order() -> Result<()> {
    let (mut stage, mut tcp) = stage()?;
    stage.prestack.kill()?;
    std::fs::remove_file(state(&stage)?.context("a state file")?)?;

    let interface = ["run", "--interface", &stage.bed.links[0].server_dev];
    let run = [&interface[..], &LASTING, &HITS].concat();
    let words = ["state file", "prestack detach"];
    refused(&stage, &stage.bed.server, false, &run, &words)?;
    let words = ["this network namespace", "nsenter"];
    refused(&stage, &stage.bed.client, false, &["detach"], &words)?;
    store(&mut tcp, b"key", b"dead")?;
    ends(&stage, tcp)
}
