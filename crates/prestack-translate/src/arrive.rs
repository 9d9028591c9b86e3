//! A segment arrives from the client.

use prestack_proto::net::{TCP_FIN, TCP_RST, TCP_SYN};

use crate::ends::Ends;
use crate::policy::Policy;
use crate::rules::{Rule, heeds};
use crate::segment::{Segment, is_before, later};
use crate::serve::Reply;
use crate::translation::Translation;

/// Repeated acknowledgements that say that something was lost (RFC 5681).
const REPEATS: u32 = 3;
/// Most bytes of an answer that are sent again at once (a multiple of 8): with headers and options no more than
/// what every path takes (576 bytes, RFC 791), for it may be that which the whole was too long for.
pub const PART: u32 = 512;

/// What is to be done with a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arrival {
    /// It is served, or else passed.
    Go,
    /// The kept answer, or a part of it, is sent again ([`Translation::send_again`]) in place of the segment.
    Resend,
    /// An acknowledgement without data is sent, with [`Translation::reply_bare`], in place of the segment.
    Acknowledge,
}

/// What is sent again of an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Again {
    /// The answer's first byte that is sent, a multiple of 8.
    pub offset: u32,
    /// Bytes that are sent.
    pub len: u32,
    /// The header. With the last byte of the answer the client has all that the kernel has acknowledged.
    pub reply: Reply,
    /// What is acknowledged with a part that is not the last: it leaves something for the client to send again.
    held: u32,
}

impl Again {
    /// Only so many bytes fit.
    #[inline(always)]
    pub fn shorten(&mut self, most: u32) {
        if most < self.len {
            self.len = most;
            self.reply.acknowledgement = self.held;
        }
    }
}

impl Translation {
    /// A segment of an active translation arrives.
    #[inline(always)]
    pub fn arrive(&mut self, ends: &Ends, policy: &Policy, segment: &Segment, now: u64) -> Arrival {
        if !segment.acknowledges() {
            if segment.has(TCP_SYN) && !heeds(Rule::ResetBySynAck) {
                *self = Self::default();
            }
            return Arrival::Go;
        }
        let acknowledgement = segment.acknowledgement;
        let before = self.got;
        self.heed(ends, segment);
        if !self.is_unacknowledged() {
            return self.release(ends, segment);
        }
        // It has been sent, so that what is beyond it is acknowledged by somebody else.
        if !is_before(acknowledgement, self.answer_end()) {
            return Arrival::Go;
        }
        let is_wanted = if segment.length() != 0 {
            self.is_sent_again(ends, segment)
        } else if acknowledgement == before {
            self.is_repeated(policy, segment, now)
        } else {
            // A part has come, and what is behind it is due.
            self.got != before
        };
        if !is_wanted {
            return Arrival::Go;
        }
        self.resends = self.resends.wrapping_add(1);
        Arrival::Resend
    }

    /// The client has acknowledged once more what it had acknowledged before: whether the answer seems to be lost.
    #[inline(always)]
    fn is_repeated(&mut self, policy: &Policy, segment: &Segment, now: u64) -> bool {
        self.repeats += 1;
        let window = segment.window << self.agreement.client_scale();
        let has_room = !is_before(
            segment.acknowledgement.wrapping_add(window),
            self.answer_end(),
        );
        // It may say only once that there is room again.
        let is_lost =
            self.repeats >= REPEATS && self.is_resent == 0 || has_room && self.is_thrown_away != 0;
        self.is_thrown_away = u32::from(!has_room);
        if !is_lost && now.wrapping_sub(self.answered_at) < policy.resend_after {
            return false;
        }
        self.is_resent = 1;
        self.repeats = 0;
        self.answered_at = now;
        true
    }

    /// Takes note of what the client has got, and of its window, if the kernel would as well.
    #[inline(always)]
    fn heed(&mut self, ends: &Ends, segment: &Segment) {
        let mut passed = *segment;
        passed.sequence = segment.sequence.wrapping_sub(self.lead_of(segment.end()));
        let sent = ends.sent.wrapping_add(self.given);
        if !ends.would_heed(&passed, self.agreement.server_scale())
            || is_before(sent, segment.acknowledgement)
        {
            return;
        }
        if is_before(self.got, segment.acknowledgement) {
            self.got = segment.acknowledgement;
            self.repeats = 0;
        }
        let window = segment.window << self.agreement.client_scale();
        let edge = segment.acknowledgement.wrapping_add(window);
        self.edge = later(self.edge, edge);
    }

