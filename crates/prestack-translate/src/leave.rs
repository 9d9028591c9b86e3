//! A segment leaves for the client.

use prestack_proto::net::{TCP_ACK, TCP_RST};

use crate::difference::difference;
use crate::ends::Ends;
use crate::rules::{Rule, heeds};
use crate::segment::{Segment, is_before};
use crate::translation::Translation;

/// What is to be done with a segment that leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Departing {
    /// It goes.
    Go,
    /// It goes without its FIN, which does not follow its data any more: there is an answer between. The
    /// client's acknowledgement of the data makes the kernel send the FIN alone.
    WithoutFin,
    /// It must not go. Its data would lie across an answer, which the kernel does only if it sends what it has
    /// not been asked for, before it was told of what the client has acknowledged.
    Drop,
}

/// The fields of a segment that leaves, in wire numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Departure {
    /// What is to be done.
    pub departing: Departing,
    /// The sequence number.
    pub sequence: u32,
    /// What it acknowledges.
    pub acknowledgement: u32,
}

impl Departure {
    /// What the new numbers do to the sum of the segment (flags and SACK blocks excepted).
    #[inline(always)]
    #[must_use]
    pub const fn difference(&self, segment: &Segment) -> u64 {
        difference(segment.sequence, self.sequence)
            + difference(segment.acknowledgement, self.acknowledgement)
    }
}

impl Translation {
    /// The kernel sends a segment of an active translation, other than a SYN: its fields for the client.
    /// `is_serving` is that of the policy.
    #[inline(always)]
    pub fn leave(
        &mut self,
        ends: &mut Ends,
        segment: &Segment,
        is_serving: bool,
        now: u64,
    ) -> Departure {
        let mut departure = Departure {
            departing: Departing::Go,
            sequence: segment.sequence,
            acknowledgement: segment.acknowledgement,
        };
        if !(is_serving || heeds(Rule::TranslateWhileDraining)) {
            return departure;
        }
        self.note_end(segment);
        if segment.has(TCP_RST) && !segment.has(TCP_ACK) {
            // The host answers a segment of a connection that it does not have, with what that has
            // acknowledged.
            departure.sequence = if segment.sequence == self.answer && self.is_unacknowledged() {
                self.got
            } else {
                segment.sequence.wrapping_add(self.given)
            };
            return departure;
        }
        if segment.length() != 0 {
            self.note_wait(ends, segment, now);
        }
        if is_before(segment.sequence, self.answer)
            && is_before(self.answer, segment.end())
            && heeds(Rule::ByPosition)
        {
            // Then it is the FIN that is behind.
            let ends_there = segment.sequence.wrapping_add(segment.len) == self.answer;
            departure.departing = if ends_there {
                Departing::WithoutFin
            } else {
                Departing::Drop
            };
        }
        departure.sequence = segment.sequence.wrapping_add(self.lag_of(segment.sequence));
        if !segment.has(TCP_RST) {
            ends.give(segment);
            self.follow(ends.acked, ends.sent);
        }
        departure.acknowledgement = self.wire_acknowledgement(ends, segment.acknowledgement);
        departure
    }

    /// Takes note of whether the kernel waits for an acknowledgement.
    #[inline(always)]
    fn note_wait(&mut self, ends: &Ends, segment: &Segment, now: u64) {
        if is_before(segment.sequence, ends.sent) {
            // It sends again what it was told is there: it has not heard.
            if is_before(segment.sequence, self.told) {
                self.told = segment.sequence;
            }
            self.waits_since = 0;
        } else if self.told == ends.sent {
            self.waits_since = now;
        }
    }

    /// The wire number of an acknowledgement of the kernel. If nothing else makes the client or the kernel
    /// send again, it is held back until the answer is acknowledged.
    #[inline(always)]
    fn wire_acknowledgement(&mut self, ends: &Ends, acknowledgement: u32) -> u32 {
        let number = acknowledgement.wrapping_add(self.taken);
        let is_held = self.is_unacknowledged() && self.holds(ends);
        self.is_held = is_held.into();
        if is_held {
            self.held_back(number)
        } else {
            number
        }
    }

    /// Whether acknowledgements have to be held back while the client lacks the answer: the kernel has nothing
    /// that it would send again.
    #[inline(always)]
    pub(crate) fn holds(&self, ends: &Ends) -> bool {
        ends.sent == self.answer && heeds(Rule::HoldAcknowledgement)
    }

