//! The rules that keep both ends consistent, and how tests leave one out.

/// What must hold. Each is marked in the code where it is heeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// A request is answered only if nothing else is under way in either direction: it is what the kernel
    /// expects next, the kernel has acknowledged all before it, and the client has acknowledged all that was
    /// sent to it. So one answer at most is unacknowledged.
    OnlyAtRest,
    /// What the kernel sends again from before an answer goes before it, and the kernel is never told of an
    /// acknowledgement from before it. Otherwise its bytes would take the place of the answer's.
    ByPosition,
    /// The client keeps something to send again while it has not acknowledged an answer, unless the kernel
    /// has: otherwise nobody's timer would bring a lost answer back.
    HoldAcknowledgement,
    /// A request is passed if the kernel has waited for an acknowledgement for long: those that came with
    /// swallowed requests it has not seen.
    ForwardWhenKernelWaits,
    /// A connection starts anew only with the kernel's own SYN-ACK, and what was agreed to the kernel's socket
    /// tells.
    ResetBySynAck,
    /// An answer is sent again as far as it fits the packet from which it must be, and the next part when the
    /// client has got that. Until the last one the client keeps something to send again: otherwise nobody's timer
    /// would bring back a part that is lost.
    HoldBehindParts,
    /// An answer is given only to a client with room to spare. One with little may throw away what it has no
    /// memory for, although it takes the acknowledgement that comes with it, and then has nothing to send again.
    RoomToSpare,
    /// SACK blocks are in the numbers of the end that gets them.
    TranslateBlocks,
    /// Translation goes on when nothing is answered any more.
    TranslateWhileDraining,
}

/// Whether the rule is heeded: always, but in tests that leave it out.
#[cfg(not(test))]
#[inline(always)]
pub(crate) const fn heeds(_rule: Rule) -> bool {
    true
}

#[cfg(test)]
pub(crate) use without::{heeds, leave_out};

#[cfg(test)]
mod without {
    use std::cell::Cell;

    use super::Rule;

    thread_local! {
        static LEFT_OUT: Cell<Option<Rule>> = const { Cell::new(None) };
    }

    /// Whether the rule is heeded by this thread.
    pub(crate) fn heeds(rule: Rule) -> bool {
        LEFT_OUT.get() != Some(rule)
    }

    /// Runs something with the rule left out.
    pub(crate) fn leave_out<T>(rule: Option<Rule>, run: impl FnOnce() -> T) -> T {
        struct Restore(Option<Rule>);
        impl Drop for Restore {
            fn drop(&mut self) {
                LEFT_OUT.set(self.0);
            }
        }
        let _restore = Restore(LEFT_OUT.replace(rule));
        run()
    }
}
