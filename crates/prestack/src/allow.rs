//! The allow list: whose requests may be answered from the cache.

use std::{cmp::Reverse, collections::BTreeSet};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prestack_abi::config::{Link, MAX_ALLOWED, Net4, Net6};

use crate::host::LocalAddress;

/// Networks from which clients may be served, without those that lie in others.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AllowList {
    /// The networks. A source belongs to the first that it is in.
    pub networks: Vec<IpNet>,
    /// Whether the operator gave them: they then hold on every link, and else on the link whose subnet
    /// they are.
    pub is_given: bool,
}

/// The allow list does not fit.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "the allow list has {count} {family} networks, of which {MAX_ALLOWED} can be handled: give \
     fewer, larger networks with --allow"
)]
pub struct TooManyNetworks {
    /// How many there are.
    pub count: usize,
    /// `IPv4` or `IPv6`.
    pub family: &'static str,
}

impl AllowList {
    /// The list the operator gave, or else the subnets of the attached interfaces.
    ///
    /// # Errors
    /// There are too many networks.
    pub fn new(given: &[IpNet], local: &[LocalAddress]) -> Result<Self, TooManyNetworks> {
        let networks = if given.is_empty() {
            let attached = local.iter().filter(|address| address.attached);
            // Not joined: neighbours may be the subnets of two links.
            let subnets: BTreeSet<_> = attached.map(|address| address.net.trunc()).collect();
            let mut subnets: Vec<_> = subnets.into_iter().collect();
            // As for the kernel's routes: a host belongs to the narrowest that it is in.
            subnets.sort_by_key(|net| (net.addr().is_ipv6(), Reverse(net.prefix_len())));
            subnets
        } else {
            // Not joined: the broadcast addresses between neighbours would be a host's.
            let all: BTreeSet<_> = given.iter().map(IpNet::trunc).collect();
            let is_in_another =
                |net: &IpNet| all.iter().any(|other| other != net && other.contains(net));
            all.iter()
                .filter(|net| !is_in_another(net))
                .copied()
                .collect()
        };
        let list = Self {
            networks,
            is_given: !given.is_empty(),
        };
        for (count, family) in [(list.v4().count(), "IPv4"), (list.v6().count(), "IPv6")] {
            if count > MAX_ALLOWED {
                return Err(TooManyNetworks { count, family });
            }
        }
        Ok(list)
    }

    /// What has changed since `before`, in words.
    #[must_use]
    pub fn changes(&self, before: &Self) -> Vec<String> {
        let all = |list: &[IpNet], others: &[IpNet]| -> Vec<String> {
            let new = list.iter().filter(|net| !others.contains(net));
            new.map(ToString::to_string).collect()
        };
        let (new, gone) = (
            all(&self.networks, &before.networks),
            all(&before.networks, &self.networks),
        );
        let line = |nets: &[String], what: &str| {
            (!nets.is_empty()).then(|| format!("clients in {} are {what}", nets.join(", ")))
        };
        let lines = [
            line(&gone, "no longer served"),
            line(&new, "served from now on"),
        ];
        lines.into_iter().flatten().collect()
    }

    fn v4(&self) -> impl Iterator<Item = Ipv4Net> {
        self.networks.iter().filter_map(|net| match net {
            IpNet::V4(net) => Some(*net),
            IpNet::V6(_) => None,
        })
    }

    fn v6(&self) -> impl Iterator<Item = Ipv6Net> {
        self.networks.iter().filter_map(|net| match net {
            IpNet::V4(_) => None,
            IpNet::V6(net) => Some(*net),
        })
    }

    /// The networks that hold on a link to an interface, as [`Link::allow`] has them.
    #[must_use]
    pub fn on_link(&self, interface: &str, local: &[LocalAddress]) -> u64 {
        if self.is_given {
            return u64::MAX;
        }
        let is_subnet = |network: IpNet| {
            let mut here = local
                .iter()
                .filter(|address| address.interface == interface);
            here.any(|address| address.net.trunc() == network)
        };
        let v4 = self.v4().map(IpNet::V4).enumerate();
        let v6 = self.v6().map(IpNet::V6).enumerate();
        v4.chain(v6)
            .filter(|(_, network)| is_subnet(*network))
            .map(|(at, network)| Link::allow_bit(network.addr().is_ipv6(), at))
            .fold(0, |bits, bit| bits | 1 << bit)
    }

