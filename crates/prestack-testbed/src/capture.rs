//! What passes a device, captured by tcpdump and judged by tshark.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::namespace::Namespace;
use crate::pace::wait_for;
use crate::process::{Process, Signal};

/// Bytes of each frame that are kept: all headers.
const KEPT: &str = "200";
/// KiB for frames that tcpdump has not taken yet.
const BUFFER: &str = "262144";
/// What tshark may say of a TCP segment (`tshark -G fields`), after `tcp.analysis.`.
const FLAGS: [&str; 17] = [
    "retransmission",
    "fast_retransmission",
    "spurious_retransmission",
    "out_of_order",
    "reused_ports",
    "lost_segment",
    "ack_lost_segment",
    "window_update",
    "window_full",
    "keep_alive",
    "keep_alive_ack",
    "duplicate_ack",
    "zero_window_probe",
    "zero_window",
    "zero_window_probe_ack",
    "tfo_syn",
    "tfo_ack",
];

/// A capture that goes on.
pub struct Capture {
    process: Process,
    file: String,
}

impl Capture {
    /// Captures the TCP segments that pass `dev` in `namespace` into `file`.
    ///
    /// # Errors
    /// When tcpdump is not there, or does not come to listen.
    pub fn start(namespace: &Namespace, dev: &str, file: &str) -> Result<Self> {
        let mut command = namespace.command("tcpdump");
        command.args([
            "-i", dev, "-w", file, "-s", KEPT, "-B", BUFFER, "-Z", "root",
        ]);
        // Otherwise frames stay in the kernel's buffer for as long as a second.
        command.args(["--immediate-mode", "tcp or vlan"]);
        let process = Process::spawn(command).context("tcpdump is missing")?;
        // It makes the file once it listens.
        wait_for("tcpdump to listen", Duration::from_secs(5), || {
            let is_there = std::fs::metadata(file).is_ok();
            Ok(is_there.then_some(()))
        })?;
        Ok(Self {
            process,
            file: file.to_owned(),
        })
    }

    /// Ends the capture; counts what tshark flags in it.
    ///
    /// # Errors
    /// When frames were missed, or tshark does not understand the capture, or finds nothing of TCP in it.
    pub fn flags(mut self) -> Result<BTreeMap<&'static str, u64>> {
        // It takes what has passed before it looks at signals, but for what has passed just now.
        std::thread::sleep(Duration::from_millis(200));
        self.process.signal(Signal::SIGINT)?;
        let (_, said) = self.process.wait(Duration::from_secs(10))?;
        ensure!(
            said.contains("\n0 packets dropped by kernel"),
            "tcpdump missed frames: {said}"
        );
        let mut command = Command::new("tshark");
        command.args(["-r", &self.file, "-Y", "tcp", "-T", "fields"]);
        for flag in FLAGS {
            command.args(["-e", &format!("tcp.analysis.{flag}")]);
        }
        let output = command.output().context("running tshark")?;
        ensure!(
            output.status.success(),
            "tshark failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let (mut counts, mut segments) = (BTreeMap::new(), 0);
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            segments += 1;
            for (flag, field) in FLAGS.into_iter().zip(line.split('\t')) {
                if !field.is_empty() {
                    *counts.entry(flag).or_default() += 1;
                }
            }
        }
        ensure!(segments > 0, "tshark sees no TCP segment in the capture");
        Ok(counts)
    }
}
