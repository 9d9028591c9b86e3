//! Having the datapath stand aside while it is of no use to anybody, and attend to requests again.

use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use crate::{
    attach::Datapath,
    clock,
    maps::{self, Controls, MapsError},
    settings::Options,
    state::{AsideState, unix_time},
    translations::Translations,
    units::Span,
    watch::Watch,
    worth::{Cause, Wanted, Worth},
};

/// How long it takes until connections are looked at again that did not allow the datapath to stand aside.
const PAUSE: Duration = Duration::from_secs(2);
/// Connections that have written without a reply in this time are taken to go on so.
const LATELY: Duration = Duration::from_secs(10);
/// The settle time of closed flows is over when so much more has passed.
const MARGIN: Duration = Duration::from_millis(20);

/// Has the datapath do what pays.
#[derive(Debug)]
pub struct Adaptation {
    worth: Worth,
    /// The datapath never stands aside.
    is_constant: bool,
    /// Requests are answered over TCP.
    has_tcp_hits: bool,
    is_aside: bool,
    settle: Duration,
    /// When it was seen last whether the datapath may stand aside.
    looked: Option<Instant>,
    /// When flows were closed last.
    closed: Option<Instant>,
    /// Said already.
    has_failed: bool,
}

impl Adaptation {
    /// Requests are followed; or not yet, if an earlier run has left a datapath that stands aside.
    #[must_use]
    pub fn new(options: &Options, is_aside: bool) -> Self {
        Self {
            worth: Worth::new(options, Instant::now()),
            is_constant: options.always_on,
            has_tcp_hits: options.tcp_hits,
            is_aside,
            settle: options.settle,
            looked: None,
            closed: None,
            has_failed: false,
        }
    }

    /// Whether the datapath stands aside: nothing may be served then.
    #[must_use]
    pub fn is_aside(&self) -> bool {
        self.is_aside
    }

    /// What is to be told of it.
    #[must_use]
    pub fn state(&self) -> Option<AsideState> {
        if !self.is_aside {
            return None;
        }
        let trial = self.worth.trial();
        let in_unix_time = |until: Instant| {
            (unix_time() + until.saturating_duration_since(Instant::now())).as_secs()
        };
        Some(AsideState {
            hit_share: trial.map(|(share, _)| share),
            next_trial: trial.map(|(_, until)| in_unix_time(until)),
        })
    }

    /// Looks at what comes, and has the datapath act accordingly. Returns whether it stands aside since, or does not
    /// any more.
    pub fn adapt(&mut self, controls: &Controls, datapath: &mut Datapath, watch: &Watch) -> bool {
        let stats = match maps::counters(&datapath.maps) {
            Ok(stats) => stats,
            Err(error) => {
                debug!("cannot see what comes: {error}");
                return false;
            }
        };
        let now = Instant::now();
        let wanted = match self.worth.look(&stats, now) {
            Wanted::Aside(_) if self.is_constant => Wanted::Attention,
            wanted => wanted,
        };
        let was_aside = self.is_aside;
        let done = match (was_aside, wanted) {
            (false, Wanted::Aside(cause)) => {
                self.stand_aside_if_possible(cause, controls, datapath, watch)
            }
            (true, Wanted::Attention) => self.attend(controls, datapath, watch),
            (true, Wanted::Aside(_)) if self.has_failed => self.close_flows(datapath),
            (true, Wanted::Aside(_)) => return false,
            (false, Wanted::Attention) => Ok(()),
        };
        if let Err(error) = done {
            if !self.is_aside {
                debug!("cannot look at TCP connections: {error:#}");
            } else if !self.has_failed {
                // It is tried again at the next look.
                warn!("cannot close TCP flows, and serves nothing until that is done: {error:#}");
                self.has_failed = true;
            }
            return self.is_aside != was_aside;
        }
        self.has_failed = false;
        if !self.is_aside {
            controls.set_attention(self.worth.attending(now));
        }
        self.is_aside != was_aside
    }

    /// Has the datapath stand aside unless that does harm.
    fn stand_aside_if_possible(
        &mut self,
        cause: Cause,
        controls: &Controls,
        datapath: &mut Datapath,
        watch: &Watch,
    ) -> anyhow::Result<()> {
        if self.looked.is_some_and(|looked| looked.elapsed() < PAUSE) {
            return Ok(());
        }
        self.looked = Some(Instant::now());
        if self.carries(datapath)? {
            debug!("does not stand aside: a connection is translated");
            return Ok(());
        }
        // It would keep its backend from caching afterwards: one that is taken up midway has to come to rest with a
        // reply.
        let lately = clock::now_ns().saturating_sub(clock::nanoseconds(LATELY));
        if maps::has_restless_flow(&datapath.maps, lately)? {
            debug!("does not stand aside: a connection writes without replies, or pipelines");
            return Ok(());
        }
        controls.pause_serving();
        // From now on none becomes a translated one.
        if self.carries(datapath)? {
            debug!("does not stand aside: a connection has come to be translated");
            return Ok(());
        }
        self.stand_aside(cause, controls, datapath, watch)
    }

    /// Whether there is a connection that breaks if its segments are not translated.
    fn carries(&self, datapath: &Datapath) -> Result<bool, MapsError> {
        if !self.has_tcp_hits {
            return Ok(false);
        }
        Translations::open(&datapath.maps)?.has_some(clock::now_ns())
    }

    fn stand_aside(
        &mut self,
        cause: Cause,
        controls: &Controls,
        datapath: &mut Datapath,
        watch: &Watch,
    ) -> anyhow::Result<()> {
        controls.stand_aside();
        self.is_aside = true;
        let now = Instant::now();
        self.worth.stands_aside(cause, now);
        match self.worth.trial() {
            Some((share, until)) => info!(
                "stands aside, for {:.1} % of requests could be answered: it is tried again in {}",
                100.0 * share,
                Span(Duration::from_secs((until - now).as_secs()))
            ),
            None => info!(
                "stands aside, for nobody reads: what comes is not followed until somebody does"
            ),
        }
        watch.forget_all(controls, self.settle);
        // What is known of flows goes out of date. They are closed as if they had been reset.
        self.close_flows(datapath)
    }

    fn attend(
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
        controls.attend();
        watch.forget_all(controls, self.settle);
        self.is_aside = false;
        self.worth.attends(Instant::now());
        info!("follows and serves requests again");
        Ok(())
    }

    /// Closes all flows, while none is looked at by the datapath.
    fn close_flows(&mut self, datapath: &mut Datapath) -> anyhow::Result<()> {
        let mut busy = 0;
        for flow in maps::open_flows(&datapath.maps)? {
            busy += u32::from(!datapath.end_flow(&flow.found)?);
            self.closed = Some(Instant::now());
        }
        anyhow::ensure!(busy == 0, "{busy} of them are busy");
        Ok(())
    }
}
