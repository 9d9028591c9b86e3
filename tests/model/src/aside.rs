//! Standing aside, and coming back: a model of its own.
//!
//! A key is in the cache, a connection is known, and the datapath stands aside once: it lets everything pass unseen,
//! closes flows, waits until what they wrote has settled, attends again, empties the cache, and serves. Each packet is
//! looked at in two steps: it is read first what becomes of packets, and done later. The daemon may go on in between,
//! unless it waits. It need not when it begins to stand aside, for values: a hit that is served then was asked for
//! before. (It does for connections that would come to be translated, which are left out.)
//!
//! Each [`Rule`] can be left out. Time is as in [`model`](crate::model): whoever waits for the settle time waits until
//! memcached has executed what had arrived before. Names of UDP requests are left out: none is used twice.

use stateright::{Model, Property};

use crate::scenario::{Op, Ops};

/// No GET returns an older value than one that somebody had got, or that was acknowledged, before it was sent.
pub const NEVER_OLD: &str = "never an old value";
/// There are hits on a written value after it has stood aside.
pub const SERVES_AGAIN: &str = "a written value is served afterwards";

/// What is done on standing aside and on coming back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Flows are closed: otherwise the next write of one that has written unseen seems to come early, and is not
    /// heeded before its reply leaves.
    CloseFlows,
    /// It is waited until closed flows are over: their data is not heeded before.
    AwaitFlows,
    /// It is waited until no program runs that has seen that everything passes.
    EndPassing,
    /// Nothing is served before the epoch is raised.
    ServeNothing,
    /// The epoch is raised when requests are followed again.
    RaiseEpoch,
    /// The cache is kept empty for the settle time.
    StayEmpty,
}

/// A command for the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Reads it, over UDP.
    Get,
    /// Writes it, over UDP.
    Set,
    /// Writes it, on the only connection.
    SetOverTcp,
}

/// Clients, each of which waits for its answers.
#[derive(Clone, Debug)]
pub struct Aside {
    /// What each of them sends.
    pub clients: &'static [&'static [Kind]],
    /// What is not done.
    pub left_out: Option<Rule>,
}

/// What becomes of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Attention {
    /// They are followed, and hits served.
    Serving,
    /// They are followed.
    Following,
    /// They pass unseen.
    Aside,
}

/// Where the daemon is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Stage {
    Before,
    Aside,
    Closed,
    Attending,
    Emptied,
    /// Entries may be stored again.
    After,
}

/// What is known of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Flow {
    /// All of it was seen, or would have been but for what passed while it stood aside.
    Known { has_gap: bool },
    /// It is closed, and not yet over.
    Closed,
    /// It is taken up again with each segment, in doubt.
    Doubted,
}

/// How far a command is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Progress {
    #[default]
    Unsent,
    Sent,
    /// `rx` has read what becomes of it.
    Looked(Attention),
    /// It is on its way to memcached.
    Passed,
    /// memcached has executed it: what a GET has read.
    Executed(u8),
    Done,
}

/// A command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Command {
    progress: Progress,
    /// The newest value that was known when it was sent.
    floor: u8,
}

/// Everything. A value is the number of writes that were executed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    stage: Stage,
    attention: Attention,
    flow: Flow,
    /// What was stored in this epoch.
    entry: Option<u8>,
    /// Entries and tickets of the former epoch are dead, unless it is not raised.
    tickets: Ops,
    outstanding: Ops,
    /// What had arrived when the settle time began that is waited for.
    awaited: Ops,
    commands: Vec<Command>,
    value: u8,
    known: u8,
    is_stale: bool,
    serves_again: bool,
}

/// What may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The daemon's next step.
    Proceed,
    /// The closed flow is over.
    End,
    /// A client sends a command.
    Send(Op),
    /// `rx` reads what becomes of it.
    Look(Op),
    /// A GET is a hit.
    Serve(Op),
    /// A command passes.
    Pass(Op),
    /// memcached executes it.
    Execute(Op),
    /// The answer leaves.
    Answer(Op),
    /// A UDP write whose reply left unseen is forgotten.
    Forget(Op),
}