    /// An acknowledgement that leaves something for the client to send again. It may have more than that, but
    /// what was passed and is not acknowledged need not be the client's own: the kernel drops what is damaged.
    #[inline(always)]
    pub(crate) const fn held_back(&self, number: u32) -> u32 {
        if number == self.request_end() {
            self.request
        } else {
            number.wrapping_sub(1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{ANSWER, CLIENT, Connection, KERNEL, REQUEST, from_kernel};
    use prestack_proto::net::TCP_FIN;

    fn leave(connection: &mut Connection, segment: &Segment) -> Departure {
        let Connection { translation, ends } = connection;
        translation.leave(ends, segment, true, 20)
    }

    #[test]
    fn goes_before_or_behind_the_answer() {
        let mut connection = Connection::answered();
        let behind = leave(&mut connection, &from_kernel(KERNEL, 0));
        assert_eq!(behind.sequence, KERNEL.wrapping_add(ANSWER));
        // What is sent again from before, and the probe of a quiet connection.
        let again = leave(&mut connection, &from_kernel(KERNEL.wrapping_sub(30), 30));
        assert_eq!(again.sequence, KERNEL.wrapping_sub(30));
        assert_eq!(again.departing, Departing::Go);
        let probe = leave(&mut connection, &from_kernel(KERNEL.wrapping_sub(1), 0));
        assert_eq!(probe.sequence, KERNEL.wrapping_sub(1));
    }

    #[test]
    fn nothing_lies_across_the_answer() {
        let mut connection = Connection::answered();
        let mut segment = from_kernel(KERNEL.wrapping_sub(30), 30);
        segment.flags |= u32::from(TCP_FIN);
        let departure = leave(&mut connection, &segment);
        assert_eq!(departure.departing, Departing::WithoutFin);
        assert_eq!(departure.sequence, KERNEL.wrapping_sub(30));
        let mut fin = from_kernel(KERNEL, 0);
        fin.flags |= u32::from(TCP_FIN);
        let departure = leave(&mut connection, &fin);
        assert_eq!(departure.departing, Departing::Go);
        assert_eq!(departure.sequence, KERNEL.wrapping_add(ANSWER));
        segment.len = 31;
        assert_eq!(leave(&mut connection, &segment).departing, Departing::Drop);
        segment.flags = TCP_ACK.into();
        assert_eq!(leave(&mut connection, &segment).departing, Departing::Drop);
    }

    #[test]
    fn a_reset_is_where_the_client_is() {
        let mut connection = Connection::answered();
        let mut reset = from_kernel(KERNEL, 0);
        reset.flags = (TCP_RST | TCP_ACK).into();
        reset.window = 0;
        let before = connection.ends;
        let departure = leave(&mut connection, &reset);
        assert_eq!(departure.sequence, KERNEL.wrapping_add(ANSWER));
        // It says nothing of what the kernel has.
        assert_eq!(connection.ends, before);
        // The answer to what the client says while it lacks the answer.
        reset.flags = TCP_RST.into();
        assert_eq!(leave(&mut connection, &reset).sequence, KERNEL);
        let mut later = reset;
        later.sequence = KERNEL.wrapping_add(5);
        let departure = leave(&mut connection, &later);
        assert_eq!(departure.sequence, KERNEL.wrapping_add(ANSWER + 5));
        connection.translation.got = KERNEL.wrapping_add(ANSWER + 30);
        let departure = leave(&mut connection, &reset);
        assert_eq!(departure.sequence, KERNEL.wrapping_add(ANSWER));
        assert_eq!(connection.translation.is_closing, Translation::RESET);
    }

    #[test]
    fn something_stays_for_the_client_to_send_again() {
        let mut connection = Connection::answered();
        // The request, as long as nothing has come behind it.
        let departure = leave(&mut connection, &from_kernel(KERNEL, 0));
        assert_eq!(departure.acknowledgement, CLIENT);
        // Else the last byte of that, also if there seems to be more.
        connection.ends.next = connection.ends.next.wrapping_add(900);
        let mut acknowledgement = from_kernel(KERNEL, 0);
        let all = CLIENT.wrapping_add(REQUEST + 500);
        acknowledgement.acknowledgement = CLIENT.wrapping_add(500);
        let departure = leave(&mut connection, &acknowledgement);
        assert_eq!(departure.acknowledgement, all.wrapping_sub(1));
        assert_eq!(connection.translation.is_held, 1);
        // Not if the kernel has something to send again, or the answer is there.
        acknowledgement.len = 5;
        let departure = leave(&mut connection, &acknowledgement);
        assert_eq!(departure.acknowledgement, all);
        assert_eq!(connection.translation.is_held, 0);
    }

    #[test]
    fn notes_what_the_kernel_has_not_heard() {
        let mut connection = Connection::answered();
        connection.translation.told = KERNEL;
        leave(&mut connection, &from_kernel(KERNEL.wrapping_sub(30), 30));
        assert_eq!(connection.translation.told, KERNEL.wrapping_sub(30));
        assert_eq!(connection.translation.waits_since, 0);
        // What it sends while it waits for nothing starts the time.
        connection.translation.told = KERNEL;
        leave(&mut connection, &from_kernel(KERNEL, 40));
        assert_eq!(connection.translation.waits_since, 20);
        // Not while it waits for more already, nor an acknowledgement.
        connection.translation.waits_since = 5;
        connection.translation.told = KERNEL.wrapping_sub(60);
        leave(&mut connection, &from_kernel(KERNEL.wrapping_add(40), 40));
        assert_eq!(connection.translation.waits_since, 5);
        connection.translation.told = connection.ends.sent;
        let sent = connection.ends.sent;
        leave(&mut connection, &from_kernel(sent, 0));
        assert_eq!(connection.translation.waits_since, 5);
        // What it sends again of what it was not told of says no more.
        connection.translation.told = KERNEL.wrapping_sub(60);
        leave(&mut connection, &from_kernel(KERNEL.wrapping_sub(30), 30));
        assert_eq!(connection.translation.told, KERNEL.wrapping_sub(60));
    }
}
