//! The rules of the protocol, each of which can be left out.

/// A rule of the protocol. Each variant says what happens without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// Rule 1. Without it a write invalidates when its reply leaves, not when it arrives.
    InvalidateAtIngress,
    /// Rule 1, TCP: bytes that the kernel has not acknowledged are not final. Without it a segment
    /// that was seen once is not looked at again.
    UnacknowledgedIsParsedAgain,
    /// Rule 1, TCP: what a resent segment shows is added to what its first copy showed. Without it the
    /// last copy counts.
    CopiesAreAdded,
    /// Rule 2. Without it any GET reply fills while no write is outstanding.
    FillNeedsTicket,
    /// Rule 2. Without it a ticket stays good when the version rises.
    TicketHasVersion,
    /// Rule 2. Without it tickets are given during a write, and the reply to the write invalidates
    /// again.
    NoTicketDuringWrite,
    /// Rule 2. Without it the reply to any GET of a flow uses the flow's ticket.
    TicketNamesRequest,
    /// Rule 2. Without it a GET gets a ticket although another of its name is unanswered, and takes
    /// that one's place.
    UnansweredIsRemembered,
    /// Rule 2, TCP. Without it a GET gets a ticket although another on its connection is unanswered.
    /// That does no harm: replies come in order, and [`Rule::EarliestOwner`] does the rest.
    OneGetPerConnection,
    /// Rule 2, TCP: without it a GET that is resent before it was acknowledged gets a new ticket.
    ResentGetGetsNoTicket,
    /// Rule 3. Without it a write ends when memcached's socket has it.
    OutstandingUntilReply,
    /// Rule 3. Without it a write ends at the instant in which memcached executes it for the first
    /// time, whatever copies of it are under way. (Nobody can see that instant.)
    OutstandingBeyondExecution,
    /// Rule 2, UDP. Without it a name from which a request was lost is as good as any.
    LostLeavesStamp,
    /// Rule 2, UDP. Without it a request under such a name leaves no stamp of its own, though the reply to the lost one
    /// may take its place.
    UnsureLeavesStamp,
    /// Rule 3, UDP. Without it a write under a name that a stranger has read under does not renew the stamp of that.
    StrangeIsRenewed,
    /// Rule 3, UDP. Without it a reply ends the last write of its name, though the name has several
    /// unanswered requests.
    OwnerIsCertain,
    /// Rule 3, TCP: a reply belongs to the earliest command that may have sent it. Without it, to the
    /// earliest that must answer.
    EarliestOwner,
    /// Rule 3, TCP: a reply is known by its place in the stream. Without it one that leaves again
    /// counts again.
    RepliesCountOnce,
    /// Rule 3, TCP: the writes of a connection that is reset settle. Without it they end at once.
    ResetWritesSettle,
    /// Rule 3, TCP: a write without reply settles from the acknowledgement of its last byte. Without
    /// it, from its arrival at `rx`.
    SettleFromAcknowledgement,
}

/// Something that the protocol takes for granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Assumption {
    /// memcached executes a write that is owed a reply within the settle time, if ever. Needed over UDP,
    /// where a write may have been dropped, and on a connection that is not followed any more.
    AnsweredWritesAreExecutedInTime,
    /// memcached answers a UDP request before its name is forgotten, if ever.
    RequestsAreAnsweredWhileRemembered,
    /// memcached executes a write without reply within the settle time, if ever.
    SilentWritesAreExecutedInTime,
}

/// The rules that a model heeds, and what it may take for granted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rules {
    left_out: Option<Rule>,
    denied: Option<Assumption>,
}

impl Rules {
    /// All of them.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// All but one.
    #[must_use]
    pub fn without(rule: Rule) -> Self {
        Self {
            left_out: Some(rule),
            denied: None,
        }
    }

    /// All of them, where an assumption does not hold.
    #[must_use]
    pub fn denying(assumption: Assumption) -> Self {
        Self {
            left_out: None,
            denied: Some(assumption),
        }
    }

    /// Whether a rule is heeded.
    #[must_use]
    pub fn heed(&self, rule: Rule) -> bool {
        self.left_out != Some(rule)
    }

    /// Whether an assumption holds.
    #[must_use]
    pub fn assume(&self, assumption: Assumption) -> bool {
        self.denied != Some(assumption)
    }
}