impl Aside {
    fn heeds(&self, rule: Rule) -> bool {
        self.left_out != Some(rule)
    }

    /// All commands: those of one client follow each other.
    fn kinds(&self) -> impl Iterator<Item = Kind> {
        self.clients.iter().copied().flatten().copied()
    }

    fn kind(&self, op: Op) -> Kind {
        self.kinds().nth(usize::from(op)).expect("a command")
    }

    fn ops(&self) -> std::ops::Range<Op> {
        0..self.kinds().count() as Op
    }

    /// Whether the client is free to send a command.
    fn may_send(&self, state: &State, op: Op) -> bool {
        let mut first = 0;
        for client in self.clients {
            let next = first + client.len() as Op;
            if (first..next).contains(&op) {
                return op == first || state.command(op - 1).progress == Progress::Done;
            }
            first = next;
        }
        false
    }

    /// Whether the daemon can take its next step.
    fn may_proceed(&self, state: &State) -> bool {
        let is_passing = |command: &Command| command.progress == Progress::Looked(Attention::Aside);
        match state.stage {
            Stage::Closed => !(self.heeds(Rule::AwaitFlows) && state.flow == Flow::Closed),
            Stage::Attending => {
                !(self.heeds(Rule::EndPassing) && state.commands.iter().any(is_passing))
            }
            Stage::Emptied => {
                // A closed flow has been so for longer.
                let is_over = state.flow != Flow::Closed && state.awaited.is_empty();
                is_over || !self.heeds(Rule::StayEmpty)
            }
            Stage::Before | Stage::Aside => true,
            Stage::After => false,
        }
    }

    fn proceed(&self, state: &mut State) {
        state.stage = match state.stage {
            Stage::Before => {
                state.attention = Attention::Aside;
                Stage::Aside
            }
            Stage::Aside => {
                if self.heeds(Rule::CloseFlows) {
                    state.flow = Flow::Closed;
                    state.awaited = state.under_way();
                }
                Stage::Closed
            }
            Stage::Closed => {
                state.attention = if self.heeds(Rule::ServeNothing) {
                    Attention::Following
                } else {
                    Attention::Serving
                };
                Stage::Attending
            }
            Stage::Attending => {
                if self.heeds(Rule::RaiseEpoch) {
                    state.empty();
                }
                state.awaited = state.under_way();
                state.attention = Attention::Serving;
                Stage::Emptied
            }
            Stage::Emptied | Stage::After => Stage::After,
        };
    }

    /// A write that is followed comes by.
    fn write(&self, state: &mut State, op: Op) {
        match (self.kind(op), state.flow) {
            // Data of a closed flow is not heeded, and what seems to come early is kept.
            (Kind::SetOverTcp, Flow::Closed | Flow::Known { has_gap: true }) => {}
            (Kind::SetOverTcp, Flow::Doubted) => {
                state.empty();
                state.outstanding.add(op);
            }
            _ => {
                state.entry = None;
                state.tickets = Ops::default();
                state.outstanding.add(op);
            }
        }
    }

    fn pass(&self, state: &mut State, op: Op, seen: Attention) {
        let kind = self.kind(op);
        state.commands[usize::from(op)].progress = Progress::Passed;
        if seen == Attention::Aside {
            if let (Kind::SetOverTcp, Flow::Known { has_gap }) = (kind, &mut state.flow) {
                *has_gap = true;
            }
        } else if kind != Kind::Get {
            self.write(state, op);
        } else if state.outstanding.is_empty() && state.stage != Stage::Emptied {
            state.tickets.add(op);
        }
    }

    /// The answer to a command leaves, and reaches its client.
    fn answer(&self, state: &mut State, op: Op, value: u8) {
        let kind = self.kind(op);
        if state.attention != Attention::Aside {
            if kind == Kind::Get && state.tickets.take(op) {
                state.entry = Some(value);
            }
            let is_known = state.outstanding.take(op);
            if kind == Kind::SetOverTcp && !is_known && matches!(state.flow, Flow::Known { .. }) {
                // It acknowledges what was not seen.
                state.flow = Flow::Doubted;
                state.empty();
            }
        }
        state.done(op, value);
    }
}

