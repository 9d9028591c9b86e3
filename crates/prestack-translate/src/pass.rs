//! A segment passes to the kernel.

use prestack_proto::net::{TCP_ACK, TCP_RST, TCP_SYN};

use crate::difference::difference;
use crate::ends::Ends;
use crate::rules::{Rule, heeds};
use crate::segment::{Segment, is_before};
use crate::translation::Translation;

/// The fields of a segment that passes, in the kernel's numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Passing {
    /// The sequence number.
    pub sequence: u32,
    /// What it acknowledges.
    pub acknowledgement: u32,
    /// The window field.
    pub window: u32,
}

impl Passing {
    /// What the new fields do to the sum of the segment (SACK blocks excepted).
    #[inline(always)]
    #[must_use]
    pub const fn difference(&self, segment: &Segment) -> u64 {
        difference(segment.sequence, self.sequence)
            + difference(segment.acknowledgement, self.acknowledgement)
            + difference(segment.window, self.window)
    }
}

impl Translation {
    /// A segment of an active translation that has [arrived](Self::arrive) passes to the kernel: its fields
    /// there. `is_serving` is that of the policy.
    #[inline(always)]
    pub fn pass(
        &mut self,
        ends: &mut Ends,
        segment: &Segment,
        is_serving: bool,
        now: u64,
    ) -> Passing {
        let mut passing = Passing {
            sequence: segment.sequence,
            acknowledgement: segment.acknowledgement,
            window: segment.window,
        };
        // One that starts a connection has numbers of its own.
        if segment.has(TCP_SYN) || !(is_serving || heeds(Rule::TranslateWhileDraining)) {
            return passing;
        }
        passing.sequence = segment.sequence.wrapping_sub(self.lead_of(segment.end()));
        if self.answers_what_was_held_back(ends, segment) {
            passing.sequence = ends.acked;
        }
        if segment.has(TCP_ACK) {
            passing.acknowledgement = self.kernel_acknowledgement(segment.acknowledgement);
            if is_before(segment.acknowledgement, self.answer_end()) {
                passing.window = self.window_behind_answer(segment.window);
            }
        }
        let passed = Segment {
            sequence: passing.sequence,
            acknowledgement: passing.acknowledgement,
            ..*segment
        };
        if !ends.would_heed(&passed, self.agreement.server_scale()) {
            return passing;
        }
        if segment.has(TCP_RST) {
            // The kernel takes one only at what it expects next (RFC 5961 3.2).
            if !is_before(ends.next, passing.sequence) {
                self.note_end(segment);
            }
            return passing;
        }
        ends.take(&passed);
        if segment.len != 0 {
            self.passed_at = now;
            // Whoever goes on has not reset it, or it was not heeded.
            self.is_closing &= !Self::RESET;
        }
        if segment.has(TCP_ACK)
            && !is_before(passing.acknowledgement, self.told)
            && !is_before(ends.sent, passing.acknowledgement)
        {
            self.told = passing.acknowledgement;
            self.told_window = passing.window;
        }
        self.note_end(segment);
        passing
    }

    /// Whether a client that does not know the connection, as it begins one anew at the same port, resets it: at what the
    /// kernel's last segment has acknowledged (RFC 9293 3.10.7.3), which was held back.
    #[inline(always)]
    fn answers_what_was_held_back(&self, ends: &Ends, segment: &Segment) -> bool {
        let held = self.held_back(ends.acked.wrapping_add(self.taken));
        segment.has(TCP_RST)
            && !segment.has(TCP_ACK)
            && self.is_held != 0
            && segment.sequence == held
    }

