//! Waiting until no program runs any more that had looked at what there was before.

use std::{io, thread, time::Duration};

use nix::libc;
use tracing::debug;

/// `MEMBARRIER_CMD_GLOBAL` (include/uapi/linux/membarrier.h): returns when every CPU has been outside of what RCU
/// protects, which the runs of programs at XDP and TC are. With a single CPU this thread runs on it, and they do not.
const GLOBAL: libc::c_long = 1;
/// How long they run at most, but for a virtual CPU that its host has stopped meanwhile.
const LONG: Duration = Duration::from_millis(100);

/// Waits until every run of a program has ended that had begun before: later ones see what has been changed.
pub fn await_programs() {
    if let Err(error) = barrier() {
        // As where some CPUs take no ticks (nohz_full), or a filter of system calls does not let it through.
        debug!("waits {LONG:?} for programs that run, as membarrier is not to be had: {error}");
        thread::sleep(LONG);
    }
}

fn barrier() -> io::Result<()> {
    // SAFETY: the call takes numbers alone.
    match unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_awaited_in_no_time() {
        let begun = std::time::Instant::now();
        await_programs();
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
}