impl State {
    fn command(&self, op: Op) -> &Command {
        &self.commands[usize::from(op)]
    }

    /// What memcached has yet to execute.
    fn under_way(&self) -> Ops {
        let mut ops = Ops::default();
        for (op, command) in (0..).zip(&self.commands) {
            if command.progress == Progress::Passed {
                ops.add(op);
            }
        }
        ops
    }

    /// Raises the epoch.
    fn empty(&mut self) {
        self.entry = None;
        self.tickets = Ops::default();
    }

    /// A client has its answer: of a GET, a value.
    fn done(&mut self, op: Op, value: u8) {
        let command = &mut self.commands[usize::from(op)];
        command.progress = Progress::Done;
        self.is_stale |= value < command.floor;
        self.known = self.known.max(value);
    }
}

impl Model for Aside {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            stage: Stage::Before,
            attention: Attention::Serving,
            flow: Flow::Known { has_gap: false },
            entry: Some(0),
            tickets: Ops::default(),
            outstanding: Ops::default(),
            awaited: Ops::default(),
            commands: vec![Command::default(); self.kinds().count()],
            value: 0,
            known: 0,
            is_stale: false,
            serves_again: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.is_stale {
            return;
        }
        if self.may_proceed(state) {
            actions.push(Action::Proceed);
        }
        if state.flow == Flow::Closed && state.awaited.is_empty() {
            actions.push(Action::End);
        }
        for op in self.ops() {
            match state.command(op).progress {
                Progress::Unsent if self.may_send(state, op) => actions.push(Action::Send(op)),
                Progress::Unsent => {}
                Progress::Sent => actions.push(Action::Look(op)),
                Progress::Looked(seen) => {
                    let is_get = self.kind(op) == Kind::Get;
                    if seen == Attention::Serving && is_get && state.entry.is_some() {
                        actions.push(Action::Serve(op));
                    }
                    // Of hits one at a time is let through.
                    actions.push(Action::Pass(op));
                }
                Progress::Passed => actions.push(Action::Execute(op)),
                Progress::Executed(_) => actions.push(Action::Answer(op)),
                Progress::Done if state.outstanding.has(op) => actions.push(Action::Forget(op)),
                Progress::Done => {}
            }
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        match action {
            Action::Proceed => self.proceed(&mut next),
            Action::End => {
                next.flow = Flow::Doubted;
                for op in self.ops() {
                    if self.kind(op) == Kind::SetOverTcp {
                        next.outstanding.take(op);
                    }
                }
            }
            Action::Send(op) => {
                next.commands[usize::from(op)] = Command {
                    progress: Progress::Sent,
                    floor: state.known,
                };
            }
            Action::Look(op) => {
                next.commands[usize::from(op)].progress = Progress::Looked(state.attention);
            }
            Action::Serve(op) => {
                let value = state.entry?;
                next.serves_again |= state.stage == Stage::After && value > 0;
                next.done(op, value);
            }
            Action::Pass(op) => {
                let Progress::Looked(seen) = state.command(op).progress else {
                    return None;
                };
                self.pass(&mut next, op, seen);
            }
            Action::Execute(op) => {
                next.value += u8::from(self.kind(op) != Kind::Get);
                next.commands[usize::from(op)].progress = Progress::Executed(next.value);
                next.awaited.take(op);
            }
            Action::Answer(op) => {
                let Progress::Executed(value) = state.command(op).progress else {
                    return None;
                };
                self.answer(&mut next, op, value);
            }
            Action::Forget(op) => {
                next.outstanding.take(op);
            }
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NEVER_OLD, |_, state: &State| !state.is_stale),
            Property::sometimes(SERVES_AGAIN, |_, state: &State| state.serves_again),
        ]
    }
}
