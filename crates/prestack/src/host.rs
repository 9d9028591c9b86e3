//! The host's own addresses and interfaces.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv6Addr},
};

use ipnet::IpNet;
use nix::{ifaddrs::getifaddrs, net::if_::if_nameindex};

use crate::{
    links::{self, LinkSpec},
    netlink::{self, Interface},
};

/// Name of the loopback interface.
pub const LOOPBACK: &str = "lo";

/// An address of this host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LocalAddress {
    /// The address with the length of its subnet's prefix.
    pub net: IpNet,
    /// The interface that has it.
    pub interface: String,
    /// Whether prestack is attached to that interface, or to one under it.
    pub attached: bool,
}

impl LocalAddress {
    /// The address.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.net.addr()
    }
}

/// What of the host decides which packets are for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Host {
    /// Its addresses.
    pub local: Vec<LocalAddress>,
    /// The ways in over attached interfaces.
    pub links: Vec<LinkSpec>,
}

impl Host {
    /// Looks at the host, or rather at the calling thread's network namespace.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn look(attached: &[Interface]) -> io::Result<Self> {
        let devices = netlink::devices()?;
        // Another one may have come in the place of an interface, under its name.
        let is_there = |interface: &&Interface| {
            let mut devices = devices.iter();
            devices.any(|d| d.name == interface.name && d.index == interface.index)
        };
        let names = attached.iter().filter(is_there).map(|at| at.name.clone());
        let names: Vec<_> = names.collect();
        let links = links::links(&devices, &names);
        Ok(Self {
            local: addresses(&links::seen(&links, &names))?,
            links,
        })
    }

    /// Whether this is an address at which packets are seen.
    #[must_use]
    pub fn sees(&self, address: IpAddr) -> bool {
        let mut local = self.local.iter();
        local.any(|here| here.attached && here.address() == address)
    }

    /// Whether this is an address of interfaces alone that prestack is not attached to: packets for it may be seen
    /// all the same, on their way to it.
    #[must_use]
    pub fn has_elsewhere(&self, address: IpAddr) -> bool {
        let mut local = self.local.iter();
        local.any(|here| here.address() == address) && !self.sees(address)
    }

    /// Numbers of the attached interfaces and of those on top of them.
    #[must_use]
    pub fn indices(&self) -> Vec<u32> {
        let links = self.links.iter();
        let indices: BTreeSet<_> = links.flat_map(|link| [link.index, link.top]).collect();
        indices.into_iter().collect()
    }
}

/// Every address of the host (of the calling thread's network namespace).
///
/// # Errors
/// The kernel does not say.
pub fn addresses(attached: &[String]) -> io::Result<Vec<LocalAddress>> {
    let mut addresses: Vec<LocalAddress> = Vec::new();
    for entry in getifaddrs()? {
        let Some(net) = entry
            .address
            .zip(entry.netmask)
            .and_then(|(address, mask)| {
                if let (Some(address), Some(mask)) =
                    (address.as_sockaddr_in(), mask.as_sockaddr_in())
                {
                    return IpNet::with_netmask(address.ip().into(), mask.ip().into()).ok();
                }
                let (address, mask) = (address.as_sockaddr_in6()?, mask.as_sockaddr_in6()?);
                IpNet::with_netmask(address.ip().into(), mask.ip().into()).ok()
            })
        else {
            continue;
        };
        // An address with a label (`eth0:1`) is listed under it.
        let interface = entry.interface_name.split(':').next().unwrap_or_default();
        let local = LocalAddress {
            net,
            attached: attached.iter().any(|name| name == interface),
            interface: interface.to_owned(),
        };
        if !addresses.contains(&local) {
            addresses.push(local);
        }
    }
    Ok(addresses)
}

/// Whether Linux takes the address at one interface only: at those of IPv4 it does not mind.
#[must_use]
pub fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// The address as 16 bytes: IPv4 mapped into IPv6.
#[must_use]
pub fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

/// The address that is these words in network byte order, IPv4 mapped into IPv6.
#[must_use]
pub fn from_words(words: [u32; 4]) -> IpAddr {
    let mut bytes = [0; 16];
    for (bytes, word) in bytes.chunks_exact_mut(4).zip(words) {
        bytes.copy_from_slice(&word.to_ne_bytes());
    }
    Ipv6Addr::from(bytes).to_canonical()
}

/// Addresses in words, each once.
#[must_use]
pub fn list(addresses: impl Iterator<Item = IpAddr>) -> String {
    let unique: BTreeSet<_> = addresses.collect();
    let words: Vec<_> = unique.iter().map(ToString::to_string).collect();
    words.join(", ")
}

/// Names of the interfaces there are, for messages.
#[must_use]
pub fn interface_names() -> String {
    let Ok(interfaces) = if_nameindex() else {
        return "unknown".into();
    };
    let names: Vec<_> = interfaces
        .iter()
        .map(|interface| interface.name().to_string_lossy().into_owned())
        .collect();
    names.join(", ")
}

/// Whether the host takes data with a SYN on every listener, without its asking for that
/// (`net.ipv4.tcp_fastopen` in Documentation/networking/ip-sysctl.rst: 2 for servers, 0x400 for all).
#[must_use]
pub fn has_fast_open() -> bool {
    const FOR_ALL_SERVERS: u32 = 0x402;
    std::fs::read_to_string("/proc/sys/net/ipv4/tcp_fastopen")
        .ok()
        .and_then(|text| text.trim().parse::<u32>().ok())
        .is_some_and(|value| value & FOR_ALL_SERVERS == FOR_ALL_SERVERS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_is_known_by_its_number_as_well() {
        let mut lo = netlink::interface(LOOPBACK)
            .expect("an answer")
            .expect("there is one");
        let local = IpAddr::from([127, 0, 0, 1]);
        assert!(Host::look(&[lo.clone()]).expect("readable").sees(local));
        lo.index += 1_000_000;
        assert!(!Host::look(&[lo]).expect("readable").sees(local));
    }

    #[test]
    fn an_address_is_elsewhere_if_it_is_nowhere_else() {
        let local = [("10.0.0.1/24", true), ("10.0.0.1/32", false)];
        let local = [&local[..], &[("10.0.0.2/32", false)]].concat();
        let local = local.iter().map(|(net, attached)| LocalAddress {
            net: net.parse().expect("a net"),
            interface: "eth0".into(),
            attached: *attached,
        });
        let host = Host {
            local: local.collect(),
            links: Vec::new(),
        };
        let found = [1, 2, 3].map(|last| {
            let address = IpAddr::from([10, 0, 0, last]);
            (host.sees(address), host.has_elsewhere(address))
        });
        assert_eq!(found, [(true, false), (false, true), (false, false)]);
    }

    #[test]
    fn words_are_addresses() {
        let mapped = [0, 0, 0xffff_u32.to_be(), 0x0a00_0001_u32.to_be()];
        assert_eq!(from_words(mapped), IpAddr::from([10, 0, 0, 1]));
        let v6 = [0xfd00_0000_u32.to_be(), 0, 0, 1_u32.to_be()];
        assert_eq!(from_words(v6).to_string(), "fd00::1");
    }

    #[test]
    fn the_loopback_interface_is_found() {
        assert!(interface_names().contains("lo"));
        let addresses = addresses(&["lo".into()]).expect("readable");
        assert!(
            addresses
                .iter()
                .any(|a| a.attached && a.net.to_string() == "127.0.0.1/8")
        );
    }
}
