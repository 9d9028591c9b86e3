//! Doors: the addresses and ports at which backends are reached, as the datapath is told.

use std::{
    collections::HashSet,
    fmt,
    net::{IpAddr, SocketAddr},
};

use prestack_abi::config::{Door, MAX_DOORS};
use serde::{Deserialize, Serialize};

use crate::{
    discovery::{Memcached, Selection},
    host::{LocalAddress, is_link_local, mapped},
};

/// An address and port at which a backend listens.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize, Serialize)]
pub struct DoorSpec {
    /// The address; `None` for every other address of the host.
    pub address: Option<IpAddr>,
    /// The port, host byte order.
    pub port: u16,
    /// Number of the backend.
    pub backend: u8,
    /// Whether hits may be served over TCP, if they are at all.
    #[serde(default)]
    pub serve_tcp: bool,
    /// Whether hits may be served over UDP.
    pub serve_udp: bool,
}

impl DoorSpec {
    /// Whether both have the same address and port, and belong to the same backend.
    #[must_use]
    pub fn is_same_place(&self, other: &Self) -> bool {
        (self.address, self.port, self.backend) == (other.address, other.port, other.backend)
    }

    /// Nothing is served here any more.
    pub fn stop_serving(&mut self) {
        self.serve_tcp = false;
        self.serve_udp = false;
    }

    /// The door as the datapath reads it.
    #[must_use]
    pub fn to_abi(self) -> Door {
        let octets = self
            .address
            .map_or([0; 16], |address| mapped(address).octets());
        let mut address = [0; 4];
        for (word, bytes) in address.iter_mut().zip(octets.chunks_exact(4)) {
            *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        let any = if self.address.is_none() {
            Door::ANY_ADDRESS
        } else {
            0
        };
        let serve_tcp = if self.serve_tcp { Door::SERVE_TCP } else { 0 };
        let serve = if self.serve_udp { Door::SERVE_UDP } else { 0 };
        Door {
            address,
            port: self.port.to_be(),
            backend: self.backend,
            flags: any | serve_tcp | serve,
        }
    }
}

impl fmt::Display for DoorSpec {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) => SocketAddr::new(address, self.port).fmt(out),
            None => write!(out, "*:{}", self.port),
        }
    }
}

/// A backend whose doors are wanted.
#[derive(Clone, Copy, Debug)]
pub struct Tenant<'a> {
    /// Its number.
    pub number: u8,
    /// The process, or the one that was there last.
    pub memcached: &'a Memcached,
    /// Whether it runs: if not, its doors are kept, but not served.
    pub alive: bool,
}

/// The backends listen at more places than the datapath can be told.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "memcached listens at {needed} addresses and ports, of which {MAX_DOORS} can be handled: run \
     prestack for fewer ports or addresses (--port, --address)"
)]
pub struct TooManyDoors {
    /// How many doors there would be.
    pub needed: usize,
}

