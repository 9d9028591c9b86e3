//! Backend numbers: which process has which, over restarts.

use std::{
    collections::{BTreeSet, HashSet},
    net::{Ipv4Addr, Ipv6Addr},
};

use prestack_abi::backend::MAX_BACKENDS;

use crate::{
    discovery::{
        Memcached,
        process::ProcessId,
        procnet::{Socket, Transport},
    },
    doors::DoorSpec,
    state::BackendState,
};

/// A backend number and the process that has it, or had it last.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slot {
    /// The process.
    pub memcached: Memcached,
    /// Whether it runs.
    pub alive: bool,
    /// If not: ports that are to be served, and on which no other has come in its place yet.
    awaited: BTreeSet<u16>,
}

impl Slot {
    /// Whether it is gone, and waited for. Its number, and where it was reached, it keeps in any case: connections may
    /// still be carried there.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        !self.alive && !self.awaited.is_empty()
    }
}

/// What a look at the host changed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    /// Numbers whose process is gone.
    pub died: Vec<u8>,
    /// Numbers that a process got anew: their caches have to be emptied before they are served.
    pub renewed: Vec<u8>,
    /// Processes that got no number, because there are too many.
    pub refused: Vec<u32>,
}

impl Changes {
    /// Whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.died.is_empty() && self.renewed.is_empty()
    }

    /// Adds what a later look has changed.
    pub fn add(&mut self, later: Self) {
        let pairs = [
            (&mut self.died, later.died),
            (&mut self.renewed, later.renewed),
        ];
        for (mine, later) in pairs {
            mine.extend(later);
            mine.sort_unstable();
            mine.dedup();
        }
        self.refused = later.refused;
    }

    /// Whether something has changed about the process of this number.
    #[must_use]
    pub fn concern(&self, number: u8) -> bool {
        self.died.contains(&number) || self.renewed.contains(&number)
    }
}

/// The backends by number.
#[derive(Clone, Debug, Default)]
pub struct Slots {
    slots: Vec<Slot>,
    /// Ports that are to be served.
    ports: Vec<u16>,
}

impl Slots {
    /// The numbers that backends had in an earlier run, of which `ports` are to be served. A look at the host renews
    /// those that are still there, and finds the successors of others by where they listened.
    #[must_use]
    pub fn resumed(backends: &[BackendState], ports: &[u16]) -> Self {
        let slots = backends.iter().map(|backend| Slot {
            memcached: Memcached {
                process: ProcessId {
                    pid: backend.pid,
                    start: backend.start,
                },
                sockets: backend.doors.iter().flat_map(sockets_of).collect(),
                unix_sockets: Vec::new(),
            },
            alive: backend.alive,
            awaited: BTreeSet::new(),
        });
        Self {
            slots: slots.take(MAX_BACKENDS as usize).collect(),
            ports: ports.to_vec(),
        }
    }

    /// Every number with its slot.
    pub fn iter(&self) -> impl Iterator<Item = (u8, &Slot)> {
        // There are at most `MAX_BACKENDS` slots.
        (0u8..).zip(&self.slots)
    }

    /// How many numbers have been given.
    #[must_use]
    pub fn len(&self) -> u8 {
        self.slots.len() as u8
    }

    /// Whether no number has been given.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Notes that a process has ended.
    pub fn bury(&mut self, number: u8) {
        let slot = &mut self.slots[usize::from(number)];
        slot.alive = false;
        slot.awaited = ports_of(&slot.memcached);
        slot.awaited.retain(|port| self.ports.contains(port));
    }

    /// Waits for none of those that are gone.
    pub fn await_none(&mut self) {
        for slot in &mut self.slots {
            slot.awaited.clear();
        }
    }

    /// Gives numbers to the processes that were found.
    ///
    /// A process keeps its number as long as it has the same sockets: with others, it may have
    /// missed writes. A new process gets the number of the one whose place it took. One in whose place it came at
    /// other addresses is waited for no more.
    pub fn update(&mut self, found: Vec<Memcached>) -> Changes {
        let mut changes = Changes::default();
        let mut new = Vec::new();
        let mut seen = HashSet::new();
        for memcached in found {
            let same = |slot: &Slot| slot.alive && slot.memcached.process == memcached.process;
            match self
                .slots
                .iter_mut()
                .zip(0u8..)
                .find(|(slot, _)| same(slot))
            {
                Some((slot, number)) => {
                    seen.insert(number);
                    if slot.memcached.sockets != memcached.sockets {
                        changes.renewed.push(number);
                    }
                    slot.memcached = memcached;
                }
                None => new.push(memcached),
            }
        }
        for number in 0..self.len() {
            if self.slots[usize::from(number)].alive && !seen.contains(&number) {
                self.bury(number);
                changes.died.push(number);
            }
        }
        for memcached in new {
            let pid = memcached.process.pid;
            let Some(number) = self.place(&memcached) else {
                changes.refused.push(pid);
                continue;
            };
            let mut ports = ports_of(&memcached);
            let slot = Slot {
                memcached,
                alive: true,
                awaited: BTreeSet::new(),
            };
            match self.slots.get_mut(usize::from(number)) {
                Some(place) => {
                    let awaited = std::mem::replace(place, slot).awaited;
                    ports.retain(|port| !awaited.contains(port));
                }
                None => self.slots.push(slot),
            }
            self.succeed(ports);
            changes.renewed.push(number);
        }
        changes
    }

