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
/// How often it is looked which connections have not acknowledged their last answer, though they do not ask again.
const SLOW_LOOK: Duration = Duration::from_secs(30);
/// For how long they may not. One that had no memory for the answer has nothing to send again.
const SILENT: Duration = Duration::from_secs(120);
/// So many connections that never got an answer, within this time, are not the only ones.
const MANY: usize = 3;
const LATELY: Duration = Duration::from_secs(60);

/// A connection whose last answer is not acknowledged.
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

/// What it is time to look at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Due {
    /// Nothing.
    Nothing,
    /// The connections whose last answer was sent again, and is not acknowledged.
    Asking,
    /// Those whose last answer was not sent again, too.
    All,
}

/// Who waits, and since when.
type Known = HashMap<FlowKey, (Waiting, Instant)>;

/// What is known of it.
#[derive(Debug, Default)]
pub struct Receipts {
    looked: Option<Instant>,
    looked_at_all: Option<Instant>,
    /// Answers that had been sent again then.
    resent: u64,
    /// Who asked again then.
    asking: Known,
    /// Who did not acknowledge, nor ask again, when it was looked at all.
    silent: Known,
    /// When connections were found last that never got an answer.
    never: HashMap<FlowKey, Instant>,
    /// Who has been found.
    found: HashSet<FlowKey>,
}

impl Receipts {
    /// Which connections it is time to look at: not at those that ask again if none can, by these counters.
    pub fn due(&mut self, stats: &Stats, now: Instant) -> Due {
        if self.looked.is_some_and(|looked| now - looked < LOOK) {
            return Due::Nothing;
        }
        self.looked = Some(now);
        let is_new = std::mem::replace(&mut self.resent, stats.tcp_resent) != stats.tcp_resent;
        if stats.tcp_hits != 0
            && self
                .looked_at_all
                .is_none_or(|looked| now - looked >= SLOW_LOOK)
        {
            self.looked_at_all = Some(now);
            Due::All
        } else if is_new || !self.asking.is_empty() {
            Due::Asking
        } else {
            Due::Nothing
        }
    }

    /// Which of the connections that wait do so in vain: those that were [`due`](Self::due).
    pub fn look(&mut self, due: Due, waiting: &[Waiting], stats: &Stats, now: Instant) -> Lost {
        let asked = std::mem::take(&mut self.asking);
        let mut silent = Known::new();
        let mut lost = Lost::default();
        for waits in waiting {
            let is_same = |(other, _): &&(Waiting, Instant)| {
                other.answer_end == waits.answer_end && other.got == waits.got
            };
            let since = |known: &Known| {
                let before = known.get(&waits.key).filter(is_same);
                before.map_or(now, |(_, since)| *since)
            };
            if waits.resends == 0 {
                let since = since(&self.silent);
                if now - since < SILENT {
                    silent.insert(waits.key, (*waits, since));
                } else {
                    lost.connections.push(waits.key);
                }
                continue;
            }
            let since = since(&asked);
            let (patience, resends) = if waits.is_first { FIRST } else { LATER };
            let has_asked_in_vain = now - since >= patience && waits.resends >= resends;
            if !has_asked_in_vain && now - since < SILENT {
                self.asking.insert(waits.key, (*waits, since));
                continue;
            }
            lost.connections.push(waits.key);
            if waits.is_first && has_asked_in_vain {
                self.never.insert(waits.key, now);
                lost.is_usual |= stats.tcp_received == 0;
            }
        }
        if due == Due::All {
            self.silent = silent;
            let waiting: HashSet<_> = waiting.iter().map(|waits| waits.key).collect();
            self.found.retain(|key| waiting.contains(key));
        }
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
        assert_eq!(
            receipts.look(Due::All, waiting, &stats, start),
            Lost::default()
        );
        receipts.look(Due::All, waiting, &stats, start + apart)
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
        // Who does not ask may not be able to.
        for resends in [0, 1] {
            assert!(!is_lost(119 * second, waits(1, resends, false)));
            assert!(is_lost(120 * second, waits(1, resends, false)));
        }
    }

    #[test]
    fn who_gets_on_is_not_lost() {
        let (mut receipts, start) = (Receipts::default(), Instant::now());
        let mut one = waits(1, 9, true);
        for second in 0..9 {
            one.got += 1;
            let now = start + Duration::from_secs(second);
            assert_eq!(
                receipts.look(Due::Asking, &[one], &received(9), now),
                Lost::default()
            );
        }
        // Nor who waited before, and then not.
        receipts.look(
            Due::Asking,
            &[],
            &received(9),
            start + Duration::from_secs(9),
        );
        let now = start + Duration::from_secs(10);
        assert_eq!(
            receipts.look(Due::Asking, &[one], &received(9), now),
            Lost::default()
        );
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
                receipts.look(Due::Asking, &one, &received(1), found);
                lost = receipts.look(Due::Asking, &one, &received(1), found + seconds(1));
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
            let due = if second % 30 == 0 {
                Due::All
            } else {
                Due::Asking
            };
            let lost = receipts.look(due, &one, &stats, start + Duration::from_secs(second));
            assert!(!lost.is_usual);
            found.0 += lost.connections.len();
            found.1 += lost.new.len();
        }
        assert_eq!(found, (100, 1));
        // It is not known for ever: another one may have its ends.
        let mut look = |due, waiting: &[Waiting], second| {
            receipts.look(due, waiting, &stats, start + Duration::from_secs(second))
        };
        look(Due::All, &[], 300);
        look(Due::Asking, &one, 400);
        assert_eq!(look(Due::Asking, &one, 401).new.len(), 1);
    }

    #[test]
    fn who_is_silent_is_looked_for_now_and_then() {
        let (mut receipts, start) = (Receipts::default(), Instant::now());
        let stats = Stats {
            tcp_hits: 1,
            ..Stats::default()
        };
        let one = [waits(1, 0, false)];
        let mut lost = Lost::default();
        for n in 0..=SILENT.as_millis() / LOOK.as_millis() {
            let now = start + LOOK * n as u32;
            let due = receipts.due(&stats, now);
            let is_slow = n % (SLOW_LOOK.as_millis() / LOOK.as_millis()) == 0;
            assert_eq!(due == Due::All, is_slow, "look {n}");
            assert!(lost.connections.is_empty());
            if is_slow {
                lost = receipts.look(due, &one, &stats, now);
            } else {
                // Those that ask are looked at meanwhile.
                assert_eq!(
                    receipts.look(Due::Asking, &[], &stats, now),
                    Lost::default()
                );
            }
        }
        assert_eq!((lost.connections.len(), lost.is_usual), (1, false));
    }

    #[test]
    fn nobody_is_looked_for_while_nothing_is_sent_again() {
        let (mut receipts, start) = (Receipts::default(), Instant::now());
        let stats = |tcp_resent| Stats {
            tcp_resent,
            ..Stats::default()
        };
        assert_eq!(receipts.due(&stats(0), start), Due::Nothing);
        assert_eq!(receipts.due(&stats(1), start + LOOK / 2), Due::Nothing);
        assert_eq!(receipts.due(&stats(1), start + LOOK), Due::Asking);
        assert_eq!(receipts.due(&stats(1), start + 2 * LOOK), Due::Nothing);
        receipts.look(
            Due::Asking,
            &[waits(1, 1, true)],
            &stats(1),
            start + 2 * LOOK,
        );
        assert_eq!(receipts.due(&stats(1), start + 3 * LOOK), Due::Asking);
    }
}
