//! Doors: the addresses and ports at which backends are reached, as the datapath is told.

use std::{
    collections::HashSet,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use prestack_abi::config::{Door, MAX_DOORS};
use serde::{Deserialize, Serialize};

use crate::{
    discovery::{Memcached, Selection, procnet::Transport},
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
    /// Whether hits may be served over TCP.
    #[serde(default)]
    pub serve_tcp: bool,
    /// Whether hits may be served over UDP.
    pub serve_udp: bool,
    /// How the backend is reached here.
    #[serde(default)]
    pub transports: Transports,
}

/// The transports over which a backend is reached at a door. What leaves by another one is not the
/// backend's: any process may have that port there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize, Serialize)]
pub struct Transports {
    /// UDP at this very address.
    pub udp: bool,
    /// TCP over IPv4: at this address, or at every one of the host.
    pub tcp4: bool,
    /// TCP over IPv6, likewise.
    pub tcp6: bool,
}

impl Transports {
    /// All of them, as far as the address goes.
    #[must_use]
    pub fn all(address: Option<IpAddr>) -> Self {
        Self {
            udp: address.is_some(),
            tcp4: address.is_none_or(|address| address.is_ipv4()),
            tcp6: address.is_none_or(|address| address.is_ipv6()),
        }
    }

    fn of(memcached: &Memcached, address: Option<IpAddr>, port: u16) -> Self {
        let takes = |transport, address| memcached.takes(transport, address, port);
        let v4 = address.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
        let v6 = address.unwrap_or(Ipv6Addr::UNSPECIFIED.into());
        let all = Self::all(address);
        Self {
            udp: all.udp && takes(Transport::Udp, v4),
            tcp4: all.tcp4 && takes(Transport::Tcp, v4),
            tcp6: all.tcp6 && takes(Transport::Tcp, v6),
        }
    }

    fn flags(self) -> u8 {
        let flag = |has, flag| if has { flag } else { 0 };
        flag(self.udp, Door::HAS_UDP)
            | flag(self.tcp4, Door::HAS_TCP4)
            | flag(self.tcp6, Door::HAS_TCP6)
    }
}

impl DoorSpec {
    /// Whether both have the same address and port, and belong to the same backend.
    #[must_use]
    pub fn is_same_place(&self, other: &Self) -> bool {
        (self.address, self.port, self.backend) == (other.address, other.port, other.backend)
    }

    /// Whether hits may be served here.
    #[must_use]
    pub fn is_served(&self) -> bool {
        self.serve_udp || self.serve_tcp
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
        let loopback = match self.address {
            Some(address) if address.is_loopback() => Door::LOOPBACK,
            _ => 0,
        };
        let serve_tcp = if self.serve_tcp { Door::SERVE_TCP } else { 0 };
        let serve = if self.serve_udp { Door::SERVE_UDP } else { 0 };
        Door {
            address,
            port: self.port.to_be(),
            backend: self.backend,
            flags: any | loopback | serve_tcp | serve | self.transports.flags(),
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

/// Where the backends are reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Doors {
    /// The doors: exact addresses before wildcards, and those first that are served, in an order that does
    /// not depend on which of the backends are alive.
    pub specs: Vec<DoorSpec>,
    /// Addresses that are not served for want of room, though they are chosen.
    pub left_out: Vec<SocketAddr>,
}

/// Why addresses are not served that are chosen.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "memcached is not served at {}: {MAX_DOORS} addresses and ports can be handled; run prestack for \
     fewer ports or addresses (--port, --address)", list(.0)
)]
pub struct LeftOut(pub Vec<SocketAddr>);

fn list(addresses: &[SocketAddr]) -> String {
    const SHOWN: usize = 3;
    let shown = addresses.iter().take(SHOWN).map(ToString::to_string);
    let more = addresses.len().saturating_sub(SHOWN);
    let more = (more > 0).then(|| format!("{more} more"));
    shown.chain(more).collect::<Vec<_>>().join(", ")
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

/// The doors of `backends`. Loopback addresses are among them if packets to them are seen.
///
/// # Errors
/// There are too many.
pub fn doors(
    backends: &[Tenant<'_>],
    local: &[LocalAddress],
    selection: &Selection,
    watches_lo: bool,
) -> Result<Doors, TooManyDoors> {
    let mut wanted: Vec<Wanted> = Vec::new();
    // Where a dead backend was, a live one may be by now, with a wildcard, too: that comes behind exact addresses.
    let (alive, dead): (Vec<&Tenant<'_>>, Vec<_>) =
        backends.iter().partition(|tenant| tenant.alive);
    let is_alive_at = |address, port| {
        let mut sockets = alive.iter().flat_map(|tenant| &tenant.memcached.sockets);
        sockets.any(|socket| socket.port == port && socket.takes(address))
    };
    let mut taken = HashSet::new();
    for tenant in alive.iter().chain(&dead) {
        for door in tenant_doors(tenant, local, selection, watches_lo) {
            let DoorSpec { address, port, .. } = door.spec;
            let is_theirs = !tenant.alive && address.is_some_and(|at| is_alive_at(at, port));
            if !is_theirs && taken.insert((address, port)) {
                wanted.push(door);
            }
        }
    }
    wanted.sort_by_key(|door| {
        let spec = door.spec;
        (
            spec.address.is_none(),
            door.optional,
            !door.chosen,
            spec.backend,
            spec.port,
            spec.address,
        )
    });
    let needed = wanted.iter().filter(|door| door.rank() == NEEDED).count();
    if needed > MAX_DOORS {
        return Err(TooManyDoors { needed });
    }
    let mut by_rank: Vec<_> = (0..wanted.len()).collect();
    by_rank.sort_by_key(|at| wanted[*at].rank());
    let fitting: HashSet<_> = by_rank.into_iter().take(MAX_DOORS).collect();
    let (mut specs, mut left_out) = (Vec::new(), Vec::new());
    for (at, door) in wanted.into_iter().enumerate() {
        let DoorSpec { address, port, .. } = door.spec;
        if fitting.contains(&at) {
            specs.push(door.spec);
        } else if door.chosen && door.alive {
            left_out.extend(address.map(|address| SocketAddr::from((address, port))));
        }
    }
    Ok(Doors { specs, left_out })
}

/// The rank of doors for which there has to be room.
const NEEDED: u8 = 0;

struct Wanted {
    spec: DoorSpec,
    /// The backend runs.
    alive: bool,
    /// Hits are to be served there while the backend is alive.
    chosen: bool,
    /// It is an address of an interface that prestack is not attached to, or one that is not to be served.
    optional: bool,
    /// A wildcard door of the same port covers it, if without hits.
    covered: bool,
}

impl Wanted {
    /// Which doors have room before others: nobody comes by those of a backend that is gone.
    fn rank(&self) -> u8 {
        match (self.alive, self.covered) {
            (true, false) => NEEDED,
            (true, true) => 1,
            (false, false) => 2,
            (false, true) => 3,
        }
    }
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
    let is_here = |address: IpAddr| local.iter().any(|l| l.address() == address);
    let mut doors: Vec<Wanted> = Vec::new();
    let mut add = |address: Option<IpAddr>, port, is_served, optional, is_covered: bool| {
        let transports = Transports::of(memcached, address, port);
        let has_tcp = selection.tcp_hits && (transports.tcp4 || transports.tcp6);
        doors.push(Wanted {
            spec: DoorSpec {
                address,
                port,
                backend: number,
                serve_tcp: is_served && alive && has_tcp,
                serve_udp: is_served && alive && transports.udp,
                transports,
            },
            alive,
            chosen: is_served && (has_tcp || transports.udp),
            optional,
            covered: optional || is_covered && !transports.udp,
        });
    };
    for socket in &memcached.sockets {
        let port = socket.port;
        let chosen = |address| selection.serves(address, port);
        if !socket.address.is_unspecified() {
            let address = socket.address;
            let reachable = !address.is_loopback() || on_wire(address);
            if reachable || watches_lo {
                // memcached may be bound to an address that the host has no more, or not yet: another host may have it,
                // and what arrives for it the kernel does not take.
                let served = reachable && chosen(address) && is_here(address);
                add(Some(address), port, served, false, false);
            }
            continue;
        }
        add(None, port, false, false, false);
        // Also those that are not chosen: what is asked there may be answered from another one.
        for here in local {
            let address = here.address();
            let reachable = here.attached || !(address.is_loopback() || is_link_local(address));
            let served = chosen(address);
            if reachable && socket.takes(address) {
                let optional = !here.attached || !served;
                add(Some(address), port, served, optional, true);
            }
        }
    }
    // The address of an attached interface may be another's as well.
    doors.sort_by_key(|door| door.optional);
    doors
}

#[cfg(test)]
mod tests;
