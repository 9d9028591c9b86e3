//! Settings with every default filled in.

use std::{net::IpAddr, num::NonZeroU32, time::Duration};

use bytesize::ByteSize;
use ipnet::IpNet;
use prestack_abi::{extent::Extent, flow::FLOW_WAYS};

use super::{EgressSetting, ModeSetting, sizes::has_long_answers};
use crate::{host::LOOPBACK, units::InstanceName};

/// Settings with every default filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Name of the instance.
    pub instance: InstanceName,
    /// Interfaces to attach to, at least one.
    pub interfaces: Vec<String>,
    /// Ports to serve, sorted, at least one.
    pub ports: Vec<u16>,
    /// Addresses to serve at; every one if empty.
    pub addresses: Vec<IpAddr>,
    /// How to attach at XDP.
    pub mode: ModeSetting,
    /// Memory of the cache.
    pub memory: ByteSize,
    /// Buckets that fit in `memory`.
    pub extent: Extent,
    /// Greatest age of an entry.
    pub max_age: Duration,
    /// How long a write without a visible end stays outstanding.
    pub settle: Duration,
    /// Who may be served; the interfaces' own subnets if empty.
    pub allow: Vec<IpNet>,
    /// Hits per second that one source may have.
    pub rate_limit: Option<NonZeroU32>,
    /// Whether ports below 1024 are served.
    pub serve_reserved_ports: bool,
    /// Whether requests are followed also while that does not pay.
    pub always_on: bool,
    /// How long the datapath stands aside, where it is not derived.
    pub rest: Option<Duration>,
    /// Packets per second that are much, where it is not the usual number.
    pub much: Option<u64>,
    /// Sets of TCP connections that are followed, a power of two.
    pub flow_sets: u32,
    /// Whether requests are answered over TCP.
    pub tcp_hits: bool,
    /// Time after which a request of a connection is let through.
    pub tcp_trickle: Duration,
    /// Bytes of the longest answer over TCP.
    pub tcp_answer: u64,
    /// How long stopping waits for translated connections.
    pub drain_timeout: Duration,
    /// Whether the loopback interface is watched; not if it is served.
    pub watch_lo: bool,
    /// Whether the programs stay when the process is told to end.
    pub pin: bool,
    /// How to attach at egress.
    pub egress: EgressSetting,
}

impl Options {
    /// Whether the programs are pinned, so that they stay if this process is killed.
    #[must_use]
    pub const fn outlives(&self) -> bool {
        self.pin || self.tcp_hits
    }

    /// The flag because of which they are pinned.
    #[must_use]
    pub const fn why_pinned(&self) -> &'static str {
        if self.tcp_hits { "--tcp-hits" } else { "--pin" }
    }

    /// The same with these names of interfaces.
    #[must_use]
    pub fn with_interfaces(&self, interfaces: Vec<String>) -> Self {
        Self {
            watch_lo: self.watch_lo && !interfaces.iter().any(|name| name == LOOPBACK),
            interfaces,
            ..self.clone()
        }
    }

    /// Whether answers over TCP may be longer than what is kept with the connection.
    #[must_use]
    pub const fn has_long_answers(&self) -> bool {
        self.tcp_hits && has_long_answers(self.tcp_answer)
    }

    /// How many TCP connections are followed at most.
    #[must_use]
    pub const fn max_flows(&self) -> u32 {
        self.flow_sets * FLOW_WAYS as u32
    }
}
