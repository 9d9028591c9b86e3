//! How patient to be: the same tests run on hardware and under software emulation.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Whether the machine is an emulated one, many times slower (environment `PRESTACK_VM=1`).
#[must_use]
pub fn is_slow() -> bool {
    std::env::var_os("PRESTACK_VM").is_some_and(|v| v == "1")
}

/// `limit`, stretched on a slow machine.
#[must_use]
pub fn patience(limit: Duration) -> Duration {
    if is_slow() { limit * 10 } else { limit }
}

/// `count`, a tenth of it (at least 1) on a slow machine.
#[must_use]
pub fn volume(count: usize) -> usize {
    if is_slow() {
        (count / 10).max(1)
    } else {
        count
    }
}

/// Calls `check` until it returns a value, for at most [`patience`]`(limit)`.
///
/// # Errors
/// When the time is up (the message names `what`), or when `check` fails.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut check: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let limit = patience(limit);
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = check()? {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("waited {limit:?} in vain for {what}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
