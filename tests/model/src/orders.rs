//! The steps of `rx` that take no lock: a ticket is read while a write is being noted.
//!
//! A write stores, under the bucket's lock, what a GET on another CPU loads without it. Stores and
//! loads are each seen in order, as on x86-64. A fill takes the lock. One write and one GET suffice:
//! a ticket fails only by a write that is noted while it is read.
//!
//! Emptying a backend's cache has the same two orders, with `quiet_until` for the mark and the epoch
//! for the version.

use stateright::{Model, Property};

/// The ticket is never good for a value from before the write.
pub const CURRENT: &str = "the cache is current";

/// What a write does before it is passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// Marks the key outstanding.
    Mark,
    /// Raises the version.
    Raise,
    /// Kills the entry.
    Kill,
}

/// What a GET does before it is passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// Reads the version.
    Version,
    /// Reads the mark: without one there is a ticket.
    Mark,
}

/// One write and one GET, whose steps come in these orders.
#[derive(Clone, Copy, Debug)]
pub struct Orders {
    /// Of the write, under the lock.
    pub write: [Store; 3],
    /// Of the GET.
    pub get: [Load; 2],
}

impl Orders {
    /// What prestack does.
    pub const RIGHT: Self = Self {
        write: [Store::Mark, Store::Raise, Store::Kill],
        get: [Load::Version, Load::Mark],
    };
}

/// The bucket and memcached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct State {
    is_marked: bool,
    is_raised: bool,
    is_cached: bool,
    /// Stores of the write that are done.
    stores: usize,
    is_written: bool,
    /// Loads of the GET that are done, and what they found.
    loads: usize,
    saw_mark: bool,
    saw_raised: bool,
    /// Whether memcached has answered the GET, and with the old value.
    has_read: bool,
    has_old: bool,
    is_answered: bool,
}

/// What may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The write's next store.
    Store(Store),
    /// memcached executes the write.
    Write,
    /// Its reply leaves.
    End,
    /// The GET's next load.
    Load(Load),
    /// memcached executes the GET.
    Read,
    /// Its reply leaves, and fills if the ticket is good.
    Fill,
}

impl Model for Orders {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::default()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        match self.write.get(state.stores) {
            Some(&store) => actions.push(Action::Store(store)),
            None if !state.is_written => actions.push(Action::Write),
            None if state.is_marked => actions.push(Action::End),
            None => {}
        }
        let is_locked = (1..self.write.len()).contains(&state.stores);
        match self.get.get(state.loads) {
            Some(&load) => actions.push(Action::Load(load)),
            None if !state.has_read => actions.push(Action::Read),
            None if !state.is_answered && !is_locked => actions.push(Action::Fill),
            None => {}
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        match action {
            Action::Store(store) => {
                next.stores += 1;
                match store {
                    Store::Mark => next.is_marked = true,
                    Store::Raise => next.is_raised = true,
                    Store::Kill => next.is_cached = false,
                }
            }
            Action::Write => next.is_written = true,
            Action::End => next.is_marked = false,
            Action::Load(load) => {
                next.loads += 1;
                match load {
                    Load::Version => next.saw_raised = state.is_raised,
                    Load::Mark => next.saw_mark = state.is_marked,
                }
            }
            Action::Read => {
                next.has_read = true;
                next.has_old = !state.is_written;
            }
            Action::Fill => {
                next.is_answered = true;
                next.is_cached = !state.saw_mark && state.saw_raised == state.is_raised;
            }
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(CURRENT, |_, state: &State| {
                !(state.is_cached && state.has_old && state.is_written)
            }),
            Property::sometimes("something is cached", |_, state: &State| state.is_cached),
        ]
    }
}
