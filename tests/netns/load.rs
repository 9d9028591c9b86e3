//! `prestack bench load` on a memcached that does not do what the load is about: it has no memory for the items, or
//! stops; and on an impatient user. What such a run has measured must not look like a good one.

use std::fs::{File, OpenOptions};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use prestack_testbed::{Memcached, MemcachedOptions, Namespace, binary, pace};
use serde_json::Value;

/// A memcached, and clients in the same namespace.
struct Stage {
    namespace: Namespace,
    memcached: Memcached,
}

impl Stage {
    fn new(memory_mib: u32) -> Result<Self> {
        let namespace = Namespace::new()?;
        let options = MemcachedOptions {
            memory_mib,
            ..MemcachedOptions::default()
        };
        let memcached = Memcached::start(&namespace, options)?;
        Ok(Self {
            namespace,
            memcached,
        })
    }

    fn command(&self, args: &[&str]) -> Result<Command> {
        let mut command = self.namespace.command(binary()?);
        command.args(["bench", "load", "--warm-up", "0"]);
        command.args(args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(command)
    }

    fn start(&self, args: &[&str]) -> Result<Child> {
        let child = self.command(args)?.spawn();
        child.context("running `prestack bench load`")
    }

    /// Signals memcached once so many GETs have come.
    fn signal_after(&self, gets: u64, signal: Signal) -> Result<()> {
        pace::wait_for("the load to begin", Duration::from_secs(20), || {
            Ok((self.memcached_gets()? > gets).then_some(()))
        })?;
        Ok(kill(Pid::from_raw(self.memcached.pid()), signal)?)
    }

    fn memcached_gets(&self) -> Result<u64> {
        let address = ([127, 0, 0, 1], 11211).into();
        let mut client = prestack_testbed::TcpClient::connect(&self.namespace, address)?;
        client.send(b"stats\r\n")?;
        loop {
            let line = String::from_utf8(client.line()?)?;
            if let Some(gets) = line.strip_prefix("STAT cmd_get ") {
                return Ok(gets.trim().parse()?);
            }
            ensure!(line != "END\r\n", "there is no cmd_get");
        }
    }
}

/// What was printed as JSON, and said on standard error.
fn told(output: &Output) -> Result<(Value, String)> {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let json = serde_json::from_slice(&output.stdout);
    Ok((json.with_context(|| said.clone())?, said))
}

/// Most of the items have no room: the run fails, and says why. Where a few are not there it says so.
#[test]
fn what_a_server_does_not_hold_is_told() -> Result<()> {
    if pace::is_slow() {
        return Ok(());
    }
    let stage = Stage::new(2)?;
    let items = ["--keys", "20000", "--value-size", "1000", "--popularity"];
    let run = |args: &[&str]| -> Result<(Output, Value, String)> {
        let args = [&["--seconds", "0.5", "--json"], args].concat();
        let output = stage.command(&args)?.output()?;
        let (json, said) = told(&output)?;
        Ok((output, json, said))
    };
    let (output, json, said) = run(&[&items[..], &["uniform"]].concat())?;
    ensure!(
        !output.status.success() && said.contains("too little memory"),
        "{said}"
    );
    ensure!(
        json["get_misses"].as_u64() > Some(0) && json["hit_ratio"].as_f64() < Some(0.5),
        "{json:#}"
    );

    let (output, json, said) = run(&["--stored", "--keys", "9"])?;
    ensure!(
        !output.status.success() && said.contains("--stored"),
        "{said}"
    );
    ensure!(json["get_misses"] == json["gets"], "{json:#}");

    // Reads of what was written a moment ago are found.
    let few = [
        "--keys",
        "100",
        "--write-ratio",
        "0.5",
        "--transport",
        "tcp",
    ];
    let (output, json, said) = run(&few)?;
    ensure!(output.status.success() && said.is_empty(), "{said}");
    let kinds = ["gets", "sets"].map(|kind| json[kind].as_u64().unwrap_or(0));
    ensure!(kinds.iter().all(|&n| n > 0), "{json:#}");
    ensure!(json["answered"] == kinds[0] + kinds[1], "{json:#}");
    for kind in ["gets", "sets"] {
        let max = &json["apart"][kind]["max_us"];
        ensure!(
            max.as_f64() > Some(0.0) && max.as_f64() <= json["max_us"].as_f64(),
            "{json:#}"
        );
    }
    ensure!(
        json["hit_ratio"] == 1.0 && json["write_ratio"] == 0.5,
        "{json:#}"
    );
    ensure!(
        json["transport"] == "TCP" && json["offered_rate"].is_null(),
        "{json:#}"
    );
    Ok(())
}

/// Over UDP nobody notices by himself when memcached stops to answer.
#[test]
fn a_server_that_freezes_or_dies_fails_the_run() -> Result<()> {
    if pace::is_slow() {
        return Ok(());
    }
    for (signal, word) in [
        (Signal::SIGSTOP, "nothing was answered in the last"),
        (Signal::SIGKILL, "any longer, after"),
    ] {
        let stage = Stage::new(64)?;
        let child = stage.start(&["--keys", "100", "--seconds", "4"])?;
        stage.signal_after(1_000, signal)?;
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success() && said.contains(word), "{said}");
    }
    Ok(())
}

