//! UDP: requests that are passed, by name.

use std::collections::BTreeMap;

use crate::cache::Cache;
use crate::history::Answer;
use crate::rules::{Rule, Rules};
use crate::scenario::{Client, Kind, Op, Ops, Reply, Scenario};

/// A request's name: its flow and its id.
pub type Name = (Client, u8);

/// What is remembered under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Record {
    /// GETs, of which the first may have the ticket.
    Gets { first: Op, unanswered: u8 },
    /// A write that its reply ends.
    Write { op: Op, unanswered: u8 },
    /// A write that settles: its reply may be another's, and frees the name all the same.
    Doubted,
    /// What cannot be told apart: nothing is learnt under this name.
    Endless,
}

/// What is known of requests that are not remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stamp {
    /// One was lost.
    Lost,
    /// One came after that, and the reply that has freed the name of it may have been the lost one's.
    Unsure,
    /// A stranger's was not remembered.
    Strange,
}

/// The memory of requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Names {
    records: BTreeMap<Name, Record>,
    /// The requests that were asked when a stamp was left: it is young as long as one of them may be answered.
    stamps: BTreeMap<(Name, Stamp), Ops>,
    /// All requests that have come.
    asked: Ops,
}

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
        let known = self.records.get(&name).copied();
        let is_strange = scenario.strange[usize::from(name.0)];
        self.asked.add(op);
        if is_strange && scenario.command(op).kind == Kind::Get {
            if known.is_some() {
                self.records.insert(name, Record::Endless);
            }
            self.leave(scenario, name, Stamp::Strange);
            return;
        }
        let is_in_doubt = known.is_none() && self.is_in_doubt(rules, scenario, name, is_strange);
        let wants = wants && !is_in_doubt;
        let record = match scenario.command(op).kind {
            Kind::Get => self.get_passed(rules, cache, known, op, wants),
            Kind::Set(Reply::Always) if is_in_doubt => Record::Doubted,
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
        self.records.insert(name, record);
    }

    /// Whether the stamps of a name put what comes under it in doubt; it then leaves a stamp itself.
    fn is_in_doubt(
        &mut self,
        rules: &Rules,
        scenario: &Scenario,
        name: Name,
        is_strange: bool,
    ) -> bool {
        let is_young = |stamp| self.stamps.contains_key(&(name, stamp));
        let follows_lost = is_young(Stamp::Lost);
        let follows_strange = is_strange && is_young(Stamp::Strange);
        let is_in_doubt = follows_lost || is_young(Stamp::Unsure) || follows_strange;
        if follows_lost && rules.heed(Rule::UnsureLeavesStamp) {
            self.leave(scenario, name, Stamp::Unsure);
        }
        if follows_strange && rules.heed(Rule::StrangeIsRenewed) {
            self.leave(scenario, name, Stamp::Strange);
        }
        is_in_doubt
    }

    /// Leaves a stamp.
    fn leave(&mut self, scenario: &Scenario, name: Name, stamp: Stamp) {
        let mut asked = Ops::default();
        for op in self.asked.iter() {
            if Self::of(scenario, op) == name {
                asked.add(op);
            }
        }
        self.stamps.insert((name, stamp), asked);
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
            Some(Record::Write { .. } | Record::Doubted | Record::Endless) => Record::Endless,
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
        match self.records.get_mut(&name) {
            Some(Record::Gets { first, unanswered }) => {
                if let Answer::Value(value) = answer {
                    let flow: Vec<_> = scenario.of(name.0).collect();
                    cache.get_is_answered(rules, *first, &flow, value);
                }
                // The ticket stood for the first reply only.
                cache.tickets.take(*first);
                *unanswered -= 1;
                if *unanswered == 0 {
                    self.records.remove(&name);
                }
            }
            Some(Record::Write { op, unanswered }) => {
                cache.write_is_answered(rules, *op);
                *unanswered -= 1;
                if *unanswered == 0 {
                    self.records.remove(&name);
                }
            }
            Some(Record::Doubted) => {
                self.records.remove(&name);
            }
            Some(Record::Endless) | None => {}
        }
    }

    /// All names in the memory.
    pub fn known(&self) -> impl Iterator<Item = Name> + '_ {
        self.records.keys().copied()
    }

    /// All stamps that are young, and the requests that they stand for.
    pub fn stamps(&self) -> impl Iterator<Item = (Name, Stamp, Ops)> + '_ {
        let stamps = self.stamps.iter();
        stamps.map(|(&(name, stamp), &asked)| (name, stamp, asked))
    }

    /// A stamp is old.
    pub fn age(&mut self, name: Name, stamp: Stamp) {
        self.stamps.remove(&(name, stamp));
    }

    /// A name is forgotten before its time.
    pub fn lose(&mut self, rules: &Rules, scenario: &Scenario, cache: &mut Cache, name: Name) {
        self.forget(cache, name);
        if rules.heed(Rule::LostLeavesStamp) {
            self.leave(scenario, name, Stamp::Lost);
        }
    }

    /// Forgets a name, and the ticket under it.
    pub fn forget(&mut self, cache: &mut Cache, name: Name) {
        if let Some(Record::Gets { first, .. }) = self.records.remove(&name) {
            cache.tickets.take(first);
        }
    }
}
