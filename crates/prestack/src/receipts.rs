//! Whether answers over TCP arrive. What XDP returns may be lost on its way, as over a veth pair whose other end
//! has no XDP program: then connections hang, each at the first answer that it does not get.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use prestack_abi::{flow::FlowKey, stats::Stats};

/// How often it is looked which connections wait.
const LOOK: Duration = Duration::from_millis(500);
/// For how long, and after how many times that it was sent again, an answer counts as lost: the first one of a
/// connection. Clients ask again after 200 ms (`TCP_RTO_MIN` in include/net/tcp.h), and each time after twice as
/// long: for the third time after 1.4 s.
const FIRST: (Duration, u32) = (Duration::from_secs(1), 3);
/// The same of a later one: the path has been good, and may be again. For the eighth time clients ask after 51 s.
const LATER: (Duration, u32) = (Duration::from_secs(60), 8);
/// So many connections that never got an answer, within this time, are not the only ones.
const MANY: usize = 3;
const LATELY: Duration = Duration::from_secs(60);

/// A connection whose last answer was sent again, and is not acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Waiting {
    /// Its ends.
    pub key: FlowKey,
    /// Wire number behind the answer.
    pub answer_end: u32,
    /// Wire number of what the client has acknowledged.
    pub got: u32,
    /// How often something of the answer was sent again.
    pub resends: u32,
    /// Whether it is the connection's first answer.
    pub is_first: bool,
}

/// What is lost.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Lost {
    /// Connections that wait in vain.
    pub connections: Vec<FlowKey>,
    /// Those of them that have not been found before: such as could not be ended are found again.
    pub new: Vec<FlowKey>,
    /// Whether others will.
    pub is_usual: bool,
}

/// Who waits, and since when.
type Known = HashMap<FlowKey, (Waiting, Instant)>;

/// What is known of it.
#[derive(Debug, Default)]
pub struct Receipts {
    looked: Option<Instant>,
    /// Answers that had been sent again then.
    resent: u64,
    /// Who asked again then.
    asking: Known,
    /// When connections were found last that never got an answer.
    never: HashMap<FlowKey, Instant>,
    /// Who has been found.
    found: HashSet<FlowKey>,
}

impl Receipts {
    /// Whether it is time to look which connections wait: not if none can, by these counters.
    pub fn is_due(&mut self, stats: &Stats, now: Instant) -> bool {
        if self.looked.is_some_and(|looked| now - looked < LOOK) {
            return false;
        }
        self.looked = Some(now);
        let is_new = std::mem::replace(&mut self.resent, stats.tcp_resent) != stats.tcp_resent;
        is_new || !self.asking.is_empty()
    }

