//! Links: at which interface, with which VLAN tags and to which MAC address frames arrive of which the
//! kernel takes the packets. XDP sees others too.

use std::collections::BTreeSet;

use prestack_abi::config::{Link, MAX_LINKS};
use tracing::debug;

use crate::netlink::{Device, Kind, Tag};

/// A way in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LinkSpec {
    /// Number of the interface at which the frames arrive.
    pub index: u32,
    /// Their VLAN tags, the outermost first; two at most.
    pub tags: Vec<Tag>,
    /// The MAC address that they are sent to.
    pub mac: [u8; 6],
    /// The interface that takes their packets: that one or one on top of it.
    pub interface: String,
    /// Number of that interface.
    pub top: u32,
}

impl LinkSpec {
    /// The link as the datapath reads it, with the networks that are served there.
    #[must_use]
    pub fn to_abi(&self, allow: u64) -> Link {
        let tag = |at: usize| {
            self.tags
                .get(at)
                .map_or(0, |tag| Link::tag(tag.is_service, tag.id))
        };
        let [a, b, c, d, e, f] = self.mac;
        Link {
            place: Link::place(self.index, tag(0), tag(1)),
            mac: u64::from_ne_bytes([a, b, c, d, e, f, 0, 0]),
            allow,
        }
    }
}

/// Names of the interfaces whose packets are seen: the attached ones, and those on top of them.
#[must_use]
pub fn seen(links: &[LinkSpec], attached: &[String]) -> Vec<String> {
    let tops = links.iter().map(|link| link.interface.clone());
    tops.chain(attached.iter().cloned()).collect()
}

/// The links of `attached` interfaces, each interface's own before those on top of it. What does not
/// fit is not served.
#[must_use]
pub fn links(devices: &[Device], attached: &[String]) -> Vec<LinkSpec> {
    let mut walk = Walk {
        devices,
        links: Vec::new(),
    };
    for name in attached {
        let Some(device) = devices.iter().find(|device| device.name == *name) else {
            continue;
        };
        walk.enter(device);
        // A bond has its XDP program run on its ports, and those are where frames then arrive.
        if matches!(device.kind, Kind::Bond) {
            let ports = devices.iter().filter(|d| d.master == Some(device.index));
            for port in ports {
                walk.enter(port);
            }
        }
    }
    let mut links = walk.links;
    if links.len() > MAX_LINKS {
        debug!("{} links do not fit", links.len() - MAX_LINKS);
        links.truncate(MAX_LINKS);
    }
    links
}

/// Two of these interfaces of which one is on top of the other, by their names, the upper one first. What goes through
/// that goes through the other as well.
#[must_use]
pub fn stacked(devices: &[Device], names: &[String]) -> Option<(String, String)> {
    let named = |device: &&Device| names.contains(&device.name);
    devices.iter().filter(named).find_map(|lower| {
        let on_top = above(devices, lower);
        let upper = on_top.into_iter().find(named)?;
        Some((upper.name.clone(), lower.name.clone()))
    })
}

/// All devices on top of one.
fn above<'a>(devices: &'a [Device], lower: &Device) -> Vec<&'a Device> {
    let mut found: Vec<&Device> = Vec::new();
    let mut from = vec![lower];
    while let Some(device) = from.pop() {
        for upper in devices {
            let is_new = upper.index != lower.index && !found.contains(&upper);
            if is_new && is_right_above(upper, device) {
                found.push(upper);
                from.push(upper);
            }
        }
    }
    found
}

/// Whether the one takes frames of the other as they are. The ends of a veth pair name one another, and a tunnel what
/// its packets leave by.
fn is_right_above(upper: &Device, lower: &Device) -> bool {
    let takes_part = matches!(upper.kind, Kind::Vlan(_) | Kind::MacVlan | Kind::IpVlan);
    lower.master == Some(upper.index) || takes_part && upper.lower == Some(lower.index)
}

/// Devices on top of one another are not more: a loop in two answers of the kernel must end.
const DEEPEST: usize = 8;

struct Walk<'a> {
    devices: &'a [Device],
    links: Vec<LinkSpec>,
}

