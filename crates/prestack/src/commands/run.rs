//! `prestack run`.

use std::time::Duration;

use tracing::{info, warn};

use super::{ending, print};
use crate::{
    cli::RunArgs,
    daemon::{Daemon, Signals},
    drain::Drained,
    host, notify, preflight,
    settings::Settings,
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
    let doubts = settings.doubts();
    let options = settings.resolve(&host::interface_names())?;
    preflight::privileges()?;
    preflight::kernel()?;
    for doubt in doubts {
        warn!("{doubt}");
    }
    let instance = Instance::new(options.instance.clone());
    // From here on a signal waits for the end of the step that is under way.
    let signals = Signals::catch()?;
    let _lock = ending::lock(&instance)?;
    instance.check_room()?;

    let Some(mut daemon) = Daemon::start(&options, instance, &signals)? else {
        info!("told to end before anything was attached");
        return Ok(());
    };
    let served = print(&format!("{}\n", daemon.banner())).and_then(|()| {
        daemon.tell_ready();
        daemon.serve(&signals)
    });
    notify::stopping();
    let (stays, drained) = match served {
        Ok(()) if options.pin => (true, Ok(())),
        _ if options.tcp_hits => match drain(&daemon, &signals, options.drain_timeout) {
            Ok(is_over) => (!is_over, Ok(())),
            // What carries connections must not go before them.
            Err(error) => (true, Err(error)),
        },
        _ => (false, Ok(())),
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
    served.and(drained)
}

/// Ends what is carried over TCP. Returns whether nothing is any more.
fn drain(daemon: &Daemon, signals: &Signals, timeout: Duration) -> anyhow::Result<bool> {
    match daemon.drain(signals, timeout)? {
        Drained::Done { reset } => {
            if reset > 0 {
                info!("{} reset", counted(reset, "translated connection"));
            }
            Ok(true)
        }
        Drained::Interrupted { left } => {
            info!(
                "{} left, which the pinned programs go on to translate",
                counted(left, "connection")
            );
            Ok(false)
        }
    }
}
