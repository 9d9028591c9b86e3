//! Whether a request may be answered, and what its answer's header says.

use prestack_proto::net::{TCP_ACK, TCP_PSH};

use crate::arrive::PART;
use crate::ends::Ends;
use crate::policy::Policy;
use crate::rules::{Rule, heeds};
use crate::segment::{Segment, is_before};
use crate::translation::Translation;

/// The header of a segment that is sent in the kernel's place, in host byte order.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Reply {
    /// Sequence number of its first byte.
    pub sequence: u32,
    /// What it acknowledges.
    pub acknowledgement: u32,
    /// The window field.
    pub window: u32,
    /// Its timestamp, if the connection has them.
    pub timestamp: u32,
    /// The timestamp that it echoes.
    pub echo: u32,
}

/// Bytes that timestamps take of a segment, filled up to words (RFC 7323, appendix A).
const TIMESTAMPS_LEN: u32 = 12;
/// So many long answers in a row that were lost say that the path does not take segments of their length.
const MOST_LOST: u32 = 3;
/// Bytes of window that must be left behind an answer. A client with so much room can take what it has announced, as
/// Linux does with a receive buffer of twice its window: what is there in many small pieces is put together first
/// (`tcp_prune_queue` in net/ipv4/tcp_input.c), which takes a few pages.
const SPARE: u32 = 8192;

impl Translation {
    /// Whether the requests that a segment consists of may be answered, if the caller knows that memcached
    /// owes nothing on the connection and all of them hit. Nothing is changed. A segment of an active
    /// translation has [arrived](Self::arrive) before.
    #[inline(always)]
    #[must_use]
    pub fn may_serve(&self, ends: &Ends, policy: &Policy, segment: &Segment, now: u64) -> bool {
        let plain = segment.flags & !u32::from(TCP_PSH) == u32::from(TCP_ACK);
        let agreement = &self.agreement;
        if policy.is_serving == 0
            || !agreement.is_servable()
            || self.is_closing != 0
            || !plain
            || segment.is_congested != 0
            || segment.len == 0
            || segment.len > ends.window << agreement.server_scale()
            || (segment.has_timestamps != 0) != agreement.has_timestamps()
        {
            return false;
        }
        self.is_at_rest(ends, segment)
            && !(segment.has_timestamps != 0 && is_before(segment.timestamp, ends.recent))
            && !self.does_kernel_wait(ends, policy, now)
            && (self.is_active == 0 || now.wrapping_sub(self.passed_at) < policy.trickle)
    }

    /// Nothing is under way but the segment.
    #[inline(always)]
    fn is_at_rest(&self, ends: &Ends, segment: &Segment) -> bool {
        let number = segment.sequence.wrapping_sub(self.taken);
        let is_next = number == ends.next;
        let is_acked = ends.next == ends.acked;
        let has_all = segment.acknowledgement == ends.sent.wrapping_add(self.given);
        is_next && is_acked && has_all || !heeds(Rule::OnlyAtRest) && is_next
    }

    /// The kernel has waited for long for an acknowledgement that only swallowed requests carried.
    #[inline(always)]
    fn does_kernel_wait(&self, ends: &Ends, policy: &Policy, now: u64) -> bool {
        self.is_active != 0
            && self.told != ends.sent
            && now.wrapping_sub(self.waits_since) >= policy.forward_after
            && heeds(Rule::ForwardWhenKernelWaits)
    }

    /// How many of the last answers of more than a part had to be sent again, the last one included.
    #[inline(always)]
    const fn lost_so_far(&self) -> u32 {
        if self.answer_len <= PART {
            self.lost
        } else if self.resends != 0 {
            self.lost.saturating_add(1)
        } else {
            0
        }
    }

