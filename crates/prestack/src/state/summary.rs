//! An instance in one line.

use super::{BackendState, State};

impl State {
    /// `serving 11211 on vs (native)`: the ports, and where clients come in.
    #[must_use]
    pub fn banner(&self) -> String {
        format!("serving {} on {}", self.port_list(), self.interface_list())
    }

    /// What is served, and why not all is: for service managers.
    #[must_use]
    pub fn summary(&self) -> String {
        let is_served = |backend: &BackendState| backend.alive && backend.is_served();
        let mut interfaces = self.interfaces.iter().map(|at| &at.name);
        let answers = interfaces.any(|name| !self.unserved.contains(name));
        let head = match answers && self.backends.iter().any(is_served) {
            true => self.banner(),
            false => "serving nothing".into(),
        };
        let missed = self.backends.iter().filter(|b| !b.alive && !b.superseded);
        let mut amiss: Vec<_> = missed
            .map(|backend| format!("memcached {} is gone", backend.pid))
            .chain(self.problems.iter().cloned())
            .collect();
        if self.aside.is_some() {
            amiss.insert(0, "standing aside".into());
        }
        let Some(first) = amiss.first() else {
            return head;
        };
        // The protocol has a line for it.
        let first = first.replace('\n', " ");
        match amiss.len() - 1 {
            0 => format!("{head}: {first}"),
            more => format!("{head}: {first} (and {more} more, see `prestack status`)"),
        }
    }
}
