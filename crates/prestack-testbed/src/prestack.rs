//! `prestack run` and the commands that talk to it.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::SigHandler;
use serde_json::Value;

use crate::namespace::Namespace;
use crate::process::{Process, Signal};

/// Where prestack keeps its instances' files.
const RUN_FOLDER: &str = "/run/prestack";

/// Where it keeps what is pinned.
const PIN_FOLDER: &str = "/sys/fs/bpf/prestack";

/// How long prestack may take to serve, or to end.
const LIMIT: Duration = Duration::from_secs(45);

/// The argument with which prestack answers over TCP.
const TCP_HITS: &str = "--tcp-hits";

/// Numbers the instances of this process.
static INSTANCES: AtomicU32 = AtomicU32::new(0);

/// An instance's name, and where to reach it: it may outlive its daemon.
#[derive(Clone)]
pub struct Instance {
    namespace: Namespace,
    binary: PathBuf,
    name: String,
}

/// A `prestack run`. When this is dropped it is ended, and what it has left is removed.
pub struct Prestack {
    instance: Instance,
    process: Process,
    serving: String,
    carries_connections: bool,
}

impl Instance {
    fn new(namespace: &Namespace, binary: PathBuf) -> Self {
        let number = INSTANCES.fetch_add(1, Ordering::Relaxed);
        let name = format!("ps-{}-{number}", std::process::id());
        Self {
            namespace: namespace.clone(),
            binary,
            name,
        }
    }

    /// The instance's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs one of prestack's commands on this instance; returns its standard output.
    ///
    /// # Errors
    /// When it fails; the message has its words.
    pub fn command(&self, args: &[&str]) -> Result<String> {
        let mut command = self.namespace.command(&self.binary);
        command.args(args).args(["--instance", &self.name]);
        let output = command
            .output()
            .with_context(|| format!("running {command:?}"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("`prestack {}` failed: {}", args.join(" "), said.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// What the instance has counted (`prestack stats --json`).
    ///
    /// # Errors
    /// When the command fails or its output is not as expected.
    pub fn stats(&self) -> Result<Counters> {
        Counters::parse(&self.command(&["stats", "--json"])?)
    }

    /// The folder in which it pins its links and maps.
    #[must_use]
    pub fn pins(&self) -> PathBuf {
        Path::new(PIN_FOLDER).join(&self.name)
    }

    /// The files that are there for the instance, in prestack's run folder.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn files(&self) -> Result<Vec<PathBuf>> {
        let prefix = format!("{}.", self.name);
        let mut files = Vec::new();
        let entries = match std::fs::read_dir(RUN_FOLDER) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(files),
            entries => entries.context("reading prestack's run folder")?,
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                files.push(entry.path());
            }
        }
        Ok(files)
    }

    fn run(&self, args: &[&str]) -> Result<Process> {
        let mut command = self.namespace.command(&self.binary);
        command.args(["run", "--instance", &self.name]).args(args);
        command.args(further_args().split_whitespace());
        // Tests send it what they may have been started to ignore themselves.
        let heed = || {
            for signal in [Signal::SIGINT, Signal::SIGHUP] {
                // SAFETY: the default action runs no code of this process.
                unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) }?;
            }
            Ok(())
        };
        // SAFETY: between fork and exec the closure only makes system calls.
        unsafe { command.pre_exec(heed) };
        Process::spawn(command)
    }
}

impl Prestack {
    /// Starts `prestack run` in `namespace` with `args` and an instance name of its own, and waits
    /// until it serves. The binary is the one that the environment names as `PRESTACK_BIN`, or
    /// else the workspace's own, release before debug. The environment's `PRESTACK_RUN_ARGS` are further
    /// arguments.
    ///
    /// # Errors
    /// When it does not come to serve; the message has its words.
    pub fn start(namespace: &Namespace, args: &[&str]) -> Result<Self> {
        Self::start_binary(binary()?, namespace, args)
    }

    /// The same, of another binary.
    ///
    /// # Errors
    /// When it does not come to serve; the message has its words.
    pub fn start_binary(binary: PathBuf, namespace: &Namespace, args: &[&str]) -> Result<Self> {
        let instance = Instance::new(namespace, binary);
        let process = instance.run(args)?;
        // From here on what it leaves is removed, also if it does not come to serve.
        let mut prestack = Self {
            instance,
            process,
            serving: String::new(),
            carries_connections: args.contains(&TCP_HITS)
                || further_args().split_whitespace().any(|arg| arg == TCP_HITS),
        };
        prestack.wait_until_serving()?;
        Ok(prestack)
    }

    fn wait_until_serving(&mut self) -> Result<()> {
        let is_wanted = |line: &str| line.starts_with("serving ");
        self.serving = self.process.wait_for_line(LIMIT, is_wanted)?;
        Ok(())
    }

    /// Runs `prestack run` with `args`, which must fail and leave no files and nothing pinned; returns what it
    /// says on standard error.
    ///
    /// # Errors
    /// When it does not end, or ends well, or leaves something.
    pub fn refusal(namespace: &Namespace, args: &[&str]) -> Result<String> {
        let instance = Instance::new(namespace, binary()?);
        let (status, stderr) = instance.run(args)?.wait(LIMIT)?;
        let mut files = instance.files()?;
        files.extend(Some(instance.pins()).filter(|pins| pins.exists()));
        if status.success() || status.code().is_none() || !files.is_empty() {
            bail!(
                "`prestack run {}` ended with {status} and left {files:?}: {stderr}",
                args.join(" ")
            );
        }
        Ok(stderr)
    }

