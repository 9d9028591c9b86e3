//! Values of settings that are written for people: durations, networks, names.

use std::{fmt, net::IpAddr, num::NonZeroU16, str::FromStr, time::Duration};

use bytesize::ByteSize;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Name of the instance when none is given.
pub const DEFAULT_INSTANCE: &str = "default";

/// So many of what an English word names: `1 link`, `2 links`.
#[must_use]
pub fn counted(count: usize, word: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{count} {word}{s}")
}

/// A duration in human units (`1s`, `500ms`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize, Serialize)]
#[serde(try_from = "SpanText", into = "String")]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        humantime::parse_duration(text)
            .map(Self)
            .map_err(|_| "a duration has a number and a unit, such as 500ms or 1s".into())
    }
}

/// How a configuration file may give a duration, and how it may not.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "a duration is written in quotes, such as \"1s\""
)]
enum SpanText {
    Text(String),
    Number(f64),
}

impl TryFrom<SpanText> for Span {
    type Error = String;

    fn try_from(span: SpanText) -> Result<Self, Self::Error> {
        match span {
            SpanText::Text(text) => text.parse(),
            SpanText::Number(number) => Err(format!(
                "{number} has no unit: a duration is written in quotes, such as \"500ms\" or \"1s\""
            )),
        }
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        span.to_string()
    }
}

impl fmt::Display for Span {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(out)
    }
}

/// A number of bytes (`256MiB`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "SizeText")]
pub struct Size(pub ByteSize);

/// How a configuration file may give a size.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "a size is written as a string, such as \"256MiB\""
)]
enum SizeText {
    Bytes(u64),
    Text(String),
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse()
            .map(Self)
            .map_err(|_| "a size has a number and a unit, such as 256MiB".into())
    }
}

impl TryFrom<SizeText> for Size {
    type Error = String;

    fn try_from(size: SizeText) -> Result<Self, Self::Error> {
        match size {
            SizeText::Bytes(bytes) => Ok(Self(ByteSize::b(bytes))),
            SizeText::Text(text) => text.parse(),
        }
    }
}

/// A port on which memcached may listen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "PortText")]
pub struct Port(pub NonZeroU16);

/// How a configuration file may give a port, and how it may not.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a port is a number, without quotes")]
enum PortText {
    Number(i64),
    Text(String),
}

impl TryFrom<PortText> for Port {
    type Error = String;

    fn try_from(port: PortText) -> Result<Self, Self::Error> {
        match port {
            PortText::Number(number) => number.try_into(),
            PortText::Text(text) => Err(format!(
                "\"{text}\" is no port: a port is a number from 1 to {}, without quotes",
                u16::MAX
            )),
        }
    }
}

impl TryFrom<i64> for Port {
    type Error = String;

    fn try_from(number: i64) -> Result<Self, Self::Error> {
        let port = u16::try_from(number).ok().and_then(NonZeroU16::new);
        port.map(Self).ok_or_else(|| {
            format!(
                "{number} is no port: they are numbers from 1 to {}",
                u16::MAX
            )
        })
    }
}

impl FromStr for Port {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse::<i64>() {
            Ok(number) => number.try_into(),
            Err(_) => Err(format!("a port is a number from 1 to {}", u16::MAX)),
        }
    }
}

/// A network, or a single address, from which clients may be served.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct Network(pub IpNet);

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let net = text.parse::<IpNet>();
        let net = net.or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        let net = net.map_err(
            |_| "a network is written as an address and a prefix length, such as 10.0.0.0/8",
        )?;
        // Somebody may have meant one host, and would let in a whole network.
        if net.trunc() != net {
            return Err(format!(
                "{net} is neither a network nor a host: write {} for the network, or {} for the host alone",
                net.trunc(),
                net.addr()
            ));
        }
        Ok(Self(net))
    }
}

impl TryFrom<String> for Network {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// Name of an instance: it names files, also on bpffs, which refuses dots.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstanceName(String);

impl InstanceName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for InstanceName {
    fn default() -> Self {
        Self(DEFAULT_INSTANCE.into())
    }
}

impl fmt::Display for InstanceName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl FromStr for InstanceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if (1..=64).contains(&text.len()) && text.chars().all(fits) {
            return Ok(Self(text.into()));
        }
        Err("an instance's name is 1 to 64 letters, digits, '-' and '_'".into())
    }
}

impl TryFrom<String> for InstanceName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<InstanceName> for String {
    fn from(name: InstanceName) -> Self {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        assert_eq!("500ms".parse(), Ok(Span(Duration::from_millis(500))));
        assert_eq!(Span(Duration::from_millis(1500)).to_string(), "1s 500ms");
        assert!("1".parse::<Span>().is_err());
    }

    #[test]
    fn sizes_have_units_or_are_bytes() {
        assert_eq!("64MiB".parse(), Ok(Size(ByteSize::mib(64))));
        assert_eq!("4096".parse(), Ok(Size(ByteSize::kib(4))));
        assert!("much".parse::<Size>().is_err());
    }

    #[test]
    fn networks_may_be_single_addresses() {
        let parse = |text: &str| text.parse::<Network>().map(|net| net.0.to_string());
        assert_eq!(parse("10.0.0.1"), Ok("10.0.0.1/32".into()));
        assert_eq!(parse("10.0.0.0/8"), Ok("10.0.0.0/8".into()));
        assert_eq!(parse("fd00::/8"), Ok("fd00::/8".into()));
        assert!(parse("ten").is_err());
    }

    #[test]
    fn a_host_with_the_prefix_length_of_a_network_is_neither() {
        for (text, network, host) in [
            ("10.0.0.1/8", "10.0.0.0/8", "10.0.0.1"),
            ("fd00::1/8", "fd00::/8", "fd00::1"),
        ] {
            let error = text.parse::<Network>().unwrap_err();
            let said = format!("write {network} for the network, or {host} for the host");
            assert!(error.contains(&said), "{error}");
        }
    }

    #[test]
    fn ports_are_numbers_from_1() {
        for good in ["1", "65535"] {
            assert!(good.parse::<Port>().is_ok(), "{good}");
        }
        for bad in ["0", "65536", "-1", "http", ""] {
            let error = bad.parse::<Port>().unwrap_err();
            assert!(error.contains("from 1 to 65535"), "{error}");
        }
    }

    #[test]
    fn names_are_safe_in_paths() {
        for name in ["default", "a-b_C9"] {
            assert!(name.parse::<InstanceName>().is_ok(), "{name}");
        }
        for name in ["", "a/b", "..", "a.b", "ä", &"x".repeat(65)] {
            assert!(name.parse::<InstanceName>().is_err(), "{name}");
        }
    }
}
