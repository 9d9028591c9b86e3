//! Which CPUs run what, and how much CPU time a process has used.

use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// CPUs for the two ends of a testbed.
#[derive(Clone, Debug)]
pub struct CpuSplit {
    /// CPUs of the server: memcached and the server's packet processing.
    pub server: Vec<usize>,
    /// CPUs of the client: the load generator and the client's packet processing.
    pub client: Vec<usize>,
}

impl CpuSplit {
    /// Halves the CPUs that this process may use; with only one, both ends share it.
    ///
    /// # Errors
    /// When the kernel does not tell which CPUs those are.
    pub fn halves() -> Result<Self> {
        let cpus = all()?;
        let (server, client) = cpus.split_at(cpus.len() / 2);
        let server = if server.is_empty() { client } else { server };
        Ok(Self {
            server: server.to_vec(),
            client: client.to_vec(),
        })
    }
}

/// The CPUs that this process may use.
///
/// # Errors
/// When the kernel does not tell.
pub fn all() -> Result<Vec<usize>> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).context("reading the CPU affinity")?;
    let is_allowed = |&cpu: &usize| allowed.is_set(cpu) == Ok(true);
    Ok((0..CpuSet::count()).filter(is_allowed).collect())
}

/// Keeps the calling thread on `cpus`.
///
/// # Errors
/// When the kernel refuses.
pub fn pin_thread(cpus: &[usize]) -> Result<()> {
    pin_task(0, cpus)
}

/// Keeps every thread of the process `pid` on `cpus`.
///
/// # Errors
/// When the kernel refuses or the process is gone.
pub fn pin_process(pid: i32, cpus: &[usize]) -> Result<()> {
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?.file_name();
        let Some(task) = task.to_str().and_then(|t| t.parse().ok()) else {
            continue;
        };
        pin_task(task, cpus)?;
    }
    Ok(())
}

fn pin_task(task: i32, cpus: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    for &cpu in cpus {
        set.set(cpu)?;
    }
    match sched_setaffinity(Pid::from_raw(task), &set) {
        // It ended since it was listed.
        Err(Errno::ESRCH) => Ok(()),
        other => other.with_context(|| format!("keeping task {task} on CPUs {cpus:?}")),
    }
}

/// User and system time that the process `pid` (all its threads) or kernel thread has used, to
/// the nanosecond.
///
/// # Errors
/// When the process is gone.
pub fn time_of(pid: i32) -> Result<Duration> {
    let clock = clock_getcpuclockid(Pid::from_raw(pid))
        .with_context(|| format!("reading the CPU time of process {pid}"))?;
    Ok(clock_gettime(clock)?.into())
}

/// A scheduling policy with its priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheduling {
    policy: libc::c_int,
    priority: libc::c_int,
}

impl Scheduling {
    /// The usual one, under which threads of one CPU take turns.
    pub const TURNS: Self = Self {
        policy: libc::SCHED_OTHER,
        priority: 0,
    };
    /// The thread runs when nothing else wants its CPU.
    pub const LAST: Self = Self {
        policy: libc::SCHED_IDLE,
        priority: 0,
    };

    /// That of the calling thread, which the threads and processes that it starts have too.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn own() -> Result<Self> {
        let mut priority = libc::sched_param { sched_priority: 0 };
        // SAFETY: `priority` is written.
        let (policy, got) = unsafe {
            let policy = libc::sched_getscheduler(0);
            (policy, libc::sched_getparam(0, &raw mut priority))
        };
        Errno::result(policy.min(got)).context("reading this thread's scheduling policy")?;
        Ok(Self {
            policy,
            priority: priority.sched_priority,
        })
    }

    /// Gives it to a thread, or to the calling one (0).
    ///
    /// # Errors
    /// When the thread has ended, or the kernel refuses.
    pub fn set(self, thread: i32) -> Result<()> {
        let priority = libc::sched_param {
            sched_priority: self.priority,
        };
        // SAFETY: `priority` is read.
        let set = unsafe { libc::sched_setscheduler(thread, self.policy, &raw const priority) };
        Errno::result(set).with_context(|| format!("scheduling thread {thread}"))?;
        Ok(())
    }
}
