//! What the operator asks for: flags and the configuration file, merged and checked.

use std::{
    fs, io,
    net::IpAddr,
    num::NonZeroU32,
    path::{Path, PathBuf},
    time::Duration,
};

use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use ipnet::IpNet;
use prestack_abi::{
    cache::BUCKET_BYTES,
    extent::Extent,
    flow::{FLOW_WAYS, Flow, MAX_FLOWS, MOST_FLOWS},
    translated::{AnswerRest, MAX_ANSWER, SHORT_ANSWER, Translated},
};
use serde::{Deserialize, Deserializer};

use crate::{
    host::LOOPBACK,
    one_or_many::one_or_many,
    units::{InstanceName, Network, Size, Span},
};

/// memcached's port, served when none is given.
pub const DEFAULT_PORT: u16 = 11211;
/// Memory of the cache when none is given.
pub const DEFAULT_MEMORY: ByteSize = ByteSize::mib(256);
/// Greatest age of an entry when none is given.
pub const DEFAULT_MAX_AGE: Duration = Duration::from_secs(1);
/// Fewest buckets that make a cache.
pub const MIN_BUCKETS: u64 = 16;
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
/// The table of TCP connections takes no more than this part of the cache's memory, if nothing else is asked
/// for and requests are answered over TCP.
const FLOWS_PART: u64 = 8;

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
        "--rate-limit {given} is out of range: the most is {MAX_RATE} hits per second, and without \
         it there is no limit"
    )]
    RateTooHigh { given: NonZeroU32 },
    #[error(
        "--max-flows {given} is out of range: it must lie between {FLOW_WAYS} and {MOST_FLOWS}"
    )]
    FlowsOutOfRange { given: u32 },
    #[error("--tcp-answer {given} is out of range: it must lie between 1 and {MAX_ANSWER} bytes")]
    AnswerOutOfRange { given: u64 },
    #[error("port 0 cannot be served: give the port on which memcached listens")]
    PortZero,
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
    pub port: Vec<u16>,

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
    pub rate_limit: Option<NonZeroU32>,

    /// Serve also requests from ports below 1024. A forged request from a server's port makes the two
    /// servers talk to each other
    #[arg(long)]
    pub serve_reserved_ports: bool,

    /// Never stand aside: follow and serve requests also while nobody reads, or too little of much traffic could be
    /// answered for that to pay
    #[arg(long)]
    pub always_on: bool,

    /// Answer GETs also on TCP connections on which memcached has answered one. From its first hit on, prestack
    /// carries that connection until it closes: the programs stay pinned if this process is killed, and
    /// stopping waits for such connections
    #[arg(long)]
    pub tcp_hits: bool,

    /// Most TCP connections that are followed, rounded up to a power of two; others are not answered
    /// [default: 8192; with --tcp-hits as many as an eighth of --memory holds, up to 65536]
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
    #[arg(long)]
    #[serde(rename = "watch-lo", deserialize_with = "negated")]
    pub no_watch_lo: bool,

    /// Name of this instance: several on one host need different ones [default: default]
    #[arg(long, value_name = "NAME")]
    pub instance: Option<InstanceName>,

    /// Leave the programs in place when this process ends: they go on to watch writes, and serve
    /// nothing until the next `prestack run` replaces them
    #[arg(long)]
    pub pin: bool,

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

    /// How replies are watched
    #[arg(long, hide = true)]
    pub egress: Option<EgressSetting>,
}

