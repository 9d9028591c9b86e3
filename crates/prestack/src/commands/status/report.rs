//! What `prestack status --json` prints: docs/operations.md names its members.

use std::{net::IpAddr, time::Duration};

use ipnet::IpNet;
use prestack_abi::{cache::BUCKET_BYTES, stats::Stats};
use serde::Serialize;

use super::{Running, serving::Serving};
use crate::{
    clock, maps,
    state::{AsideState, AttachedState, BackendState, State, current_netns},
    translations::Translations,
    units::InstanceName,
};

/// Everything there is to say of an instance.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) instance: InstanceName,
    /// That runs it.
    pub(super) version: String,
    /// Whether every memcached is served, or would be but for standing aside.
    pub(super) serving: bool,
    pub(super) daemon: Daemon,
    /// Its process id; with `daemon` `none` that of the last one.
    pub(super) pid: u32,
    /// Inode of its network namespace.
    pub(super) netns: u64,
    /// Whether that is another one than the caller's.
    pub(super) elsewhere: bool,
    pub(super) interfaces: Vec<Attached>,
    /// The loopback interface, if it is watched.
    pub(super) lo: Option<Attached>,
    pub(super) ports: Vec<u16>,
    /// Of the cache, in bytes.
    pub(super) memory: u64,
    pub(super) memory_in_use: u64,
    pub(super) max_age_ms: u64,
    pub(super) allowed: Vec<IpNet>,
    /// In seconds since 1970.
    pub(super) started: u64,
    /// Why it stands aside, if it does.
    pub(super) aside: Option<AsideState>,
    /// For how long nothing is stored, in ms; 0 if it is.
    pub(super) settles_ms: u64,
    /// `None` without `--tcp-hits`.
    pub(super) tcp_hits: Option<TcpHits>,
    pub(super) backends: Vec<Backend>,
    pub(super) problems: Vec<String>,
    /// Ways to memcached that the datapath does not see.
    pub(super) unseen: Vec<String>,
}

/// What becomes of the daemon.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Daemon {
    Running,
    /// It does nothing: it is stopped, or hangs.
    Silent,
    /// Pinned programs are all that is left.
    None,
}

/// An interface with programs.
#[derive(Debug, Serialize)]
pub(super) struct Attached {
    pub(super) name: String,
    /// `native` or `generic`; empty where packets are only watched.
    pub(super) mode: String,
    /// `tcx` or `clsact`.
    pub(super) egress: String,
    /// Whether requests may be answered here.
    pub(super) answers: bool,
    /// Whether it is in use.
    pub(super) up: bool,
}

