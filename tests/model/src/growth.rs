//! The cache grows while a key is read, fetched and written: a model of its own.
//!
//! How many parts are in use says where the key's entry is. Everybody reads that number for itself, and without a
//! lock: it may be another by the time that it is used. A write notes that it is under way, and that the version has
//! risen, at one instant, which [`orders`](crate::orders) is about.

use stateright::{Model, Property};

/// No GET returns an older value than one that somebody had got, or that was acknowledged, before it was sent.
pub const NEVER_OLD: &str = "never an old value";
/// The written value is found in a place that was not in use at first.
pub const MOVES: &str = "an entry is found elsewhere";

/// How often the parts in use may double.
const DOUBLINGS: usize = 2;
/// GETs, each by a client of its own.
const GETS: usize = 3;

/// What a write does before it is passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// Raises the version, and notes that the write is under way.
    Version,
    /// Reads how many parts are in use.
    Parts,
    /// Kills the entry in the place that this tells.
    Kill,
}

/// What the reply to a GET does before it fills. The lock of the bucket is taken after the first two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// Reads how many parts are in use.
    Parts,
    /// Compares the version with the ticket's.
    Version,
    /// Takes the lock of the place.
    Lock,
}

/// A key that is written once and read by several, in a cache that grows.
#[derive(Clone, Copy, Debug)]
pub struct Growth {
    /// Where its entry is with each number of parts in use.
    pub places: [usize; DOUBLINGS + 1],
    /// The steps of the write.
    pub write: [Store; 3],
    /// The steps of a fill.
    pub fill: [Load; 3],
}

impl Growth {
    /// What prestack does.
    pub const RIGHT: Self = Self {
        places: [0, 1, 2],
        write: [Store::Version, Store::Parts, Store::Kill],
        fill: [Load::Parts, Load::Lock, Load::Version],
    };
}

/// A value: 0 is there from the start.
type Value = u8;
/// What the write writes.
const WRITTEN: Value = 1;

/// How far a GET is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Progress {
    #[default]
    Unsent,
    Sent,
    /// It knows where to look.
    Looks(usize),
    /// It is on its way to memcached.
    Passed,
    /// memcached has answered with this.
    Read(Value),
    Done,
}

/// A GET.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Get {
    progress: Progress,
    /// The newest value that was known when it was sent.
    floor: Value,
    /// The version of its ticket, if it has one.
    ticket: Option<u8>,
    /// Its reply's steps that are done, and what they found.
    loads: usize,
    place: usize,
    is_good: bool,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// How often the parts in use have doubled.
    doublings: usize,
    entries: [Option<Value>; DOUBLINGS + 1],
    version: u8,
    is_under_way: bool,
    /// Steps of the write that are done, and the place that it has read.
    stores: usize,
    place: usize,
    /// What memcached holds.
    value: Value,
    /// The newest value that somebody has got, or knows to be written.
    known: Value,
    gets: [Get; GETS],
    is_stale: bool,
    has_moved: bool,
}

/// What may happen. GETs go by their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The parts in use double.
    Grow,
    /// The write's next step.
    Store(Store),
    /// memcached executes the write.
    Write,
    /// The reply to it leaves.
    Acknowledge,
    /// A client asks.
    Send(usize),
    /// A GET reads how many parts are in use.
    Place(usize),
    /// It looks there: it hits, or passes, with a ticket if possible.
    Look(usize),
    /// memcached executes it.
    Read(usize),
    /// The next step of its reply, on the way to a fill.
    Load(usize, Load),
    /// Its reply leaves, and fills if that may be.
    Answer(usize),
}

impl Growth {
    /// Whether a fill holds the lock of a place.
    fn is_locked(&self, state: &State, place: usize) -> bool {
        state.gets.iter().any(|get| {
            let done = &self.fill[..get.loads];
            matches!(get.progress, Progress::Read(_))
                && done.contains(&Load::Lock)
                && get.place == place
        })
    }

