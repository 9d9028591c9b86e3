//! Network namespaces.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result, bail};
use nix::libc;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::Signal;

/// A network namespace. It has no name: it lives as long as this value and its clones, the
/// processes and the sockets in it.
#[derive(Clone)]
pub struct Namespace {
    fd: Arc<OwnedFd>,
}

impl Namespace {
    /// Makes a namespace, its loopback interface up.
    ///
    /// # Errors
    /// Without root's privileges.
    pub fn new() -> Result<Self> {
        let fd = on_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace (needs root)")?;
            File::open("/proc/thread-self/ns/net").context("opening the new network namespace")
        })?;
        let namespace = Self {
            fd: Arc::new(fd.into()),
        };
        namespace.ip(["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// Calls `f` on a thread of its own inside the namespace. Sockets made there stay in the
    /// namespace; `/sys` is still the caller's.
    ///
    /// # Panics
    /// When `f` panics, or the kernel refuses the thread entry.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        on_thread(|| {
            setns(&self.fd, CloneFlags::CLONE_NEWNET).expect("entering a network namespace");
            f()
        })
    }

    /// Calls `f` like [`run`](Self::run), with the namespace's own sysfs at `/sys`.
    ///
    /// # Errors
    /// When the kernel refuses the mount, or `f` fails.
    pub fn run_with_sysfs<T: Send>(&self, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        use nix::mount::{MsFlags, mount};
        self.run(|| {
            // A mount namespace of the thread's own: nobody else sees the mount.
            unshare(CloneFlags::CLONE_NEWNS).context("making a mount namespace")?;
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
                .context("making the mounts private")?;
            mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none)
                .context("mounting the namespace's sysfs")?;
            f()
        })
    }

    /// A command that runs inside the namespace, in a process group of its own (so that Ctrl-C
    /// reaches only its parent), and that the kernel kills when the thread that spawns it ends.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.process_group(0);
        let fd = Arc::clone(&self.fd);
        let enter = move || {
            setns(&fd, CloneFlags::CLONE_NEWNET)?;
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            Ok(())
        };
        // SAFETY: between fork and exec the closure only makes two system calls: it neither
        // allocates nor takes a lock.
        unsafe { command.pre_exec(enter) };
        command
    }

    /// Runs `ip` inside the namespace.
    ///
    /// # Errors
    /// When `ip` is missing or fails; the message has its words.
    pub fn ip<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Result<String> {
        let mut command = self.command("ip");
        command.args(args);
        let output = command
            .output()
            .context("running `ip` (package iproute2)")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("{command:?} failed: {}", said.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A path that stands for the namespace in other programs, as long as this process lives.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd())
    }
}

/// Calls `f` on a new thread, so that what it does to the thread's namespaces ends with it.
fn on_thread<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        scope
            .spawn(f)
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The effective user must be root to make namespaces.
///
/// # Errors
/// When it is not.
pub(crate) fn require_root() -> Result<()> {
    // SAFETY: geteuid has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        bail!("network namespaces and XDP need root: run this again as root (with sudo)");
    }
    Ok(())
}