/// The doors of `backends`, exact addresses before wildcards, in an order that does not depend on
/// which of them are alive. Loopback addresses are among them if packets to them are seen.
///
/// # Errors
/// There are too many.
pub fn doors(
    backends: &[Tenant<'_>],
    local: &[LocalAddress],
    selection: &Selection,
    watches_lo: bool,
) -> Result<Vec<DoorSpec>, TooManyDoors> {
    let mut wanted: Vec<Wanted> = Vec::new();
    // Where a dead backend was, a live one may be by now.
    let (alive, dead): (Vec<_>, Vec<_>) = backends.iter().partition(|tenant| tenant.alive);
    let mut taken = HashSet::new();
    for tenant in alive.into_iter().chain(dead) {
        for door in tenant_doors(tenant, local, selection, watches_lo) {
            if taken.insert((door.spec.address, door.spec.port)) {
                wanted.push(door);
            }
        }
    }
    wanted.sort_by_key(|door| {
        let spec = door.spec;
        (
            spec.address.is_none(),
            door.optional,
            spec.backend,
            spec.port,
            spec.address,
        )
    });
    let needed = wanted.iter().filter(|door| !door.optional).count();
    if needed > MAX_DOORS {
        return Err(TooManyDoors { needed });
    }
    let mut spare = MAX_DOORS - needed;
    wanted.retain(|door| {
        let fits = !door.optional || spare > 0;
        spare -= usize::from(door.optional && fits);
        fits
    });
    Ok(wanted.into_iter().map(|door| door.spec).collect())
}

struct Wanted {
    spec: DoorSpec,
    /// A wildcard door of the same port covers it, if without hits: an address of an interface
    /// that prestack is not attached to, or one that is not to be served.
    optional: bool,
}

fn tenant_doors(
    tenant: &Tenant<'_>,
    local: &[LocalAddress],
    selection: &Selection,
    watches_lo: bool,
) -> Vec<Wanted> {
    let Tenant {
        number,
        memcached,
        alive,
    } = *tenant;
    let on_wire = |address: IpAddr| local.iter().any(|l| l.attached && l.address() == address);
    let mut doors: Vec<Wanted> = Vec::new();
    let mut add = |address: Option<IpAddr>, port, serve_tcp, serve_udp, optional| {
        doors.push(Wanted {
            spec: DoorSpec {
                address,
                port,
                backend: number,
                serve_tcp: serve_tcp && alive,
                serve_udp: serve_udp && alive,
            },
            optional,
        });
    };
    for socket in &memcached.sockets {
        let port = socket.port;
        let takes_udp = |address| memcached.takes_udp(address, port);
        let chosen = |address| selection.serves(address, port);
        if !socket.address.is_unspecified() {
            let address = socket.address;
            let reachable = !address.is_loopback() || on_wire(address);
            if reachable || watches_lo {
                let served = reachable && chosen(address);
                add(
                    Some(address),
                    port,
                    served,
                    served && takes_udp(address),
                    false,
                );
            }
            continue;
        }
        add(None, port, false, false, false);
        // Also those that are not chosen: what is asked there may be answered from another one.
        for here in local {
            let address = here.address();
            let reachable = here.attached || !(address.is_loopback() || is_link_local(address));
            if reachable && takes_udp(address) && socket.takes(address) {
                let served = chosen(address);
                let optional = !here.attached || !served;
                add(Some(address), port, served, served, optional);
            }
        }
    }
    // The address of an attached interface may be another's as well.
    doors.sort_by_key(|door| door.optional);
    doors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::{process::ProcessId, procnet::Socket};

    fn memcached(sockets: &[&str]) -> Memcached {
        Memcached {
            process: ProcessId { pid: 1, start: 1 },
            sockets: sockets.iter().map(|text| Socket::sample(text, 0)).collect(),
            unix_sockets: Vec::new(),
        }
    }

    fn local(list: &[(&str, &str)]) -> Vec<LocalAddress> {
        list.iter()
            .map(|(interface, net)| LocalAddress {
                net: net.parse().expect("a net"),
                interface: (*interface).into(),
                attached: interface.starts_with('v'),
            })
            .collect()
    }

    fn host() -> Vec<LocalAddress> {
        local(&[
            ("lo", "127.0.0.1/8"),
            ("lo", "::1/128"),
            ("eth0", "192.168.0.9/24"),
            ("eth0", "fe80::9/64"),
            ("vs", "10.0.0.1/24"),
            ("vs", "fe80::1/64"),
        ])
    }

    fn select(ports: &[u16], addresses: &[&str]) -> Selection {
        Selection {
            ports: ports.to_vec(),
            addresses: addresses
                .iter()
                .map(|a| a.parse().expect("an address"))
                .collect(),
        }
    }

    fn show(doors: &[DoorSpec]) -> Vec<String> {
        doors
            .iter()
            .map(|door| {
                let address = door.address.map_or("*".into(), |a| a.to_string());
                let serve = if door.serve_udp { " serve" } else { "" };
                format!("{} {address} {}{serve}", door.backend, door.port)
            })
            .collect()
    }

    fn one(sockets: &[&str], selection: &Selection) -> Vec<String> {
        let memcached = memcached(sockets);
        let tenant = Tenant {
            number: 0,
            memcached: &memcached,
            alive: true,
        };
        show(&doors(&[tenant], &host(), selection, false).expect("few"))
    }

    const ANY4: [&str; 2] = ["tcp 0.0.0.0:11211", "udp 0.0.0.0:11211"];

    #[test]
    fn wildcards_become_the_hosts_addresses_and_a_wildcard() {
        assert_eq!(
            one(&ANY4, &select(&[11211], &[])),
            [
                "0 10.0.0.1 11211 serve",
                "0 192.168.0.9 11211 serve",
                "0 * 11211"
            ]
        );
        assert_eq!(
            one(
                &["udp [::]:11211", "tcp [::]:11211"],
                &select(&[11211], &[])
            ),
            ["0 fe80::1 11211 serve", "0 * 11211"]
        );
    }

    #[test]
    fn addresses_restrict_what_is_served() {
        // The others are the same memcached's all the same, which may answer from any of them.
        assert_eq!(
            one(&ANY4, &select(&[11211], &["10.0.0.1"])),
            ["0 10.0.0.1 11211 serve", "0 192.168.0.9 11211", "0 * 11211"]
        );
        assert_eq!(
            one(&ANY4, &select(&[11211], &["192.168.0.9"])),
            ["0 10.0.0.1 11211", "0 192.168.0.9 11211 serve", "0 * 11211"]
        );
    }

    #[test]
    fn ports_restrict_what_is_served() {
        assert_eq!(
            one(
                &["udp 0.0.0.0:11211", "udp 0.0.0.0:11300"],
                &select(&[11300], &[])
            ),
            [
                "0 10.0.0.1 11300 serve",
                "0 10.0.0.1 11211",
                "0 192.168.0.9 11211",
                "0 192.168.0.9 11300 serve",
                "0 * 11211",
                "0 * 11300"
            ]
        );
    }

    /// Linux takes them at every interface.
    #[test]
    fn link_local_addresses_of_ipv4() {
        let memcached = memcached(&ANY4);
        let tenant = Tenant {
            number: 0,
            memcached: &memcached,
            alive: true,
        };
        let local = local(&[("vs", "10.0.0.1/24"), ("eth0", "169.254.0.9/16")]);
        let doors = doors(&[tenant], &local, &select(&[11211], &[]), false).expect("few");
        assert_eq!(
            show(&doors),
            [
                "0 10.0.0.1 11211 serve",
                "0 169.254.0.9 11211 serve",
                "0 * 11211"
            ]
        );
    }

    #[test]
    fn explicit_addresses_are_doors_served_or_not() {
        assert_eq!(
            one(
                &[
                    "udp 10.0.0.1:11211",
                    "tcp 10.0.0.1:11211",
                    "tcp 192.168.0.9:11300",
                    "tcp 127.0.0.1:11211"
                ],
                &select(&[11211], &[])
            ),
            ["0 10.0.0.1 11211 serve", "0 192.168.0.9 11300"]
        );
    }

    #[test]
    fn tcp_alone_is_not_served_over_udp() {
        assert_eq!(
            one(
                &["tcp 0.0.0.0:11211", "udp 10.0.0.1:11211"],
                &select(&[11211], &[])
            ),
            ["0 10.0.0.1 11211 serve", "0 * 11211"]
        );
        assert_eq!(
            one(
                &["tcp 10.0.0.1:11211", "udp 10.0.0.1:11212"],
                &select(&[11211], &[])
            ),
            ["0 10.0.0.1 11211", "0 10.0.0.1 11212"]
        );
    }

    /// Whether memcached has UDP there as well or not; not where prestack was not asked to serve.
    #[test]
    fn tcp_is_served_where_it_was_chosen() {
        let served = |sockets: &[&str], selection: &Selection, alive| {
            let memcached = memcached(sockets);
            let tenant = Tenant {
                number: 0,
                memcached: &memcached,
                alive,
            };
            let doors = doors(&[tenant], &host(), selection, true).expect("few");
            let served = doors.iter().filter(|door| door.serve_tcp);
            served.map(ToString::to_string).collect::<Vec<_>>()
        };
        let any = select(&[11211], &[]);
        assert_eq!(
            served(&ANY4, &any, true),
            ["10.0.0.1:11211", "192.168.0.9:11211"]
        );
        let one = select(&[11211], &["10.0.0.1"]);
        assert_eq!(served(&ANY4, &one, true), ["10.0.0.1:11211"]);
        assert!(served(&ANY4, &one, false).is_empty());
        let explicit = [
            "tcp 10.0.0.1:11211",
            "udp 10.0.0.1:11211",
            "tcp 192.168.0.9:11211",
            "tcp 10.0.0.1:11300",
            "tcp 127.0.0.1:11211",
        ];
        assert_eq!(
            served(&explicit, &any, true),
            ["10.0.0.1:11211", "192.168.0.9:11211"]
        );
        assert_eq!(served(&explicit, &one, true), ["10.0.0.1:11211"]);
        assert_eq!(
            served(&explicit, &select(&[11300], &[]), true),
            ["10.0.0.1:11300"]
        );
    }

    #[test]
    fn loopback_counts_when_prestack_is_attached_to_it() {
        let memcached = memcached(&["udp 127.0.0.1:11211"]);
        let tenant = Tenant {
            number: 0,
            memcached: &memcached,
            alive: true,
        };
        let attached = [LocalAddress {
            attached: true,
            ..host().swap_remove(0)
        }];
        let doors = doors(&[tenant], &attached, &select(&[11211], &[]), false).expect("few");
        assert_eq!(show(&doors), ["0 127.0.0.1 11211 serve"]);
    }

    /// They are not served: nobody reaches them over the interface that is.
    #[test]
    fn loopback_counts_when_it_is_watched() {
        let memcached = memcached(&[
            "udp 127.0.0.1:11211",
            "tcp [::1]:11211",
            "udp 10.0.0.1:11211",
        ]);
        let tenant = Tenant {
            number: 0,
            memcached: &memcached,
            alive: true,
        };
        let doors = doors(&[tenant], &host(), &select(&[11211], &[]), true).expect("few");
        assert_eq!(
            show(&doors),
            ["0 10.0.0.1 11211 serve", "0 127.0.0.1 11211", "0 ::1 11211"]
        );
    }

    #[test]
    fn the_dead_keep_their_place_and_are_not_served() {
        let (first, second) = (
            memcached(&["udp 10.0.0.1:11211"]),
            memcached(&["udp 10.0.0.1:11212"]),
        );
        let selection = select(&[11211, 11212], &[]);
        let tenants = |alive| {
            [
                Tenant {
                    number: 0,
                    memcached: &first,
                    alive,
                },
                Tenant {
                    number: 1,
                    memcached: &second,
                    alive: true,
                },
            ]
        };
        let before = doors(&tenants(true), &host(), &selection, false).expect("few");
        let after = doors(&tenants(false), &host(), &selection, false).expect("few");
        assert_eq!(show(&after), ["0 10.0.0.1 11211", "1 10.0.0.1 11212 serve"]);
        assert!(
            before
                .iter()
                .zip(&after)
                .all(|(one, other)| one.is_same_place(other))
        );
    }

    #[test]
    fn the_living_take_the_place_of_the_dead() {
        let gone = memcached(&["udp 10.0.0.1:11211", "tcp 10.0.0.1:11300"]);
        let here = memcached(&["udp 10.0.0.1:11211"]);
        let tenants = [
            Tenant {
                number: 0,
                memcached: &gone,
                alive: false,
            },
            Tenant {
                number: 1,
                memcached: &here,
                alive: true,
            },
        ];
        let doors = doors(&tenants, &host(), &select(&[11211], &[]), false).expect("few");
        assert_eq!(show(&doors), ["0 10.0.0.1 11300", "1 10.0.0.1 11211 serve"]);
    }

    #[test]
    fn too_many_doors_are_refused_but_unattached_addresses_are_left_to_the_wildcard() {
        let addresses: Vec<_> = (0..100)
            .map(|n| LocalAddress {
                net: format!("10.1.0.{n}/24").parse().expect("a net"),
                interface: "eth0".into(),
                attached: n < 3,
            })
            .collect();
        let memcached = memcached(&ANY4);
        let tenant = Tenant {
            number: 0,
            memcached: &memcached,
            alive: true,
        };
        let list = doors(&[tenant], &addresses, &select(&[11211], &[]), false).expect("enough");
        assert_eq!(list.len(), MAX_DOORS);
        assert_eq!(list.last().expect("some").address, None);
        let attached: Vec<_> = addresses
            .iter()
            .cloned()
            .map(|a| LocalAddress {
                attached: true,
                ..a
            })
            .collect();
        assert_eq!(
            doors(&[tenant], &attached, &select(&[11211], &[]), false),
            Err(TooManyDoors { needed: 101 })
        );
    }

    #[test]
    fn the_datapath_reads_network_byte_order() {
        let spec = DoorSpec {
            address: Some("10.0.0.1".parse().expect("an address")),
            port: 11211,
            backend: 3,
            serve_tcp: true,
            serve_udp: true,
        };
        let door = spec.to_abi();
        assert_eq!(door.address[2], prestack_abi::config::MAPPED_V4);
        assert_eq!(door.address[3].to_ne_bytes(), [10, 0, 0, 1]);
        assert_eq!(door.port.to_ne_bytes(), [0x2b, 0xcb]);
        assert_eq!(
            (door.backend, door.flags),
            (3, Door::SERVE_TCP | Door::SERVE_UDP)
        );
        let any = DoorSpec {
            address: None,
            serve_tcp: false,
            serve_udp: false,
            ..spec
        };
        assert_eq!(any.to_abi().flags, Door::ANY_ADDRESS);
    }
}