impl Walk<'_> {
    /// Adds what arrives at a device.
    fn enter(&mut self, device: &Device) {
        self.climb(device.index, device, &[], &BTreeSet::from([device.mac]), 0);
    }

    /// Adds what a device takes of the frames that arrive at `index` with `tags`, to these MAC
    /// addresses, and what devices on top of it take.
    fn climb(
        &mut self,
        index: u32,
        device: &Device,
        tags: &[Tag],
        macs: &BTreeSet<[u8; 6]>,
        depth: usize,
    ) {
        if !device.is_up || tags.len() > 2 || depth > DEEPEST {
            return;
        }
        let with = |mac| macs.iter().copied().chain([mac]).collect::<BTreeSet<_>>();
        let master = device
            .master
            .map(|index| self.devices.iter().find(|device| device.index == index));
        match master {
            None => self.add(index, device, tags, macs),
            Some(Some(master)) => match master.kind {
                Kind::Vrf => self.add(index, device, tags, macs),
                // It takes what its ports take.
                Kind::Bond if device.hands_on => self.climb(index, master, tags, macs, depth + 1),
                Kind::Bridge if device.hands_on => {
                    self.climb(index, master, tags, &with(master.mac), depth + 1);
                }
                _ => {}
            },
            Some(None) => {}
        }
        let uppers = self
            .devices
            .iter()
            .filter(|upper| upper.lower == Some(device.index) && upper.index != device.index);
        for upper in uppers {
            match upper.kind {
                // It takes what is sent to the device under it, or to itself.
                Kind::Vlan(tag) => {
                    let tags = [tags, &[tag]].concat();
                    self.climb(index, upper, &tags, &with(upper.mac), depth + 1);
                }
                // It takes what is sent to itself alone.
                Kind::MacVlan => {
                    let macs = BTreeSet::from([upper.mac]);
                    self.climb(index, upper, tags, &macs, depth + 1);
                }
                _ => {}
            }
        }
    }

    fn add(&mut self, index: u32, device: &Device, tags: &[Tag], macs: &BTreeSet<[u8; 6]>) {
        // The device's own address first, to which most is sent.
        let mut macs: Vec<_> = macs.iter().collect();
        macs.sort_by_key(|mac| **mac != device.mac);
        for mac in macs {
            let link = LinkSpec {
                index,
                tags: tags.to_vec(),
                mac: *mac,
                interface: device.name.clone(),
                top: device.index,
            };
            if !self.links.contains(&link) {
                self.links.push(link);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(index: u32, name: &str, kind: Kind) -> Device {
        Device {
            index,
            name: name.into(),
            mac: [2, 0, 0, 0, 0, index as u8],
            is_up: true,
            kind,
            lower: None,
            master: None,
            hands_on: true,
        }
    }

    fn vlan(index: u32, name: &str, lower: u32, id: u16) -> Device {
        let is_service = id >= 0x100;
        Device {
            lower: Some(lower),
            ..device(index, name, Kind::Vlan(Tag { is_service, id }))
        }
    }

    /// Interface, tags, last byte of the MAC address and the device on top, of each link.
    fn found(devices: &[Device], attached: &[&str]) -> Vec<(u32, Vec<u16>, u8, String)> {
        let attached: Vec<_> = attached.iter().map(|name| (*name).to_owned()).collect();
        links(devices, &attached)
            .into_iter()
            .map(|link| {
                let tags = link.tags.iter().map(|tag| tag.id).collect();
                (link.index, tags, link.mac[5], link.interface)
            })
            .collect()
    }

    fn link(index: u32, tags: &[u16], mac: u8, top: &str) -> (u32, Vec<u16>, u8, String) {
        (index, tags.to_vec(), mac, top.into())
    }

    #[test]
    fn an_interface_alone() {
        let devices = [
            device(1, "lo", Kind::Other),
            device(2, "eth0", Kind::Other),
            device(3, "eth1", Kind::Other),
        ];
        assert_eq!(found(&devices, &["eth0"]), [link(2, &[], 2, "eth0")]);
        assert_eq!(found(&devices, &["gone"]), []);
        let down = Device {
            is_up: false,
            ..device(2, "eth0", Kind::Other)
        };
        assert_eq!(found(&[down], &["eth0"]), []);
    }

    #[test]
    fn vlans_and_vlans_within() {
        let devices = [
            device(2, "eth0", Kind::Other),
            vlan(3, "eth0.5", 2, 5),
            vlan(4, "eth0.s", 2, 0x123),
            vlan(5, "eth0.s.6", 4, 6),
            vlan(6, "eth1.5", 9, 5),
        ];
        assert_eq!(
            found(&devices, &["eth0"]),
            [
                link(2, &[], 2, "eth0"),
                link(2, &[5], 3, "eth0.5"),
                link(2, &[5], 2, "eth0.5"),
                link(2, &[0x123], 4, "eth0.s"),
                link(2, &[0x123], 2, "eth0.s"),
                link(2, &[0x123, 6], 5, "eth0.s.6"),
                link(2, &[0x123, 6], 2, "eth0.s.6"),
                link(2, &[0x123, 6], 4, "eth0.s.6"),
            ]
        );
    }

    #[test]
    fn a_port_hands_its_frames_to_its_master() {
        let mut port = device(2, "eth0", Kind::Other);
        port.master = Some(7);
        let above = vlan(8, "br0.9", 7, 9);
        let bridge = device(7, "br0", Kind::Bridge);
        let devices = [port.clone(), bridge.clone(), above];
        assert_eq!(
            found(&devices, &["eth0"]),
            [
                link(2, &[], 7, "br0"),
                link(2, &[], 2, "br0"),
                link(2, &[9], 8, "br0.9"),
                link(2, &[9], 2, "br0.9"),
                link(2, &[9], 7, "br0.9"),
            ]
        );
        // A port that is blocked takes nothing.
        port.hands_on = false;
        assert_eq!(found(&[port.clone(), bridge], &["eth0"]), []);
        // In a VRF it takes all itself.
        let vrf = device(7, "red", Kind::Vrf);
        assert_eq!(found(&[port, vrf], &["eth0"]), [link(2, &[], 2, "eth0")]);
    }

    #[test]
    fn a_macvlan_takes_what_is_sent_to_itself() {
        let upper = Device {
            lower: Some(2),
            ..device(5, "mv", Kind::MacVlan)
        };
        let devices = [device(2, "eth0", Kind::Other), upper];
        assert_eq!(
            found(&devices, &["eth0"]),
            [link(2, &[], 2, "eth0"), link(2, &[], 5, "mv")]
        );
    }

    #[test]
    fn frames_for_a_bond_arrive_at_its_ports() {
        let port = |index, name: &str| Device {
            master: Some(7),
            ..device(index, name, Kind::Other)
        };
        let devices = [
            port(2, "eth0"),
            port(3, "eth1"),
            device(7, "bond0", Kind::Bond),
        ];
        let found = found(&devices, &["bond0"]);
        assert_eq!(found[0], link(7, &[], 7, "bond0"));
        // What is sent to another address than the port's own, the port has already refused.
        assert_eq!(
            found[1..],
            [link(2, &[], 2, "bond0"), link(3, &[], 3, "bond0")]
        );
    }

    #[test]
    fn of_two_interfaces_one_may_be_on_top_of_the_other() {
        let port = |index, name: &str, master| Device {
            master: Some(master),
            ..device(index, name, Kind::Other)
        };
        let above = |index, name: &str, lower, kind| Device {
            lower: Some(lower),
            ..device(index, name, kind)
        };
        let devices = [
            port(2, "eth0", 7),
            port(3, "eth1", 7),
            device(7, "bond0", Kind::Bond),
            vlan(8, "bond0.5", 7, 5),
            vlan(9, "bond0.6", 7, 6),
            above(10, "mv", 8, Kind::MacVlan),
            above(11, "iv", 8, Kind::IpVlan),
            port(12, "eth2", 13),
            // One that filters VLANs, and one of devices that take their frames themselves.
            device(13, "br0", Kind::Other),
            port(14, "eth3", 15),
            device(15, "red", Kind::Vrf),
            above(16, "veth0", 17, Kind::Other),
            above(17, "veth1", 16, Kind::Other),
            above(18, "vxlan", 3, Kind::Other),
        ];
        let found = |names: &[&str]| {
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            stacked(&devices, &names)
        };
        for (upper, lower) in [
            ("bond0", "eth0"),
            ("bond0.5", "eth1"),
            ("mv", "eth0"),
            ("mv", "bond0.5"),
            ("iv", "bond0"),
            ("br0", "eth2"),
            ("red", "eth3"),
        ] {
            let expected = Some((upper.to_owned(), lower.to_owned()));
            assert_eq!(found(&[upper, lower]), expected);
            assert_eq!(found(&["veth0", lower, "gone", upper]), expected);
        }
        for apart in [
            &["eth0", "eth1", "eth2", "eth3"][..],
            &["bond0.5", "bond0.6"],
            &["mv", "iv"],
            &["veth0", "veth1"],
            &["vxlan", "eth1"],
            &["eth0"],
            &["eth0", "eth0"],
        ] {
            assert_eq!(found(apart), None, "{apart:?}");
        }
    }

    #[test]
    fn the_datapath_reads_bytes_as_they_arrive() {
        let devices = [device(2, "eth0", Kind::Other), vlan(3, "eth0.5", 2, 5)];
        let links = links(&devices, &["eth0".into()]);
        let abi = links[1].to_abi(1);
        assert_eq!(abi.mac.to_ne_bytes(), [2, 0, 0, 0, 0, 3, 0, 0]);
        assert_eq!(abi.place, 2 | 0x8005 << 32);
        assert_eq!(abi.allow, 1);
    }
}
