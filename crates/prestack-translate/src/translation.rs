//! How the numbers of the two ends differ.

use crate::agreement::Agreement;
use crate::rules::{Rule, heeds};
use crate::segment::is_before;

/// A translation of a connection. All zeros is one of which nothing was ever answered, and needs not be
/// looked at.
///
/// Numbers of the stream from the client: *wire* number less `taken` is the kernel's. Of the stream to the
/// client: the kernel's number and `given` is the wire's. Before the last request, and its answer, they
/// differ by as much less as that is long. What lies before that both ends have got, so nothing is kept of
/// earlier ones.
#[repr(C, align(64))]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Translation {
    /// Bytes of requests that the kernel has not got, modulo 2³².
    pub taken: u32,
    /// Bytes of answers that the kernel has not sent, modulo 2³².
    pub given: u32,
    /// The last request that was answered: the wire number of its first byte.
    pub request: u32,
    /// Its length in bytes.
    pub request_len: u32,
    /// Its answer: the kernel's number of what is behind it.
    pub answer: u32,
    /// The answer's length in bytes.
    pub answer_len: u32,
    /// Wire number of what the client has acknowledged.
    pub got: u32,
    /// Wire number behind the greatest window that the client has announced.
    pub edge: u32,
    /// The kernel's number of what it was last told is acknowledged.
    pub told: u32,
    /// The window field that it was last told.
    pub told_window: u32,
    /// Non-zero once something was answered: every segment is translated.
    pub is_active: u32,
    /// Non-zero once an end has closed or reset the connection: [`Self::CLOSED`], [`Self::RESET`].
    pub is_closing: u32,
    /// Non-zero while the client waits for an acknowledgement that was held back.
    pub is_held: u32,
    /// Acknowledgements that the client has repeated since the answer was sent.
    pub repeats: u32,
    /// Non-zero once the answer was sent again because of repeated acknowledgements.
    pub is_resent: u32,
    /// How many answers of more than a part that had to be sent again were given one after the other.
    pub lost: u32,
    /// How often anything of the answer was sent again.
    pub resends: u32,
    /// What the two ends have agreed to.
    pub agreement: Agreement,
    /// Non-zero once the client has said that it has no room for the answer, which was sent into its window: it has
    /// thrown it away.
    pub is_thrown_away: u32,
    /// Time in ns at which the answer was sent last.
    pub answered_at: u64,
    /// Time in ns since which the kernel waits for an acknowledgement, or earlier.
    pub waits_since: u64,
    /// Time in ns at which data was passed to the kernel.
    pub passed_at: u64,
}

const _: () = assert!(size_of::<Translation>() == 128);

/// How far the numbers of a stream may be apart: wider than any window (RFC 7323), and so than what either
/// end may still send again.
const FAR: u32 = 1 << 30;

impl Translation {
    /// An end has sent its FIN.
    pub const CLOSED: u32 = 1;
    /// An end seems to have reset the connection: if the other has not heeded that, it goes on.
    pub const RESET: u32 = 2;

    /// The translation is that of a new connection, on which nothing was answered. What the first answer sets stays as it
    /// is. Field by field, or the compiler makes it a call to memset.
    #[inline(always)]
    pub const fn begin(&mut self, agreement: Agreement) {
        self.taken = 0;
        self.given = 0;
        self.request_len = 0;
        self.answer_len = 0;
        self.is_active = 0;
        self.is_closing = 0;
        self.is_held = 0;
        self.lost = 0;
        self.agreement = agreement;
    }

    /// Wire number of the answer's first byte.
    #[inline(always)]
    #[must_use]
    pub const fn answer_start(&self) -> u32 {
        self.answer_end().wrapping_sub(self.answer_len)
    }

    /// Wire number behind the answer.
    #[inline(always)]
    #[must_use]
    pub const fn answer_end(&self) -> u32 {
        self.answer.wrapping_add(self.given)
    }

    /// Wire number behind the last request that was answered.
    #[inline(always)]
    #[must_use]
    pub const fn request_end(&self) -> u32 {
        self.request.wrapping_add(self.request_len)
    }

    /// Whether the client has not acknowledged all of the last answer: the caller must keep its bytes.
    #[inline(always)]
    #[must_use]
    pub const fn is_unacknowledged(&self) -> bool {
        self.is_active != 0 && is_before(self.got, self.answer_end())
    }

