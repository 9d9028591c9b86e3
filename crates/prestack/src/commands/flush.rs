//! `prestack flush`.

use super::Running;
use crate::{cache, cli::InstanceArgs, clock};

/// Empties the cache of every backend, and says how much was in it.
///
/// # Errors
/// The instance does not run, or cannot be asked.
pub fn flush(args: &InstanceArgs) -> anyhow::Result<String> {
    let running = Running::find(&args.instance)?;
    let maps = running.cache()?;
    let backends = running.backends();
    let usage = cache::usage(&maps, &running.controls, backends, clock::now_ns());
    for backend in 0..backends {
        running.controls.empty(backend);
    }
    let entries: u64 = usage.iter().map(|usage| usage.entries).sum();
    let noun = if entries == 1 { "entry" } else { "entries" };
    Ok(format!("dropped {entries} {noun}\n"))
}
