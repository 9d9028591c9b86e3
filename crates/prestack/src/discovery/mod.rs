//! Finds the memcached processes behind the chosen ports, with every socket they listen on.

pub mod arguments;
mod passing;
pub mod process;
pub mod procnet;
mod scanner;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
};

use arguments::Features;
use process::ProcessId;
use procnet::{Socket, Transport};

pub use passing::Passing;
pub use scanner::Scanner;

/// Which sockets make a process a backend.
#[derive(Clone, Debug)]
pub struct Selection {
    /// Ports on which it listens.
    pub ports: Vec<u16>,
    /// Addresses at which it is reached; any if empty.
    pub addresses: Vec<IpAddr>,
    /// Whether hits are served over TCP: then it need not have UDP.
    pub tcp_hits: bool,
}

impl Selection {
    /// Whether hits may be served at this address and port.
    #[must_use]
    pub fn serves(&self, address: IpAddr, port: u16) -> bool {
        self.ports.contains(&port)
            && (self.addresses.is_empty() || self.addresses.contains(&address))
    }

    /// Whether the socket receives what is sent to a chosen address and port.
    fn chooses(&self, socket: &Socket) -> bool {
        self.ports.contains(&socket.port)
            && (self.addresses.is_empty() || self.addresses.iter().any(|&a| socket.takes(a)))
    }
}

/// One memcached process with everything it listens on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Memcached {
    /// The process.
    pub process: ProcessId,
    /// Its TCP listeners and unconnected UDP sockets, sorted.
    pub sockets: Vec<Socket>,
    /// Paths of the unix sockets it listens on: writes through them are not seen.
    pub unix_sockets: Vec<String>,
}

impl Memcached {
    /// Ports on which it has a UDP socket.
    fn udp_ports(&self) -> impl Iterator<Item = u16> {
        let udp = self
            .sockets
            .iter()
            .filter(|s| s.transport == Transport::Udp);
        udp.map(|socket| socket.port)
    }

    /// Whether the process has a socket that receives what is sent there over this transport.
    #[must_use]
    pub fn takes(&self, transport: Transport, address: IpAddr, port: u16) -> bool {
        self.sockets.iter().any(|socket| {
            socket.transport == transport && socket.port == port && socket.takes(address)
        })
    }
}

/// Why what listens on a chosen port cannot be served.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Problem {
    #[error(
        "no memcached listens on port {port}{}{}: start it with `memcached -U {port} -p {port}` (as root also with \
         -u and the account that it is to run as), or give its port with --port", at(.addresses), but_at(.elsewhere)
    )]
    NobodyListens {
        port: u16,
        addresses: Vec<IpAddr>,
        /// Other addresses at which somebody listens on that port.
        elsewhere: Vec<IpAddr>,
    },
    #[error(
        "what listens on port {port} is {name} (pid {pid}), not memcached: prestack serves memcached \
         only"
    )]
    NotMemcached { port: u16, pid: u32, name: String },
    #[error(
        "cannot find the process that listens on port {port}: it may run in another pid namespace; \
         run prestack as root in the host's pid namespace, with CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH"
    )]
    UnknownProcess { port: u16 },
    #[error(
        "memcached (pid {pid}) has no UDP socket on port {port}{}: start it with `-U {port}` (UDP is \
         off by default){}, or give --tcp-hits to serve its TCP connections; there is nothing to serve without either",
        at(.addresses), instead(.other)
    )]
    NoUdp {
        pid: u32,
        port: u16,
        addresses: Vec<IpAddr>,
        /// A port that was not chosen and has UDP.
        other: Option<u16>,
    },
    #[error(
        "memcached (pid {pid}) is a proxy (-o proxy_config): what it answers changes on other \
         servers, unseen here; run prestack on those servers instead"
    )]
    Proxy { pid: u32 },
    #[error(
        "memcached (pid {pid}) speaks TLS (-Z): its writes cannot be read on the wire, so nothing \
         may be cached; serve a memcached without TLS"
    )]
    Tls { pid: u32 },
    #[error(
        "memcached (pid {pid}) takes text alone (-B ascii, -l proto[ascii]:…, -Y): what looks like a binary \
         request may hide writes from prestack; start it without that, it then tells both apart by itself"
    )]
    TextAlone { pid: u32 },
    #[error(
        "processes {first} and {second} share port {port} (SO_REUSEPORT): which of them a packet \
         reaches cannot be known; give each its own port or address"
    )]
    Shared { port: u16, first: u32, second: u32 },
}

impl Problem {
    /// The same where prestack runs: it takes other settings when it is started again.
    #[must_use]
    pub fn while_running(&self) -> String {
        let is_a_setting = matches!(self, Self::NobodyListens { .. } | Self::NoUdp { .. });
        match is_a_setting {
            true => format!("{self} (for other settings start prestack again)"),
            false => self.to_string(),
        }
    }
}

