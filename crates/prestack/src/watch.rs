//! Watches the backends while the datapath runs: what it may serve, and what has to be forgotten.

mod told;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    io,
    net::SocketAddr,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use ipnet::IpNet;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use prestack_abi::config::Config;

use crate::{
    allow::{AllowList, TooManyNetworks},
    attach::sockets,
    discovery::{Found, Passing, Problem, Scanner, Selection},
    doors::{DoorSpec, Doors, Tenant, TooManyDoors, doors},
    host::{Host, LOOPBACK},
    layout::Layout,
    maps::Controls,
    netlink::Interface,
    settings::Options,
    slots::{Changes, Slots},
    socket_fields,
    state::BackendState,
};

/// There is nothing to serve, or more than can be handled.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum WatchError {
    #[error("{}", list(.0))]
    Problems(Vec<Problem>),
    #[error(
        "memcached (pid {pid}) listens only at {addresses}, where nothing arrives from {interfaces}: \
         start it with `-l` and the address of an interface"
    )]
    Unreachable {
        pid: u32,
        addresses: String,
        interfaces: String,
    },
    #[error(
        "memcached (pid {pid}) cannot be reached from {interfaces} at {addresses}, given with \
         --address: give an address of an interface that is served, or none"
    )]
    UnreachableAddress {
        pid: u32,
        addresses: String,
        interfaces: String,
    },
    #[error(
        "there are more than {} memcached processes: run several instances",
        prestack_abi::backend::MAX_BACKENDS
    )]
    TooManyBackends,
    #[error(transparent)]
    TooManyDoors(#[from] TooManyDoors),
    #[error(transparent)]
    TooManyNetworks(#[from] TooManyNetworks),
    #[error("cannot look for memcached: {0}")]
    Io(#[from] io::Error),
}

fn list(problems: &[Problem]) -> String {
    let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

/// The backends, and what the datapath has been told about them.
#[derive(Debug)]
pub struct Watch {
    selection: Selection,
    /// Names of those that are to be attached to.
    interfaces: Vec<String>,
    allow: Vec<IpNet>,
    settle: Duration,
    lo: Lo,
    /// Numbers of the attached interfaces at which nothing is served.
    withheld: BTreeSet<u32>,
    scanner: Scanner,
    slots: Slots,
    layout: Layout,
    /// Addresses for which the layout has no room.
    left_out: Vec<SocketAddr>,
    /// The host as it was seen last.
    host: Host,
    /// What earlier looks have changed that the datapath has not been told: something went wrong.
    pending: Changes,
    /// Readable when the process of a backend ends.
    ends: BTreeMap<u8, OwnedFd>,
    passing: Passing,
    /// Said already.
    problems: Vec<String>,
    unseen: Vec<String>,
}

/// What becomes of packets on the loopback interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Lo {
    Served,
    Watched,
    Unseen,
}

impl Watch {
    /// Finds the backends. Those of an earlier run keep their numbers.
    ///
    /// # Errors
    /// There are none, or one that may not be served.
    pub fn new(
        options: &Options,
        host: &Host,
        earlier: &[BackendState],
    ) -> Result<Self, WatchError> {
        let mut watch = Self {
            selection: Selection {
                ports: options.ports.clone(),
                addresses: options.addresses.clone(),
                tcp_hits: options.tcp_hits
                    && socket_fields::of_this_kernel().why_unanswered().is_none(),
            },
            interfaces: options.interfaces.clone(),
            allow: options.allow.clone(),
            settle: options.settle,
            lo: match options.watch_lo {
                true => Lo::Watched,
                false if options.interfaces.iter().any(|name| name == LOOPBACK) => Lo::Served,
                false => Lo::Unseen,
            },
            withheld: BTreeSet::new(),
            scanner: Scanner::default(),
            slots: Slots::resumed(earlier, &options.ports),
            layout: Layout::default(),
            left_out: Vec::new(),
            host: host.clone(),
            pending: Changes::default(),
            ends: BTreeMap::new(),
            passing: Passing::default(),
            problems: Vec::new(),
            unseen: Vec::new(),
        };
        let Found { backends, problems } = watch.scanner.scan(&watch.selection)?;
        if !problems.is_empty() {
            return Err(WatchError::Problems(problems));
        }
        let changes = watch.slots.update(backends);
        if !changes.refused.is_empty() {
            return Err(WatchError::TooManyBackends);
        }
        // As for a run that finds nothing of an earlier one.
        watch.slots.await_none();
        watch.pending = changes;
        watch.watch_ends()?;
        watch.pending = Changes::default();
        watch.layout = watch.lay_out()?;
        watch.unseen = watch.unseen_ways();
        if let Some(error) = watch.unreachable().into_iter().next() {
            return Err(error);
        }
        watch.say_problems(&[], &Changes::default());
        Ok(watch)
    }

    /// The loopback interface cannot be watched.
    ///
    /// # Errors
    /// As for [`rescan`](Self::rescan).
    pub fn give_up_lo(
        &mut self,
        controls: &Controls,
        attached: &[Interface],
    ) -> Result<(), WatchError> {
        self.lo = Lo::Unseen;
        self.rescan(controls, attached, |_| {}).map(drop)
    }

    /// The interfaces are called so by now.
    pub fn rename(&mut self, interfaces: &[String]) {
        self.interfaces = interfaces.to_vec();
    }

    /// Nobody is served at the interfaces of these numbers; at others that were among them again from the next look at
    /// the host on.
    pub fn withhold(&mut self, controls: &Controls, interfaces: BTreeSet<u32>) {
        self.withheld = interfaces;
        let mut layout = self.layout.clone();
        for link in &mut layout.links {
            if self.withheld.contains(&link.interface()) {
                link.allow = 0;
            }
        }
        self.apply(layout, &Changes::default(), controls);
    }

    /// Writes doors and allow list into a configuration.
    pub fn configure(&self, config: &mut Config) {
        self.layout.write(config);
    }

    /// Empties the cache of every backend, and keeps it empty for `settle`.
    pub fn forget_all(&self, controls: &Controls, settle: Duration) {
        for (number, _) in self.slots.iter() {
            controls.empty_and_settle(number, settle);
        }
    }

    /// Watches the sockets of the backends.
    ///
    /// # Errors
    /// Those of one cannot be; those of the others are.
    pub fn watch_sockets(&self, sockets: &mut sockets::Attached) -> Result<(), sockets::Unwatched> {
        let mut watched = Ok(());
        for (number, slot) in self.slots.iter() {
            if let Some(process) = self.ends.get(&number).filter(|_| slot.alive) {
                watched = watched.and(sockets.watch(number, &slot.memcached, process.as_fd()));
            }
        }
        watched
    }

    /// The ports of the backends' doors.
    #[must_use]
    pub fn ports(&self) -> Vec<u16> {
        let mut ports: Vec<_> = self.layout.doors.iter().map(|door| door.port).collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }

    /// Descriptors that become readable when a backend's process ends.
    pub fn ends(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.ends.values().map(|end| end.as_fd())
    }

    /// Whether a backend is missing: it is worth looking for it often.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.slots.iter().any(|(_, slot)| slot.is_missing())
    }

    /// Looks for processes that have ended, and stops serving what was theirs. Returns whether
    /// there were any.
    pub fn notice_ends(&mut self, controls: &Controls) -> bool {
        let ended: Vec<u8> = self
            .ends
            .iter()
            .filter(|(_, end)| has_ended(end.as_fd()))
            .map(|(number, _)| *number)
            .collect();
        if ended.is_empty() {
            return false;
        }
        for &number in &ended {
            self.bury(number);
        }
        let mut layout = self.layout.clone();
        let doors = layout.doors.iter_mut();
        doors
            .filter(|door| ended.contains(&door.backend))
            .for_each(DoorSpec::stop_serving);
        let changes = Changes {
            died: ended,
            ..Changes::default()
        };
        self.apply(layout, &changes, controls)
    }

    /// Stops serving backends about which something has changed, until the datapath can be told what is so.
    fn hold(&mut self, controls: &Controls) {
        let mut layout = self.layout.clone();
        let doors = layout.doors.iter_mut();
        doors
            .filter(|door| self.pending.concern(door.backend))
            .for_each(DoorSpec::stop_serving);
        let changes = self.pending.clone();
        self.apply(layout, &changes, controls);
    }

    /// Looks at the host's sockets and addresses, and tells the datapath what has changed: `attached` are
    /// the interfaces that packets are seen on. What has to be done before anything new is served is done
    /// by `before_serving`. Returns whether anything has changed.
    ///
    /// # Errors
    /// The host cannot be looked at, or has more than can be handled; the datapath goes on with
    /// what it has, but for backends that are others now.
    pub fn rescan(
        &mut self,
        controls: &Controls,
        attached: &[Interface],
        before_serving: impl FnOnce(&Self),
    ) -> Result<bool, WatchError> {
        self.host = Host::look(attached)?;
        let Found { backends, problems } = self.scanner.scan(&self.selection)?;
        let changes = self.slots.update(backends);
        for number in &changes.died {
            self.ends.remove(number);
            self.say_end(*number);
        }
        self.pending.add(changes);
        let layout = self.watch_ends().map_err(WatchError::from);
        let layout = layout.and_then(|()| self.lay_out());
        let layout = layout.inspect_err(|_| self.hold(controls))?;
        let changes = std::mem::take(&mut self.pending);
        before_serving(self);
        let before = self.layout.clone();
        let changed = self.apply(layout, &changes, controls);
        self.say_changes(&before, &changes);
        let problems = self.passing.sift(problems, Instant::now());
        let unseen = self.unseen_ways();
        let said = self.say_problems(&problems, &changes);
        Ok(changed | said | (std::mem::replace(&mut self.unseen, unseen) != self.unseen))
    }

    /// Notes which processes to watch; those that have ended since they were found are dead.
    fn watch_ends(&mut self) -> io::Result<()> {
        for number in self.pending.renewed.clone() {
            let Some((_, slot)) = self.slots.iter().find(|(n, _)| *n == number) else {
                continue;
            };
            if !slot.alive {
                continue;
            }
            match slot.memcached.process.watch()? {
                Some(end) => {
                    self.ends.insert(number, end);
                }
                None => {
                    self.bury(number);
                    self.pending.died.push(number);
                }
            }
        }
        Ok(())
    }

    fn bury(&mut self, number: u8) {
        self.ends.remove(&number);
        self.slots.bury(number);
        self.say_end(number);
    }

    /// The doors of the backends at the addresses the host has now.
    fn lay_out(&mut self) -> Result<Layout, WatchError> {
        let host = &self.host;
        let tenants: Vec<_> = self
            .slots
            .iter()
            .map(|(number, slot)| Tenant {
                number,
                memcached: &slot.memcached,
                alive: slot.alive,
            })
            .collect();
        let allow = AllowList::new(&self.allow, &host.local)?;
        let links = host.links.iter().map(|link| {
            link.to_abi(match self.withheld.contains(&link.index) {
                true => 0,
                false => allow.on_link(&link.interface, &host.local),
            })
        });
        let links = links.collect();
        let watches_lo = self.lo == Lo::Watched;
        let Doors { specs, left_out } = doors(&tenants, &host.local, &self.selection, watches_lo)?;
        self.left_out = left_out;
        Ok(Layout {
            doors: specs,
            links,
            allow,
        })
    }

    /// Tells the datapath. What is not served any more stops first, then caches are emptied, and
    /// only then anything new is served. Returns whether there was a change.
    fn apply(&mut self, layout: Layout, changes: &Changes, controls: &Controls) -> bool {
        let old = std::mem::replace(&mut self.layout, layout);
        let new = &self.layout;
        if old == *new && changes.is_empty() {
            return false;
        }
        if !new.has_places_of(&old) {
            controls.replace(|config| new.write(config));
            self.forget_all(controls, self.settle);
            return true;
        }
        let doors = old.doors.iter().zip(&new.doors).enumerate();
        let flags = doors.map(|(at, (old, new))| (at, old.to_abi().flags, new.to_abi().flags));
        let changed: Vec<_> = flags.filter(|(_, old, new)| old != new).collect();
        for &(at, old, new) in &changed {
            controls.set_door_flags(at, old & new);
        }
        let forget: HashSet<_> = changes.died.iter().chain(&changes.renewed).collect();
        for &number in forget {
            controls.empty_and_settle(number, self.settle);
        }
        for (at, _, new) in changed {
            controls.set_door_flags(at, new);
        }
        true
    }

    /// Why something on a chosen port is not served.
    #[must_use]
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// The host as it was seen last.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Who may be served.
    #[must_use]
    pub fn allowed(&self) -> &[IpNet] {
        &self.layout.allow.networks
    }

    /// The loopback interface if it is not seen, and addresses of others that are not attached, through
    /// which memcached can be reached.
    #[must_use]
    pub fn unseen(&self) -> &[String] {
        &self.unseen
    }

    /// What other commands need to know about the backends.
    #[must_use]
    pub fn backends(&self) -> Vec<BackendState> {
        let doors = |number| {
            self.layout
                .doors
                .iter()
                .filter(move |door| door.backend == number)
        };
        self.slots
            .iter()
            .map(|(number, slot)| BackendState {
                number,
                pid: slot.memcached.process.pid,
                start: slot.memcached.process.start,
                alive: slot.alive,
                superseded: !slot.alive && !slot.is_missing(),
                doors: doors(number).copied().collect(),
                unix_sockets: slot.memcached.unix_sockets.clone(),
            })
            .collect()
    }
}

/// Whether the process behind a pidfd has ended.
fn has_ended(process: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(process, PollFlags::POLLIN)];
    matches!(poll(&mut fds, PollTimeout::ZERO), Ok(ready) if ready > 0)
}