    /// The window field for the kernel from a segment that does not acknowledge all of the answer, which takes
    /// its part of the client's window.
    #[inline(always)]
    fn window_behind_answer(&self, window: u32) -> u32 {
        let left = self.edge.wrapping_sub(self.answer_end());
        if is_before(self.edge, self.answer_end()) {
            return 0;
        }
        let left = left >> self.agreement.client_scale();
        if left < window { left } else { window }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{
        ANSWER, CLIENT, Connection, KERNEL, REQUEST, SHIFT, WINDOW, from_client, from_kernel,
    };
    use prestack_proto::net::TCP_FIN;

    fn pass(connection: &mut Connection, segment: &Segment) -> Passing {
        let Connection { translation, ends } = connection;
        translation.pass(ends, segment, true, 30)
    }

    #[test]
    fn what_is_behind_the_request_comes_next() {
        let mut connection = Connection::answered();
        let (next, got) = (CLIENT.wrapping_add(REQUEST), KERNEL.wrapping_add(ANSWER));
        let mut segment = from_client(next, got);
        segment.len = 10;
        let expected = Passing {
            sequence: CLIENT,
            acknowledgement: KERNEL,
            window: WINDOW,
        };
        assert_eq!(pass(&mut connection, &segment), expected);
        assert_eq!(connection.ends.next, CLIENT.wrapping_add(10));
        assert_eq!(connection.translation.told, KERNEL);
        assert_eq!(connection.translation.passed_at, 30);
        // Part of what the kernel has sent since.
        connection.ends.sent = KERNEL.wrapping_add(100);
        pass(&mut connection, &from_client(next, got.wrapping_add(40)));
        let told = KERNEL.wrapping_add(40);
        assert_eq!(connection.translation.told, told);
        assert_eq!(connection.translation.told_window, WINDOW);
        // Nothing older, nor what was never sent, nor what is no acknowledgement.
        pass(&mut connection, &from_client(next, got.wrapping_add(20)));
        pass(&mut connection, &from_client(next, got.wrapping_add(101)));
        let mut no_acknowledgement = from_client(next, KERNEL.wrapping_add(50));
        no_acknowledgement.flags = 0;
        pass(&mut connection, &no_acknowledgement);
        assert_eq!(connection.translation.told, told);
        // Sent again together with the request: right at its end.
        segment.sequence = next.wrapping_sub(5);
        segment.len = 15;
        assert_eq!(
            pass(&mut connection, &segment).sequence,
            CLIENT.wrapping_sub(5)
        );
        assert_eq!(connection.ends.next, CLIENT.wrapping_add(10));
        // An end.
        assert_eq!(connection.translation.is_closing, 0);
        segment.flags |= u32::from(TCP_FIN);
        pass(&mut connection, &segment);
        assert_eq!(connection.translation.is_closing, Translation::CLOSED);
    }

    #[test]
    fn a_reset_is_no_data_and_may_acknowledge_nothing() {
        let mut connection = Connection::answered();
        let before = connection.ends;
        let next = CLIENT.wrapping_add(REQUEST);
        let mut reset = from_client(next.wrapping_add(1), 0);
        reset.flags = TCP_RST.into();
        let passing = pass(&mut connection, &reset);
        assert_eq!((passing.acknowledgement, passing.window), (0, WINDOW));
        assert_eq!(passing.sequence, CLIENT.wrapping_add(1));
        assert_eq!(connection.ends, before);
        // It is not where the kernel is, which heeds it not.
        assert_eq!(connection.translation.is_closing, 0);
        reset.sequence = next;
        pass(&mut connection, &reset);
        assert_eq!(connection.ends, before);
        assert_eq!(connection.translation.is_closing, Translation::RESET);
        // An acknowledgement may be older; with more data the client says that it goes on.
        pass(&mut connection, &from_client(next, KERNEL));
        assert_eq!(connection.translation.is_closing, Translation::RESET);
        let mut data = from_client(next, KERNEL);
        data.len = 10;
        pass(&mut connection, &data);
        assert_eq!(connection.translation.is_closing, 0);
        // Unless it has sent its FIN.
        data.flags |= u32::from(TCP_FIN);
        pass(&mut connection, &data);
        reset.sequence = next.wrapping_add(11);
        pass(&mut connection, &reset);
        pass(&mut connection, &data);
        assert_eq!(connection.translation.is_closing, Translation::CLOSED);
    }

    /// It has lost its memory, and begins anew at the same port.
    #[test]
    fn a_client_resets_what_it_does_not_know() {
        for behind in [0, 500] {
            let mut connection = Connection::answered();
            let Connection { translation, ends } = &mut connection;
            ends.next = ends.next.wrapping_add(behind);
            // The kernel asks whether a SYN was meant.
            let mut challenge = from_kernel(KERNEL, 0);
            challenge.acknowledgement = CLIENT.wrapping_add(behind);
            let asked = translation.leave(ends, &challenge, true, 20);
            assert_eq!(translation.is_held, 1);
            let mut reset = from_client(asked.acknowledgement, 0);
            reset.flags = TCP_RST.into();
            let before = *translation;
            let passing = translation.pass(ends, &reset, true, 30);
            assert_eq!(passing.sequence, CLIENT.wrapping_add(behind));
            assert_eq!(translation.is_closing, Translation::RESET);
            // Nobody says so who has got anything, or was not asked.
            for (flags, is_held) in [(TCP_RST | TCP_ACK, 1), (TCP_RST, 0)] {
                *translation = before;
                translation.is_held = is_held;
                reset.flags = flags.into();
                let passing = translation.pass(ends, &reset, true, 30);
                let expected = if behind == 0 {
                    CLIENT
                } else {
                    CLIENT.wrapping_add(behind - 1)
                };
                assert_eq!(passing.sequence, expected);
            }
        }
    }

    #[test]
    fn data_at_the_end_of_the_kernels_window_passes_now() {
        let mut connection = Connection::answered();
        let (next, got) = (CLIENT.wrapping_add(REQUEST), KERNEL.wrapping_add(ANSWER));
        let passed_at = connection.translation.passed_at;
        pass(&mut connection, &from_client(next, got));
        assert_eq!(connection.translation.passed_at, passed_at);
        let mut segment = from_client(next.wrapping_add(WINDOW << 3), got);
        segment.len = 1;
        pass(&mut connection, &segment);
        assert_eq!(connection.ends.next, CLIENT.wrapping_add((WINDOW << 3) + 1));
        assert_eq!(connection.translation.passed_at, 30);
    }

    #[test]
    fn what_was_under_way_before_the_request_is_as_it_was() {
        let mut connection = Connection::answered();
        let passing = pass(&mut connection, &from_client(CLIENT, KERNEL));
        assert_eq!(
            (passing.sequence, passing.acknowledgement),
            (CLIENT, KERNEL)
        );
        let old = from_client(CLIENT, KERNEL.wrapping_sub(40));
        assert_eq!(pass(&mut connection, &old).acknowledgement, KERNEL);
    }

    #[test]
    fn the_answer_takes_its_part_of_the_window() {
        let mut connection = Connection::answered();
        let next = CLIENT.wrapping_add(REQUEST);
        let passing = pass(&mut connection, &from_client(next, KERNEL));
        assert_eq!(passing.window, ((WINDOW << SHIFT) - ANSWER) >> SHIFT);
        let part = KERNEL.wrapping_add(100);
        let of_part = pass(&mut connection, &from_client(next, part));
        assert_eq!(of_part.window, passing.window);
        // Nothing to the kernel.
        assert_eq!(of_part.acknowledgement, KERNEL);
        let mut closed = from_client(next, KERNEL);
        closed.window = 3;
        assert_eq!(pass(&mut connection, &closed).window, 3);
        connection.translation.edge = KERNEL.wrapping_add(ANSWER - 1);
        assert_eq!(pass(&mut connection, &closed).window, 0);
    }

    #[test]
    fn a_new_connection_has_its_own_numbers() {
        let mut connection = Connection::answered();
        let before = (connection.translation, connection.ends);
        let mut syn = from_client(12345, 0);
        syn.flags = TCP_SYN.into();
        let passing = pass(&mut connection, &syn);
        assert_eq!((passing.sequence, passing.acknowledgement), (12345, 0));
        assert!(before == (connection.translation, connection.ends));
    }

    #[test]
    fn what_the_kernel_would_not_heed_changes_nothing() {
        let mut connection = Connection::answered();
        let before = (connection.translation, connection.ends);
        let mut segment = from_client(
            CLIENT.wrapping_add(REQUEST + 5000),
            KERNEL.wrapping_add(ANSWER),
        );
        segment.len = 5;
        pass(&mut connection, &segment);
        assert!(before == (connection.translation, connection.ends));
    }
}