    fn steps_of_the_write(&self, state: &State) -> Option<Action> {
        let Some(&store) = self.write.get(state.stores) else {
            return if state.value != WRITTEN {
                Some(Action::Write)
            } else {
                state.is_under_way.then_some(Action::Acknowledge)
            };
        };
        let waits = store == Store::Kill && self.is_locked(state, state.place);
        (!waits).then_some(Action::Store(store))
    }

    fn steps_of_a_get(&self, state: &State, number: usize) -> Option<Action> {
        let get = &state.gets[number];
        let action = match get.progress {
            Progress::Unsent => Action::Send(number),
            Progress::Sent => Action::Place(number),
            Progress::Looks(_) => Action::Look(number),
            Progress::Passed => Action::Read(number),
            Progress::Read(_) => match self.fill.get(get.loads) {
                Some(Load::Lock) if self.is_locked(state, get.place) => return None,
                Some(&load) if get.ticket.is_some() => Action::Load(number, load),
                _ => Action::Answer(number),
            },
            Progress::Done => return None,
        };
        Some(action)
    }

    fn store(&self, state: &mut State, store: Store) {
        state.stores += 1;
        match store {
            Store::Version => {
                state.version += 1;
                state.is_under_way = true;
            }
            Store::Parts => state.place = self.places[state.doublings],
            Store::Kill => state.entries[state.place] = None,
        }
    }
}

impl State {
    /// A GET is answered.
    fn answer(&mut self, number: usize, value: Value) {
        let get = &mut self.gets[number];
        get.progress = Progress::Done;
        self.is_stale |= value < get.floor;
        self.known = self.known.max(value);
    }
}

impl Model for Growth {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut entries = [None; DOUBLINGS + 1];
        let empty = State {
            doublings: 0,
            entries,
            version: 0,
            is_under_way: false,
            stores: 0,
            place: 0,
            value: 0,
            known: 0,
            gets: [Get::default(); GETS],
            is_stale: false,
            has_moved: false,
        };
        entries[self.places[0]] = Some(0);
        let filled = State {
            entries,
            ..empty.clone()
        };
        vec![empty, filled]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.doublings < DOUBLINGS {
            actions.push(Action::Grow);
        }
        actions.extend(self.steps_of_the_write(state));
        actions.extend((0..GETS).filter_map(|number| self.steps_of_a_get(state, number)));
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        match action {
            Action::Grow => next.doublings += 1,
            Action::Store(store) => self.store(&mut next, store),
            Action::Write => next.value = WRITTEN,
            Action::Acknowledge => {
                next.is_under_way = false;
                next.known = WRITTEN;
            }
            Action::Send(number) => {
                next.gets[number].floor = state.known;
                next.gets[number].progress = Progress::Sent;
            }
            Action::Place(number) => {
                let place = self.places[state.doublings];
                next.gets[number].progress = Progress::Looks(place);
            }
            Action::Look(number) => {
                let get = &mut next.gets[number];
                let Progress::Looks(place) = get.progress else {
                    return None;
                };
                if let Some(value) = state.entries[place] {
                    next.has_moved |= value == WRITTEN && place != self.places[0];
                    next.answer(number, value);
                } else {
                    get.ticket = (!state.is_under_way).then_some(state.version);
                    get.progress = Progress::Passed;
                }
            }
            Action::Read(number) => next.gets[number].progress = Progress::Read(state.value),
            Action::Load(number, load) => {
                let get = &mut next.gets[number];
                get.loads += 1;
                match load {
                    Load::Parts => get.place = self.places[state.doublings],
                    Load::Version => get.is_good = get.ticket == Some(state.version),
                    Load::Lock => {}
                }
            }
            Action::Answer(number) => {
                let get = next.gets[number];
                let Progress::Read(value) = get.progress else {
                    return None;
                };
                if get.is_good {
                    next.entries[get.place] = Some(value);
                }
                next.answer(number, value);
            }
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NEVER_OLD, |_, state: &State| !state.is_stale),
            Property::sometimes(MOVES, |_, state: &State| state.has_moved),
        ]
    }
}
