//! Whether what the clients have seen so far is linearizable.
//!
//! Instead of the whole history the monitor keeps what matters of it for the future: every value
//! that the key may have by now, together with which of the commands under way may have taken effect.
//! A command is taken to have effect as late as possible: when some reply cannot be explained
//! otherwise. No explanation left means that the history is not linearizable. What is over is
//! forgotten, so that runs which differ only in their past become the same state.
//!
//! On one connection commands take effect in order. That is more than linearizability asks for: it
//! gives a write without reply an end, the reply to a later command of its connection.

use crate::scenario::{Client, MAX_OPS, Op};

/// What a command under way can do to the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Reads it.
    Read,
    /// Writes this value.
    Write(u8),
    /// Writes this value, or is refused.
    TryWrite(u8),
}

/// What a client was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Answer {
    /// The key has this value.
    Value(u8),
    /// It was written.
    Stored,
    /// Nothing was written.
    Refused,
}

/// A command under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Pending {
    effect: Effect,
    /// The connection on which it is, if any.
    connection: Option<Client>,
}

/// One explanation of what was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Explanation {
    value: u8,
    /// What each command under way will be answered, if it has taken effect.
    answers: [Option<Answer>; MAX_OPS],
}

/// The commands under way, and every explanation of what was seen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct History {
    pending: [Option<Pending>; MAX_OPS],
    /// Sorted.
    explanations: Vec<Explanation>,
}

impl Default for History {
    fn default() -> Self {
        Self {
            pending: [None; MAX_OPS],
            explanations: vec![Explanation {
                value: 0,
                answers: [None; MAX_OPS],
            }],
        }
    }
}

impl History {
    /// A client sends a command.
    pub fn start(&mut self, op: Op, effect: Effect, connection: Option<Client>) {
        let pending = &mut self.pending[usize::from(op)];
        assert!(pending.is_none(), "a command starts once");
        *pending = Some(Pending { effect, connection });
    }

    /// A command comes a second time, as one of its own that nobody waits for.
    ///
    /// # Panics
    /// If there is no place for it.
    pub fn start_copy(&mut self, effect: Effect) {
        let last = self.pending.len() - 1;
        let place = (0..=last).rev().find(|&at| self.pending[at].is_none());
        self.start(place.expect("no place for a copy") as Op, effect, None);
    }

    /// The client is answered.
    pub fn end(&mut self, op: Op, answer: Answer) {
        let mut found = Vec::new();
        for &explanation in &self.explanations {
            self.explain(explanation, op, answer, &mut found);
        }
        found.sort_unstable();
        found.dedup();
        self.explanations = found;
        self.pending[usize::from(op)] = None;
    }

    /// Whether there is an explanation.
    #[must_use]
    pub fn is_linearizable(&self) -> bool {
        !self.explanations.is_empty()
    }

    /// Lets commands take effect after an explanation, in every order that ends with this command
    /// and its answer.
    fn explain(&self, from: Explanation, op: Op, answer: Answer, found: &mut Vec<Explanation>) {
        let at = usize::from(op);
        if let Some(known) = from.answers[at] {
            if known == answer {
                let mut next = from;
                next.answers[at] = None;
                found.push(next);
            }
            return;
        }
        for other in 0..MAX_OPS {
            for next in self.effects(&from, other) {
                self.explain(next, op, answer, found);
            }
        }
    }

    /// What may be when a command takes effect: nothing if it cannot.
    fn effects(&self, from: &Explanation, at: usize) -> impl Iterator<Item = Explanation> {
        let pending = self.pending[at].filter(|pending| {
            from.answers[at].is_none() && !self.waits(from, at, pending.connection)
        });
        let outcomes = match pending.map(|pending| pending.effect) {
            None => [None, None],
            Some(Effect::Read) => [Some((from.value, Answer::Value(from.value))), None],
            Some(Effect::Write(value)) => [Some((value, Answer::Stored)), None],
            Some(Effect::TryWrite(value)) => [
                Some((value, Answer::Stored)),
                Some((from.value, Answer::Refused)),
            ],
        };
        let from = *from;
        outcomes.into_iter().flatten().map(move |(value, answer)| {
            let mut next = from;
            next.value = value;
            next.answers[at] = Some(answer);
            next
        })
    }

    /// Whether an earlier command of the connection has not taken effect.
    fn waits(&self, from: &Explanation, at: usize, connection: Option<Client>) -> bool {
        connection.is_some()
            && (0..at).any(|earlier| {
                from.answers[earlier].is_none()
                    && self.pending[earlier].is_some_and(|it| it.connection == connection)
            })
    }
}

#[cfg(test)]
mod tests;
