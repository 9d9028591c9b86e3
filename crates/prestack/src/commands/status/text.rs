//! What `prestack status` prints for people.

use std::{fmt::Display, time::Duration};

use bytesize::ByteSize;

use super::report::{Attached, Backend, Daemon, Report, TcpHits, TcpState};
use crate::{
    commands::table,
    state::{AsideState, unix_time},
    units::{Span, counted},
};

impl Report {
    pub(super) fn to_text(&self) -> String {
        let uptime = unix_time().as_secs().saturating_sub(self.started);
        let memory = [self.memory, self.memory_in_use].map(ByteSize::b);
        let mut rows = vec![
            ("instance", self.instance.to_string()),
            ("daemon", self.daemon_line()),
            ("interfaces", self.interface_line()),
            ("ports", join(&self.ports)),
            ("memory", format!("{} ({} in use)", memory[0], memory[1])),
            ("max age", Span(self.max_age()).to_string()),
            ("allowed", join(&self.allowed)),
            (
                "started",
                format!("{} ago", Span(Duration::from_secs(uptime))),
            ),
        ];
        if self.elsewhere {
            rows.insert(2, ("namespace", self.namespace_line()));
        }
        if let Some(aside) = &self.aside {
            rows.push(("requests", why_aside(aside)));
        }
        if self.settles_ms > 0 {
            let left = Span(Duration::from_secs(self.settles_ms.div_ceil(1000)));
            let line = format!(
                "nothing is stored for another {left}: writes that were not seen may be under way"
            );
            rows.push(("requests", line));
        }
        if let Some(tcp) = &self.tcp_hits {
            rows.push(("tcp hits", tcp.line()));
        }
        rows.extend(self.backends.iter().map(|b| ("backend", b.line())));
        rows.extend(self.problems.iter().map(|p| ("problem", p.clone())));
        if !self.unseen.is_empty() {
            let (ways, age) = (self.unseen.join(", "), Span(self.max_age()));
            let line = format!("{ways} (writes there show after {age} at most)");
            rows.push(("unseen", line));
        }
        table(&rows)
    }

    fn daemon_line(&self) -> String {
        let Self { pid, version, .. } = self;
        match self.daemon {
            Daemon::Running => format!("{pid} (prestack {version})"),
            Daemon::Silent => {
                format!("{pid} (prestack {version}) does not answer: it is stopped, or hangs")
            }
            Daemon::None => {
                "none: pinned programs watch writes, and nothing is served until `prestack run`"
                    .into()
            }
        }
    }

    fn namespace_line(&self) -> String {
        let Self { netns, pid, .. } = self;
        match self.daemon {
            Daemon::None => format!("another one than this, net:[{netns}]"),
            _ => format!(
                "another one than this, that of pid {pid}: `nsenter --net=/proc/{pid}/ns/net` enters it"
            ),
        }
    }

    fn interface_line(&self) -> String {
        let served = self.interfaces.iter().map(Attached::line);
        let lo = self.lo.iter();
        let watched = lo.map(|lo| format!("{} (watched, {})", lo.name, lo.egress));
        served.chain(watched).collect::<Vec<_>>().join(", ")
    }
}

impl Attached {
    fn line(&self) -> String {
        let Self {
            name, mode, egress, ..
        } = self;
        let amiss = match (self.up, self.answers) {
            (false, _) => "; down",
            (true, true) => "",
            (true, false) => "; not answered, see problem",
        };
        format!("{name} ({mode}, {egress}{amiss})")
    }
}

impl TcpHits {
    fn line(&self) -> String {
        let connections = counted(self.translated, "connection");
        match self.state {
            TcpState::On => format!("on: {connections} translated"),
            TcpState::Draining => format!("draining: {connections} left"),
            TcpState::Off => format!("off: see problem; {connections} translated"),
            TcpState::None => format!("none without a daemon: {connections} translated"),
        }
    }
}

impl Backend {
    fn line(&self) -> String {
        let Self {
            number, pid, epoch, ..
        } = self;
        let serving = match self.unserved {
            None => format!("memcached {pid} {}", self.description),
            Some(_) if !self.alive => {
                format!("memcached {pid} is gone; waiting for it to come back")
            }
            Some(reason) => format!("memcached {pid} is not served: {reason}"),
        };
        format!("{number}: {serving} (epoch {epoch})")
    }
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

fn join<T: Display>(list: &[T]) -> String {
    let list: Vec<_> = list.iter().map(ToString::to_string).collect();
    if list.is_empty() {
        "none".into()
    } else {
        list.join(", ")
    }
}
