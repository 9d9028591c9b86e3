//! The cache and the rules that UDP and TCP share.

use crate::rules::{Rule, Rules};
use crate::scenario::{Op, Ops};

/// What prestack knows of the key.
///
/// A version that only rises is that of a ticket exactly if it has not risen since the ticket was
/// given. So there is no number here: raising the version takes the tickets away. An entry may vanish
/// at any time, and so it needs no age. Emptying the cache is to every key what a write that is never
/// executed is to one, and is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Cache {
    /// The value that is served.
    pub entry: Option<u8>,
    /// The writes that are outstanding.
    pub outstanding: Ops,
    /// The GETs that have a ticket.
    pub tickets: Ops,
}

impl Cache {
    /// A write arrives.
    pub fn write_arrives(&mut self, rules: &Rules, op: Op) {
        if rules.heed(Rule::InvalidateAtIngress) {
            self.invalidate(rules);
        }
        self.outstanding.add(op);
    }

    /// The reply to a write leaves.
    pub fn write_is_answered(&mut self, rules: &Rules, op: Op) {
        let was_outstanding = self.outstanding.take(op);
        // One that settled before may have been executed only now.
        if !was_outstanding
            || !rules.heed(Rule::InvalidateAtIngress)
            || !rules.heed(Rule::NoTicketDuringWrite)
        {
            self.invalidate(rules);
        }
    }

    /// A GET that passes asks for a ticket.
    pub fn give_ticket(&mut self, rules: &Rules, op: Op) {
        if self.outstanding.is_empty() || !rules.heed(Rule::NoTicketDuringWrite) {
            self.tickets.add(op);
        }
    }

    /// The reply to a GET leaves. `owner` is the GET that it is taken to answer, `flow` all GETs of its
    /// flow.
    pub fn get_is_answered(&mut self, rules: &Rules, owner: Op, flow: &[Op], value: u8) {
        let mut has_ticket = self.tickets.take(owner);
        if !rules.heed(Rule::TicketNamesRequest) {
            has_ticket |= flow.iter().any(|&op| self.tickets.take(op));
        }
        if !rules.heed(Rule::FillNeedsTicket) {
            has_ticket = self.outstanding.is_empty();
        }
        if has_ticket {
            self.entry = Some(value);
        }
    }

    /// Raises the version and kills the entry.
    fn invalidate(&mut self, rules: &Rules) {
        self.entry = None;
        if rules.heed(Rule::TicketHasVersion) {
            self.tickets = Ops::default();
        }
    }
}
