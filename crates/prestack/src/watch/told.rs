//! What there is to tell of the backends.

use std::collections::BTreeSet;

use tracing::{info, warn};

use super::{Lo, Watch, WatchError};
use crate::{
    discovery::Problem,
    doors::LeftOut,
    host::{self, LOOPBACK, LocalAddress},
    layout::Layout,
    slots::Changes,
};

impl Watch {
    pub(super) fn say_end(&self, number: u8) {
        if let Some((_, slot)) = self.slots.iter().find(|(n, _)| *n == number) {
            let pid = slot.memcached.process.pid;
            info!("memcached (pid {pid}) is gone: its cache is empty, and every packet passes");
        }
    }

    /// Backends at which nothing can be served.
    pub(super) fn unreachable(&self) -> Vec<WatchError> {
        let serves = |number| {
            self.layout
                .doors
                .iter()
                .any(|d| d.backend == number && d.is_served())
        };
        self.slots
            .iter()
            .filter(|(number, slot)| slot.alive && !serves(*number))
            .map(|(_, slot)| {
                let pid = slot.memcached.process.pid;
                let interfaces = self.interfaces.join(", ");
                if !self.selection.addresses.is_empty() {
                    return WatchError::UnreachableAddress {
                        pid,
                        addresses: host::list(self.selection.addresses.iter().copied()),
                        interfaces,
                    };
                }
                let sockets = &slot.memcached.sockets;
                WatchError::Unreachable {
                    pid,
                    addresses: host::list(sockets.iter().map(|socket| socket.address)),
                    interfaces,
                }
            })
            .collect()
    }

    /// Ways over which memcached is written to unseen: the loopback interface, and addresses of the host
    /// that others reach over interfaces that are not attached.
    pub(super) fn unseen_ways(&self) -> Vec<String> {
        let live: Vec<_> = self.slots.iter().filter(|(_, slot)| slot.alive).collect();
        let takes = |address| {
            let mut sockets = live.iter().flat_map(|(_, slot)| &slot.memcached.sockets);
            sockets.any(|socket| socket.takes(address))
        };
        let local = self.host.local.iter();
        let addresses: BTreeSet<_> = local
            .filter(|here| !here.attached && !here.address().is_loopback())
            .map(LocalAddress::address)
            .filter(|address| takes(*address))
            .collect();
        let lo = (self.lo == Lo::Unseen && !live.is_empty()).then(|| LOOPBACK.to_owned());
        lo.into_iter()
            .chain(addresses.iter().map(ToString::to_string))
            .collect()
    }

    /// Logs what is served that was not before, and the other way round.
    pub(super) fn say_changes(&self, before: &Layout, changes: &Changes) {
        for backend in self.backends().iter().filter(|backend| backend.alive) {
            let (pid, number) = (backend.pid, backend.number);
            if !changes.concern(number) {
                for line in self.layout.changes_of(before, number) {
                    info!("memcached (pid {pid}) is {line}");
                }
            } else if backend.is_served() {
                info!("memcached (pid {pid}) is {}", backend.describe_doors());
            }
        }
        for line in self.layout.allow.changes(&before.allow) {
            info!("{line}");
        }
    }

    /// Logs what is new among the problems. Returns whether they changed.
    pub(super) fn say_problems(&mut self, problems: &[Problem], changes: &Changes) -> bool {
        let mut all: Vec<_> = problems.iter().map(Problem::while_running).collect();
        all.extend(self.unreachable().iter().map(ToString::to_string));
        if !changes.refused.is_empty() {
            all.push(WatchError::TooManyBackends.to_string());
        }
        if !self.left_out.is_empty() {
            all.push(LeftOut(self.left_out.clone()).to_string());
        }
        for problem in all
            .iter()
            .filter(|problem| !self.problems.contains(problem))
        {
            warn!("{problem}");
        }
        std::mem::replace(&mut self.problems, all) != self.problems
    }
}
