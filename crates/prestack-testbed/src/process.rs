//! Child processes that do not outlive the value that stands for them.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};
pub use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::pace::{patience, wait_for};

/// A child process with its output caught; killed when dropped.
pub struct Process {
    name: String,
    child: Child,
    lines: Receiver<String>,
    stderr: Arc<Mutex<Vec<u8>>>,
    stderr_reader: JoinHandle<()>,
}

impl Process {
    /// Starts `command`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(mut command: Command) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        let (sender, lines) = channel();
        let stdout = child.stdout.take().expect("stdout is piped");
        thread::spawn(move || {
            // Read to the end even when nobody listens: the child must not block on its output.
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let mut pipe = child.stderr.take().expect("stderr is piped");
        let stderr = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&stderr);
        let stderr_reader = thread::spawn(move || {
            let mut piece = [0; 4096];
            // An error ends the text like the end of the file.
            while let Ok(len @ 1..) = pipe.read(&mut piece) {
                sink.lock().expect("no panic").extend(&piece[..len]);
            }
        });
        Ok(Self {
            name,
            child,
            lines,
            stderr,
            stderr_reader,
        })
    }

    /// The process's id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Sends `signal`.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid()), signal)
            .with_context(|| format!("sending {signal} to {}", self.name))
    }

    /// The first line of standard output, from now on, that `wanted` accepts.
    ///
    /// # Errors
    /// When it does not come within [`patience`]`(limit)` or the process ends; the message has its
    /// standard error.
    pub fn wait_for_line(
        &mut self,
        limit: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<String> {
        let deadline = std::time::Instant::now() + patience(limit);
        loop {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if wanted(&line) => return Ok(line),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => {
                    let (_, stderr) = self.kill()?;
                    bail!(
                        "{} did not get ready in {limit:?}: {}",
                        self.name,
                        stderr.trim()
                    );
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let (status, stderr) = self.wait(Duration::from_secs(5))?;
                    bail!("{} ended ({status}): {}", self.name, stderr.trim());
                }
            }
        }
    }

    /// Whether the process has ended.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Waits until the process ends; returns its status and its standard error.
    ///
    /// # Errors
    /// When it does not end within [`patience`]`(limit)`; it is killed then.
    pub fn wait(&mut self, limit: Duration) -> Result<(ExitStatus, String)> {
        let waited = wait_for(&format!("{} to end", self.name), limit, || {
            Ok(self.child.try_wait()?)
        });
        match waited {
            Ok(status) => Ok((status, self.said())),
            Err(error) => {
                let (_, stderr) = self.kill()?;
                Err(error.context(stderr))
            }
        }
    }

    /// Kills the process with SIGKILL; returns its status and its standard error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn kill(&mut self) -> Result<(ExitStatus, String)> {
        self.child.kill()?;
        let status = self.child.wait()?;
        Ok((status, self.said()))
    }

    /// What the process, which has ended, said on standard error.
    fn said(&self) -> String {
        // The text ends soon, unless a child of the process still has the pipe.
        let finished = || Ok(self.stderr_reader.is_finished().then_some(()));
        let _ = wait_for(
            "the end of standard error",
            Duration::from_secs(1),
            finished,
        );
        String::from_utf8_lossy(&self.stderr.lock().expect("no panic")).into_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Nothing can be done about a failure here, and a process that has ended is no failure.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
