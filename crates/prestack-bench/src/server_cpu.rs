//! What the server's side of the testbed costs in CPU time.
//!
//! It is the CPU time, user and system, of every process of the server (memcached, prestack's
//! daemon) and of the kernel threads `napi/DEV-*` that receive the packets of its devices
//! ([threaded NAPI](prestack_testbed::napi)). Sending costs the process that sends, receiving and
//! XDP programs cost the kernel threads, so nothing of the server's work is left out; what the
//! client's end does with the packets is not in it. The kernel counts in nanoseconds.

use std::time::Duration;

use anyhow::Result;
use prestack_testbed::{cpu, napi};

/// The processes and devices of a server.
#[derive(Clone, Debug, Default)]
pub struct ServerCpu {
    /// Process ids.
    pub processes: Vec<i32>,
    /// Names of devices with threaded NAPI.
    pub devices: Vec<String>,
}

impl ServerCpu {
    /// CPU time used so far.
    ///
    /// # Errors
    /// When a process has ended.
    pub fn used(&self) -> Result<Duration> {
        let processes = self.processes.iter().map(|&pid| cpu::time_of(pid));
        let devices = self.devices.iter().map(|dev| napi::time_of(dev));
        processes.chain(devices).sum()
    }
}
