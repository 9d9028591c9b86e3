//! The process behind `prestack run`: starts the datapath, keeps it serving, takes it down.

mod adoption;
mod arrival;
mod connections;
mod initial;
mod interfaces;
mod signals;
mod start;
mod written;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use prestack_abi::extent::Extent;
use tracing::{debug, error, warn};

use interfaces::Missing;

use crate::{
    attach::{Attachment, Datapath, Loopback, Unwatched, sockets},
    attention::Adaptation,
    clock,
    drain::{Carried, Drained, drain},
    leftovers,
    maps::{self, Controls},
    netlink::{Interface, Notices},
    receipts::Receipts,
    settings::{EgressSetting, Options},
    state::{Instance, State, Written},
    sweep::Sweep,
    watch::Watch,
};

pub use signals::Signals;

/// How often the datapath is told that someone watches, in ms.
const HEARTBEAT_MS: u8 = 100;
/// How long the datapath serves from then on.
const SERVE_AHEAD: Duration = Duration::from_secs(1);
/// How often the host is looked at while a backend is missing.
const RESCAN_WAITING: Duration = Duration::from_millis(200);
/// How often the host is looked at otherwise.
const RESCAN: Duration = Duration::from_secs(1);
/// How often TCP flows are compared with the host's connections: one whose end was not seen is closed
/// after two looks.
const SWEEP: Duration = Duration::from_secs(4);

/// A running instance.
#[derive(Debug)]
pub struct Daemon {
    instance: Instance,
    state: State,
    // Detached before the programs go.
    attachments: Vec<Attachment>,
    /// Watches what this host sends to itself, if that is wanted, or says why it does not.
    lo: Option<Result<Loopback, Unwatched>>,
    /// Notices that memcached ends, or the reason why it does not.
    sockets: Result<sockets::Attached, sockets::Unwatched>,
    /// Why it does not notice the end of some of its sockets.
    unwatched: Option<String>,
    datapath: Datapath,
    controls: Controls,
    watch: Watch,
    notices: Notices,
    sweep: Sweep,
    swept: Instant,
    adaptation: Adaptation,
    receipts: Receipts,
    extent: Extent,
    mtu: u32,
    options: Options,
    /// Why interfaces that are to be attached to are not, by their names.
    missing: BTreeMap<String, Missing>,
    /// Why connections cannot be ended.
    indestructible: Option<String>,
    /// Why nothing was ever answered over TCP.
    unanswered: Option<&'static str>,
    /// Why nothing is answered at interfaces that are attached to, by their names.
    astray: BTreeMap<String, String>,
    /// Where it cannot be seen whether answers arrive.
    unseen_ends: BTreeMap<String, String>,
    /// Why no more answers are given anywhere.
    lost_answers: Option<&'static str>,
    /// What has changed could not be written down.
    unwritten: bool,
    /// What was written down last.
    written: Option<Written>,
    /// What the service manager was told last, since it knows that this serves.
    told: Option<String>,
    /// Names of interfaces that are attached to, and not in use.
    down: BTreeSet<String>,
    /// Why the host could not be looked at.
    trouble: Option<String>,
}

impl Daemon {
    /// Watches what this host sends to itself. If that cannot be, it is one more way that is not seen.
    fn watch_lo(&mut self, egress: EgressSetting) {
        let watched = Loopback::watch(&mut self.datapath, egress);
        self.have_lo(watched);
    }

    fn have_lo(&mut self, watched: Result<Loopback, Unwatched>) {
        if let Err(error) = &watched {
            warn!("{error}");
            let attached = self.attached();
            if let Err(error) = self.watch.give_up_lo(&self.controls, &attached) {
                warn!("{error}");
            }
        }
        self.lo = Some(watched);
    }

    /// Has the datapath notice when a socket of a backend is released. What cannot be watched is tried again at
    /// the next look. Returns whether there is something else to tell than before.
    fn watch_sockets(&mut self) -> bool {
        let watched = match &mut self.sockets {
            Ok(sockets) => self.watch.watch_sockets(sockets),
            Err(_) => return false,
        };
        self.note_unwatched(watched)
    }

    fn note_unwatched(&mut self, watched: Result<(), sockets::Unwatched>) -> bool {
        let problem = watched.err().map(|error| error.to_string());
        if problem == self.unwatched {
            return false;
        }
        if let Some(problem) = &problem {
            warn!("{problem}");
        }
        self.unwatched = problem;
        true
    }

    /// The line that says what is served.
    #[must_use]
    pub fn banner(&self) -> String {
        self.state.banner()
    }

    /// Keeps the datapath serving until a signal arrives.
    ///
    /// # Errors
    /// Every interface is gone, or the kernel does not wait.
    pub fn serve(&mut self, signals: &Signals) -> anyhow::Result<()> {
        let mut looked = Instant::now();
        loop {
            self.controls.set_wall_clock();
            self.look_at_fast_open();
            self.look_at_sums();
            let has_changed =
                self.adaptation
                    .adapt(&self.controls, &mut self.datapath, &self.watch);
            if self.heartbeat() | has_changed {
                self.update_state();
            }
            self.look_at_extent();
            if self.look_at_receipts() {
                self.look()?;
                self.update_state();
            }
            self.wait(signals)?;
            if signals.received() {
                return Ok(());
            }
            let mut changed = self.watch.notice_ends(&self.controls);
            let notified = self.is_notified()?;
            let pause = if self.watch.is_waiting() {
                RESCAN_WAITING
            } else {
                RESCAN
            };
            if changed || notified || looked.elapsed() >= pause || self.has_come_back() {
                changed |= self.look()?;
                changed |= self.unwritten || self.is_overwritten();
                looked = Instant::now();
            }
            if changed {
                self.update_state();
            }
            if self.swept.elapsed() >= SWEEP && !self.adaptation.is_aside() {
                self.swept = Instant::now();
                if let Err(error) = self.sweep() {
                    debug!("cannot look for TCP connections that are gone: {error:#}");
                }
            }
        }
    }

