//! TCP connections: those that are gone, those that wait for an answer in vain, and those that must end.

use std::{collections::HashSet, time::Instant};

use prestack_abi::flow::{Finding, FlowKey};
use tracing::{debug, error, info, warn};

use super::Daemon;
use crate::{
    discovery::procnet::standings,
    drain::{Carried, destroy},
    host::{LOOPBACK, from_words, has_fast_open, list},
    maps::{self, MapsError},
    receipts::Lost,
    translations::Translations,
    units::counted,
};

/// Why no more answers are given, over UDP either: they go the same way.
const LOST_ANSWERS: &str = "answers over TCP do not arrive at clients, so nothing is answered any more, over UDP either: \
    start prestack with --mode generic";

impl Daemon {
    /// Resets connections at which answers over TCP do not arrive, and gives no more answers if that is usual.
    /// Returns whether it has come to that: the next look at the host tells the datapath.
    pub(super) fn look_at_receipts(&mut self) -> bool {
        if !self.controls.has_tcp_hits() {
            return false;
        }
        let lost = match self.lost() {
            Ok(lost) => lost,
            Err(error) => {
                debug!("cannot see whether answers over TCP arrive: {error}");
                return false;
            }
        };
        if lost.connections.is_empty() {
            return false;
        }
        let stops = lost.is_usual && !self.controls.is_draining();
        if stops {
            self.controls.stop_tcp_hits();
            error!("{LOST_ANSWERS}");
            self.lost_answers = Some(LOST_ANSWERS);
        }
        // Where none can be ended it has been said.
        if self.indestructible.is_none() {
            self.reset_lost(&lost);
        }
        stops
    }

    /// Resets connections that wait in vain. Those that cannot be are told once.
    fn reset_lost(&mut self, lost: &Lost) {
        if !lost.new.is_empty() {
            let clients = lost.new.iter().map(|key| from_words(key.client));
            warn!(
                "answers over TCP do not arrive at {}: connections that wait for one are reset",
                list(clients)
            );
        }
        if let Err(error) = self.reset_carried(|key| lost.connections.contains(key)) {
            match lost.new.is_empty() {
                true => debug!("connections could not be reset: {error:#}"),
                false => error!("connections could not be reset: {error:#}"),
            }
        }
    }

    /// The connections that wait in vain for an answer.
    fn lost(&mut self) -> Result<Lost, MapsError> {
        let (maps, now) = (&self.datapath.maps, Instant::now());
        let stats = maps::counters(maps)?;
        if !self.receipts.is_due(&stats, now) {
            return Ok(Lost::default());
        }
        let waiting = Translations::open(maps)?.waiting()?;
        Ok(self.receipts.look(&waiting, &stats, now))
    }

    /// Has data heeded that comes with a SYN once the host takes it. What came before this look went by unseen.
    pub(super) fn look_at_fast_open(&self) {
        if !self.controls.has_fast_open() && has_fast_open() {
            self.controls.set_fast_open();
            self.watch.forget_all(&self.controls, self.options.settle);
            info!(
                "TCP Fast Open is on for all listeners: data that comes with a SYN empties the cache"
            );
        }
    }

    /// Has nothing sent in the place of segments that the host has put together of several, before a program in generic
    /// mode has seen them. What comes over veth pairs and the loopback interface has partial checksums for another
    /// reason.
    pub(super) fn look_at_sums(&self) {
        let may_merge = self.attachments.iter().any(|at| {
            let interface = at.interface();
            !at.is_native() && interface.other_end.is_none() && interface.name != LOOPBACK
        });
        self.controls.want_whole_sums(may_merge);
    }

    /// Closes the TCP flows that have lost their sockets, and stops waiting for those that are idle.
    pub(super) fn sweep(&mut self) -> anyhow::Result<()> {
        let open = maps::open_flows(&self.datapath.maps)?;
        // Later, so that a connection that is opened meanwhile is among them.
        let connections = standings(&self.watch.ports())?;
        for found in self.sweep.look(open, &connections) {
            if self.datapath.end_flow(&found)? {
                let what = match found.what {
                    Finding::IDLE => "is waited for in vain",
                    _ => "has ended unseen",
                };
                debug!("a TCP connection {what}");
            }
        }
        Ok(())
    }

    /// Resets carried connections, and forgets them: what they send may not pass where it is translated.
    ///
    /// # Errors
    /// They cannot be looked at, or some of them cannot be ended; the others are.
    pub(super) fn reset_carried(
        &mut self,
        is_meant: impl Fn(&FlowKey) -> bool,
    ) -> anyhow::Result<()> {
        let carried = Carried::by(&self.state)?;
        let mut keys: HashSet<_> = carried.left()?.keys().collect();
        keys.retain(is_meant);
        if keys.is_empty() {
            return Ok(());
        }
        let mut reset = HashSet::new();
        let refused = destroy(&keys, &mut reset);
        if !reset.is_empty() {
            info!("{} reset", counted(reset.len(), "translated connection"));
        }
        // Nobody may see their end. Those that are left go on, and are translated on.
        let left: HashSet<_> = carried.left()?.keys().collect();
        keys.retain(|key| reset.contains(key) || !left.contains(key));
        for flow in maps::open_flows(&self.datapath.maps)? {
            if keys.contains(&flow.key) {
                self.datapath.end_flow(&flow.found)?;
            }
        }
        Ok(refused?)
    }
}
