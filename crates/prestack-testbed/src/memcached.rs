//! Stock memcached.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;
use std::{env, fs};

use anyhow::{Context, Result, bail};

use crate::namespace::Namespace;
use crate::pace::wait_for;
use crate::process::{Process, Signal};

/// How memcached is started.
#[derive(Clone, Debug)]
pub struct MemcachedOptions {
    /// Port for TCP (`-p`).
    pub port: u16,
    /// Port for UDP (`-U`); 0 for none.
    pub udp_port: u16,
    /// Addresses to listen on (`-l`); all when empty.
    pub addresses: Vec<IpAddr>,
    /// Worker threads (`-t`).
    pub threads: u32,
    /// Memory for items in MiB (`-m`).
    pub memory_mib: u32,
    /// Anything else.
    pub args: Vec<String>,
    /// prestack's binary, if its `memcached` command is to start it.
    pub launcher: Option<PathBuf>,
}

impl Default for MemcachedOptions {
    fn default() -> Self {
        Self {
            port: 11211,
            udp_port: 11211,
            addresses: Vec::new(),
            threads: 4,
            memory_mib: 64,
            args: Vec::new(),
            launcher: None,
        }
    }
}

/// A running memcached; killed when dropped.
pub struct Memcached {
    process: Process,
}

impl Memcached {
    /// Starts memcached in `namespace` and waits until it answers.
    ///
    /// # Errors
    /// When memcached is not installed or does not come up; the message has its words.
    pub fn start(namespace: &Namespace, options: MemcachedOptions) -> Result<Self> {
        let mut memcached = Self::spawn(namespace, &options)?;
        let address = match options.addresses.first() {
            None => Ipv4Addr::LOCALHOST.into(),
            Some(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            Some(address) => *address,
        };
        let address = SocketAddr::new(address, options.port);
        wait_for("memcached to answer", Duration::from_secs(5), || {
            if memcached.process.has_ended()? {
                let (status, stderr) = memcached.process.wait(Duration::ZERO)?;
                bail!("memcached ended ({status}): {}", stderr.trim());
            }
            // Refused or reset: not up yet.
            Ok(namespace.run(|| version(address)).ok())
        })?;
        Ok(memcached)
    }

    /// Starts memcached in `namespace` without waiting for it to come up.
    ///
    /// # Errors
    /// When memcached is not installed.
    pub fn spawn(namespace: &Namespace, options: &MemcachedOptions) -> Result<Self> {
        let mut command = match &options.launcher {
            None => namespace.command(program()),
            Some(prestack) => {
                let mut command = namespace.command(prestack);
                command
                    .args(["memcached", "--binary"])
                    .arg(program())
                    .arg("--");
                command
            }
        };
        // It refuses to run as root unless told so; the namespace is out of everybody's reach.
        command.args(["-u", "root"]);
        command.args([
            "-p",
            &options.port.to_string(),
            "-U",
            &options.udp_port.to_string(),
        ]);
        command.args(["-t", &options.threads.to_string()]);
        command.args(["-m", &options.memory_mib.to_string()]);
        if !options.addresses.is_empty() {
            let addresses: Vec<String> = options.addresses.iter().map(listen_argument).collect();
            command.args(["-l", &addresses.join(",")]);
        }
        command.args(&options.args);
        let process = Process::spawn(command)
            .context("memcached does not start; on Debian or Ubuntu: apt-get install memcached")?;
        Ok(Self { process })
    }

    /// Waits until somebody accepts connections to `port` of the namespace's loopback address,
    /// for a memcached that does not answer in clear text.
    ///
    /// # Errors
    /// When nobody does.
    pub fn wait_until_accepting(namespace: &Namespace, port: u16) -> Result<()> {
        wait_for("memcached to listen", Duration::from_secs(5), || {
            Ok(namespace.run(|| TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()))
        })?;
        Ok(())
    }

    /// The process's id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// Stops the process in its tracks (SIGSTOP) until [`resume`](Self::resume): when this
    /// returns, all its threads stand still.
    ///
    /// # Errors
    /// When it has ended.
    pub fn pause(&self) -> Result<()> {
        self.process.signal(Signal::SIGSTOP)?;
        wait_for("memcached to stop", Duration::from_secs(5), || {
            Ok(self.is_paused()?.then_some(()))
        })
    }

    /// Waits until memcached has executed all that has come in: its sockets (of port `port`, in the
    /// namespace that it runs in) have nothing to be read or accepted, and all its threads wait.
    ///
    /// # Errors
    /// When that does not happen within some seconds.
    pub fn wait_until_idle(&self, port: u16) -> Result<()> {
        wait_for("memcached to be idle", Duration::from_secs(10), || {
            // The queues first: what a thread has taken from them it is at work on.
            let is_idle = self.has_read_all(port)? && self.are_all_threads("S")?;
            Ok(is_idle.then_some(()))
        })
    }

    fn has_read_all(&self, port: u16) -> Result<bool> {
        let port = format!(":{port:04X}");
        for table in ["tcp", "tcp6", "udp", "udp6"] {
            let table = fs::read_to_string(format!("/proc/{}/net/{table}", self.pid()))?;
            for line in table.lines().skip(1) {
                let mut words = line.split_whitespace();
                let is_ours = words.nth(1).is_some_and(|local| local.ends_with(&port));
                // Bytes that wait, or of a listener connections: `tx_queue:rx_queue`.
                let queues = words.nth(2).context("a line of sockets without queues")?;
                if is_ours && !queues.ends_with(":00000000") {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn is_paused(&self) -> Result<bool> {
        self.are_all_threads("T")
    }

    /// Whether all threads are in this state (proc_pid_status(5)).
    fn are_all_threads(&self, state: &str) -> Result<bool> {
        let state = format!("\nState:\t{state}");
        for task in fs::read_dir(format!("/proc/{}/task", self.pid()))? {
            let status = fs::read_to_string(task?.path().join("status"))?;
            if !status.contains(&state) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Lets a paused process go on.
    ///
    /// # Errors
    /// When it has ended.
    pub fn resume(&self) -> Result<()> {
        self.process.signal(Signal::SIGCONT)
    }

    /// Ends the process with SIGTERM and waits for its end.
    ///
    /// # Errors
    /// When it does not end by itself.
    pub fn stop(&mut self) -> Result<()> {
        self.process.signal(Signal::SIGTERM)?;
        self.process.wait(Duration::from_secs(5))?;
        Ok(())
    }

    /// Kills the process with SIGKILL and waits for its end.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()?;
        Ok(())
    }
}

/// The memcached that is started: the one that the environment names as `PRESTACK_MEMCACHED`, or else the
/// system's.
#[must_use]
pub fn program() -> OsString {
    env::var_os("PRESTACK_MEMCACHED").unwrap_or_else(|| "memcached".into())
}

fn listen_argument(address: &IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    }
}

/// Asks for the version over TCP.
fn version(address: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(b"version\r\n")?;
    let mut start = [0; 8];
    stream.read_exact(&mut start)?;
    if &start != b"VERSION " {
        bail!("memcached at {address} answers {start:?}");
    }
    Ok(())
}