    /// By how much the wire numbers of a segment from the client that ends at `end` are ahead of the kernel's.
    ///
    /// What ends before the last request is as it was before it. What goes on behind it must be right at its
    /// end: what comes before the kernel has got, and cuts off.
    #[inline(always)]
    pub(crate) const fn lead_of(&self, end: u32) -> u32 {
        if is_before(self.request, end) {
            self.taken
        } else {
            self.taken.wrapping_sub(self.request_len)
        }
    }

    /// By how much the wire numbers of what the kernel sends at `sequence` are ahead of its own.
    #[inline(always)]
    pub(crate) fn lag_of(&self, sequence: u32) -> u32 {
        if is_before(sequence, self.answer) && heeds(Rule::ByPosition) {
            self.given.wrapping_sub(self.answer_len)
        } else {
            self.given
        }
    }

    /// The kernel's number of where a block ends that the client has got up to this wire number, or where one
    /// starts, which differ behind the answer; or of where a segment starts that has left. One with a part of the
    /// answer is to the kernel what it sends next. What left before the answer before the last is taken for earlier than
    /// it is: that the client has acknowledged.
    #[inline(always)]
    #[must_use]
    pub const fn kernel_number(&self, wire: u32) -> u32 {
        let start = self.answer_start();
        if !is_before(wire, self.answer_end()) {
            wire.wrapping_sub(self.given)
        } else if is_before(start, wire) {
            self.answer
        } else {
            wire.wrapping_sub(self.given.wrapping_sub(self.answer_len))
        }
    }

    /// The kernel's number of an acknowledgement: never one before the answer, for all before it the client
    /// has acknowledged.
    #[inline(always)]
    pub(crate) fn kernel_acknowledgement(&self, wire: u32) -> u32 {
        let number = self.kernel_number(wire);
        if is_before(number, self.answer) && heeds(Rule::ByPosition) {
            self.answer
        } else {
            number
        }
    }

    /// Keeps the places of request and answer near what is sent, so that numbers can be compared with them:
    /// beyond `FAR` nothing before them can come any more.
    #[inline(always)]
    pub(crate) const fn follow(&mut self, acked: u32, sent: u32) {
        let acked = acked.wrapping_add(self.taken);
        if acked.wrapping_sub(self.request_end()) >= FAR {
            self.request = acked.wrapping_sub(FAR);
            self.request_len = 0;
        }
        if sent.wrapping_sub(self.answer) >= FAR {
            self.answer = sent.wrapping_sub(FAR);
            self.answer_len = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{CLIENT, Connection, KERNEL, POLICY, REQUEST, from_client};
    use crate::{PART, Policy, Segment};

    #[test]
    fn a_new_connection_knows_nothing_of_the_one_before_at_its_place() {
        let (fresh, left) = (Connection::fresh(), Connection::answered());
        let mut translations = [fresh.translation, left.translation];
        // What the other left may be anything.
        let translation = &mut translations[1];
        (translation.is_closing, translation.is_held) = (1, 1);
        translation.repeats = 2;
        (translation.is_resent, translation.resends) = (1, 1);
        (translation.lost, translation.is_thrown_away) = (3, 1);
        let policy = Policy {
            room: 1000,
            ..POLICY
        };
        let request = Segment {
            len: REQUEST,
            ..from_client(CLIENT, KERNEL)
        };
        for translation in &mut translations {
            translation.begin(fresh.translation.agreement);
            assert!(!translation.is_unacknowledged());
            let mut ends = fresh.ends;
            assert!(translation.may_serve(&ends, &policy, &request, 50));
            let long = PART + 1;
            translation
                .serve(&mut ends, &policy, &request, long, 50)
                .expect("it fits");
        }
        assert_eq!(translations[0], translations[1]);
    }

    #[test]
    fn what_has_left_is_found_again() {
        let Connection { translation, .. } = Connection::answered();
        let answer = translation.answer;
        for sent in (0..2000).map(|at| answer.wrapping_add(at).wrapping_sub(1000)) {
            let wire = sent.wrapping_add(translation.lag_of(sent));
            assert_eq!(translation.kernel_number(wire), sent);
        }
        for at in 0..translation.answer_len {
            let wire = translation.answer_start().wrapping_add(at);
            assert_eq!(translation.kernel_number(wire), answer);
        }
    }

    #[test]
    fn nothing_is_unacknowledged_before_anything_was_answered() {
        // As another connection has left it.
        let left = Translation {
            answer: 10,
            ..Translation::default()
        };
        assert!(!left.is_unacknowledged());
        let active = Translation {
            is_active: 1,
            ..left
        };
        assert!(active.is_unacknowledged());
    }
}
