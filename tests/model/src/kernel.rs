//! The host below prestack: the kernel's sockets and memcached.
//!
//! UDP datagrams are executed in any order: by several threads, each of which may sleep between
//! reading a datagram, executing it and answering. The commands of a connection are executed and
//! answered in order, by one thread. A command is executed at one instant; its answer is fixed then
//! and leaves at any time after.

use crate::history::Answer;
use crate::scenario::{Client, Kind, MAX_OPS, Op, Ops, Reply, Scenario, value_of};

/// Sockets and memcached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Host {
    /// The value of the key.
    pub value: u8,
    /// UDP: how many copies of each command wait to be executed.
    datagrams: [u8; MAX_OPS],
    /// TCP: what the kernel has accepted, with holes.
    segments: Ops,
    /// TCP: what was executed.
    pub executed: Ops,
    /// TCP: the clients whose connection was reset.
    closed: Ops,
    /// Answers that have not left, sorted: those of a connection are in its order.
    answers: Vec<(Op, Answer)>,
}

impl Host {
    /// A packet reaches its socket.
    pub fn accept(&mut self, scenario: &Scenario, op: Op) {
        let command = scenario.command(op);
        if command.is_tcp() {
            // A second copy is not a second command.
            if !self.is_closed(command.client) {
                self.segments.add(op);
            }
        } else {
            self.datagrams[usize::from(op)] += 1;
        }
    }

    /// Whether the kernel acknowledges this segment: it has all up to it.
    #[must_use]
    pub fn acknowledges(&self, scenario: &Scenario, op: Op) -> bool {
        self.segments.has(op)
            && scenario
                .before(op)
                .all(|earlier| self.segments.has(earlier))
    }

    /// Whether memcached can execute a command now.
    #[must_use]
    pub fn can_execute(&self, scenario: &Scenario, op: Op) -> bool {
        if !scenario.command(op).is_tcp() {
            return self.is_waiting(op);
        }
        !self.executed.has(op)
            && self.acknowledges(scenario, op)
            && scenario
                .before(op)
                .all(|earlier| self.executed.has(earlier))
    }

    /// Whether a datagram with this command waits to be executed.
    #[must_use]
    pub fn is_waiting(&self, op: Op) -> bool {
        self.datagrams[usize::from(op)] > 0
    }

    /// Whether an answer to this command has not left.
    #[must_use]
    pub fn is_answering(&self, op: Op) -> bool {
        self.answers.iter().any(|&(answered, _)| answered == op)
    }

    /// Executes a command; a quiet one may be refused.
    pub fn execute(&mut self, scenario: &Scenario, op: Op, is_refused: bool) {
        let command = scenario.command(op);
        if command.is_tcp() {
            self.executed.add(op);
        } else {
            self.datagrams[usize::from(op)] -= 1;
        }
        let answer = match command.kind {
            Kind::Get => Some(Answer::Value(self.value)),
            Kind::Set(_) if is_refused => Some(Answer::Refused),
            Kind::Set(reply) => {
                self.value = value_of(op);
                (reply == Reply::Always).then_some(Answer::Stored)
            }
        };
        if let Some(answer) = answer
            && !self.is_closed(command.client)
        {
            self.answers.push((op, answer));
            self.answers.sort_unstable();
        }
    }

    /// Whether a client's connection was reset.
    #[must_use]
    pub fn is_closed(&self, client: Client) -> bool {
        self.closed.has(client)
    }

    /// A connection is reset: what was accepted of it may still be executed, but is not answered.
    pub fn close(&mut self, scenario: &Scenario, client: Client) {
        self.closed.add(client);
        self.answers
            .retain(|&(op, _)| scenario.command(op).client != client);
    }

    /// The answers that may leave next.
    pub fn ready<'a>(&'a self, scenario: &'a Scenario) -> impl Iterator<Item = (Op, Answer)> + 'a {
        self.answers.iter().copied().filter(|&(op, _)| {
            !scenario.command(op).is_tcp()
                || scenario
                    .before(op)
                    .all(|earlier| !self.is_answering(earlier))
        })
    }

    /// An answer leaves.
    ///
    /// # Panics
    /// If it is not there.
    pub fn leave(&mut self, op: Op, answer: Answer) {
        let at = self.answers.iter().position(|&it| it == (op, answer));
        self.answers.remove(at.expect("an answer to leave"));
    }

    /// The segments of a client that the kernel acknowledges.
    pub fn acknowledged<'a>(
        &'a self,
        scenario: &'a Scenario,
        client: Client,
    ) -> impl Iterator<Item = Op> + 'a {
        scenario.of(client).take_while(|&op| self.segments.has(op))
    }
}
