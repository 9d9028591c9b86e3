//! `prestack status`.

use std::{fmt::Display, time::Duration};

use bytesize::ByteSize;
use prestack_abi::cache::BUCKET_BYTES;

use super::{Running, table};
use crate::{
    cli::InstanceArgs,
    state::{AsideState, BackendState, unix_time},
    translations::Translations,
    units::{Span, counted},
};

/// What the running instance serves.
///
/// # Errors
/// The instance does not run, or cannot be asked.
pub fn status(args: &InstanceArgs) -> anyhow::Result<String> {
    let running = Running::find(&args.instance)?;
    let state = &running.state;
    let pid = if running.has_daemon {
        format!("{} (prestack {})", state.pid, state.version)
    } else {
        "none: pinned programs watch writes, and nothing is served until `prestack run`".into()
    };
    let uptime = Duration::from_secs(state.uptime().as_secs());
    let mut rows = vec![
        ("instance", args.instance.to_string()),
        ("daemon", pid),
        ("interfaces", interfaces(&running)),
        ("ports", join(&state.ports)),
        ("memory", memory(&running)),
        (
            "max age",
            Span(Duration::from_millis(state.max_age_ms)).to_string(),
        ),
        ("allowed", join(&state.allow)),
        ("started", format!("{} ago", Span(uptime))),
    ];
    if running.has_daemon
        && let Some(aside) = &state.aside
    {
        rows.push(("requests", why_aside(aside)));
    }
    if state.tcp_hits {
        rows.push(("tcp hits", tcp_hits(&running)?));
    }
    for backend in &state.backends {
        rows.push(("backend", backend_line(&running, backend)));
    }
    for problem in &state.problems {
        rows.push(("problem", problem.clone()));
    }
    let unseen = unseen(&running);
    if !unseen.is_empty() {
        let age = Span(Duration::from_millis(state.max_age_ms));
        rows.push((
            "unseen",
            format!(
                "{} (writes there show after {age} at most)",
                unseen.join(", ")
            ),
        ));
    }
    Ok(table(&rows))
}

/// Why nothing is served.
fn why_aside(aside: &AsideState) -> String {
    let Some((share, next_trial)) = aside.hit_share.zip(aside.next_trial) else {
        return "standing aside: nobody reads, and who does is served after a moment".into();
    };
    let left = next_trial.saturating_sub(unix_time().as_secs());
    format!(
        "standing aside: {:.1} % of requests could be answered; next trial in {}",
        100.0 * share,
        Span(Duration::from_secs(left))
    )
}

fn tcp_hits(running: &Running) -> anyhow::Result<String> {
    let count = Translations::open(&running.state.maps)?.count()?;
    let connections = counted(count, "connection");
    Ok(match (running.has_daemon, running.controls.is_draining()) {
        (true, false) => format!("on: {connections} translated"),
        (true, true) => format!("draining: {connections} left"),
        (false, _) => format!("none without a daemon: {connections} translated"),
    })
}

/// How much there is for the cache, and how much of it has come into use.
fn memory(running: &Running) -> String {
    let config = running.controls.config();
    let buckets = u64::from(config.base) * u64::from(config.parts);
    let all = ByteSize::b(running.state.memory);
    let in_use = ByteSize::b(buckets * BUCKET_BYTES as u64);
    format!("{all} ({in_use} in use)")
}

fn interfaces(running: &Running) -> String {
    let state = &running.state;
    let list: Vec<_> = state
        .interfaces
        .iter()
        .map(|i| format!("{} ({}, {})", i.name, i.mode, i.egress))
        .chain(
            state
                .lo
                .iter()
                .map(|lo| format!("{} (watched, {})", lo.name, lo.egress)),
        )
        .collect();
    list.join(", ")
}

fn backend_line(running: &Running, backend: &BackendState) -> String {
    let BackendState {
        number, pid, alive, ..
    } = backend;
    let epoch = running.controls.epoch_of(*number);
    let doors = backend.describe_doors();
    let serving = if !alive {
        format!("memcached {pid} is gone; waiting for it to come back")
    } else if let Some(reason) = Serving::of(running).why_not() {
        format!("memcached {pid} is not served: {reason}")
    } else {
        format!("memcached {pid} {doors}")
    };
    format!("{number}: {serving} (epoch {epoch})")
}

/// What decides whether anything is served.
#[derive(Clone, Copy)]
struct Serving {
    has_daemon: bool,
    /// The daemon was heard of lately.
    is_alive: bool,
    /// The datapath was told to serve nothing.
    is_stopped: bool,
    is_aside: bool,
    /// What is carried over TCP is waited for.
    is_draining: bool,
}

impl Serving {
    fn of(running: &Running) -> Self {
        let controls = &running.controls;
        Self {
            has_daemon: running.has_daemon,
            is_alive: controls.is_serving(),
            is_stopped: controls.has_stopped_serving(),
            is_aside: controls.is_aside(),
            is_draining: running.state.tcp_hits && controls.is_draining(),
        }
    }

    /// Why a memcached that runs is not served, other than that the datapath stands aside.
    fn why_not(self) -> Option<&'static str> {
        if !self.has_daemon {
            Some("no daemon watches it")
        } else if self.is_alive || self.is_aside {
            None
        } else if self.is_stopped && self.is_draining {
            Some("prestack is ending, and waits for the connections that it carries")
        } else if self.is_stopped {
            Some("prestack is starting, ending or taking in a change of the host")
        } else {
            Some("its daemon has not answered for a second or more")
        }
    }
}

/// Ways to memcached that the datapath does not see.
fn unseen(running: &Running) -> Vec<String> {
    let backends = &running.state.backends;
    let live = backends.iter().filter(|backend| backend.alive);
    let sockets = live.flat_map(|backend| &backend.unix_sockets);
    sockets
        .map(|path| format!("unix socket {path}"))
        .chain(running.state.unseen.iter().cloned())
        .collect()
}

fn join<T: Display>(list: &[T]) -> String {
    let list: Vec<_> = list.iter().map(ToString::to_string).collect();
    if list.is_empty() {
        "none".into()
    } else {
        list.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_why_nothing_is_served() {
        let serving = Serving {
            has_daemon: true,
            is_alive: true,
            is_stopped: false,
            is_aside: false,
            is_draining: false,
        };
        let stopped = Serving {
            is_alive: false,
            is_stopped: true,
            ..serving
        };
        // No more answers over TCP, as they do not arrive.
        let is_draining = true;
        assert_eq!(
            Serving {
                is_draining,
                ..serving
            }
            .why_not(),
            None
        );
        // The datapath is stopped while it stands aside.
        let is_aside = true;
        assert_eq!(
            Serving {
                is_aside,
                ..stopped
            }
            .why_not(),
            None
        );
        for (serving, reason) in [
            (
                Serving {
                    has_daemon: false,
                    ..stopped
                },
                "no daemon",
            ),
            (
                Serving {
                    is_draining,
                    ..stopped
                },
                "waits for the connections",
            ),
            (stopped, "starting, ending or taking in a change"),
            (
                Serving {
                    is_alive: false,
                    ..serving
                },
                "has not answered",
            ),
            (
                Serving {
                    is_alive: false,
                    is_draining,
                    ..serving
                },
                "has not answered",
            ),
        ] {
            let said = serving.why_not().expect("nothing is served");
            assert!(said.contains(reason), "{said}");
        }
    }
}
