//! The model that is checked: all parts together, and everything that may happen next.

use std::collections::BTreeSet;

use stateright::{Model, Property};

use crate::action::{Action, Choice, Fate};
use crate::cache::Cache;
use crate::history::{Answer, Effect, History};
use crate::kernel::Host;
use crate::names::{Name, Names};
use crate::rules::{Assumption, Rule, Rules};
use crate::scenario::{Budget, Client, Kind, Op, Ops, Reply, Scenario, value_of};
use crate::tracker::Tracker;

/// Every history is linearizable.
pub const LINEARIZABLE: &str = "linearizable";
/// What is in the cache is what memcached holds.
pub const CURRENT: &str = "the cache is current";
/// A written value gets into the cache: without that, a scenario shows nothing.
pub const FILLED: &str = "a written value is cached";

/// A scenario under some rules.
#[derive(Clone, Debug)]
pub struct Protocol {
    /// Who does what.
    pub scenario: Scenario,
    /// How prestack acts.
    pub rules: Rules,
}

/// The whole world at one time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// Commands that their client has sent.
    sent: Ops,
    /// Commands of which a packet may still come to `rx`.
    on_the_wire: Ops,
    /// Commands whose client waits for an answer no more.
    done: Ops,
    left: Budget,
    /// prestack.
    pub cache: Cache,
    names: Names,
    tracker: Tracker,
    /// What is behind it.
    pub host: Host,
    /// The last reply of each connection: it may leave again.
    last_replies: Vec<(Client, Answer)>,
    /// Answers on their way to clients that still wait for them, sorted. One that never arrives is
    /// lost.
    returning: BTreeSet<(Op, Answer)>,
    history: History,
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            sent: Ops::default(),
            on_the_wire: Ops::default(),
            done: Ops::default(),
            left: self.scenario.budget,
            cache: Cache::default(),
            names: Names::default(),
            tracker: Tracker::default(),
            host: Host::default(),
            last_replies: Vec::new(),
            returning: BTreeSet::new(),
            history: History::default(),
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let scenario = &self.scenario;
        if !state.history.is_linearizable() {
            return;
        }
        for client in scenario.clients() {
            actions.extend(self.next_of(state, client).map(Action::Send));
        }
        for op in state.on_the_wire.iter() {
            self.arrivals(state, op, actions);
        }
        for op in scenario
            .ops()
            .filter(|&op| state.host.can_execute(scenario, op))
        {
            actions.push(Action::Execute(op));
            if scenario.command(op).kind == Kind::Set(Reply::Failure) {
                actions.push(Action::Refuse(op));
            }
        }
        let ready = state.host.ready(scenario);
        actions.extend(ready.map(|(op, answer)| Action::Answer(op, answer)));
        let returning = state.returning.iter().copied();
        actions.extend(
            returning
                .filter(|&(op, _)| self.is_next_for_client(state, op))
                .map(|(op, answer)| Action::Receive(op, answer)),
        );
        if state.left.repeats > 0 {
            let replies = state.last_replies.iter();
            actions.extend(replies.map(|&(client, _)| Action::Repeat(client)));
        }
        for client in scenario.clients() {
            if state.left.resets > 0 && self.is_open(state, client) {
                actions.extend([Action::Reset(client), Action::ForgeReset(client)]);
            }
            let mut acknowledged = state.host.acknowledged(scenario, client);
            if acknowledged.any(|op| !state.tracker.is_acknowledged(op)) {
                actions.push(Action::Acknowledge(client));
            }
        }
        let outstanding = state.cache.outstanding.iter();
        actions.extend(
            outstanding
                .filter(|&op| self.may_settle(state, op))
                .map(Action::Settle),
        );
        actions.extend(
            state
                .names
                .known()
                .filter(|&name| self.is_idle(state, name))
                .map(Action::Forget),
        );
        if state.left.losses > 0 {
            actions.extend(state.names.known().map(Action::Lose));
        }
        actions.extend(
            state
                .names
                .stamps()
                .filter(|&(_, _, asked)| asked.iter().all(|op| Self::has_ended(state, op)))
                .map(|(name, stamp, _)| Action::Age(name, stamp)),
        );
        if state.cache.entry.is_some() {
            actions.push(Action::Evict);
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        self.step(&mut next, action);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(LINEARIZABLE, |_, state: &State| {
                state.history.is_linearizable()
            }),
            Property::always(CURRENT, |_, state: &State| {
                state
                    .cache
                    .entry
                    .is_none_or(|value| value == state.host.value)
            }),
            Property::sometimes(FILLED, |_, state: &State| {
                state.cache.entry.is_some_and(|value| value != 0)
            }),
        ]
    }
}

