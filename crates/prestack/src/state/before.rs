//! What is known of the run that served before, until another one has wholly come in its place.

use serde::{Deserialize, Serialize};

use super::{AttachedState, State};

/// The run that has served last, as the one that takes over from it writes down: should that be cut short, the next
/// one still knows where segments of carried connections may have passed as they were, and where programs may be.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize)]
pub struct Before {
    /// Where it was attached.
    pub interfaces: Vec<AttachedState>,
    /// The interfaces that it was given; `None` if that was not written down yet.
    pub given: Option<Vec<String>>,
    /// Ports that it served.
    pub ports: Vec<u16>,
    /// Where else there may be programs: where it watched the host's own packets, and where runs have attached them
    /// that were cut short before they served.
    pub others: Vec<AttachedState>,
}

impl Before {
    /// What a run that takes over from `left` has to remember.
    #[must_use]
    pub fn of(left: &State) -> Self {
        let Some(before) = &left.before else {
            return Self {
                interfaces: left.interfaces.clone(),
                given: left.given.clone(),
                ports: left.ports.clone(),
                others: left.lo.iter().cloned().collect(),
            };
        };
        // That one has not served: what counts is the run before it.
        let mut before = before.clone();
        for at in left.attached() {
            if !before.attached().any(|known| known == at) {
                before.others.push(at.clone());
            }
        }
        before
    }

    /// Every interface at which there may be programs.
    pub fn attached(&self) -> impl Iterator<Item = &AttachedState> {
        self.interfaces.iter().chain(&self.others)
    }

    /// Whether no segment of a carried connection can have passed as it was: programs have taken the places of those
    /// of that run at every interface, which are `taken_over`, and none is among these, or `new`, that it was given,
    /// and had lost. One that it was not given cannot have been the way of what it carried.
    #[must_use]
    pub fn is_gapless(&self, taken_over: &[AttachedState], new: &[AttachedState]) -> bool {
        let mut were = self.interfaces.iter();
        let has_kept_all = were.all(|was| taken_over.iter().any(|at| at.is_same_place(was)));
        let has_regained = taken_over.iter().chain(new).any(|at| {
            let was_there = self.interfaces.iter().any(|was| at.is_same_place(was));
            let given = self.given.as_ref();
            !was_there && given.is_none_or(|given| given.contains(&at.name))
        });
        has_kept_all && !has_regained
    }
}

impl State {
    /// Keeps what a run has to know that takes over from this one, or, if this one is cut short, from the one before.
    /// An interface that was given once may yet come back.
    pub fn remember(&mut self, before: &Before) {
        let given = self.given.get_or_insert_default();
        for name in before.given.iter().flatten() {
            if !given.contains(name) {
                given.push(name.clone());
            }
        }
        self.before = Some(before.clone());
    }
}