    /// The client has the last answer. If an acknowledgement was held back until now, it is sent, unless this
    /// segment makes the kernel send one, or tells it something.
    #[inline(always)]
    fn release(&mut self, ends: &Ends, segment: &Segment) -> Arrival {
        if self.is_held != 0 && segment.length() == 0 {
            // A window that is wider than a segment the kernel does not wait for.
            let told_window = self.told_window << self.agreement.client_scale();
            let is_wider =
                told_window < u32::from(self.agreement.mss) && self.told_window < segment.window;
            let is_news = self.told != ends.sent || is_wider;
            if !is_news {
                self.is_held = 0;
                return Arrival::Acknowledge;
            }
        }
        Arrival::Go
    }

    /// A segment with data comes while an answer is unacknowledged. If the client sends again what it was
    /// answered, or what the kernel has, it waits for the answer.
    #[inline(always)]
    fn is_sent_again(&self, ends: &Ends, segment: &Segment) -> bool {
        let known = ends.acked.wrapping_add(self.taken);
        // The client had acknowledged all before the answer when it asked (rule 1). Who acknowledges less is late, or a
        // stranger who guesses: one in two numbers would lie before the answer's end.
        !is_before(segment.acknowledgement, self.answer_start())
            && is_before(self.request, segment.end())
            && (is_before(segment.sequence, self.request_end()) || !is_before(known, segment.end()))
    }

    /// What is to be sent again of the answer, while it [is unacknowledged](Self::is_unacknowledged): its first
    /// [`PART`] that the client lacks. That is what the segment says, should it be less than what another one said:
    /// that may have been damaged.
    #[inline(always)]
    #[must_use]
    pub fn send_again(&self, ends: &Ends, segment: &Segment) -> Again {
        let start = self.answer_start();
        let got = if is_before(segment.acknowledgement, self.got) {
            later(start, segment.acknowledgement)
        } else {
            self.got
        };
        // Whole words, which are quicker to copy.
        let offset = got.wrapping_sub(start) & !7;
        let all = ends.acked.wrapping_add(self.taken);
        let mut again = Again {
            offset,
            len: self.answer_len.wrapping_sub(offset),
            reply: Reply {
                sequence: start.wrapping_add(offset),
                acknowledgement: all,
                window: ends.window,
                timestamp: ends.timestamp,
                echo: segment.timestamp,
            },
            held: if self.holds(ends) && heeds(Rule::HoldBehindParts) {
                self.held_back(all)
            } else {
                all
            },
        };
        again.shorten(PART);
        again
    }

    /// The header of an acknowledgement without data.
    #[inline(always)]
    #[must_use]
    pub const fn reply_bare(&self, ends: &Ends, segment: &Segment) -> Reply {
        Reply {
            sequence: ends.sent.wrapping_add(self.given),
            acknowledgement: ends.acked.wrapping_add(self.taken),
            window: ends.window,
            timestamp: ends.timestamp,
            echo: segment.timestamp,
        }
    }

