//! What the datapath is told of whom it serves, and where.

use prestack_abi::config::{Config, Link};

use crate::{allow::AllowList, doors::DoorSpec};

/// What the datapath serves, and whom.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Layout {
    /// Where the backends are reached.
    pub doors: Vec<DoorSpec>,
    /// Who may be served.
    pub allow: AllowList,
    /// Where packets arrive that are for this host, as the datapath reads them.
    pub links: Vec<Link>,
}

impl Layout {
    /// Whether it can be made of `other` by changing which of the doors are served.
    #[must_use]
    pub fn has_places_of(&self, other: &Self) -> bool {
        let mut doors = self.doors.iter().zip(&other.doors);
        self.doors.len() == other.doors.len()
            && doors.all(|(one, other)| one.is_same_place(other))
            && self.allow == other.allow
            && self.links == other.links
    }

    /// Where a backend is served that it was not `before`, and the other way round, in words.
    #[must_use]
    pub fn changes_of(&self, before: &Self, backend: u8) -> Vec<String> {
        let served = |layout: &Self| -> Vec<String> {
            let doors = layout.doors.iter();
            let served = doors.filter(|door| door.backend == backend && door.is_served());
            served.map(ToString::to_string).collect()
        };
        let (before, now) = (served(before), served(self));
        let line = |these: &[String], others: &[String], what, end: &str| {
            let new = these.iter().filter(|door| !others.contains(door));
            let new: Vec<_> = new.cloned().collect();
            (!new.is_empty()).then(|| format!("{what} at {}{end}", new.join(", ")))
        };
        let lines = [
            line(&before, &now, "no longer served", ""),
            line(&now, &before, "served", " from now on"),
        ];
        lines.into_iter().flatten().collect()
    }

    /// Writes it into a configuration.
    pub fn write(&self, config: &mut Config) {
        // The first place of a list is looked at before its length: nothing of before may be left.
        let none = Config::empty();
        config.ports = none.ports;
        config.doors = none.doors;
        config.links = none.links;
        config.allow4 = none.allow4;
        config.allow6 = none.allow6;
        for (to, door) in config.doors.iter_mut().zip(&self.doors) {
            *to = door.to_abi();
        }
        for door in &self.doors {
            config.add_port(door.port);
        }
        for (to, link) in config.links.iter_mut().zip(&self.links) {
            *to = *link;
        }
        config.links_len = self.links.len() as u64;
        for (to, net) in config.allow4.iter_mut().zip(self.allow.to_abi4()) {
            *to = net;
        }
        for (to, net) in config.allow6.iter_mut().zip(self.allow.to_abi6()) {
            *to = net;
        }
        // The limits of the lists are far below those of the counts.
        config.doors_len = self.doors.len() as u32;
        config.allow4_len = self.allow.to_abi4().count() as u32;
        config.allow6_len = self.allow.to_abi6().count() as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doors::Transports;

    #[test]
    fn a_layout_is_written_whole() {
        let layout = Layout {
            doors: vec![DoorSpec {
                address: None,
                port: 11211,
                backend: 2,
                serve_tcp: false,
                serve_udp: false,
                transports: Transports::all(None),
            }],
            allow: AllowList::new(&["10.0.0.0/8".parse().expect("a net")], &[]).expect("few"),
            links: vec![Link {
                place: 2,
                mac: 3,
                allow: 1,
            }],
        };
        let mut config = Config::empty();
        config.add_port(80);
        layout.write(&mut config);
        assert_eq!(
            (config.doors_len, config.allow4_len, config.allow6_len),
            (1, 1, 0)
        );
        assert_eq!((config.links_len, config.links[0]), (1, layout.links[0]));
        assert_eq!(config.doors[0], layout.doors[0].to_abi());
        assert_eq!(config.ports[11211 / 64], 1 << (11211 % 64));
        assert_eq!(config.ports[80 / 64], 0);
    }

    /// The datapath looks at the first place of a list before it looks at how many are used.
    #[test]
    fn nothing_of_an_earlier_layout_is_left() {
        let nets = ["10.0.0.0/8", "fd00::/8"].map(|net| net.parse().expect("a net"));
        let link = Link {
            place: 2,
            mac: 3,
            allow: 1,
        };
        let door = |port| DoorSpec {
            address: None,
            port,
            backend: 2,
            serve_tcp: false,
            serve_udp: false,
            transports: Transports::all(None),
        };
        let layout = Layout {
            doors: vec![door(11211), door(11212)],
            allow: AllowList::new(&nets, &[]).expect("few"),
            links: vec![link, Link { place: 4, ..link }],
        };
        for kept in [1, 0] {
            let mut config = Config::empty();
            layout.write(&mut config);
            let mut less = layout.clone();
            less.doors.truncate(kept);
            less.links.truncate(kept);
            less.allow = AllowList::default();
            less.write(&mut config);
            let mut fresh = Config::empty();
            less.write(&mut fresh);
            assert_eq!(config.doors, fresh.doors);
            assert_eq!(config.links, fresh.links);
            assert_eq!(config.allow4, fresh.allow4);
            assert_eq!(config.allow6, fresh.allow6);
            assert_eq!(config.ports, fresh.ports);
        }
    }
}