    /// Starts the instance again, whose daemon has ended, with `args`, and waits until it serves.
    ///
    /// # Errors
    /// When it does not come to serve; the message has its words.
    pub fn restart(&mut self, args: &[&str]) -> Result<()> {
        self.process = self.instance.run(args)?;
        self.wait_until_serving()
    }

    /// Starts the instance again, whose daemon has ended, with `args`, which must fail; returns what it says
    /// on standard error.
    ///
    /// # Errors
    /// When it does not end, or ends well.
    pub fn restart_refused(&mut self, args: &[&str]) -> Result<String> {
        let (status, stderr) = self.instance.run(args)?.wait(LIMIT)?;
        if status.success() || status.code().is_none() {
            bail!(
                "`prestack run {}` ended with {status}: {stderr}",
                args.join(" ")
            );
        }
        Ok(stderr)
    }

    /// Sends the daemon a signal.
    ///
    /// # Errors
    /// When there is no daemon.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Waits until the daemon has ended by itself, with status 0; returns what it said on standard error.
    ///
    /// # Errors
    /// When it does not.
    pub fn wait(&mut self) -> Result<String> {
        let (status, stderr) = self.ended()?;
        if !status.success() {
            bail!("prestack ended with {status}: {stderr}");
        }
        Ok(stderr)
    }

    /// Waits until the daemon has ended by itself; returns its status and what it said on standard error.
    ///
    /// # Errors
    /// When it does not end.
    pub fn ended(&mut self) -> Result<(ExitStatus, String)> {
        self.process.wait(LIMIT)
    }

    /// The line with which it said that it serves.
    #[must_use]
    pub fn serving(&self) -> &str {
        &self.serving
    }

    /// Whether it answers over TCP, so that connections depend on it from then on.
    #[must_use]
    pub fn carries_connections(&self) -> bool {
        self.carries_connections
    }

    /// Fails if it is to answer over TCP, and has not.
    ///
    /// # Errors
    /// Then, and when it does not tell.
    pub fn check_tcp_hits(&self) -> Result<()> {
        if self.carries_connections && self.stats()?.get("tcp.hits")? == 0 {
            bail!("nothing was answered over TCP");
        }
        Ok(())
    }

    /// The instance that this daemon runs.
    #[must_use]
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    /// The daemon's process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// [`Instance::stats`].
    ///
    /// # Errors
    /// When the command fails or its output is not as expected.
    pub fn stats(&self) -> Result<Counters> {
        self.instance.stats()
    }

    /// Ends the daemon with SIGTERM, and waits until it has.
    ///
    /// # Errors
    /// When it does not end by itself with status 0.
    pub fn stop(&mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        self.wait().map(drop)
    }

    /// Kills the daemon with SIGKILL, and waits for its end.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()?;
        Ok(())
    }
}

impl Drop for Prestack {
    fn drop(&mut self) {
        // It removes by itself what it has written down. When it does not end it is killed.
        if let Ok(false) = self.process.has_ended() {
            let _ = self.process.signal(Signal::SIGTERM);
            // A test that has frozen it may have failed.
            let _ = self.process.signal(Signal::SIGCONT);
            let _ = self.process.wait(LIMIT);
        }
        // A pinned or a killed one has left something.
        let has_files = self.instance.files().is_ok_and(|files| !files.is_empty());
        if has_files || self.instance.pins().exists() {
            let _ = self.instance.command(&["detach"]);
        }
    }
}

/// Arguments from the environment for every `prestack run`.
fn further_args() -> String {
    std::env::var("PRESTACK_RUN_ARGS").unwrap_or_default()
}

/// The binary under test.
///
/// # Errors
/// When there is none.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("PRESTACK_BIN") {
        return Ok(path.into());
    }
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
    ["release/prestack", "debug/prestack"]
        .into_iter()
        .map(|name| target.join(name))
        .find(|path| path.exists())
        .context("there is no prestack binary: make it with `cargo xtask build`, or name one in PRESTACK_BIN")
}

/// Counters by name, nested ones with a dot between (`udp.hits`); what is true or false as 1 or 0.
#[derive(Clone, Debug, Default)]
pub struct Counters(BTreeMap<String, u64>);

impl Counters {
    fn parse(json: &str) -> Result<Self> {
        let value = serde_json::from_str(json).with_context(|| format!("in {json:?}"))?;
        let mut counters = Self::default();
        counters.add("", &value);
        Ok(counters)
    }

    fn add(&mut self, name: &str, value: &Value) {
        match value {
            Value::Object(members) => {
                let dot = if name.is_empty() { "" } else { "." };
                members
                    .iter()
                    .for_each(|(m, value)| self.add(&format!("{name}{dot}{m}"), value));
            }
            Value::Number(number) => {
                self.0.extend(number.as_u64().map(|n| (name.to_owned(), n)));
            }
            Value::Bool(is) => {
                self.0.insert(name.to_owned(), u64::from(*is));
            }
            _ => {}
        }
    }

    /// The counter of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn get(&self, name: &str) -> Result<u64> {
        let names = || {
            self.0
                .keys()
                .map(String::as_str)
                .collect::<Vec<_>>()
                .join(" ")
        };
        self.0
            .get(name)
            .copied()
            .with_context(|| format!("no counter {name} among: {}", names()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_named_by_their_path() {
        let counters = Counters::parse(r#"{"udp":{"hits":7},"tcp.hits":8,"x":"y"}"#).unwrap();
        assert_eq!(counters.get("udp.hits").unwrap(), 7);
        assert_eq!(counters.get("tcp.hits").unwrap(), 8);
        assert!(counters.get("x").is_err());
    }
}