impl Protocol {
    /// The next command of a client, if it sends one now.
    fn next_of(&self, state: &State, client: Client) -> Option<Op> {
        if state.host.is_closed(client) {
            return None;
        }
        let next = self.scenario.of(client).find(|&op| !state.sent.has(op))?;
        let is_free = self.scenario.before(next).all(|op| {
            self.scenario.impatient[usize::from(client)]
                || state.done.has(op)
                || !self.scenario.command(op).is_answered()
        });
        is_free.then_some(next)
    }

    /// Whether a client has a connection on which something was sent.
    fn is_open(&self, state: &State, client: Client) -> bool {
        let mut sent = self.scenario.of(client).filter(|&op| state.sent.has(op));
        sent.any(|op| self.scenario.command(op).is_tcp()) && !state.host.is_closed(client)
    }

    fn arrivals(&self, state: &State, op: Op, actions: &mut Vec<Action>) {
        let command = self.scenario.command(op);
        let choices: &[Choice] = match command.kind {
            Kind::Get if command.is_tcp() => &[Choice::Fetch],
            Kind::Get if state.cache.entry.is_some() => {
                actions.push(Action::Arrive(op, Choice::Serve, Fate::Accepted));
                &[Choice::Fetch, Choice::Pass]
            }
            Kind::Get => &[Choice::Fetch, Choice::Pass],
            Kind::Set(_) => &[Choice::Pass],
        };
        let mut fates = vec![Fate::Accepted];
        if state.left.copies > 0 {
            fates.push(Fate::AcceptedTwice);
        }
        if state.left.drops > 0 {
            fates.push(Fate::Dropped);
        }
        if state.left.garbled > 0 && command.is_tcp() {
            fates.push(Fate::Garbled);
        }
        for &choice in choices {
            actions.extend(fates.iter().map(|&fate| Action::Arrive(op, choice, fate)));
        }
    }

    /// Whether time may end a write. Elsewhere time does not exist: what takes longer than something
    /// else is expressed by what must have happened before.
    fn may_settle(&self, state: &State, op: Op) -> bool {
        let command = self.scenario.command(op);
        let assumption = if command.is_answered() {
            Assumption::AnsweredWritesAreExecutedInTime
        } else {
            Assumption::SilentWritesAreExecutedInTime
        };
        let is_late = !self.rules.assume(assumption);
        if !command.is_tcp() {
            return is_late || !state.host.is_waiting(op);
        }
        if state.tracker.is_untracked(command.client) {
            // What settles is not one write, but all that came on the connection.
            let host = &state.host;
            let mut accepted = host.acknowledged(&self.scenario, command.client);
            return is_late || accepted.all(|op| host.executed.has(op));
        }
        if command.is_answered() {
            return false;
        }
        if !self.rules.heed(Rule::SettleFromAcknowledgement) {
            let is_held_up = !state.host.acknowledges(&self.scenario, op);
            return is_held_up || state.host.executed.has(op);
        }
        state.tracker.is_acknowledged(op) && (is_late || state.host.executed.has(op))
    }

    /// Whether the client can get the answer to this command now: over TCP, in order.
    fn is_next_for_client(&self, state: &State, op: Op) -> bool {
        let is_returning = |op| state.returning.iter().any(|&(other, _)| other == op);
        !self.scenario.command(op).is_tcp() || !self.scenario.before(op).any(is_returning)
    }

    /// Whether memcached has nothing to do under a name: it is forgotten only after the longest time
    /// that memcached may take.
    fn is_idle(&self, state: &State, name: Name) -> bool {
        let is_late = !self
            .rules
            .assume(Assumption::RequestsAreAnsweredWhileRemembered);
        is_late
            || self
                .scenario
                .of(name.0)
                .filter(|&op| Names::of(&self.scenario, op) == name)
                .all(|op| Self::has_ended(state, op))
    }

    /// Whether memcached does nothing for a command any more.
    fn has_ended(state: &State, op: Op) -> bool {
        !state.host.is_waiting(op) && !state.host.is_answering(op)
    }