    /// Answers the requests that a segment consists of, which [may be](Self::may_serve), with `answer_len`
    /// bytes. `None` if they do not fit, and nothing is changed. From the return on the answer counts as
    /// sent: the caller keeps its bytes while it [is
    /// unacknowledged](Self::is_unacknowledged), and the segment does not pass.
    #[inline(always)]
    pub fn serve(
        &mut self,
        ends: &mut Ends,
        policy: &Policy,
        segment: &Segment,
        answer_len: u32,
        now: u64,
    ) -> Option<Reply> {
        let agreement = self.agreement;
        let options = if agreement.has_timestamps() {
            TIMESTAMPS_LEN
        } else {
            0
        };
        let window = segment.window << agreement.client_scale();
        let lost = self.lost_so_far();
        let spare = if heeds(Rule::RoomToSpare) { SPARE } else { 0 };
        if answer_len == 0
            || u64::from(answer_len) > policy.room
            || answer_len + options > u32::from(agreement.mss)
            || answer_len + spare > window
            || answer_len > PART && lost >= MOST_LOST
        {
            return None;
        }
        let reply = Reply {
            sequence: ends.sent.wrapping_add(self.given),
            acknowledgement: segment.end(),
            window: ends.window,
            timestamp: ends.timestamp,
            echo: segment.timestamp,
        };
        if self.is_active == 0 {
            // What the kernel has been told is not known.
            self.told = ends.sent.wrapping_sub(1);
            self.waits_since = now;
            self.passed_at = now;
            self.edge = segment.acknowledgement.wrapping_add(window);
            self.is_active = 1;
        }
        self.taken = self.taken.wrapping_add(segment.len);
        self.given = self.given.wrapping_add(answer_len);
        self.request = segment.sequence;
        self.request_len = segment.len;
        self.answer = ends.sent;
        self.answer_len = answer_len;
        self.got = segment.acknowledgement;
        self.is_held = 0;
        self.repeats = 0;
        self.is_resent = 0;
        self.resends = 0;
        self.is_thrown_away = 0;
        self.lost = lost;
        self.answered_at = now;
        if segment.has_timestamps != 0 {
            ends.recent = segment.timestamp;
        }
        Some(reply)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agreement::Agreement;
    use crate::fixture::{
        ANSWER, CLIENT, Connection, KERNEL, POLICY, REQUEST, WINDOW, from_client,
    };

    /// The request behind the one that was answered.
    fn request() -> Segment {
        Segment {
            len: REQUEST,
            ..from_client(CLIENT.wrapping_add(REQUEST), KERNEL.wrapping_add(ANSWER))
        }
    }

    fn is_served(change: impl FnOnce(&mut Connection, &mut Policy, &mut Segment)) -> bool {
        let (mut connection, mut policy, mut segment) = (Connection::answered(), POLICY, request());
        change(&mut connection, &mut policy, &mut segment);
        let Connection { translation, ends } = connection;
        translation.may_serve(&ends, &policy, &segment, 20)
    }

    #[test]
    fn serves_what_comes_next() {
        assert!(is_served(|_, _, _| {}));
        assert!(is_served(
            |_, _, segment| segment.flags |= u32::from(TCP_PSH)
        ));
        assert!(is_served(|_, _, segment| segment.timestamp += 1));
        assert!(is_served(|_, _, segment| segment.len = WINDOW << 3));
    }

    #[test]
    fn serves_nothing_unusual() {
        // FIN, SYN, RST, URG, ECE, CWR, AE and the reserved ones; and no ACK.
        for flag in [1, 2, 4, 0x20, 0x40, 0x80, 0x100, 0x200, 0x400, 0x800] {
            assert!(
                !is_served(|_, _, segment| segment.flags |= flag),
                "{flag:x}"
            );
        }
        assert!(!is_served(|_, _, segment| segment.flags = 0));
        assert!(!is_served(|_, _, segment| segment.is_congested = 1));
        assert!(!is_served(|_, _, segment| segment.len = 0));
        assert!(!is_served(|_, _, segment| segment.len = (WINDOW << 3) + 1));
        assert!(!is_served(|_, _, segment| segment.timestamp -= 1));
        assert!(!is_served(|_, _, segment| segment.has_timestamps = 0));
        assert!(!is_served(|connection, _, _| {
            connection.translation.agreement.flags &= !Agreement::TIMESTAMPS;
        }));
        assert!(!is_served(|connection, _, _| {
            connection.translation.agreement.flags &= !Agreement::SERVABLE;
        }));
        assert!(!is_served(|connection, _, _| connection
            .translation
            .is_closing = 1));
        assert!(!is_served(|_, policy, _| policy.is_serving = 0));
    }

    #[test]
    fn serves_only_at_rest() {
        for off in [1u32, u32::MAX] {
            assert!(!is_served(|_, _, segment| {
                segment.sequence = segment.sequence.wrapping_add(off);
            }));
            assert!(!is_served(|_, _, segment| {
                segment.acknowledgement = segment.acknowledgement.wrapping_add(off);
            }));
        }
        // More has passed, and is not acknowledged, or waits for what is missing.
        assert!(!is_served(|connection, _, segment| {
            connection.ends.next = connection.ends.next.wrapping_add(9);
            segment.sequence = segment.sequence.wrapping_add(9);
        }));
        assert!(!is_served(|connection, _, _| {
            connection.ends.next = connection.ends.next.wrapping_add(9);
        }));
        assert!(!is_served(|connection, _, _| {
            connection.ends.sent = connection.ends.sent.wrapping_add(9);
        }));
    }

    /// They start again at 0 (RFC 7323 5.2).
    #[test]
    fn serves_where_timestamps_wrap() {
        let is_served = |recent: u32, timestamp: u32| {
            is_served(|connection, _, segment| {
                connection.ends.recent = recent;
                segment.timestamp = timestamp;
            })
        };
        for (earlier, later) in [(u32::MAX, 0), (u32::MAX - 5, 7), (i32::MAX as u32, 1 << 31)] {
            assert!(is_served(earlier, later), "{earlier} {later}");
            assert!(!is_served(later, earlier), "{later} {earlier}");
        }
    }

    #[test]
    fn passes_one_now_and_then() {
        assert!(!is_served(|_, policy, _| policy.trickle = 10));
        assert!(!is_served(|_, policy, _| policy.forward_after = 10));
        assert!(is_served(|connection, policy, _| {
            connection.translation.told = connection.ends.sent;
            policy.forward_after = 10;
        }));
    }

    #[test]
    fn the_first_needs_not_have_passed_lately() {
        let Connection { translation, ends } = Connection::fresh();
        let first = Segment {
            len: REQUEST,
            ..from_client(CLIENT, KERNEL)
        };
        assert!(translation.may_serve(&ends, &POLICY, &first, 1_000_000));
    }

    #[test]
    fn a_new_answer_begins_anew() {
        let Connection {
            mut translation,
            mut ends,
        } = Connection::answered();
        assert_eq!((translation.waits_since, translation.passed_at), (10, 10));
        translation.is_held = 1;
        translation.repeats = 2;
        translation.is_resent = 1;
        translation.resends = 1;
        translation.is_thrown_away = 1;
        let segment = Segment {
            timestamp: 9,
            ..request()
        };
        translation
            .serve(&mut ends, &POLICY, &segment, 10, 20)
            .expect("it fits");
        let Translation {
            is_held,
            repeats,
            is_resent,
            resends,
            is_thrown_away,
            ..
        } = translation;
        assert_eq!((is_held, repeats, is_resent), (0, 0, 0));
        assert_eq!((resends, is_thrown_away), (0, 0));
        assert_eq!(translation.answered_at, 20);
        assert_eq!(ends.recent, 9);
        // Since when the kernel waits, and when something passed, stays.
        assert_eq!((translation.waits_since, translation.passed_at), (10, 10));
    }

    #[test]
    fn serves_what_fits() {
        let fits = |window: u32, mss: u16, room: u64, len: u32| {
            let Connection {
                mut translation,
                mut ends,
            } = Connection::answered();
            translation.agreement.mss = mss;
            let before = (translation, ends);
            let segment = Segment {
                window,
                ..request()
            };
            let policy = Policy { room, ..POLICY };
            let reply = translation.serve(&mut ends, &policy, &segment, len, 20);
            assert!(reply.is_some() || before == (translation, ends));
            reply.is_some()
        };
        // With SPARE bytes behind it.
        assert!(fits(67, 1460, 1000, 384));
        assert!(!fits(67, 1460, 1000, 385));
        assert!(fits(100, 396, 1000, 384));
        assert!(!fits(100, 396, 1000, 385));
        assert!(fits(100, 1460, 384, 384));
        assert!(!fits(100, 1460, 384, 385));
        assert!(!fits(100, 1460, 384, 0));
    }

    #[test]
    fn long_answers_that_are_always_lost_are_given_up() {
        let mut connection = Connection::fresh();
        let policy = Policy {
            room: 1000,
            ..POLICY
        };
        let mut is_given = |len: u32, is_lost: u32| {
            let Connection { translation, ends } = &mut connection;
            let request = Segment {
                window: 1000,
                ..request()
            };
            let reply = translation.serve(ends, &policy, &request, len, 20);
            if reply.is_some() {
                translation.resends = is_lost;
            }
            reply.is_some()
        };
        let (long, short) = (PART + 1, PART);
        // Not one after the other.
        for _ in 0..3 {
            assert!(is_given(long, 1) && is_given(long, 1) && is_given(long, 0));
        }
        // Short ones do not count.
        assert!(is_given(long, 1) && is_given(short, 0) && is_given(long, 1));
        assert!(is_given(long, 1));
        for _ in 0..2 {
            assert!(!is_given(long, 0));
            assert!(is_given(short, 1));
        }
    }

    #[test]
    fn says_what_the_kernel_would() {
        let Connection {
            mut translation,
            mut ends,
        } = Connection::answered();
        let segment = Segment {
            timestamp: 9,
            ..request()
        };
        let reply = translation.serve(&mut ends, &POLICY, &segment, 10, 20);
        let expected = Reply {
            sequence: KERNEL.wrapping_add(ANSWER),
            acknowledgement: CLIENT.wrapping_add(2 * REQUEST),
            window: WINDOW,
            timestamp: 7,
            echo: 9,
        };
        assert_eq!(reply, Some(expected));
        assert_eq!(translation.send_again(&ends, &segment).reply, expected);
        assert!(translation.is_unacknowledged());
    }
}