fn at(addresses: &[IpAddr]) -> String {
    if addresses.is_empty() {
        return String::new();
    }
    let list: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    format!(" at {}", list.join(", "))
}

fn but_at(elsewhere: &[IpAddr]) -> String {
    if elsewhere.is_empty() {
        return String::new();
    }
    format!(
        ", but something does{}: give its address with --address",
        at(elsewhere)
    )
}

fn instead(port: &Option<u16>) -> String {
    port.map_or(String::new(), |port| {
        format!(", or serve its UDP port {port} as well with `--port {port}`")
    })
}

/// What a look at the host found.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Processes that can be served, by pid.
    pub backends: Vec<Memcached>,
    /// What stands in the way of others.
    pub problems: Vec<Problem>,
}

/// A process that holds a chosen socket.
#[derive(Debug)]
struct Candidate {
    memcached: Memcached,
    names: Vec<String>,
    features: Features,
}

impl Candidate {
    /// Builds have names such as `memcached-debug`.
    fn is_memcached(&self) -> bool {
        self.names.iter().any(|name| name.starts_with("memcached"))
    }
}

/// The addresses of sockets on this port, each once.
fn addresses_on(port: u16, sockets: &[Socket]) -> Vec<IpAddr> {
    let there = sockets.iter().filter(|socket| socket.port == port);
    let there: BTreeSet<_> = there.map(|socket| socket.address).collect();
    there.into_iter().collect()
}

/// Decides which of the processes that hold chosen sockets can be served; `all` are the host's.
fn judge(
    selection: &Selection,
    all: &[Socket],
    chosen: &[Socket],
    holders: &HashMap<u64, Vec<ProcessId>>,
    processes: &BTreeMap<u32, Candidate>,
) -> Found {
    let mut problems = Vec::new();
    let mut excluded = HashSet::new();
    for &port in &selection.ports {
        if !chosen.iter().any(|socket| socket.port == port) {
            problems.push(Problem::NobodyListens {
                port,
                addresses: selection.addresses.clone(),
                elsewhere: addresses_on(port, all),
            });
        }
    }
    // A socket that several processes hold belongs to the memcached among them: the others, such
    // as a supervisor that opened it, do not read from it.
    let mut owners: Vec<(&Socket, u32)> = Vec::new();
    let mut unknown: Vec<&Socket> = Vec::new();
    for socket in chosen {
        let port = socket.port;
        let holders = holders.get(&socket.inode).map_or(&[][..], Vec::as_slice);
        let memcacheds: Vec<_> = holders
            .iter()
            .filter(|process| processes[&process.pid].is_memcached())
            .collect();
        match (memcacheds.as_slice(), holders.first()) {
            ([], None) => {
                problems.push(Problem::UnknownProcess { port });
                unknown.push(socket);
            }
            ([], Some(process)) => {
                let names = &processes[&process.pid].names;
                problems.push(Problem::NotMemcached {
                    port,
                    pid: process.pid,
                    name: names.first().cloned().unwrap_or_default(),
                });
                owners.push((socket, process.pid));
            }
            (processes, _) => owners.extend(processes.iter().map(|p| (socket, p.pid))),
        }
    }
    // Who knows which of the two gets what is sent there.
    for (socket, pid) in &owners {
        if unknown.iter().any(|other| other.overlaps(socket)) {
            excluded.insert(*pid);
        }
    }
    for (at, (one, first)) in owners.iter().enumerate() {
        for (other, second) in &owners[at + 1..] {
            if first != second && one.overlaps(other) {
                excluded.extend([*first, *second]);
                problems.push(Problem::Shared {
                    port: one.port,
                    first: *first.min(second),
                    second: *first.max(second),
                });
            }
        }
    }
    let mut backends = Vec::new();
    for candidate in processes.values().filter(|c| c.is_memcached()) {
        // It has ended while it was looked at.
        if candidate.memcached.sockets.is_empty() {
            continue;
        }
        let pid = candidate.memcached.process.pid;
        let mine: Vec<_> = owners
            .iter()
            .filter(|(_, p)| *p == pid)
            .map(|(s, _)| *s)
            .collect();
        let Some(first) = mine.first() else { continue };
        if candidate.features.proxy {
            problems.push(Problem::Proxy { pid });
        } else if candidate.features.tls {
            problems.push(Problem::Tls { pid });
        } else if candidate.features.text_alone {
            problems.push(Problem::TextAlone { pid });
        } else if !selection.tcp_hits && !mine.iter().any(|s| s.transport == Transport::Udp) {
            problems.push(Problem::NoUdp {
                pid,
                port: first.port,
                addresses: selection.addresses.clone(),
                other: candidate.memcached.udp_ports().next(),
            });
        } else if !excluded.contains(&pid) {
            backends.push(candidate.memcached.clone());
        }
    }
    let mut seen = HashSet::new();
    problems.retain(|problem| seen.insert(problem.to_string()));
    Found { backends, problems }
}

#[cfg(test)]
mod tests;