/// Answers over TCP.
#[derive(Debug, Serialize)]
pub(super) struct TcpHits {
    pub(super) state: TcpState,
    /// Connections that are translated and open.
    pub(super) translated: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum TcpState {
    On,
    /// It is ending.
    Draining,
    /// Answers do not arrive.
    Off,
    /// There is no daemon.
    None,
}

/// A memcached.
#[derive(Debug, Serialize)]
pub(super) struct Backend {
    pub(super) number: u8,
    pub(super) pid: u32,
    pub(super) alive: bool,
    /// Why it is not served; `None` if it is.
    pub(super) unserved: Option<&'static str>,
    pub(super) epoch: u64,
    pub(super) doors: Vec<Door>,
    pub(super) unix_sockets: Vec<String>,
    /// Its doors in words.
    #[serde(skip)]
    pub(super) description: String,
}

/// An address and port of a memcached.
#[derive(Debug, Serialize)]
pub(super) struct Door {
    /// `None` for every address without a door of its own.
    pub(super) address: Option<IpAddr>,
    pub(super) port: u16,
    /// Whether hits may be served here.
    pub(super) udp: bool,
    pub(super) tcp: bool,
}

impl Report {
    pub(super) fn of(name: &InstanceName, running: &Running) -> anyhow::Result<Self> {
        let (state, serving) = (&running.state, Serving::of(running));
        let config = running.controls.config();
        let buckets = u64::from(config.base) * u64::from(config.parts);
        let attached = |at: &AttachedState| Attached {
            name: at.name.clone(),
            mode: at.mode.clone(),
            egress: at.egress.clone(),
            answers: !at.mode.is_empty() && !state.unserved.contains(&at.name),
            up: !state.down.contains(&at.name),
        };
        let backends = state.backends.iter().filter(|b| !b.superseded);
        let backends: Vec<_> = backends
            .map(|backend| Backend::of(running, serving, backend))
            .collect();
        Ok(Self {
            instance: name.clone(),
            version: state.version.clone(),
            serving: are_served(&backends),
            daemon: match serving {
                _ if !serving.has_daemon => Daemon::None,
                _ if serving.is_silent() => Daemon::Silent,
                _ => Daemon::Running,
            },
            pid: state.pid,
            netns: state.netns,
            elsewhere: state.netns != current_netns()?,
            interfaces: state.interfaces.iter().map(attached).collect(),
            lo: state.lo.as_ref().map(attached),
            ports: state.ports.clone(),
            memory: state.memory,
            memory_in_use: buckets * BUCKET_BYTES as u64,
            max_age_ms: state.max_age_ms,
            allowed: state.allow.clone(),
            started: state.started,
            aside: state.aside.filter(|_| serving.has_daemon),
            settles_ms: settles_ms(running, serving),
            tcp_hits: match state.tcp_hits {
                true => Some(TcpHits::of(running, serving)?),
                false => None,
            },
            unseen: unseen(running),
            problems: problems(state, &maps::counters(&state.maps)?),
            backends,
        })
    }

    pub(super) fn max_age(&self) -> Duration {
        Duration::from_millis(self.max_age_ms)
    }
}

impl TcpHits {
    fn of(running: &Running, serving: Serving) -> anyhow::Result<Self> {
        Ok(Self {
            state: match serving {
                _ if !serving.has_daemon => TcpState::None,
                _ if serving.is_lost() => TcpState::Off,
                _ if running.controls.is_draining() => TcpState::Draining,
                _ => TcpState::On,
            },
            translated: Translations::open(&running.state.maps)?.count()?,
        })
    }
}

impl Backend {
    fn of(running: &Running, serving: Serving, backend: &BackendState) -> Self {
        let doors = backend.doors.iter().map(|door| Door {
            address: door.address,
            port: door.port,
            udp: door.serve_udp,
            tcp: door.serve_tcp,
        });
        Self {
            number: backend.number,
            pid: backend.pid,
            alive: backend.alive,
            unserved: match backend.alive {
                true => serving.why_not().or_else(|| why_nowhere(backend)),
                false => Some("it is gone"),
            },
            epoch: running.controls.epoch_of(backend.number),
            doors: doors.collect(),
            unix_sockets: backend.unix_sockets.clone(),
            description: backend.describe_doors(),
        }
    }
}

/// What the daemon has noted, and what the counters say.
fn problems(state: &State, counters: &Stats) -> Vec<String> {
    let mut problems = state.problems.clone();
    problems.extend(strangers(counters));
    problems
}

/// Says so if most GETs come from where nobody is answered.
fn strangers(counters: &Stats) -> Option<String> {
    const FEW: u64 = 100;
    let gets = counters.udp_hits + counters.udp_misses + counters.tcp_hits + counters.tcp_misses;
    let strange = counters.not_allowed;
    (strange >= FEW && strange > gets / 2).then(|| {
        format!("{strange} of {gets} GETs came from outside the allowed networks, which are not answered: give --allow")
    })
}

/// Whether there is a memcached, and every one is served.
fn are_served(backends: &[Backend]) -> bool {
    !backends.is_empty() && backends.iter().all(|backend| backend.unserved.is_none())
}

/// Why a memcached is served at none of its doors.
fn why_nowhere(backend: &BackendState) -> Option<&'static str> {
    (!backend.is_served()).then_some("it listens at no address that is served, see problem")
}