/// Ctrl-C ends the measurement, and not its result.
#[test]
fn an_interrupted_run_tells_what_it_has_measured() -> Result<()> {
    let stage = Stage::new(64)?;
    let child = stage.start(&["--keys", "100", "--seconds", "30", "--json"])?;
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    pace::wait_for("the load to begin", Duration::from_secs(20), || {
        Ok((stage.memcached_gets()? > 1_000).then_some(()))
    })?;
    kill(pid, Signal::SIGINT)?;
    let output = child.wait_with_output()?;
    let (json, said) = told(&output)?;
    ensure!(
        !output.status.success() && said.contains("interrupted"),
        "{said}"
    );
    ensure!(
        said.contains("stay stored") && !said.contains("removed"),
        "{said}"
    );
    ensure!(
        json["interrupted"] == true && json["answered"].as_u64() > Some(500),
        "{json:#}"
    );
    let seconds = json["seconds"].as_f64().context("seconds")?;
    let rate = json["rate"].as_f64().context("rate")?;
    let answered = json["answered"].as_f64().context("answered")?;
    ensure!(
        seconds < 30.0 && (0.5..2.0).contains(&(rate * seconds / answered)),
        "{json:#}"
    );
    Ok(())
}

/// Who does not read the result, and a full disk.
#[test]
fn an_output_that_takes_nothing_is_no_panic() -> Result<()> {
    let stage = Stage::new(64)?;
    let args = ["--keys", "100", "--seconds", "0.2"];
    for (out, is_success) in [(None, true), (Some("/dev/full"), false)] {
        let out = match out {
            Some(path) => OpenOptions::new().write(true).open(path)?,
            None => closed_pipe()?,
        };
        let output = stage.command(&args)?.stdout(out).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success() == is_success && !said.contains("panicked"),
            "{said}"
        );
        ensure!(
            is_success || said.contains("cannot write to standard output"),
            "{said}"
        );
    }
    Ok(())
}

/// The writing end of a pipe that nobody reads.
fn closed_pipe() -> Result<File> {
    let (_, writer) = nix::unistd::pipe()?;
    Ok(writer.into())
}

/// What cannot be measured is told before anything is printed.
#[test]
fn a_run_without_a_request_prints_nothing() -> Result<()> {
    let stage = Stage::new(64)?;
    let args = ["--keys", "100", "--seconds", "0.001", "--rate", "0.01"];
    let output = stage.command(&args)?.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        !output.status.success() && said.contains("no request was due"),
        "{said}"
    );
    ensure!(output.stdout.is_empty(), "{output:?}");
    Ok(())
}
