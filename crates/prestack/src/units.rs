//! Values of settings that are written for people: durations, networks, names.

use std::{fmt, net::IpAddr, str::FromStr, time::Duration};

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
#[serde(try_from = "String", into = "String")]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        humantime::parse_duration(text)
            .map(Self)
            .map_err(|_| "a duration has a number and a unit, such as 500ms or 1s".into())
    }
}

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
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

/// A network, or a single address, from which clients may be served.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct Network(pub IpNet);

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<IpNet>()
            .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
            .map(|net| Self(net.trunc()))
            .map_err(|_| {
                "a network is written as an address and a prefix length, such as 10.0.0.0/8".into()
            })
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
    fn networks_may_be_single_addresses_and_are_cut_to_their_prefix() {
        let parse = |text: &str| text.parse::<Network>().map(|net| net.0.to_string());
        assert_eq!(parse("10.0.0.1"), Ok("10.0.0.1/32".into()));
        assert_eq!(parse("10.0.0.1/8"), Ok("10.0.0.0/8".into()));
        assert_eq!(parse("fd00::1/8"), Ok("fd00::/8".into()));
        assert!(parse("ten").is_err());
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