    /// Notes that a process has come on these ports: on each it is in the place of one of those that are gone.
    fn succeed(&mut self, mut ports: BTreeSet<u16>) {
        for slot in &mut self.slots {
            slot.awaited.retain(|port| !ports.remove(port));
        }
    }

    /// The number for a new process: of the dead one where it listens, else an unused one, else
    /// any dead one's, one that is not waited for before others.
    fn place(&self, memcached: &Memcached) -> Option<u8> {
        let dead = || self.iter().filter(|(_, slot)| !slot.alive);
        let overlaps = |slot: &Slot| {
            let theirs = &slot.memcached.sockets;
            memcached
                .sockets
                .iter()
                .any(|mine| theirs.iter().any(|other| mine.overlaps(other)))
        };
        let number_of = |(number, _)| number;
        let successor = dead().find(|(_, slot)| overlaps(slot)).map(number_of);
        let unused = (u32::from(self.len()) < MAX_BACKENDS).then(|| self.len());
        successor
            .or(unused)
            .or_else(|| dead().find(|(_, slot)| !slot.is_missing()).map(number_of))
            .or_else(|| dead().next().map(number_of))
    }
}

/// The ports on which it listens.
fn ports_of(memcached: &Memcached) -> BTreeSet<u16> {
    let sockets = memcached.sockets.iter();
    sockets.map(|socket| socket.port).collect()
}