    /// Takes note of the end of a connection.
    #[inline(always)]
    pub(crate) const fn note_end(&mut self, segment: &Segment) {
        if segment.has(TCP_FIN) {
            self.is_closing |= Self::CLOSED;
        }
        if segment.has(TCP_RST) {
            self.is_closing |= Self::RESET;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{
        ANSWER, CLIENT, Connection, KERNEL, POLICY, REQUEST, SHIFT, WINDOW, from_client,
        from_kernel,
    };

    const NEXT: u32 = CLIENT.wrapping_add(REQUEST);
    const GOT: u32 = KERNEL.wrapping_add(ANSWER);

    fn arrive(connection: &mut Connection, segment: &Segment, now: u64) -> Arrival {
        let Connection { translation, ends } = connection;
        translation.arrive(ends, &POLICY, segment, now)
    }

    fn data(sequence: u32, acknowledgement: u32, len: u32) -> Segment {
        Segment {
            len,
            ..from_client(sequence, acknowledgement)
        }
    }

    #[test]
    fn a_request_that_is_sent_again_is_answered_again() {
        let mut connection = Connection::answered();
        for (sequence, len) in [
            (CLIENT, REQUEST),
            (NEXT.wrapping_sub(1), 1),
            (CLIENT.wrapping_sub(10), REQUEST + 50),
        ] {
            let segment = data(sequence, KERNEL, len);
            assert_eq!(arrive(&mut connection, &segment, 11), Arrival::Resend);
        }
        // What comes before or behind it is not.
        for sequence in [CLIENT.wrapping_sub(30), NEXT] {
            let segment = data(sequence, KERNEL, 30);
            assert_eq!(arrive(&mut connection, &segment, 11), Arrival::Go);
        }
        assert_eq!(
            arrive(&mut connection, &data(NEXT, GOT, 30), 11),
            Arrival::Go
        );
        let copy = data(CLIENT, KERNEL, REQUEST);
        assert_eq!(arrive(&mut connection, &copy, 11), Arrival::Go);
    }

    #[test]
    fn who_does_not_know_what_the_client_has_gets_nothing() {
        for acknowledgement in [KERNEL.wrapping_sub(1), KERNEL.wrapping_sub(1 << 30)] {
            let mut connection = Connection::answered();
            let forged = data(CLIENT, acknowledgement, REQUEST);
            assert_eq!(arrive(&mut connection, &forged, 11), Arrival::Go);
        }
    }

    #[test]
    fn what_the_kernel_has_brings_the_answer() {
        let mut connection = Connection::answered();
        connection.ends.next = connection.ends.next.wrapping_add(30);
        let segment = data(NEXT, KERNEL, 30);
        assert_eq!(arrive(&mut connection, &segment, 11), Arrival::Go);
        connection.ends.acked = connection.ends.next;
        assert_eq!(arrive(&mut connection, &segment, 11), Arrival::Resend);
        let last = data(NEXT.wrapping_add(29), KERNEL, 1);
        assert_eq!(arrive(&mut connection, &last, 11), Arrival::Resend);
    }

    #[test]
    fn repeated_acknowledgements_bring_the_answer() {
        let mut connection = Connection::answered();
        let repeat = from_client(NEXT, KERNEL);
        assert_eq!(arrive(&mut connection, &repeat, 11), Arrival::Go);
        assert_eq!(arrive(&mut connection, &repeat, 11), Arrival::Go);
        assert_eq!(arrive(&mut connection, &repeat, 12), Arrival::Resend);
        // Then not for a while.
        for _ in 0..5 {
            assert_eq!(arrive(&mut connection, &repeat, 31), Arrival::Go);
        }
        assert_eq!(arrive(&mut connection, &repeat, 32), Arrival::Resend);
        assert_eq!(
            arrive(&mut connection, &from_client(NEXT, GOT), 99),
            Arrival::Go
        );
        assert_eq!(
            arrive(&mut connection, &from_client(NEXT, GOT), 99),
            Arrival::Go
        );
    }

    #[test]
    fn what_was_thrown_away_comes_again_when_there_is_room() {
        let mut connection = Connection::answered();
        let with_window = |window| Segment {
            window,
            ..from_client(NEXT, KERNEL)
        };
        // 300 bytes take three units.
        for window in [0, 2] {
            assert_eq!(
                arrive(&mut connection, &with_window(window), 11),
                Arrival::Go
            );
        }
        assert_eq!(
            arrive(&mut connection, &with_window(3), 11),
            Arrival::Resend
        );
        assert_eq!(arrive(&mut connection, &with_window(3), 11), Arrival::Go);
    }

    #[test]
    fn an_answer_comes_again_part_by_part() {
        let mut connection = Connection::fresh();
        let Connection { translation, ends } = &mut connection;
        let request = data(CLIENT, KERNEL, REQUEST);
        let policy = Policy {
            room: 1200,
            ..POLICY
        };
        translation
            .serve(ends, &policy, &request, 1200, 10)
            .expect("it fits");
        let part_for = |connection: &Connection, segment: &Segment, most| {
            let mut again = connection.translation.send_again(&connection.ends, segment);
            again.shorten(most);
            (again.offset, again.len, again.reply.acknowledgement)
        };
        let part = |connection: &Connection, most| {
            let got = from_client(CLIENT, connection.translation.got);
            part_for(connection, &got, most)
        };
        assert_eq!(arrive(&mut connection, &request, 11), Arrival::Resend);
        assert_eq!(part(&connection, 600), (0, PART, CLIENT));
        assert_eq!(part(&connection, 200), (0, 200, CLIENT));
        // The client says what has come, and no more than once that it is there.
        let got = from_client(CLIENT, KERNEL.wrapping_add(205));
        assert_eq!(arrive(&mut connection, &got, 12), Arrival::Resend);
        assert_eq!(arrive(&mut connection, &got, 12), Arrival::Go);
        assert_eq!(part(&connection, 600), (200, PART, CLIENT));
        let old = from_client(CLIENT, KERNEL.wrapping_add(100));
        assert_eq!(arrive(&mut connection, &old, 12), Arrival::Go);
        // Who asks again gets what it says that it lacks, and no more than the answer.
        assert_eq!(arrive(&mut connection, &request, 12), Arrival::Resend);
        assert_eq!(part_for(&connection, &request, 600), (0, PART, CLIENT));
        assert_eq!(part_for(&connection, &old, 600), (96, PART, CLIENT));
        let before = from_client(CLIENT, KERNEL.wrapping_sub(100));
        assert_eq!(part_for(&connection, &before, 600), (0, PART, CLIENT));
        // The last part acknowledges all; if it fits.
        let got = from_client(CLIENT, KERNEL.wrapping_add(712));
        assert_eq!(arrive(&mut connection, &got, 13), Arrival::Resend);
        assert_eq!(part(&connection, 600), (712, 488, NEXT));
        assert_eq!(part(&connection, 487), (712, 487, CLIENT));
        // Not what the kernel has not acknowledged, and nothing is held back while it would send again.
        connection.ends.sent = KERNEL.wrapping_add(9);
        assert_eq!(part(&connection, 487), (712, 487, NEXT));
    }

    #[test]
    fn what_was_held_back_is_made_up_for() {
        let mut connection = Connection::answered();
        connection.translation.told = connection.ends.sent;
        connection.translation.told_window = 100;
        let Connection { translation, ends } = &mut connection;
        translation.leave(ends, &from_kernel(KERNEL, 0), true, 20);
        assert_eq!(connection.translation.is_held, 1);
        let held = connection;
        assert_eq!(
            arrive(&mut connection, &from_client(NEXT, GOT), 30),
            Arrival::Acknowledge
        );
        let reply = connection
            .translation
            .reply_bare(&connection.ends, &from_client(NEXT, GOT));
        assert_eq!((reply.sequence, reply.acknowledgement), (GOT, NEXT));
        assert_eq!(
            arrive(&mut connection, &from_client(NEXT, GOT), 31),
            Arrival::Go
        );
        // Not by what tells the kernel something, or makes it acknowledge.
        let mut connection = held;
        assert_eq!(
            arrive(&mut connection, &data(NEXT, GOT, 5), 30),
            Arrival::Go
        );
        // 1,460 bytes are a segment: with less the kernel may be waiting for more.
        for (told_window, expected) in [(11, Arrival::Go), (12, Arrival::Acknowledge)] {
            let mut connection = held;
            connection.translation.told_window = told_window;
            let wider = from_client(NEXT, GOT);
            assert_eq!(arrive(&mut connection, &wider, 30), expected);
        }
        let mut connection = held;
        connection.translation.told = KERNEL.wrapping_sub(9);
        assert_eq!(
            arrive(&mut connection, &from_client(NEXT, GOT), 30),
            Arrival::Go
        );
    }

    #[test]
    fn acknowledgements_are_repeated_one_after_the_other() {
        let mut connection = Connection::answered();
        for _ in 0..2 {
            let repeat = from_client(NEXT, KERNEL);
            assert_eq!(arrive(&mut connection, &repeat, 11), Arrival::Go);
        }
        let part = from_client(NEXT, KERNEL.wrapping_add(100));
        assert_eq!(connection.translation.resends, 0);
        assert_eq!(arrive(&mut connection, &part, 11), Arrival::Resend);
        assert_eq!(connection.translation.resends, 1);
        for expected in [Arrival::Go, Arrival::Go, Arrival::Resend] {
            assert_eq!(arrive(&mut connection, &part, 11), expected);
        }
    }

    #[test]
    fn a_fin_that_is_sent_again_brings_the_answer() {
        let mut connection = Connection::answered();
        let mut fin = from_client(NEXT, KERNEL);
        fin.flags |= u32::from(TCP_FIN);
        connection.ends.next = connection.ends.next.wrapping_add(1);
        connection.ends.acked = connection.ends.next;
        assert_eq!(arrive(&mut connection, &fin, 11), Arrival::Resend);
    }

    #[test]
    fn the_greatest_window_counts() {
        let mut connection = Connection::answered();
        let edge = GOT.wrapping_add(WINDOW << SHIFT);
        arrive(&mut connection, &from_client(NEXT, GOT), 11);
        assert_eq!(connection.translation.edge, edge);
        let smaller = Segment {
            window: 1,
            ..from_client(NEXT, GOT)
        };
        arrive(&mut connection, &smaller, 11);
        assert_eq!(connection.translation.edge, edge);
    }

    #[test]
    fn only_what_the_kernel_would_heed_acknowledges() {
        let mut connection = Connection::answered();
        for segment in [
            from_client(NEXT.wrapping_add(100_000), GOT),
            from_client(CLIENT.wrapping_sub(100), GOT),
            from_client(NEXT, GOT.wrapping_add(1)),
        ] {
            arrive(&mut connection, &segment, 11);
            assert!(connection.translation.is_unacknowledged(), "{segment:?}");
        }
        let beyond = data(CLIENT, GOT.wrapping_add(1), REQUEST);
        assert_eq!(arrive(&mut connection, &beyond, 11), Arrival::Go);
        // Also what is part of a request that is sent again.
        let part = data(CLIENT, KERNEL.wrapping_add(100), REQUEST);
        assert_eq!(arrive(&mut connection, &part, 11), Arrival::Resend);
        assert_eq!(connection.translation.got, KERNEL.wrapping_add(100));
        // And what is at the end of the kernel's window.
        let last = from_client(NEXT.wrapping_add(WINDOW << 3), GOT);
        arrive(&mut connection, &last, 11);
        assert!(!connection.translation.is_unacknowledged());
    }
}
