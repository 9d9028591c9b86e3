//! `prestack run`.

use tracing::{info, warn};

use super::print;
use crate::{
    cli::RunArgs,
    daemon::{Daemon, Signals},
    drain::Drained,
    host, preflight,
    settings::{Options, Settings},
    state::Instance,
    units::counted,
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
    let stays = if options.tcp_hits {
        let is_told = served.is_ok();
        drains(&daemon, &signals, &options, is_told)
    } else {
        options.pin && served.is_ok()
    };
    daemon.stop(stays)?;
    if stays {
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

/// Ends what is carried over TCP, if that is possible and wanted. Returns whether the programs have to stay.
fn drains(daemon: &Daemon, signals: &Signals, options: &Options, is_told: bool) -> bool {
    if options.pin && is_told {
        return true;
    }
    match daemon.drain(signals, options.drain_timeout) {
        Ok(Drained::Done { reset: 0 }) => false,
        Ok(Drained::Done { reset }) => {
            info!("{} reset", counted(reset, "translated connection"));
            false
        }
        Ok(Drained::Interrupted { left }) => {
            info!(
                "{} left, which the pinned programs go on to translate",
                counted(left, "connection")
            );
            true
        }
        Err(error) => {
            warn!("{error:#}");
            true
        }
    }
}
