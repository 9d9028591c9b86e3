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
        if !segment.has(TCP_RST) {
            ends.take(&passed);
            if segment.len != 0 {
                self.passed_at = now;
            }
            if segment.has(TCP_ACK)
                && !is_before(passing.acknowledgement, self.told)
                && !is_before(ends.sent, passing.acknowledgement)
            {
                self.told = passing.acknowledgement;
                self.told_window = passing.window;
            }
        }
        self.note_end(segment);
        passing
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