    /// Lets the datapath go on to serve what has not ended. Returns whether something has.
    fn heartbeat(&mut self) -> bool {
        // It counts from before it is looked: should this process be frozen in between, it is over by then.
        let now = clock::now_ns();
        let have_ended = self.watch.notice_ends(&self.controls);
        if !self.adaptation.is_aside() {
            let until = now + clock::nanoseconds(SERVE_AHEAD);
            self.controls.serve_until(until);
        }
        have_ended
    }

    /// Gives the datapath more of the cache if what it has is full.
    fn look_at_extent(&mut self) {
        match maps::counters(&self.datapath.maps) {
            Ok(stats) => {
                if self.extent.is_full(&stats) {
                    self.grow();
                }
            }
            Err(error) => debug!("cannot see whether the cache is full: {error}"),
        }
    }

    /// Gives the datapath twice as much of the cache.
    fn grow(&mut self) {
        match maps::entries(&self.datapath.maps, self.extent.in_use()) {
            Ok(entries) => {
                self.extent.grow(entries);
                self.controls.use_parts(self.extent.parts);
                debug!("{} buckets of the cache are in use", self.extent.in_use());
            }
            Err(error) => debug!("cannot see what is in the cache: {error}"),
        }
    }

    /// Waits for the next heartbeat, a signal, a notice of the kernel, or the end of a backend.
    fn wait(&self, signals: &Signals) -> io::Result<()> {
        let mut fds: Vec<_> = [signals.as_fd(), self.notices.as_fd()]
            .into_iter()
            .chain(self.watch.ends())
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        match poll(&mut fds, PollTimeout::from(HEARTBEAT_MS)) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the kernel has noted a change of the host's addresses, or of an attached interface or one
    /// that is joined to it.
    fn is_notified(&self) -> io::Result<bool> {
        let attached = self.attachments.iter().map(Attachment::interface);
        let indices: Vec<_> = attached
            .map(|interface| interface.index)
            .chain(self.watch.host().indices())
            .collect();
        self.notices.concern(&indices)
    }

    /// The interfaces that are attached to.
    fn attached(&self) -> Vec<Interface> {
        let attached = self.attachments.iter().map(Attachment::interface);
        attached.cloned().collect()
    }

    /// Looks at the host. Returns whether something changed.
    fn look(&mut self) -> anyhow::Result<bool> {
        let renamed = self.follow_names();
        let found = renamed.and_then(|renamed| Ok((renamed, self.find_interfaces()?)));
        let (renamed, found) = match found {
            Ok(found) => found,
            Err(error) => {
                let trouble = format!("cannot look at interfaces: {error}");
                return Ok(self.note_trouble(Some(trouble)));
            }
        };
        let moves = self.look_at_interfaces(&found)?;
        let has_use_changed = self.look_at_use(&found);
        let (problems, has_arrival_changed) = self.look_at_arrival(&found);
        for problem in problems {
            error!("{problem}");
        }
        let attached = self.attached();
        let before = self.watch.host().clone();
        let mut watched = Ok(());
        // The end of a socket has to be known from the first value on that is cached.
        let looked = self.watch.rescan(&self.controls, &attached, |watch| {
            if let Ok(sockets) = &mut self.sockets {
                watched = watch.watch_sockets(sockets);
            }
        });
        let (changed, trouble) = match looked {
            Ok(changed) => (self.note_unwatched(watched) | changed, None),
            Err(error) => (true, Some(error.to_string())),
        };
        let changed = self.look_at_lo() | changed | has_arrival_changed | has_use_changed | renamed;
        Ok(self.follow(moves, &before) | self.note_trouble(trouble) | changed)
    }

    /// Notes why the host cannot be looked at. Returns whether that is new.
    fn note_trouble(&mut self, trouble: Option<String>) -> bool {
        if self.trouble == trouble {
            return false;
        }
        if let Some(trouble) = &trouble {
            warn!("{trouble}");
        }
        self.trouble = trouble;
        true
    }

    /// Has nothing answered any more, and waits until no connection is translated: if not for another signal,
    /// for as long as it is asked for.
    ///
    /// # Errors
    /// Connections are left that cannot be ended.
    pub fn drain(&self, signals: &Signals, timeout: Duration) -> anyhow::Result<Drained> {
        let carried = Carried::by(&self.state)?;
        drain(&carried, timeout, |pause| {
            let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
            let pause = PollTimeout::try_from(pause).map_err(io::Error::other)?;
            match poll(&mut fds, pause) {
                Ok(_) | Err(Errno::EINTR) => Ok(signals.received()),
                Err(error) => Err(error.into()),
            }
        })
    }

    /// Takes the datapath down, or leaves it in place if `pinned`.
    ///
    /// # Errors
    /// Something could not be removed.
    pub fn stop(self, pinned: bool) -> anyhow::Result<()> {
        self.controls.stop_serving();
        drop(self.attachments);
        drop(self.lo);
        drop(self.sockets);
        if pinned {
            return Ok(());
        }
        leftovers::remove(&self.instance)?;
        Ok(())
    }
}
