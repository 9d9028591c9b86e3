//! What the environment says about a run of the tests.

use std::env;
use std::io::Write;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

/// A number from the environment.
///
/// # Errors
/// When it is none.
pub fn setting<T: FromStr>(name: &str, default: T) -> Result<T> {
    match env::var(name) {
        Ok(text) => text.parse().ok().with_context(|| format!("{name}={text}")),
        Err(_) => Ok(default),
    }
}

/// The seed of a random run (`PRESTACK_SEED`). It is printed at once, and also when the test passes.
///
/// # Errors
/// When the environment's is no number.
pub fn seed() -> Result<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let seed = setting("PRESTACK_SEED", now.as_micros() as u64)?;
    say(&format!("PRESTACK_SEED={seed}"));
    Ok(seed)
}

/// Prints something that the test harness does not catch.
pub fn say(line: &str) {
    // Nothing is lost that would be missed.
    let _ = writeln!(std::io::stderr(), "{line}");
}