impl Settings {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// The file cannot be read, or holds something that is not a setting.
    pub fn read(path: &Path) -> Result<Self, SettingsError> {
        let text = fs::read_to_string(path).map_err(|source| SettingsError::Unreadable {
            path: path.into(),
            source,
        })?;
        toml::from_str(&text).map_err(|source| SettingsError::Malformed {
            path: path.into(),
            source: Box::new(source),
        })
    }

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
            serve_reserved_ports: self.serve_reserved_ports || file.serve_reserved_ports,
            always_on: self.always_on || file.always_on,
            tcp_hits: self.tcp_hits || file.tcp_hits,
            max_flows: self.max_flows.or(file.max_flows),
            tcp_trickle: self.tcp_trickle.or(file.tcp_trickle),
            tcp_answer: self.tcp_answer.or(file.tcp_answer),
            drain_timeout: self.drain_timeout.or(file.drain_timeout),
            no_watch_lo: self.no_watch_lo || file.no_watch_lo,
            instance: self.instance.or(file.instance),
            pin: self.pin || file.pin,
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
        let mut ports = self.port;
        if ports.is_empty() {
            ports.push(DEFAULT_PORT);
        }
        ports.sort_unstable();
        ports.dedup();
        if ports[0] == 0 {
            return Err(SettingsError::PortZero);
        }
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
        if let Some(given) = self.rate_limit.filter(|rate| rate.get() > MAX_RATE) {
            return Err(SettingsError::RateTooHigh { given });
        }
        Ok(Options {
            instance: self.instance.unwrap_or_default(),
            flow_sets: match self.max_flows {
                Some(given) => sets_for(given)?,
                None if self.tcp_hits => default_sets(memory, has_long_answers(tcp_answer)),
                None => (MAX_FLOWS / FLOW_WAYS) as u32,
            },
            tcp_hits: self.tcp_hits,
            tcp_trickle,
            tcp_answer,
            drain_timeout,
            watch_lo: !self.no_watch_lo && !self.interface.iter().any(|name| name == LOOPBACK),
            interfaces: self.interface,
            ports,
            addresses: self.address,
            mode: self.mode.unwrap_or_default(),
            extent: Extent::new(buckets(memory)?),
            memory,
            max_age,
            settle,
            allow: self.allow.into_iter().map(|net| net.0).collect(),
            rate_limit: self.rate_limit,
            serve_reserved_ports: self.serve_reserved_ports,
            always_on: self.always_on,
            rest: self.rest.map(|span| span.0),
            much: self.much.map(NonZeroU32::get).map(u64::from),
            pin: self.pin,
            egress: self.egress.unwrap_or_default(),
        })
    }
}

