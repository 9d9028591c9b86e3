//! What the operator asks for: flags and the configuration file, merged and checked.

mod doubts;
mod file;
mod options;
mod sizes;

use std::{io, net::IpAddr, num::NonZeroU32, path::PathBuf, time::Duration};

use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use prestack_abi::{
    extent::Extent,
    flow::{FLOW_WAYS, MAX_FLOWS, MOST_FLOWS},
    translated::MAX_ANSWER,
};
use serde::{Deserialize, Deserializer};
use sizes::{buckets, default_sets, has_long_answers, sets_for};

use crate::{
    host::LOOPBACK,
    one_or_many::one_or_many,
    units::{InstanceName, Network, Port, Size, Span},
};

pub use options::Options;

/// memcached's port, served when none is given.
pub const DEFAULT_PORT: u16 = 11211;
/// Memory of the cache when none is given.
pub const DEFAULT_MEMORY: ByteSize = ByteSize::mib(256);
/// Greatest age of an entry when none is given.
pub const DEFAULT_MAX_AGE: Duration = Duration::from_secs(1);
/// Shortest `max-age`: the clock advances in steps of up to 10 ms.
pub const MIN_AGE: Duration = Duration::from_millis(50);
/// Longest `max-age` and `settle`: the datapath's ticks wrap around after 26 days.
pub const MAX_AGE: Duration = Duration::from_secs(24 * 3600);

/// Time between two requests of a connection that memcached gets for sure, when none is given.
pub const DEFAULT_TCP_TRICKLE: Duration = Duration::from_secs(5);
/// Shortest one: few are answered where every tenth of a second one is not.
pub const MIN_TCP_TRICKLE: Duration = Duration::from_millis(100);
/// How long translated connections are waited for when nothing else is said.
pub const DEFAULT_DRAIN_TIMEOUT: Duration = Duration::from_secs(60);
/// Greatest `rate-limit`: the datapath counts the nanoseconds between two hits.
pub const MAX_RATE: u32 = 1_000_000_000;

/// A setting that cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum SettingsError {
    #[error("cannot read the configuration file {path}: {source}")]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("configuration file {path}: {}", .source.to_string().trim_end())]
    Malformed {
        path: PathBuf,
        source: Box<toml::de::Error>,
    },
    #[error("{0}")]
    Unknown(file::Unknown),
    #[error(
        "no interface was given: say where clients come in with --interface IF (there are: {available})"
    )]
    NoInterface { available: String },
    #[error("interface {name} is given twice")]
    RepeatedInterface { name: String },
    #[error("--memory {given} is too small: the least is {least}")]
    TooLittleMemory { given: ByteSize, least: ByteSize },
    #[error("--memory {given} is more than the cache can use: the most is {most}")]
    TooMuchMemory { given: ByteSize, most: ByteSize },
    #[error("--{name} {given} is out of range: it must lie between {least} and {most}")]
    DurationOutOfRange {
        name: &'static str,
        given: Span,
        least: Span,
        most: Span,
    },
    #[error(
        "--rate-limit {given} is out of range: it must lie between 1 and {MAX_RATE} hits per second, and without \
         it there is no limit"
    )]
    RateOutOfRange { given: u64 },
    #[error(
        "--max-flows {given} is out of range: it must lie between {FLOW_WAYS} and {MOST_FLOWS}"
    )]
    FlowsOutOfRange { given: u32 },
    #[error("--tcp-answer {given} is out of range: it must lie between 1 and {MAX_ANSWER} bytes")]
    AnswerOutOfRange { given: u64 },
}

/// How the XDP program is attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModeSetting {
    /// Native where the driver can, else generic.
    #[default]
    Auto,
    /// In the driver, or not at all.
    Native,
    /// In the network stack, after the kernel has made a socket buffer: works everywhere, slower.
    Generic,
}

/// Where replies are seen leaving.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EgressSetting {
    /// TCX where the kernel has it (6.6), else clsact.
    #[default]
    Auto,
    /// TCX, or not at all.
    Tcx,
    /// A filter of the clsact qdisc.
    Clsact,
}

