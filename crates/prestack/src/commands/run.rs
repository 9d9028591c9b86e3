//! `prestack run`.

use tracing::info;

use super::print;
use crate::{
    cli::RunArgs,
    daemon::{Daemon, Signals},
    host, preflight,
    settings::Settings,
    state::Instance,
};

/// Runs an instance until it is told to stop.
///
/// # Errors
/// It cannot start, or cannot go on; nothing is left attached.
pub fn run(args: &RunArgs) -> anyhow::Result<()> {
    let mut settings = args.settings.clone();
    if let Some(path) = &args.config {
        settings = settings.over(Settings::read(path)?);
    }
    let options = settings.resolve(&host::interface_names())?;
    preflight::privileges()?;
    preflight::kernel()?;
    let instance = Instance::new(options.instance.clone());
    let _lock = instance.lock()?;
    // From here on a signal waits until there is something to stop.
    let signals = Signals::catch()?;

    let mut daemon = Daemon::start(&options, instance)?;
    let served = print(&format!("{}\n", daemon.banner())).and_then(|()| daemon.serve(&signals));
    let pinned = options.pin && served.is_ok();
    daemon.stop(pinned)?;
    if pinned {
        info!(
            "left in place, serving nothing until the next `prestack run`: `prestack detach \
             --instance {}` removes it",
            options.instance
        );
    } else {
        info!("detached");
    }
    served
}
