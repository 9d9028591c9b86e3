//! Signals that end the process.

use std::{
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd},
    ptr,
};

use nix::{
    errno::Errno,
    libc,
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};

/// SIGTERM, and of SIGINT and SIGHUP those that this process was not started to ignore (`nohup`), as a descriptor.
#[derive(Debug)]
pub struct Signals(SignalFd);

impl Signals {
    /// Catches them from now on, for this thread.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn catch() -> nix::Result<Self> {
        // Something has to end it, whoever has started it.
        let mut signals = SigSet::from(Signal::SIGTERM);
        for signal in [Signal::SIGINT, Signal::SIGHUP] {
            // One that is blocked would come through the descriptor though it is ignored.
            if !is_ignored(signal)? {
                signals.add(signal);
            }
        }
        signals.thread_block()?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        SignalFd::with_flags(&signals, flags).map(Self)
    }

    /// Whether one has come.
    pub(crate) fn received(&self) -> bool {
        matches!(self.0.read_signal(), Ok(Some(_)))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Whether this process ignores a signal.
fn is_ignored(signal: Signal) -> nix::Result<bool> {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: without a new action the call changes nothing, and it writes the present one to where it may.
    let result =
        unsafe { libc::sigaction(signal as libc::c_int, ptr::null(), action.as_mut_ptr()) };
    Errno::result(result)?;
    // SAFETY: the call has succeeded, so that it has written all of it.
    Ok(unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN)
}