    fn step(&self, state: &mut State, action: Action) {
        let (scenario, rules) = (&self.scenario, &self.rules);
        match action {
            Action::Send(op) => {
                let command = scenario.command(op);
                state.sent.add(op);
                state.on_the_wire.add(op);
                let connection = command.is_tcp().then_some(command.client);
                state.history.start(op, self.effect(op), connection);
            }
            Action::Arrive(op, Choice::Serve, _) => {
                state.on_the_wire.take(op);
                if let Some(value) = state.cache.entry {
                    Self::send_back(state, op, Answer::Value(value));
                }
            }
            Action::Arrive(op, choice, fate) => self.arrive(state, op, choice, fate),
            Action::Execute(op) | Action::Refuse(op) => {
                let is_refused = action == Action::Refuse(op);
                state.host.execute(scenario, op, is_refused);
                if !rules.heed(Rule::OutstandingBeyondExecution) {
                    state.cache.outstanding.take(op);
                }
            }
            Action::Answer(op, answer) => {
                state.host.leave(op, answer);
                let command = scenario.command(op);
                if command.is_tcp() {
                    self.acknowledge(state, command.client);
                    self.tcp_answer(state, command.client, answer);
                    if scenario.budget.repeats > 0 {
                        let client = command.client;
                        state.last_replies.retain(|&(other, _)| other != client);
                        state.last_replies.push((client, answer));
                        state.last_replies.sort_unstable();
                    }
                } else {
                    let name = Names::of(scenario, op);
                    let cache = &mut state.cache;
                    state.names.answered(rules, scenario, cache, name, answer);
                }
                Self::send_back(state, op, answer);
            }
            Action::Receive(op, answer) => {
                state.done.add(op);
                state.returning.retain(|&(other, _)| other != op);
                state.history.end(op, answer);
            }
            Action::Repeat(client) => {
                state.left.repeats -= 1;
                let replies = state.last_replies.iter();
                let reply = replies.copied().find(|&(other, _)| other == client);
                if let Some((_, answer)) = reply
                    && !rules.heed(Rule::RepliesCountOnce)
                {
                    self.tcp_answer(state, client, answer);
                }
            }
            Action::Acknowledge(client) => self.acknowledge(state, client),
            Action::Reset(client) | Action::ForgeReset(client) => {
                state.left.resets -= 1;
                state
                    .tracker
                    .reset(rules, scenario, &mut state.cache, client);
                if action == Action::Reset(client) {
                    state.host.close(scenario, client);
                }
            }
            Action::Settle(op) => {
                state.cache.outstanding.take(op);
            }
            Action::Forget(name) => state.names.forget(&mut state.cache, name),
            Action::Lose(name) => {
                state.left.losses -= 1;
                state.names.lose(rules, scenario, &mut state.cache, name);
            }
            Action::Age(name, stamp) => state.names.age(name, stamp),
            Action::Evict => state.cache.entry = None,
        }
    }

    /// A packet comes to `rx` and passes it.
    fn arrive(&self, state: &mut State, op: Op, choice: Choice, fate: Fate) {
        let (scenario, rules) = (&self.scenario, &self.rules);
        let command = scenario.command(op);
        let cache = &mut state.cache;
        if command.is_tcp() {
            let is_garbled = fate == Fate::Garbled;
            state
                .tracker
                .arrived(rules, scenario, cache, op, is_garbled);
        } else {
            if command.writes() {
                cache.write_arrives(rules, op);
                if !rules.heed(Rule::OutstandingUntilReply) {
                    cache.outstanding.take(op);
                }
            }
            let wants = choice == Choice::Fetch;
            state.names.passed(rules, scenario, cache, op, wants);
        }
        match fate {
            Fate::Accepted => {
                state.on_the_wire.take(op);
                state.host.accept(scenario, op);
            }
            Fate::AcceptedTwice => {
                state.left.copies -= 1;
                state.host.accept(scenario, op);
                if command.writes() && !command.is_tcp() {
                    state.history.start_copy(self.effect(op));
                }
            }
            Fate::Dropped => {
                state.left.drops -= 1;
                if !command.is_tcp() {
                    state.on_the_wire.take(op);
                }
            }
            Fate::Garbled => state.left.garbled -= 1,
        }
    }

    fn acknowledge(&self, state: &mut State, client: Client) {
        for op in state.host.acknowledged(&self.scenario, client) {
            state
                .tracker
                .acknowledged(&self.rules, &mut state.cache, op);
        }
    }

    fn tcp_answer(&self, state: &mut State, client: Client, answer: Answer) {
        let cache = &mut state.cache;
        state
            .tracker
            .answered(&self.rules, &self.scenario, cache, client, answer);
    }

    /// An answer goes to its client, which heeds the first that comes.
    fn send_back(state: &mut State, op: Op, answer: Answer) {
        if !state.done.has(op) {
            state.returning.insert((op, answer));
        }
    }

    fn effect(&self, op: Op) -> Effect {
        match self.scenario.command(op).kind {
            Kind::Get => Effect::Read,
            Kind::Set(Reply::Failure) => Effect::TryWrite(value_of(op)),
            Kind::Set(_) => Effect::Write(value_of(op)),
        }
    }
}