    /// The IPv4 networks as the datapath reads them.
    pub fn to_abi4(&self) -> impl Iterator<Item = Net4> {
        self.v4().map(|net| Net4 {
            address: u32::from_ne_bytes(net.network().octets()),
            mask: u32::from_ne_bytes(net.netmask().octets()),
        })
    }

    /// The IPv6 networks as the datapath reads them.
    pub fn to_abi6(&self) -> impl Iterator<Item = Net6> {
        let words = |octets: [u8; 16]| {
            std::array::from_fn(|at| {
                let mut word = [0; 4];
                word.copy_from_slice(&octets[4 * at..4 * at + 4]);
                u32::from_ne_bytes(word)
            })
        };
        self.v6().map(move |net| Net6 {
            address: words(net.network().octets()),
            mask: words(net.netmask().octets()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(list: &[&str]) -> Vec<IpNet> {
        list.iter().map(|net| net.parse().expect("a net")).collect()
    }

    fn local(net: &str, attached: bool) -> LocalAddress {
        LocalAddress {
            net: net.parse().expect("a net"),
            interface: "vs".into(),
            attached,
        }
    }

    #[test]
    fn the_default_is_the_attached_subnets() {
        let local = [
            local("10.0.0.7/24", true),
            local("192.168.0.1/24", false),
            local("fd00::7/64", true),
        ];
        let list = AllowList::new(&[], &local).expect("few");
        assert_eq!(list.networks, nets(&["10.0.0.0/24", "fd00::/64"]));
    }

    #[test]
    fn given_networks_replace_it() {
        let given = nets(&["10.0.1.0/24", "10.0.0.7/24", "10.0.0.0/25", "10.0.1.9/24"]);
        let list = AllowList::new(&given, &[local("10.9.0.7/24", true)]).expect("few");
        // Not joined: each has a broadcast address of its own.
        assert_eq!(list.networks, nets(&["10.0.0.0/24", "10.0.1.0/24"]));
    }

    #[test]
    fn subnets_hold_on_their_own_links() {
        let on = |net, interface: &str| LocalAddress {
            interface: interface.into(),
            ..local(net, true)
        };
        let local = [
            on("10.0.1.7/24", "b"),
            on("10.0.0.7/24", "a"),
            on("fd00::7/64", "b"),
            on("10.0.1.8/16", "a"),
        ];
        let list = AllowList::new(&[], &local).expect("few");
        assert_eq!(
            list.networks,
            nets(&["10.0.0.0/24", "10.0.1.0/24", "10.0.0.0/16", "fd00::/64"])
        );
        assert_eq!(list.on_link("a", &local), 0b101);
        assert_eq!(list.on_link("b", &local), (0b010 | 1 << 32));
        assert_eq!(list.on_link("c", &local), 0);
        let given = AllowList::new(&nets(&["10.0.0.0/8"]), &local).expect("few");
        assert_eq!(given.on_link("c", &local), u64::MAX);
    }

    #[test]
    fn too_many_are_refused_by_family() {
        let given: Vec<_> = (0..33)
            .map(|n| format!("10.{}.0.0/16", 2 * n).parse().expect("a net"))
            .collect();
        assert_eq!(
            AllowList::new(&given, &[]),
            Err(TooManyNetworks {
                count: 33,
                family: "IPv4"
            })
        );
        assert!(AllowList::new(&given[..32], &[]).is_ok());
    }

    #[test]
    fn the_datapath_reads_network_byte_order() {
        let list = AllowList::new(&nets(&["10.0.0.0/8", "fd00::/9"]), &[]).expect("few");
        let net4 = list.to_abi4().next().expect("one");
        assert_eq!(net4.address.to_ne_bytes(), [10, 0, 0, 0]);
        assert_eq!(net4.mask.to_ne_bytes(), [255, 0, 0, 0]);
        let net6 = list.to_abi6().next().expect("one");
        assert_eq!(net6.address[0].to_ne_bytes(), [0xfd, 0, 0, 0]);
        assert_eq!(net6.mask[0].to_ne_bytes(), [255, 128, 0, 0]);
        assert_eq!(net6.mask[1..], [0, 0, 0]);
    }
}
