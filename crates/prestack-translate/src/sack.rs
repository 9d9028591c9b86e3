//! Selective acknowledgements (RFC 2018, 2883): what the other end has beyond what it acknowledges, or has
//! got twice.

use crate::ends::Ends;
use crate::rules::{Rule, heeds};
use crate::segment::{Segment, is_before};
use crate::translation::Translation;

/// A block: sequence numbers of its first byte and of what is behind its last.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Block {
    /// The first byte.
    pub start: u32,
    /// Behind the last.
    pub end: u32,
}

impl Translation {
    /// A block from the client in the kernel's numbers. `segment` is the one that it came with. Empty, which
    /// is ignored, if it is of the answer alone, or would start at what the kernel is told is acknowledged:
    /// the client then lacks the answer, and the kernel would think that it has thrown away what it had.
    #[inline(always)]
    #[must_use]
    pub fn pass_block(&self, segment: &Segment, block: Block) -> Block {
        if !heeds(Rule::TranslateBlocks) {
            return block;
        }
        let told = self.kernel_acknowledgement(segment.acknowledgement);
        let translated = Block {
            start: self.kernel_number(block.start),
            end: self.kernel_number(block.end),
        };
        let is_empty = translated.start == translated.end;
        let lacks_answer = is_before(segment.acknowledgement, self.answer_end());
        if is_empty || lacks_answer && translated.start == told {
            Block {
                start: told,
                end: told,
            }
        } else {
            translated
        }
    }

    /// A block from the kernel in wire numbers. `acknowledgement` is what the segment says that it comes
    /// with, before and `wire` after translation.
    #[inline(always)]
    #[must_use]
    pub fn leave_block(&self, ends: &Ends, wire: u32, block: Block) -> Block {
        if !heeds(Rule::TranslateBlocks) {
            return block;
        }
        // What is behind the last request in the kernel's numbers, and so before it as well.
        let request = self.request_end().wrapping_sub(self.taken);
        let before = self.taken.wrapping_sub(self.request_len);
        let start = if is_before(block.start, request) {
            block.start.wrapping_add(before)
        } else {
            block.start.wrapping_add(self.taken)
        };
        let end = if is_before(request, block.end) {
            block.end.wrapping_add(self.taken)
        } else {
            block.end.wrapping_add(before)
        };
        // What was got twice must not say more than the acknowledgement.
        if is_before(ends.acked, block.end) || is_before(end, wire) {
            Block { start, end }
        } else {
            let start = if is_before(start, wire) { start } else { wire };
            Block { start, end: wire }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{ANSWER, CLIENT, Connection, KERNEL, REQUEST, from_client};

    const NEXT: u32 = CLIENT.wrapping_add(REQUEST);
    const START: u32 = KERNEL;
    const GOT: u32 = START.wrapping_add(ANSWER);

    fn block(from: u32, start: i32, end: i32) -> Block {
        Block {
            start: from.wrapping_add_signed(start),
            end: from.wrapping_add_signed(end),
        }
    }

    #[test]
    fn blocks_of_the_client_are_in_the_kernels_numbers() {
        let Connection { translation, .. } = Connection::answered();
        let behind = from_client(NEXT, GOT);
        let pass = |segment: &Segment, block| translation.pass_block(segment, block);
        assert_eq!(pass(&behind, block(GOT, 10, 20)), block(KERNEL, 10, 20));
        // Got twice, from before the answer; and the answer itself, which is nothing to the kernel.
        let before = block(KERNEL, -20, -10);
        assert_eq!(pass(&behind, before), before);
        assert_eq!(pass(&behind, block(START, 0, 300)), block(KERNEL, 0, 0));
        let later = from_client(NEXT, GOT.wrapping_add(500));
        assert_eq!(pass(&later, block(START, 0, 300)), block(KERNEL, 500, 500));
        assert_eq!(pass(&behind, block(START, -20, 300)), block(KERNEL, -20, 0));
        // While the answer is missing, what is right behind it is not known to be there.
        let lacks = from_client(NEXT, START);
        assert_eq!(pass(&lacks, block(GOT, 0, 50)), block(KERNEL, 0, 0));
        assert_eq!(pass(&lacks, block(GOT, 10, 50)), block(KERNEL, 10, 50));
    }

    #[test]
    fn blocks_of_the_kernel_are_in_wire_numbers() {
        let Connection {
            translation,
            mut ends,
        } = Connection::answered();
        let leave = |ends: &Ends, wire, block| translation.leave_block(ends, wire, block);
        assert_eq!(leave(&ends, NEXT, block(CLIENT, 5, 9)), block(NEXT, 5, 9));
        // Got twice: from before the request, and beyond it as far as the acknowledgement goes.
        let before = block(CLIENT, -9, -5);
        assert_eq!(leave(&ends, NEXT, before), before);
        assert_eq!(
            leave(&ends, CLIENT, block(CLIENT, -9, 0)),
            block(CLIENT, -9, 0)
        );
        ends.acked = ends.acked.wrapping_add(100);
        let held = NEXT.wrapping_add(99);
        let cut = leave(&ends, held, block(CLIENT, 80, 100));
        assert_eq!(cut, block(NEXT, 80, 99));
        let cut = leave(&ends, CLIENT, block(CLIENT, 80, 100));
        assert_eq!(
            cut,
            Block {
                start: CLIENT,
                end: CLIENT
            }
        );
    }
}