/// The flags of `run`, each of which may stand in the configuration file as well.
#[derive(Args, Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Settings {
    /// Interface on which clients come in; repeat it for several
    #[arg(long, short, value_name = "IF", value_delimiter = ',')]
    #[serde(deserialize_with = "one_or_many")]
    pub interface: Vec<String>,

    /// Port on which memcached listens; repeat it for several [default: 11211]
    #[arg(long, short, value_delimiter = ',')]
    #[serde(deserialize_with = "one_or_many")]
    pub port: Vec<Port>,

    /// Serve only at this address of the host; repeat it for several [default: every address]
    #[arg(long, short, value_name = "A", value_delimiter = ',')]
    #[serde(deserialize_with = "one_or_many")]
    pub address: Vec<IpAddr>,

    /// How the XDP program is attached [default: auto]
    #[arg(long)]
    pub mode: Option<ModeSetting>,

    /// Memory of the cache, allocated at start [default: 256MiB]
    #[arg(long, short, value_name = "SIZE")]
    pub memory: Option<Size>,

    /// Greatest age of what is served, counted from when memcached was asked [default: 1s]
    #[arg(long, value_name = "TIME")]
    pub max_age: Option<Span>,

    /// Network whose clients may be served; repeat it for several [default: the interfaces' own
    /// subnets]
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    #[serde(deserialize_with = "one_or_many")]
    pub allow: Vec<Network>,

    /// Hits per second that one source address may have; what is more goes to memcached [default: no
    /// limit]
    #[arg(long, value_name = "PPS")]
    pub rate_limit: Option<u64>,

    /// Serve also requests from ports below 1024. A forged request from a server's port makes the two
    /// servers talk to each other
    #[arg(
        long,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_name = "true|false",
        hide_possible_values = true
    )]
    pub serve_reserved_ports: Option<bool>,

    /// Never stand aside: follow and serve requests also while nobody reads, or too little of much traffic could be
    /// answered for that to pay
    #[arg(
        long,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_name = "true|false",
        hide_possible_values = true
    )]
    pub always_on: Option<bool>,

    /// Answer GETs also on TCP connections on which memcached has answered one. From its first hit on, prestack
    /// carries that connection until it closes: the programs stay pinned if this process is killed, and
    /// stopping waits for such connections
    #[arg(
        long,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_name = "true|false",
        hide_possible_values = true
    )]
    pub tcp_hits: Option<bool>,

    /// Most TCP connections that are followed, rounded up to a power of two; others are not answered
    /// [default: 8192; with --tcp-hits as many as an eighth of --memory holds, if that is more, up to 65536]
    #[arg(long, value_name = "N")]
    pub max_flows: Option<u32>,

    /// With --tcp-hits, let one request of a connection through after this time, so that memcached and the
    /// host see that it is in use [default: 5s]
    #[arg(long, value_name = "TIME")]
    pub tcp_trickle: Option<Span>,

    /// With --tcp-hits, longest answer in bytes, up to 1472. One is kept for each connection that is followed: up
    /// to 256 bytes cost no memory, longer ones 1,216 bytes of it [default: 1472]
    #[arg(long, value_name = "BYTES")]
    pub tcp_answer: Option<u64>,

    /// How long stopping waits for connections that prestack carries; those that are left are reset
    /// [default: 1m]
    #[arg(long, value_name = "TIME")]
    pub drain_timeout: Option<Span>,

    /// Do not watch the loopback interface: what clients on this host change then shows after max-age at
    /// most
    #[arg(
        long,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_name = "true|false",
        hide_possible_values = true
    )]
    #[serde(rename = "watch-lo", deserialize_with = "negated")]
    pub no_watch_lo: Option<bool>,

    /// Name of this instance: several on one host need different ones [default: default]
    #[arg(long, value_name = "NAME")]
    pub instance: Option<InstanceName>,

    /// Leave the programs in place when this process ends: they go on to watch writes, and serve
    /// nothing until the next `prestack run` replaces them
    #[arg(
        long,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_name = "true|false",
        hide_possible_values = true
    )]
    pub pin: Option<bool>,

    /// How long a write whose end cannot be seen is waited for [default: max-age]
    #[arg(long, value_name = "TIME", hide = true)]
    pub settle: Option<Span>,

    /// How long the datapath stands aside until it is tried again whether following requests pays [default: 15
    /// times as long as it was tried]
    #[arg(long, value_name = "TIME", hide = true)]
    pub rest: Option<Span>,

    /// Packets per second from which the datapath may stand aside [default: 20000]
    #[arg(long, value_name = "PPS", hide = true)]
    pub much: Option<NonZeroU32>,

    /// How replies, and what this host sends to itself, are watched: by TCX, which Linux has from 6.6 on, or by
    /// a filter of the clsact qdisc [default: auto]
    #[arg(long)]
    pub egress: Option<EgressSetting>,
}

impl Settings {
    /// These settings, and `file`'s where these say nothing.
    #[must_use]
    pub fn over(self, file: Self) -> Self {
        fn first<T>(one: Vec<T>, other: Vec<T>) -> Vec<T> {
            if one.is_empty() { other } else { one }
        }
        Self {
            interface: first(self.interface, file.interface),
            port: first(self.port, file.port),
            address: first(self.address, file.address),
            mode: self.mode.or(file.mode),
            memory: self.memory.or(file.memory),
            max_age: self.max_age.or(file.max_age),
            allow: first(self.allow, file.allow),
            rate_limit: self.rate_limit.or(file.rate_limit),
            serve_reserved_ports: self.serve_reserved_ports.or(file.serve_reserved_ports),
            always_on: self.always_on.or(file.always_on),
            tcp_hits: self.tcp_hits.or(file.tcp_hits),
            max_flows: self.max_flows.or(file.max_flows),
            tcp_trickle: self.tcp_trickle.or(file.tcp_trickle),
            tcp_answer: self.tcp_answer.or(file.tcp_answer),
            drain_timeout: self.drain_timeout.or(file.drain_timeout),
            no_watch_lo: self.no_watch_lo.or(file.no_watch_lo),
            instance: self.instance.or(file.instance),
            pin: self.pin.or(file.pin),
            settle: self.settle.or(file.settle),
            rest: self.rest.or(file.rest),
            much: self.much.or(file.much),
            egress: self.egress.or(file.egress),
        }
    }

