//! Having the datapath ignore TCP while that is of no use to anybody, and heed it again.

use std::time::{Duration, Instant};

use prestack_abi::config::Tcp;
use tracing::{debug, info, warn};

use crate::{
    attach::Datapath,
    clock,
    maps::{self, Controls},
    readers::Readers,
    settings::Options,
    watch::Watch,
};

/// How long it takes until connections are looked at again that did not allow TCP to be ignored.
const PAUSE: Duration = Duration::from_secs(2);
/// Connections that have written without a reply in this time are taken to go on so.
const LATELY: Duration = Duration::from_secs(10);
/// The settle time of closed flows is over when so much more has passed.
const MARGIN: Duration = Duration::from_millis(20);

/// What the datapath makes of TCP.
#[derive(Debug)]
pub struct Attention {
    readers: Readers,
    /// TCP is never ignored.
    is_constant: bool,
    /// Requests are answered over TCP: it is always learnt from.
    has_tcp_hits: bool,
    is_off: bool,
    settle: Duration,
    /// When it was seen last whether TCP may be ignored.
    looked: Option<Instant>,
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
            has_tcp_hits: options.tcp_hits,
            is_off: false,
            settle: options.settle,
            looked: None,
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
        if self.has_tcp_hits {
            return;
        }
        let stats = match maps::counters(&datapath.maps) {
            Ok(stats) => stats,
            Err(error) => return debug!("cannot see whether anybody reads: {error}"),
        };
        let mut wanted = self.readers.look(&stats, Instant::now());
        if self.is_constant && wanted == Tcp::Ignored {
            wanted = Tcp::Followed;
        }
        let changed = match (self.is_off, wanted == Tcp::Ignored) {
            (false, true) => {
                wanted = Tcp::Followed;
                self.turn_off_if_quiet(controls, datapath, watch)
            }
            (true, false) => self.turn_on(controls, datapath, watch),
            (true, true) if self.has_failed => self.close_flows(datapath),
            (true, true) => return,
            (false, false) => Ok(()),
        };
        if let Err(error) = changed {
            if !self.is_off {
                return debug!("cannot look at TCP connections: {error:#}");
            }
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

    /// Has TCP ignored unless some connection would keep its backend from caching afterwards: one that is
    /// taken up midway has to come to rest with a reply.
    fn turn_off_if_quiet(
        &mut self,
        controls: &Controls,
        datapath: &mut Datapath,
        watch: &Watch,
    ) -> anyhow::Result<()> {
        if self.looked.is_some_and(|looked| looked.elapsed() < PAUSE) {
            return Ok(());
        }
        self.looked = Some(Instant::now());
        let lately = clock::now_ns().saturating_sub(clock::nanoseconds(LATELY));
        if maps::has_restless_flow(&datapath.maps, lately)? {
            debug!("TCP is followed: a connection writes without replies, or pipelines");
            return Ok(());
        }
        self.turn_off(controls, datapath, watch)
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
        let settle = self.settle + MARGIN;
        if self.closed.is_some_and(|closed| closed.elapsed() < settle) {
            return Ok(());
        }
        controls.heed_tcp();
        watch.forget_all(controls, self.settle);
        self.is_off = false;
        info!("TCP is followed again");
        Ok(())
    }

    /// Closes all flows, while none is looked at by the datapath.
    fn close_flows(&mut self, datapath: &mut Datapath) -> anyhow::Result<()> {
        let mut busy = 0;
        for (_, flow) in maps::open_flows(&datapath.maps)? {
            busy += u32::from(!datapath.close_flow(&flow)?);
            self.closed = Some(Instant::now());
        }
        anyhow::ensure!(busy == 0, "{busy} of them are busy");
        Ok(())
    }
}
