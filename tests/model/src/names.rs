//! UDP: requests that are passed, by name.

use std::collections::BTreeMap;

use crate::cache::Cache;
use crate::history::Answer;
use crate::rules::{Rule, Rules};
use crate::scenario::{Client, Kind, Op, Reply, Scenario};

/// A request's name: its flow and its id.
pub type Name = (Client, u8);

/// What is remembered under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Record {
    /// GETs, of which the first may have the ticket.
    Gets { first: Op, unanswered: u8 },
    /// A write that its reply ends.
    Write { op: Op, unanswered: u8 },
    /// What cannot be told apart: nothing is learnt under this name.
    Endless,
}

/// The memory of requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Names(BTreeMap<Name, Record>);

impl Names {
    /// The name of a command.
    #[must_use]
    pub fn of(scenario: &Scenario, op: Op) -> Name {
        let command = scenario.command(op);
        (command.client, command.id)
    }

    /// A request is passed: a write has already invalidated. `wants` says whether a GET is to get a
    /// ticket if it may.
    pub fn passed(
        &mut self,
        rules: &Rules,
        scenario: &Scenario,
        cache: &mut Cache,
        op: Op,
        wants: bool,
    ) {
        let name = Self::of(scenario, op);
        let known = self.0.get(&name).copied();
        let record = match scenario.command(op).kind {
            Kind::Get => self.get_passed(rules, cache, known, op, wants),
            Kind::Set(Reply::Always) => match known {
                None => Record::Write { op, unanswered: 1 },
                Some(Record::Write { unanswered, .. }) if !rules.heed(Rule::OwnerIsCertain) => {
                    let unanswered = unanswered + 1;
                    Record::Write { op, unanswered }
                }
                Some(_) => Record::Endless,
            },
            Kind::Set(_) => Record::Endless,
        };
        if let (Record::Endless, Some(Record::Gets { first, .. })) = (record, known) {
            cache.tickets.take(first);
        }
        self.0.insert(name, record);
    }

    fn get_passed(
        &self,
        rules: &Rules,
        cache: &mut Cache,
        known: Option<Record>,
        op: Op,
        wants: bool,
    ) -> Record {
        match known {
            Some(Record::Gets { first, unanswered })
                if rules.heed(Rule::UnansweredIsRemembered) =>
            {
                let unanswered = unanswered + 1;
                Record::Gets { first, unanswered }
            }
            Some(Record::Write { .. } | Record::Endless) => Record::Endless,
            Some(Record::Gets { .. }) | None => {
                if wants {
                    cache.give_ticket(rules, op);
                }
                Record::Gets {
                    first: op,
                    unanswered: 1,
                }
            }
        }
    }

    /// A reply leaves under a name.
    pub fn answered(
        &mut self,
        rules: &Rules,
        scenario: &Scenario,
        cache: &mut Cache,
        name: Name,
        answer: Answer,
    ) {
        match self.0.get_mut(&name) {
            Some(Record::Gets { first, unanswered }) => {
                if let Answer::Value(value) = answer {
                    let flow: Vec<_> = scenario.of(name.0).collect();
                    cache.get_is_answered(rules, *first, &flow, value);
                }
                // The ticket stood for the first reply only.
                cache.tickets.take(*first);
                *unanswered -= 1;
                if *unanswered == 0 {
                    self.0.remove(&name);
                }
            }
            Some(Record::Write { op, unanswered }) => {
                cache.write_is_answered(rules, *op);
                *unanswered -= 1;
                if *unanswered == 0 {
                    self.0.remove(&name);
                }
            }
            Some(Record::Endless) | None => {}
        }
    }

    /// All names in the memory.
    pub fn known(&self) -> impl Iterator<Item = Name> + '_ {
        self.0.keys().copied()
    }

    /// Forgets a name, and the ticket under it.
    pub fn forget(&mut self, cache: &mut Cache, name: Name) {
        if let Some(Record::Gets { first, .. }) = self.0.remove(&name) {
            cache.tickets.take(first);
        }
    }
}
