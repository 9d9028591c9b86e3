//! TCP connections: those that are gone, those that wait for an answer in vain, and those that must end.

use std::time::Instant;

use prestack_abi::flow::FlowKey;
use tracing::{debug, error, info};

use super::Daemon;
use crate::{
    destroy::Destroyer,
    discovery::procnet::connections,
    drain::{self, Carried},
    maps,
    units::counted,
};

impl Daemon {
    /// Answers no more over TCP if answers do not arrive.
    pub(super) fn look_at_receipts(&mut self) {
        if !self.controls.has_tcp_hits() || self.controls.is_draining() {
            return;
        }
        let are_missing = maps::counters(&self.datapath.maps)
            .is_ok_and(|stats| self.receipts.are_missing(&stats, Instant::now()));
        if !are_missing {
            return;
        }
        error!(
            "answers over TCP do not arrive at clients, so none are given any more, and the connections that wait for \
             one are reset. Over a veth pair they arrive only while its other end has an XDP program, too: give it \
             one, or run without --tcp-hits"
        );
        match Carried::by(&self.state).map(|carried| drain::reset(&carried)) {
            Ok(Ok(count)) => info!("{} reset", counted(count, "connection")),
            Ok(Err(error)) => error!("connections could not be reset: {error:#}"),
            Err(error) => error!("connections could not be looked at: {error}"),
        }
    }

    /// Closes the TCP flows that have lost their sockets.
    pub(super) fn sweep(&mut self) -> anyhow::Result<()> {
        let open = maps::open_flows(&self.datapath.maps)?;
        // Later, so that a connection that is opened meanwhile is among them.
        let connections = connections(&self.watch.ports())?;
        for dead in self.sweep.look(open, &connections) {
            if self.datapath.close_flow(&dead)? {
                debug!("a TCP connection has ended unseen");
            }
        }
        Ok(())
    }

    /// Resets carried connections, and forgets them: what they send may not pass where it is translated.
    ///
    /// # Errors
    /// They cannot be looked at or ended.
    pub(super) fn reset_carried(
        &mut self,
        is_meant: impl Fn(&FlowKey) -> bool,
    ) -> anyhow::Result<()> {
        let mut keys = Carried::by(&self.state)?.left()?;
        keys.retain(is_meant);
        if keys.is_empty() {
            return Ok(());
        }
        let destroyer = Destroyer::new()?;
        let mut reset = 0;
        for key in &keys {
            reset += usize::from(destroyer.destroy(key)?);
        }
        // Nobody may see their end.
        for (key, flow) in maps::open_flows(&self.datapath.maps)? {
            if keys.contains(&key) {
                self.datapath.close_flow(&flow)?;
            }
        }
        info!("{} reset", counted(reset, "translated connection"));
        Ok(())
    }
}
