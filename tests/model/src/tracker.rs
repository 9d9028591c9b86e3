//! TCP: the tracker of connections.
//!
//! A segment holds one command. The tracker goes through the segments in order; one that comes before
//! its turn is held until then. It knows from memcached's own packets which segments the kernel has
//! acknowledged: these are final. Others are parsed again when they come again.
//!
//! A segment that is garbled looks like a GET of another key.

use crate::cache::Cache;
use crate::history::Answer;
use crate::rules::{Rule, Rules};
use crate::scenario::{Client, Kind, Op, Ops, Reply, Scenario};

/// What is known of all connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tracker {
    /// Segments of which a copy was seen, or is held, that shows the command.
    shown: Ops,
    /// Segments of which a copy was seen, or is held, that shows something else.
    garbled: Ops,
    /// Segments that had their turn and showed the command then or later.
    parsed: Ops,
    /// Segments that `tx` has seen acknowledged.
    acknowledged: Ops,
    /// Clients whose connection is not followed: it was reset, or seemed to be.
    untracked: Ops,
    /// Commands that are over: memcached has answered them or a later one of their connection.
    over: Ops,
}

impl Tracker {
    /// A segment arrives.
    pub fn arrived(
        &mut self,
        rules: &Rules,
        scenario: &Scenario,
        cache: &mut Cache,
        op: Op,
        is_garbled: bool,
    ) {
        if self.is_untracked(scenario.command(op).client) {
            // It may be a write.
            cache.write_arrives(rules, op);
            return;
        }
        if self.acknowledged.has(op) {
            return;
        }
        let is_known = self.shown.or(self.garbled).has(op);
        if is_known && !rules.heed(Rule::UnacknowledgedIsParsedAgain) {
            return;
        }
        if is_known && !rules.heed(Rule::CopiesAreAdded) {
            self.shown.take(op);
            self.garbled.take(op);
            if is_garbled && self.parsed.take(op) {
                cache.outstanding.take(op);
                cache.tickets.take(op);
            }
        }
        if is_garbled {
            self.garbled.add(op);
        } else {
            self.shown.add(op);
            if self.parsed.has(op) {
                Self::resent(rules, scenario, cache, op);
            }
        }
        self.parse(rules, scenario, cache, scenario.command(op).client);
    }

    /// Parses what is to be parsed of a connection, up to the first segment that is missing.
    fn parse(&mut self, rules: &Rules, scenario: &Scenario, cache: &mut Cache, client: Client) {
        for op in scenario.of(client) {
            if self.shown.has(op) && self.parsed.add(op) {
                match scenario.command(op).kind {
                    Kind::Get => self.get(rules, scenario, cache, op),
                    Kind::Set(_) => cache.write_arrives(rules, op),
                }
            }
            if !self.shown.or(self.garbled).has(op) {
                break;
            }
        }
    }

    /// A GET has its turn. It always passes: what is answered in the kernel over TCP is not modelled.
    fn get(&self, rules: &Rules, scenario: &Scenario, cache: &mut Cache, op: Op) {
        let is_alone = scenario
            .before(op)
            .all(|other| self.over.has(other) || scenario.command(other).kind != Kind::Get);
        if is_alone || !rules.heed(Rule::OneGetPerConnection) {
            cache.give_ticket(rules, op);
        }
    }

    /// A command that was parsed has come again.
    fn resent(rules: &Rules, scenario: &Scenario, cache: &mut Cache, op: Op) {
        match scenario.command(op).kind {
            Kind::Set(_) => cache.write_arrives(rules, op),
            Kind::Get if !rules.heed(Rule::ResentGetGetsNoTicket) => cache.give_ticket(rules, op),
            Kind::Get => {}
        }
    }

    /// memcached's host acknowledges segments.
    pub fn acknowledged(&mut self, rules: &Rules, cache: &mut Cache, op: Op) {
        self.acknowledged.add(op);
        if !rules.heed(Rule::OutstandingUntilReply) {
            cache.outstanding.take(op);
        }
    }

    /// A connection is reset. Its writes settle from now on, and whatever comes on it yet counts as
    /// one.
    pub fn reset(&mut self, rules: &Rules, scenario: &Scenario, cache: &mut Cache, client: Client) {
        self.untracked.add(client);
        for op in scenario.of(client) {
            cache.tickets.take(op);
            if !rules.heed(Rule::ResetWritesSettle) {
                cache.outstanding.take(op);
            }
        }
    }

    /// Whether a client's connection is not followed.
    #[must_use]
    pub fn is_untracked(&self, client: Client) -> bool {
        self.untracked.has(client)
    }

    /// Whether `tx` has seen this segment acknowledged.
    #[must_use]
    pub fn is_acknowledged(&self, op: Op) -> bool {
        self.acknowledged.has(op)
    }

    /// A reply leaves on a connection. It belongs to the earliest command there that may have sent it:
    /// if in truth it belongs to a later one, the commands up to the earliest are over all the more,
    /// and what it shows is newer.
    pub fn answered(
        &mut self,
        rules: &Rules,
        scenario: &Scenario,
        cache: &mut Cache,
        client: Client,
        answer: Answer,
    ) {
        if self.is_untracked(client) {
            return;
        }
        let owner = scenario
            .of(client)
            .find(|&op| !self.over.has(op) && self.may_answer(rules, scenario, op, answer));
        let Some(owner) = owner else {
            return;
        };
        for op in scenario.of(client).take_while(|&op| op <= owner) {
            if !self.over.add(op) {
                continue;
            }
            if scenario.command(op).writes() && self.parsed.has(op) {
                cache.write_is_answered(rules, op);
            }
            if op != owner {
                cache.tickets.take(op);
            }
        }
        if let (Kind::Get, Answer::Value(value)) = (scenario.command(owner).kind, answer) {
            let flow: Vec<_> = scenario.of(client).collect();
            cache.get_is_answered(rules, owner, &flow, value);
        }
        cache.tickets.take(owner);
    }

    /// Whether a command may have sent this answer, as far as its copies show. Anything that answers
    /// may answer with an error.
    fn may_answer(&self, rules: &Rules, scenario: &Scenario, op: Op, answer: Answer) -> bool {
        let by_copy = self.garbled.has(op) && answer == Answer::Refused;
        let by_itself = self.parsed.has(op)
            && match (scenario.command(op).kind, answer) {
                (Kind::Get, answer) => answer != Answer::Stored,
                (Kind::Set(Reply::Always), answer) => !matches!(answer, Answer::Value(_)),
                (Kind::Set(Reply::Failure), answer) => {
                    answer == Answer::Refused && rules.heed(Rule::EarliestOwner)
                }
                (Kind::Set(Reply::Never), _) => false,
            };
        by_copy || by_itself
    }
}
