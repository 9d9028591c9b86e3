//! Having the datapath ignore TCP while that is of no use to anybody, and heed it again.

use std::time::{Duration, Instant};

use prestack_abi::config::Tcp;
use tracing::{debug, info, warn};

use crate::{
    attach::Datapath,
    maps::{self, Controls},
    readers::Readers,
    settings::Options,
    watch::Watch,
};

/// What the datapath makes of TCP.
#[derive(Debug)]
pub struct Attention {
    readers: Readers,
    /// TCP is never ignored.
    is_constant: bool,
    is_off: bool,
    settle: Duration,
    /// When flows were closed last.
    closed: Option<Instant>,
    /// Said already.
    has_failed: bool,
}

impl Attention {
    /// As at the start: all is heeded.
    #[must_use]
    pub fn new(options: &Options) -> Self {
        Self {
            readers: Readers::new(options.max_age, Instant::now()),
            is_constant: options.always_follow_tcp,
            is_off: false,
            settle: options.settle,
            closed: None,
            has_failed: false,
        }
    }

    /// Whether TCP is ignored: nothing may be served then.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.is_off
    }

    /// Looks at who reads and what TCP brings, and has the datapath act accordingly.
    pub fn adapt(&mut self, controls: &Controls, datapath: &mut Datapath, watch: &Watch) {
        let stats = match maps::counters(&datapath.maps) {
            Ok(stats) => stats,
            Err(error) => return debug!("cannot see whether anybody reads: {error}"),
        };
        let mut wanted = self.readers.look(&stats, Instant::now());
        if self.is_constant && wanted == Tcp::Ignored {
            wanted = Tcp::Followed;
        }
        let changed = match (self.is_off, wanted == Tcp::Ignored) {
            (false, true) => self.turn_off(controls, datapath, watch),
            (true, false) => self.turn_on(controls, datapath, watch),
            (true, true) => return,
            (false, false) => Ok(()),
        };
        if let Err(error) = changed {
            // It is tried again at the next look.
            if !self.has_failed {
                warn!("cannot close TCP flows, and serves nothing until that is done: {error:#}");
            }
            self.has_failed = true;
            return;
        }
        self.has_failed = false;
        if !self.is_off {
            controls.set_tcp(wanted);
        }
    }

    fn turn_off(
        &mut self,
        controls: &Controls,
        datapath: &mut Datapath,
        watch: &Watch,
    ) -> anyhow::Result<()> {
        info!(
            "nobody reads over UDP: TCP, of which there is much, is not followed until somebody does"
        );
        controls.ignore_tcp();
        self.is_off = true;
        // So that the first GET is a miss, and is noticed.
        watch.forget_all(controls, self.settle);
        // What is known of flows goes out of date. They are closed as if they had been reset.
        self.close_flows(datapath)
    }

    fn turn_on(
        &mut self,
        controls: &Controls,
        datapath: &mut Datapath,
        watch: &Watch,
    ) -> anyhow::Result<()> {
        self.close_flows(datapath)?;
        // A closed flow keeps its place for the settle time, in which its data is not heeded.
        let rest = self.closed.map_or(Duration::ZERO, |closed| {
            self.settle.saturating_sub(closed.elapsed())
        });
        controls.heed_tcp();
        watch.forget_all(controls, self.settle + rest);
        self.is_off = false;
        info!("TCP is followed again");
        Ok(())
    }

    /// Closes all flows, while none is looked at by the datapath.
    fn close_flows(&mut self, datapath: &mut Datapath) -> anyhow::Result<()> {
        for (_, flow) in maps::open_flows(&datapath.maps)? {
            self.closed = Some(Instant::now());
            anyhow::ensure!(datapath.close_flow(&flow)?, "flow {} is busy", flow.place);
        }
        Ok(())
    }
}