    /// Which of the connections that wait do so in vain. One that does not ask again may have its answer, and only its
    /// acknowledgement was lost.
    pub fn look(&mut self, waiting: &[Waiting], stats: &Stats, now: Instant) -> Lost {
        let asked = std::mem::take(&mut self.asking);
        let mut lost = Lost::default();
        for waits in waiting {
            let is_same = |(other, _): &&(Waiting, Instant)| {
                other.answer_end == waits.answer_end && other.got == waits.got
            };
            let since = asked.get(&waits.key).filter(is_same);
            let since = since.map_or(now, |(_, since)| *since);
            let (patience, resends) = if waits.is_first { FIRST } else { LATER };
            if now - since < patience || waits.resends < resends {
                self.asking.insert(waits.key, (*waits, since));
                continue;
            }
            lost.connections.push(waits.key);
            if waits.is_first {
                self.never.insert(waits.key, now);
                lost.is_usual |= stats.tcp_received == 0;
            }
        }
        let waiting: HashSet<_> = waiting.iter().map(|waits| waits.key).collect();
        self.found.retain(|key| waiting.contains(key));
        let new = lost.connections.iter().copied();
        lost.new = new.filter(|key| self.found.insert(*key)).collect();
        self.never.retain(|_, found| now - *found < LATELY);
        lost.is_usual |= !lost.connections.is_empty() && self.never.len() >= MANY;
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(port: u16, resends: u32, is_first: bool) -> Waiting {
        Waiting {
            key: FlowKey {
                client_port: port,
                ..FlowKey::default()
            },
            answer_end: 100,
            got: 50,
            resends,
            is_first,
        }
    }

    /// Counters of a datapath of which so many answers have arrived.
    fn received(tcp_received: u64) -> Stats {
        Stats {
            tcp_received,
            ..Stats::default()
        }
    }

    /// What is lost if the same are found waiting twice, `apart`.
    fn lost_after(apart: Duration, waiting: &[Waiting], arrived: u64) -> Lost {
        let (mut receipts, start) = (Receipts::default(), Instant::now());
        let stats = received(arrived);
        assert_eq!(receipts.look(waiting, &stats, start), Lost::default());
        receipts.look(waiting, &stats, start + apart)
    }

    #[test]
    fn who_has_asked_in_vain_for_long_is_lost() {
        let second = Duration::from_secs(1);
        let is_lost = |apart, waits| !lost_after(apart, &[waits], 9).connections.is_empty();
        assert!(is_lost(second, waits(1, 3, true)));
        assert!(!is_lost(second / 2, waits(1, 3, true)));
        // It may have the answer, and its acknowledgement alone was lost.
        assert!(!is_lost(60 * second, waits(1, 2, true)));
        // The path was good before.
        assert!(!is_lost(59 * second, waits(1, 9, false)));
        assert!(!is_lost(60 * second, waits(1, 7, false)));
        assert!(is_lost(60 * second, waits(1, 8, false)));
    }

    #[test]
    fn who_gets_on_is_not_lost() {
        let (mut receipts, start) = (Receipts::default(), Instant::now());
        let mut one = waits(1, 9, true);
        for second in 0..9 {
            one.got += 1;
            let now = start + Duration::from_secs(second);
            assert_eq!(receipts.look(&[one], &received(9), now), Lost::default());
        }
        // Nor who waited before, and then not.
        receipts.look(&[], &received(9), start + Duration::from_secs(9));
        let now = start + Duration::from_secs(10);
        assert_eq!(receipts.look(&[one], &received(9), now), Lost::default());
    }

    #[test]
    fn the_rest_is_judged_by_those_that_never_got_one() {
        let seconds = Duration::from_secs;
        let one = [waits(1, 3, true)];
        assert!(lost_after(seconds(1), &one, 0).is_usual);
        assert!(!lost_after(seconds(1), &one, 1).is_usual);
        assert!(!lost_after(seconds(10), &[waits(1, 9, false)], 0).is_usual);
        let three = [1, 2, 3].map(|port| waits(port, 3, true));
        assert!(lost_after(seconds(1), &three, 1).is_usual);
        assert!(!lost_after(seconds(1), &three[..2], 1).is_usual);

        // One after the other, within a minute or not.
        for (apart, is_usual) in [(20, true), (40, false)] {
            let (mut receipts, start) = (Receipts::default(), Instant::now());
            let mut lost = Lost::default();
            for (n, port) in [1, 2, 3].into_iter().enumerate() {
                let found = start + seconds(apart) * n as u32;
                let one = [waits(port, 3, true)];
                receipts.look(&one, &received(1), found);
                lost = receipts.look(&one, &received(1), found + seconds(1));
                assert_eq!(lost.connections.len(), 1);
            }
            assert_eq!(lost.is_usual, is_usual, "{apart} s");
        }
    }

    #[test]
    fn one_that_cannot_be_ended_is_one() {
        let (mut receipts, start) = (Receipts::default(), Instant::now());
        let (one, stats) = ([waits(1, 3, true)], received(1));
        let mut found = (0, 0);
        for second in 0..200 {
            let lost = receipts.look(&one, &stats, start + Duration::from_secs(second));
            assert!(!lost.is_usual);
            found.0 += lost.connections.len();
            found.1 += lost.new.len();
        }
        assert_eq!(found, (100, 1));
        // It is not known for ever: another one may have its ends.
        let mut look = |waiting: &[Waiting], second| {
            receipts.look(waiting, &stats, start + Duration::from_secs(second))
        };
        look(&[], 300);
        look(&one, 400);
        assert_eq!(look(&one, 401).new.len(), 1);
    }

    #[test]
    fn nobody_is_looked_for_while_nothing_is_sent_again() {
        let (mut receipts, start) = (Receipts::default(), Instant::now());
        let stats = |tcp_resent| Stats {
            tcp_resent,
            ..Stats::default()
        };
        assert!(!receipts.is_due(&stats(0), start));
        assert!(!receipts.is_due(&stats(1), start + LOOK / 2));
        assert!(receipts.is_due(&stats(1), start + LOOK));
        assert!(!receipts.is_due(&stats(1), start + 2 * LOOK));
        receipts.look(&[waits(1, 1, true)], &stats(1), start + 2 * LOOK);
        assert!(receipts.is_due(&stats(1), start + 3 * LOOK));
    }
}
