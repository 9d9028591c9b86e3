//! Ending what translates connections without breaking one: nothing is answered over TCP any more, those that
//! are translated are waited for, and those that are left are reset while their segments are still translated.

use std::{
    collections::HashSet,
    io,
    time::{Duration, Instant},
};

use prestack_abi::{LAYOUT, flow::FlowKey};
use tracing::{debug, info};

use crate::{
    clock,
    destroy::Destroyer,
    discovery::procnet::{connections, standings},
    maps::{Controls, MapsError},
    state::State,
    translations::Translations,
    units::{Span, counted},
};

/// How often it is looked at what is left.
const LOOK: Duration = Duration::from_millis(200);
/// How long a connection that was closed, or reset, may take to show it.
pub const LINGER: Duration = Duration::from_secs(2);

/// The connections that the programs of an instance carry.
#[derive(Debug)]
pub enum Carried {
    /// Those that are translated.
    Translated(Controls, Translations),
    /// All to these ports: the maps of another version of prestack cannot be read, and nothing is answered
    /// without its daemon.
    Unknown(Vec<u16>),
}

impl Carried {
    /// Those of this instance.
    ///
    /// # Errors
    /// The maps are gone, or this process may not use them.
    pub fn by(state: &State) -> Result<Self, MapsError> {
        if state.layout != LAYOUT {
            return Ok(Self::Unknown(state.ports.clone()));
        }
        let controls = Controls::open(&state.maps)?;
        Ok(Self::Translated(controls, Translations::open(&state.maps)?))
    }

    /// Has no more connections carried than there are.
    pub fn stop(&self) {
        if let Self::Translated(controls, _) = self {
            controls.stop_serving();
            controls.stop_tcp_hits();
        }
    }

    /// The connections that are carried, and that this host still has.
    ///
    /// # Errors
    /// They cannot be looked at.
    pub fn left(&self) -> anyhow::Result<Left> {
        let translations = match self {
            Self::Translated(_, translations) => translations,
            Self::Unknown(ports) => {
                return Ok(Left {
                    open: connections(ports)?.into_iter().collect(),
                    closed: Vec::new(),
                });
            }
        };
        let mut open = translations.keys()?;
        let mut closed = translations.closed_keys(clock::now_ns())?;
        if open.is_empty() && closed.is_empty() {
            return Ok(Left { open, closed });
        }
        let all = open.iter().chain(&closed);
        let ports = all.map(|key| u16::from_be(key.server_port));
        let mut ports: Vec<_> = ports.collect();
        ports.sort_unstable();
        ports.dedup();
        let there = standings(&ports)?;
        open.retain(|key| there.contains_key(key));
        closed.retain(|key| there.get(key).is_some_and(|standing| standing.is_ending));
        Ok(Left { open, closed })
    }

    /// Whether something of a closed connection may still be sent again.
    fn lingers(&self) -> Result<bool, MapsError> {
        match self {
            Self::Translated(_, translations) => Ok(translations.lingering(clock::now_ns())? > 0),
            Self::Unknown(_) => Ok(false),
        }
    }
}

/// Connections that are carried.
#[derive(Debug)]
pub struct Left {
    /// That are open.
    pub open: Vec<FlowKey>,
    /// That are closed, of which this host may send again what the client lacks: it would be taken for something else
    /// if it were not translated.
    pub closed: Vec<FlowKey>,
}

impl Left {
    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.open.len() + self.closed.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them.
    pub fn keys(self) -> impl Iterator<Item = FlowKey> {
        self.open.into_iter().chain(self.closed)
    }
}

/// How it ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Drained {
    /// Nothing is translated any more; so many connections were reset.
    Done {
        /// Connections that were reset.
        reset: usize,
    },
    /// It was interrupted while so many were left.
    Interrupted {
        /// Connections that are translated.
        left: usize,
    },
}

/// Translated connections could not be ended.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} left, which the kernel does not end ({reason}): pinned programs go on to translate; close them at the clients, or restart memcached, and run `prestack \
     detach` again", counted(*.left, "translated connection")
)]
pub struct NotEnded {
    left: usize,
    reason: String,
}

/// Waits until no connection is carried any more, for `timeout` at most, and ends those that are left then.
/// `pause` waits, and says whether to give up.
///
/// # Errors
/// Connections cannot be looked at or ended: then they stay translated.
pub fn drain(
    carried: &Carried,
    timeout: Duration,
    mut pause: impl FnMut(Duration) -> io::Result<bool>,
) -> anyhow::Result<Drained> {
    carried.stop();
    let start = Instant::now();
    let mut left = carried.left()?;
    if !left.is_empty() {
        info!(
            "{} translated until the end, for {} at most",
            counted(left.len(), "connection"),
            Span(timeout)
        );
    }
    while !left.is_empty() && start.elapsed() < timeout {
        if pause(LOOK.min(timeout.saturating_sub(start.elapsed())))? {
            return Ok(Drained::Interrupted { left: left.len() });
        }
        left = carried.left()?;
    }
    let reset = end(carried, left, &mut pause)?;
    // What was sent last may be sent again.
    let closed = Instant::now();
    while carried.lingers()? && closed.elapsed() < LINGER {
        if pause(LOOK)? {
            break;
        }
    }
    Ok(Drained::Done { reset })
}

/// Has the kernel reset connections, and waits until they are gone. Returns how many there were.
fn end(
    carried: &Carried,
    mut left: Left,
    pause: &mut impl FnMut(Duration) -> io::Result<bool>,
) -> anyhow::Result<usize> {
    let start = Instant::now();
    let mut reset = HashSet::new();
    while !left.is_empty() {
        let keys = left.keys().collect();
        let refused = destroy(&keys, &mut reset);
        left = carried.left()?;
        if left.is_empty() {
            break;
        }
        if start.elapsed() >= LINGER {
            if left.open.is_empty() {
                // Kernels before 6.12, and the oldest of its predecessors' stable releases, do not end sockets that no
                // process has.
                break;
            }
            let reason = refused.err().map(|error| error.to_string());
            return Err(NotEnded {
                left: left.open.len(),
                reason: reason.unwrap_or_else(|| "they do not go".into()),
            }
            .into());
        }
        pause(LOOK)?;
    }
    Ok(reset.len())
}

/// Has the kernel reset those of these connections that it can, and notes which it has; fails if there is
/// another.
///
/// # Errors
/// The kernel refused one of them, or does not describe its sockets.
pub(crate) fn destroy(keys: &HashSet<FlowKey>, reset: &mut HashSet<FlowKey>) -> io::Result<()> {
    let destroyer = Destroyer::new()?;
    let mut result = Ok(());
    for connection in destroyer.find(keys)? {
        match destroyer.destroy(&connection) {
            Ok(true) => {
                reset.insert(connection.key());
            }
            Ok(false) => debug!("a translated connection has ended meanwhile"),
            Err(error) => result = Err(error),
        }
    }
    result
}