impl Options {
    /// Whether the programs are pinned, so that they stay if this process is killed.
    #[must_use]
    pub const fn outlives(&self) -> bool {
        self.pin || self.tcp_hits
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

/// Reads a flag that says the opposite of the setting in the file.
fn negated<'de, D: Deserializer<'de>>(setting: D) -> Result<bool, D::Error> {
    bool::deserialize(setting).map(|is| !is)
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

/// How many buckets fit in `memory`.
fn buckets(memory: ByteSize) -> Result<u32, SettingsError> {
    let size = BUCKET_BYTES as u64;
    let buckets = memory.as_u64() / size;
    if buckets < MIN_BUCKETS {
        return Err(SettingsError::TooLittleMemory {
            given: memory,
            least: ByteSize::b((MIN_BUCKETS * size).next_multiple_of(1024)),
        });
    }
    // Array maps are indexed by 32 bits, and mapped into this process as a whole.
    u32::try_from(buckets).map_err(|_| SettingsError::TooMuchMemory {
        given: memory,
        most: ByteSize::b(u64::from(u32::MAX) * size),
    })
}

/// How many sets hold so many TCP connections.
fn sets_for(given: u32) -> Result<u32, SettingsError> {
    if !(FLOW_WAYS..=MOST_FLOWS).contains(&(given as usize)) {
        return Err(SettingsError::FlowsOutOfRange { given });
    }
    Ok(given.next_power_of_two() / FLOW_WAYS as u32)
}

const fn has_long_answers(most: u64) -> bool {
    most > SHORT_ANSWER as u64
}

/// The greatest power of two of sets that takes no more than its part of the memory, but no less than there
/// are without answers over TCP.
fn default_sets(memory: ByteSize, has_long_answers: bool) -> u32 {
    let (least, most) = (MAX_FLOWS / FLOW_WAYS, MOST_FLOWS / FLOW_WAYS);
    let rest = if has_long_answers {
        size_of::<AnswerRest>()
    } else {
        0
    };
    let size = (size_of::<Flow>() + size_of::<Translated>() + rest) * FLOW_WAYS;
    let fit = memory.as_u64() / FLOWS_PART / size as u64;
    let fit = fit.clamp(least as u64, most as u64) as u32;
    1 << fit.ilog2()
}

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

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Result<Settings, toml::de::Error> {
        toml::from_str(text)
    }

    fn resolve(text: &str) -> Result<Options, SettingsError> {
        file(text).expect("well-formed").resolve("lo")
    }

    #[test]
    fn the_file_knows_every_flag_by_its_name() {
        let settings = file(
            r#"
            interface = ["vs", "vt"]
            port = 11212
            address = "10.0.0.1"
            mode = "generic"
            memory = "64MiB"
            max-age = "500ms"
            allow = ["10.0.0.0/8", "fd00::1"]
            instance = "two"
            pin = true
            tcp-hits = true
            max-flows = 3000
            tcp-trickle = "1s"
            tcp-answer = 300
            drain-timeout = "0s"
            watch-lo = false
            settle = "2s"
            egress = "clsact"
            "#,
        )
        .expect("well-formed");
        let options = settings.resolve("").expect("in range");
        assert_eq!(options.interfaces, ["vs", "vt"]);
        assert_eq!(options.ports, [11212]);
        assert_eq!(options.addresses, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(options.mode, ModeSetting::Generic);
        assert_eq!(options.memory, ByteSize::mib(64));
        assert_eq!(options.max_age, Duration::from_millis(500));
        assert_eq!(options.settle, Duration::from_secs(2));
        assert_eq!(options.allow[1], "fd00::1/128".parse().unwrap());
        assert_eq!(options.instance.as_str(), "two");
        assert!(options.pin && !options.watch_lo);
        assert_eq!(options.egress, EgressSetting::Clsact);
        assert_eq!((options.tcp_hits, options.max_flows()), (true, 4096));
        assert_eq!(options.tcp_trickle, Duration::from_secs(1));
        assert_eq!(
            (options.tcp_answer, options.has_long_answers()),
            (300, true)
        );
        assert_eq!(options.drain_timeout, Duration::ZERO);
    }

    #[test]
    fn defaults_are_those_of_the_manual() {
        let options = resolve("interface = 'vs'").expect("in range");
        assert_eq!(options.ports, [11211]);
        assert_eq!(options.max_age, Duration::from_secs(1));
        assert_eq!(options.settle, options.max_age);
        assert_eq!(options.memory, ByteSize::mib(256));
        assert_eq!(options.instance.as_str(), "default");
        assert!(options.watch_lo && !options.tcp_hits);
        assert_eq!(options.max_flows(), 8192);
        assert_eq!(options.tcp_trickle, Duration::from_secs(5));
        assert_eq!(options.tcp_answer, 1472);
        assert!(!options.has_long_answers());
        assert_eq!(options.drain_timeout, Duration::from_secs(60));
        let bytes = u64::from(options.extent.buckets()) * BUCKET_BYTES as u64;
        assert!(bytes <= 256 << 20 && bytes > 252 << 20, "{bytes}");
    }

    #[test]
    fn tables_of_connections_are_powers_of_two() {
        let flows =
            |text: &str| resolve(&format!("interface = 'vs'\n{text}")).map(|o| o.max_flows());
        for (given, flows_) in [
            (16, 16),
            (17, 32),
            (8192, 8192),
            (40_000, 65_536),
            (65_536, 65_536),
        ] {
            assert_eq!(
                flows(&format!("max-flows = {given}")).expect("in range"),
                flows_
            );
        }
        for given in [0, 15, 65_537, u32::MAX] {
            let error = flows(&format!("max-flows = {given}")).unwrap_err();
            assert!(
                error.to_string().contains("between 16 and 65536"),
                "{error}"
            );
        }
    }

    #[test]
    fn the_table_of_connections_grows_with_the_memory() {
        let flows = |memory: &str, more: &str| {
            let text = format!("interface = 'vs'\nmemory = '{memory}'\n{more}");
            resolve(&text).expect("in range").max_flows()
        };
        for (memory, most, short) in [
            ("1MiB", 8192, 8192),
            ("256MiB", 8192, 8192),
            ("1GiB", 16_384, 16_384),
            ("1200MiB", 16_384, 32_768),
            ("8GiB", 65_536, 65_536),
        ] {
            assert_eq!(flows(memory, "tcp-hits = true"), most, "{memory}");
            assert_eq!(flows(memory, "tcp-hits = true\ntcp-answer = 256"), short);
            assert_eq!(flows(memory, ""), 8192);
            assert_eq!(flows(memory, "tcp-hits = true\nmax-flows = 64"), 64);
        }
    }

    #[test]
    fn loopback_is_watched_unless_it_is_served_or_that_is_switched_off() {
        let watches = |text| resolve(text).expect("in range").watch_lo;
        assert!(watches("interface = 'vs'\nwatch-lo = true"));
        assert!(!watches("interface = 'vs'\nwatch-lo = false"));
        assert!(!watches("interface = ['vs', 'lo']"));
        let flag = Settings {
            no_watch_lo: true,
            ..Settings::default()
        };
        assert!(flag.over(file("watch-lo = true").unwrap()).no_watch_lo);
    }

    #[test]
    fn unknown_keys_are_named() {
        let error = file("interfaces = ['vs']").unwrap_err().to_string();
        assert!(error.contains("interfaces"), "{error}");
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("prestack.toml");
        fs::write(&path, "maxage = '1s'").expect("written");
        let error = Settings::read(&path).unwrap_err().to_string();
        assert!(
            error.contains("maxage") && error.contains("prestack.toml"),
            "{error}"
        );
    }

    #[test]
    fn flags_win_over_the_file() {
        let flags = Settings {
            port: vec![1],
            max_age: Some(Span(Duration::from_secs(2))),
            ..Settings::default()
        };
        let merged = flags.over(file("port = [2, 3]\nmax-age = '9s'\ninterface = 'vs'").unwrap());
        assert_eq!(merged.port, [1]);
        assert_eq!(merged.max_age, Some(Span(Duration::from_secs(2))));
        assert_eq!(merged.interface, ["vs"]);
    }

    #[test]
    fn values_out_of_range_are_refused() {
        use SettingsError::*;
        let error = |text: &str| resolve(text).unwrap_err();
        assert!(matches!(error(""), NoInterface { .. }));
        assert!(matches!(
            error("interface=['a','a']"),
            RepeatedInterface { .. }
        ));
        assert!(matches!(error("interface='a'\nport=0"), PortZero));
        assert!(matches!(
            error("interface='a'\nmemory='64KiB'"),
            TooLittleMemory { .. }
        ));
        assert!(matches!(
            error("interface='a'\nmemory='1EiB'"),
            TooMuchMemory { .. }
        ));
        assert!(matches!(
            error("interface='a'\nmax-age='1ms'"),
            DurationOutOfRange {
                name: "max-age",
                ..
            }
        ));
        assert!(matches!(
            error("interface='a'\nsettle='2days'"),
            DurationOutOfRange { name: "settle", .. }
        ));
        for (name, text) in [
            ("tcp-trickle", "tcp-trickle='10ms'"),
            ("drain-timeout", "drain-timeout='2days'"),
        ] {
            let error = error(&format!("interface='a'\n{text}"));
            assert!(matches!(error, DurationOutOfRange { name: n, .. } if n == name));
        }
        for text in ["tcp-answer=0", "tcp-answer=1473"] {
            let error = error(&format!("interface='a'\n{text}"));
            assert!(matches!(error, AnswerOutOfRange { .. }));
        }
        assert!(matches!(
            error("interface='a'\nrate-limit=1000000001"),
            RateTooHigh { .. }
        ));
        assert!(resolve("interface='a'\nrate-limit=1000000000").is_ok());
    }

    #[test]
    fn malformed_values_are_refused() {
        for text in [
            "max-age = '1'",
            "max-age = 'soon'",
            "memory = 'much'",
            "allow = '10.0.0.0/33'",
            "port = 70000",
            "instance = 'a.b'",
            "instance = ''",
            "mode = 'fast'",
        ] {
            assert!(file(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_least_memory_is_enough() {
        let least = (MIN_BUCKETS * BUCKET_BYTES as u64).next_multiple_of(1024);
        assert_eq!(
            u64::from(buckets(ByteSize::b(least)).expect("enough")),
            MIN_BUCKETS
        );
    }
}