    /// Fills in the defaults and checks what can be checked without looking at the host.
    ///
    /// # Errors
    /// A value is out of range. `available` names the interfaces there are, for the message.
    pub fn resolve(self, available: &str) -> Result<Options, SettingsError> {
        if self.interface.is_empty() {
            return Err(SettingsError::NoInterface {
                available: available.into(),
            });
        }
        for (at, name) in self.interface.iter().enumerate() {
            if self.interface[..at].contains(name) {
                return Err(SettingsError::RepeatedInterface { name: name.clone() });
            }
        }
        let mut ports: Vec<_> = self.port.iter().map(|port| port.0.get()).collect();
        if ports.is_empty() {
            ports.push(DEFAULT_PORT);
        }
        ports.sort_unstable();
        ports.dedup();
        let memory = self.memory.map_or(DEFAULT_MEMORY, |size| size.0);
        let max_age = self.max_age.map_or(DEFAULT_MAX_AGE, |span| span.0);
        let settle = self.settle.map_or(max_age, |span| span.0);
        in_range("max-age", max_age, MIN_AGE)?;
        in_range("settle", settle, Duration::ZERO)?;
        let tcp_trickle = self.tcp_trickle.map_or(DEFAULT_TCP_TRICKLE, |span| span.0);
        let drain_timeout = self
            .drain_timeout
            .map_or(DEFAULT_DRAIN_TIMEOUT, |span| span.0);
        in_range("tcp-trickle", tcp_trickle, MIN_TCP_TRICKLE)?;
        in_range("drain-timeout", drain_timeout, Duration::ZERO)?;
        let tcp_answer = self.tcp_answer.unwrap_or(MAX_ANSWER as u64);
        if !(1..=MAX_ANSWER as u64).contains(&tcp_answer) {
            return Err(SettingsError::AnswerOutOfRange { given: tcp_answer });
        }
        let rate_limit = self.rate_limit.map(rate).transpose()?;
        let tcp_hits = self.tcp_hits.unwrap_or_default();
        let watch_lo = !self.no_watch_lo.unwrap_or_default();
        Ok(Options {
            instance: self.instance.unwrap_or_default(),
            flow_sets: match self.max_flows {
                Some(given) => sets_for(given)?,
                None if tcp_hits => default_sets(memory, has_long_answers(tcp_answer)),
                None => (MAX_FLOWS / FLOW_WAYS) as u32,
            },
            tcp_hits,
            tcp_trickle,
            tcp_answer,
            drain_timeout,
            watch_lo: watch_lo && !self.interface.iter().any(|name| name == LOOPBACK),
            interfaces: self.interface,
            ports,
            addresses: self.address,
            mode: self.mode.unwrap_or_default(),
            extent: Extent::new(buckets(memory)?),
            memory,
            max_age,
            settle,
            allow: self.allow.into_iter().map(|net| net.0).collect(),
            rate_limit,
            serve_reserved_ports: self.serve_reserved_ports.unwrap_or_default(),
            always_on: self.always_on.unwrap_or_default(),
            rest: self.rest.map(|span| span.0),
            much: self.much.map(NonZeroU32::get).map(u64::from),
            pin: self.pin.unwrap_or_default(),
            egress: self.egress.unwrap_or_default(),
        })
    }
}

/// Reads a flag that says the opposite of the setting in the file.
fn negated<'de, D: Deserializer<'de>>(setting: D) -> Result<Option<bool>, D::Error> {
    bool::deserialize(setting).map(|is| Some(!is))
}

fn rate(given: u64) -> Result<NonZeroU32, SettingsError> {
    let rate = u32::try_from(given).ok().and_then(NonZeroU32::new);
    rate.filter(|rate| rate.get() <= MAX_RATE)
        .ok_or(SettingsError::RateOutOfRange { given })
}

fn in_range(name: &'static str, given: Duration, least: Duration) -> Result<(), SettingsError> {
    if (least..=MAX_AGE).contains(&given) {
        return Ok(());
    }
    Err(SettingsError::DurationOutOfRange {
        name,
        given: Span(given),
        least: Span(least),
        most: Span(MAX_AGE),
    })
}

#[cfg(test)]
mod tests;