/// For how long nothing is stored yet of any memcached that is served.
fn settles_ms(running: &Running, serving: Serving) -> u64 {
    if serving.is_aside || serving.why_not().is_some() {
        return 0;
    }
    let live = running.state.backends.iter().filter(|b| b.alive);
    let until = live.map(|backend| running.controls.quiet_until(backend.number));
    let left = until.max().unwrap_or(0).saturating_sub(clock::now_ns());
    left.div_ceil(1_000_000)
}

/// Ways to memcached that the datapath does not see.
fn unseen(running: &Running) -> Vec<String> {
    let live = running.state.backends.iter().filter(|b| b.alive);
    let sockets = live.flat_map(|backend| &backend.unix_sockets);
    sockets
        .map(|path| format!("unix socket {path}"))
        .chain(running.state.unseen.iter().cloned())
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn report() -> Report {
        let attached = || Attached {
            name: "vs".into(),
            mode: "native".into(),
            egress: "tcx".into(),
            answers: true,
            up: true,
        };
        Report {
            instance: "default".parse().expect("a name"),
            version: "0".into(),
            serving: true,
            daemon: Daemon::Silent,
            pid: 1,
            netns: 2,
            elsewhere: true,
            interfaces: vec![attached()],
            lo: Some(attached()),
            ports: vec![11211],
            memory: 3,
            memory_in_use: 2,
            max_age_ms: 1000,
            allowed: Vec::new(),
            started: 4,
            aside: Some(AsideState {
                hit_share: Some(0.5),
                next_trial: None,
            }),
            settles_ms: 1500,
            tcp_hits: Some(TcpHits {
                state: TcpState::Off,
                translated: 1,
            }),
            backends: vec![Backend {
                number: 0,
                pid: 5,
                alive: true,
                unserved: None,
                epoch: 6,
                doors: vec![Door {
                    address: None,
                    port: 11211,
                    udp: true,
                    tcp: false,
                }],
                unix_sockets: Vec::new(),
                description: "served".into(),
            }],
            problems: vec!["trouble".into()],
            unseen: Vec::new(),
        }
    }

    #[test]
    fn nothing_serves_nothing() {
        let mut backends = report().backends;
        assert!(are_served(&backends));
        backends[0].unserved = Some("it is gone");
        assert!(!are_served(&backends));
        assert!(!are_served(&[]));
    }

    #[test]
    fn clients_from_elsewhere_are_a_problem() {
        let counters = |udp_misses, udp_hits, not_allowed| Stats {
            udp_misses,
            udp_hits,
            not_allowed,
            ..Stats::default()
        };
        let told = strangers(&counters(150, 50, 101)).expect("a problem");
        assert!(told.starts_with("101 of 200 GETs"), "{told}");
        assert!(strangers(&counters(150, 50, 100)).is_none());
        assert!(strangers(&counters(99, 0, 99)).is_none());
    }

    /// The names of all members.
    fn names(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(members) => {
                for (name, value) in members {
                    found.push(name.clone());
                    names(value, found);
                }
            }
            Value::Array(list) => list.iter().for_each(|value| names(value, found)),
            _ => {}
        }
    }

    #[test]
    fn every_member_is_in_the_manual() {
        let manual = include_str!("../../../../../docs/operations.md");
        let (_, manual) = manual
            .split_once("\n### The status as JSON\n")
            .expect("a section");
        let (manual, _) = manual.split_once("\n## ").expect("another one behind it");
        let mut found = Vec::new();
        names(&serde_json::to_value(report()).expect("JSON"), &mut found);
        assert!(found.len() > 30);
        for name in found {
            assert!(manual.contains(&format!("`{name}`")), "{name}");
        }
    }

    #[test]
    fn states_are_told_in_words() {
        let text = report().to_text();
        for words in [
            "daemon      1 (prestack 0) does not answer",
            "namespace   another one than this, that of pid 1",
            "nothing is stored for another 2s",
            "tcp hits    off: see problem; 1 connection translated",
            "problem     trouble",
        ] {
            assert!(text.contains(words), "{words} in {text}");
        }
        let json = serde_json::to_value(report()).expect("JSON");
        assert_eq!(
            (&json["daemon"], &json["tcp_hits"]["state"]),
            (&"silent".into(), &"off".into())
        );
    }
}