/// Sockets by which a door may have been reached, which are none of the host's.
fn sockets_of(door: &DoorSpec) -> impl Iterator<Item = Socket> {
    let anywhere = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    let addresses = match door.address {
        Some(address) => vec![address],
        None => anywhere.to_vec(),
    };
    let port = door.port;
    addresses.into_iter().map(move |address| Socket {
        transport: Transport::Tcp,
        address,
        port,
        inode: 0,
    })
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::doors::Transports;

    fn memcached(pid: u32, start: u64, ports: &[u16]) -> Memcached {
        Memcached {
            process: ProcessId { pid, start },
            sockets: ports
                .iter()
                .map(|&port| Socket {
                    transport: Transport::Udp,
                    address: "0.0.0.0".parse().expect("an address"),
                    port,
                    inode: u64::from(pid) * 1000 + start,
                })
                .collect(),
            unix_sockets: Vec::new(),
        }
    }

    fn changes(died: &[u8], renewed: &[u8]) -> Changes {
        Changes {
            died: died.to_vec(),
            renewed: renewed.to_vec(),
            refused: Vec::new(),
        }
    }

    #[test]
    fn numbers_are_given_in_order_and_kept() {
        let mut slots = Slots::default();
        let found = || vec![memcached(1, 1, &[11211]), memcached(2, 1, &[11212])];
        assert_eq!(slots.update(found()), changes(&[], &[0, 1]));
        assert_eq!(slots.update(found()), changes(&[], &[]));
        assert_eq!(slots.len(), 2);
    }

    #[test]
    fn a_successor_gets_the_number_of_its_port() {
        let mut slots = Slots::default();
        slots.update(vec![memcached(1, 1, &[11211]), memcached(2, 1, &[11212])]);
        slots.bury(1);
        slots.bury(0);
        assert_eq!(
            slots.update(vec![memcached(3, 1, &[11212])]),
            changes(&[], &[1])
        );
        assert_eq!(
            slots.update(vec![memcached(3, 1, &[11212]), memcached(4, 1, &[11211])]),
            changes(&[], &[0])
        );
    }

    #[test]
    fn numbers_are_kept_over_restarts_of_prestack() {
        let backend = |number, pid, start, address| BackendState {
            number,
            pid,
            start,
            alive: true,
            superseded: false,
            doors: vec![DoorSpec {
                address,
                port: 11211 + u16::from(number),
                backend: number,
                serve_tcp: true,
                serve_udp: true,
                transports: Transports::all(address),
            }],
            unix_sockets: Vec::new(),
        };
        let local = Some(IpAddr::from(Ipv4Addr::LOCALHOST));
        let earlier = [
            backend(0, 1, 1, local),
            backend(1, 2, 1, local),
            backend(2, 3, 7, None),
        ];
        let mut slots = Slots::resumed(&earlier, &[]);
        // The first is gone, the third is another process; and there is a new one.
        let found = [
            memcached(3, 8, &[11213]),
            memcached(2, 1, &[11212]),
            memcached(4, 1, &[11214]),
        ];
        assert_eq!(slots.update(found.to_vec()), changes(&[0, 2], &[1, 2, 3]));
        let pids: Vec<_> = slots
            .iter()
            .map(|(_, s)| (s.memcached.process.pid, s.alive))
            .collect();
        assert_eq!(pids, [(1, false), (2, true), (3, true), (4, true)]);
    }

    #[test]
    fn a_restart_between_two_looks_is_noticed() {
        let mut slots = Slots::default();
        slots.update(vec![memcached(1, 1, &[11211])]);
        // The pid is the same, the process is not.
        assert_eq!(
            slots.update(vec![memcached(1, 2, &[11211])]),
            changes(&[0], &[0])
        );
        assert_eq!(slots.len(), 1);
    }

    /// The number of each that is gone and waited for.
    fn missing(slots: &Slots) -> Vec<u8> {
        let missing = slots.iter().filter(|(_, slot)| slot.is_missing());
        missing.map(|(number, _)| number).collect()
    }

    /// A memcached that listens at one address alone.
    fn memcached_at(pid: u32, address: u8, ports: &[u16]) -> Memcached {
        let mut memcached = memcached(pid, 1, ports);
        for socket in &mut memcached.sockets {
            socket.address = Ipv4Addr::new(10, 0, 0, address).into();
        }
        memcached
    }

    #[test]
    fn one_that_has_moved_is_not_waited_for() {
        let mut slots = Slots::resumed(&[], &[1, 2]);
        slots.update(vec![memcached_at(1, 1, &[1, 2, 3])]);
        assert_eq!(missing(&slots), [0; 0]);
        slots.bury(0);
        assert_eq!(missing(&slots), [0]);
        let found = [memcached_at(2, 2, &[1]), memcached_at(3, 3, &[2])];
        assert_eq!(slots.update(found[..1].to_vec()), changes(&[], &[1]));
        assert_eq!(missing(&slots), [0], "nobody is on the other port");
        assert_eq!(slots.update(found.to_vec()), changes(&[], &[2]));
        assert_eq!(missing(&slots), [0; 0]);
        // Its number stays its own, and is taken before that of one that is waited for.
        assert_eq!(slots.update(found[..1].to_vec()), changes(&[2], &[]));
        let back = memcached_at(4, 1, &[1]);
        let found = [found[0].clone(), back];
        assert_eq!(slots.update(found.to_vec()), changes(&[], &[0]));
        assert_eq!(missing(&slots), [2]);
    }

    #[test]
    fn one_that_comes_back_is_in_the_place_of_no_other() {
        let mut slots = Slots::resumed(&[], &[1]);
        slots.update(vec![memcached_at(1, 1, &[1]), memcached_at(2, 2, &[1])]);
        slots.update(Vec::new());
        assert_eq!(missing(&slots), [0, 1]);
        let back = memcached_at(3, 2, &[1]);
        assert_eq!(slots.update(vec![back.clone()]), changes(&[], &[1]));
        assert_eq!(missing(&slots), [0]);
        // Nor are two that were there.
        assert_eq!(slots.update(vec![back.clone()]), changes(&[], &[]));
        assert_eq!(missing(&slots), [0]);
        let moved = memcached_at(4, 3, &[1]);
        assert_eq!(slots.update(vec![back, moved]), changes(&[], &[2]));
        assert_eq!(missing(&slots), [0; 0]);
        slots.update(Vec::new());
        slots.await_none();
        assert_eq!(missing(&slots), [0; 0]);
    }

    #[test]
    fn other_sockets_renew() {
        let mut slots = Slots::default();
        slots.update(vec![memcached(1, 1, &[11211])]);
        assert_eq!(
            slots.update(vec![memcached(1, 1, &[11211, 11212])]),
            changes(&[], &[0])
        );
    }

    #[test]
    fn changes_add_up() {
        let mut all = changes(&[2], &[1]);
        let refused = vec![7];
        all.add(Changes {
            refused: refused.clone(),
            ..changes(&[1, 2], &[0, 1])
        });
        assert_eq!(
            all,
            Changes {
                refused,
                ..changes(&[1, 2], &[0, 1])
            }
        );
        assert!(all.concern(0) && all.concern(2) && !all.concern(3));
        all.add(Changes::default());
        assert_eq!(all, changes(&[1, 2], &[0, 1]));
    }

    #[test]
    fn the_number_of_a_dead_one_is_the_last_resort() {
        let mut slots = Slots::default();
        let all: Vec<_> = (0..MAX_BACKENDS)
            .map(|n| memcached(n + 1, 1, &[11211 + n as u16]))
            .collect();
        slots.update(all.clone());
        let mut more = all.clone();
        more.push(memcached(100, 1, &[9999]));
        assert_eq!(slots.update(more.clone()).refused, [100]);
        more.remove(3);
        assert_eq!(slots.update(more), changes(&[3], &[3]));
    }
}
