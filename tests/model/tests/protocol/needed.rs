//! Without one of the rules, or of what they take for granted. Each test that fails prints how a
//! client gets a stale answer.

use prestack_model::rules::{Assumption, Rule, Rules};
use prestack_model::scenario::Budget;

use crate::{assert_fails, assert_holds, scenarios};

macro_rules! stale {
    ($($(#[$meta:meta])* $name:ident: without $rule:ident in $scenario:ident;)*) => {
        $(
            $(#[$meta])*
            #[test]
            fn $name() {
                assert_fails(scenarios::$scenario(), Rules::without(Rule::$rule));
            }
        )*
    };
}

mod rule_1_invalidate_at_ingress {
    use super::*;

    stale! {
        a_udp_write_that_invalidates_when_its_reply_leaves: without InvalidateAtIngress in plain_udp;
        a_tcp_write_that_invalidates_when_its_reply_leaves: without InvalidateAtIngress in plain_tcp;
        unacknowledged_bytes_taken_for_seen: without UnacknowledgedIsParsedAgain in tcp;
        the_last_copy_of_a_segment_believed: without CopiesAreAdded in tcp;
    }

    /// As long as all copies of a segment show the same: a write that was dropped is still
    /// outstanding when it is sent again.
    #[test]
    fn unacknowledged_bytes_that_are_the_same_need_not_be_seen_again() {
        let rules = Rules::without(Rule::UnacknowledgedIsParsedAgain);
        for scenario in [
            scenarios::tcp(),
            scenarios::silent_tcp(),
            scenarios::pipelined(),
        ] {
            let budget = Budget {
                garbled: 0,
                ..scenario.budget
            };
            assert_holds(scenario.budget(budget), rules);
        }
    }
}

mod rule_2_a_fill_needs_a_ticket {
    use super::*;

    stale! {
        a_fill_without_ticket: without FillNeedsTicket in plain_udp;
        a_ticket_without_version: without TicketHasVersion in plain_udp;
        a_ticket_given_during_a_udp_write: without NoTicketDuringWrite in plain_udp;
        a_ticket_given_during_a_tcp_write: without NoTicketDuringWrite in plain_tcp;
        a_ticket_that_names_only_the_flow: without TicketNamesRequest in one_flow;
        an_unanswered_request_of_the_same_name_forgotten:
            without UnansweredIsRemembered in reused_ids;
        a_lost_request_without_stamp: without LostLeavesStamp in lost_get;
        a_successor_of_a_lost_request_without_stamp: without UnsureLeavesStamp in lost_get;
        a_new_ticket_for_a_resent_get: without ResentGetGetsNoTicket in tcp_reader;
    }

    /// The design has this rule; the order of replies makes it needless.
    #[test]
    fn several_gets_of_a_connection_with_tickets_are_harmless() {
        let rules = Rules::without(Rule::OneGetPerConnection);
        assert_holds(scenarios::tcp_reader(), rules);
        assert_holds(scenarios::quiet_tcp(), rules);
    }
}

mod rule_3_outstanding_until_the_reply_leaves {
    use super::*;

    stale! {
        a_udp_write_that_ends_when_memcached_has_it: without OutstandingUntilReply in plain_udp;
        a_tcp_write_that_ends_when_memcached_has_it: without OutstandingUntilReply in plain_tcp;
        a_write_that_ends_when_it_is_executed: without OutstandingBeyondExecution in tcp_and_udp;
        a_udp_write_ended_by_a_reply_of_unsure_owner: without OwnerIsCertain in reused_ids_of_writes;
        a_write_in_doubt_of_a_stranger_that_leaves_no_stamp: without StrangeIsRenewed in stranger;
        a_tcp_write_ended_by_a_reply_of_unsure_owner: without EarliestOwner in quiet_tcp;
        a_reply_that_leaves_again_counted_again: without RepliesCountOnce in resent_replies;
        a_silent_write_that_settles_unacknowledged: without SettleFromAcknowledgement in pipelined;
        a_reset_that_ends_writes: without ResetWritesSettle in resets;
    }

    /// What the reply is waited for is that nobody can see memcached execute a write, nor how many
    /// copies of it there are: of one that comes once, the execution would be the end.
    #[test]
    fn a_write_that_comes_once_ends_when_it_is_executed() {
        let rules = Rules::without(Rule::OutstandingBeyondExecution);
        assert_holds(scenarios::plain_udp(), rules);
        assert_holds(scenarios::two_connections(), rules);
    }
}

mod assumptions {
    use super::*;

    /// The documented exception.
    #[test]
    fn a_silent_write_that_is_executed_after_it_settled() {
        let rules = Rules::denying(Assumption::SilentWritesAreExecutedInTime);
        assert_fails(scenarios::silent_tcp(), rules);
        assert_fails(scenarios::silent_udp(), rules);
    }

    /// Its late reply kills what was fetched meanwhile, but that comes too late: others may have got
    /// the new value before.
    #[test]
    fn an_answered_udp_write_that_is_executed_after_it_settled() {
        let rules = Rules::denying(Assumption::AnsweredWritesAreExecutedInTime);
        assert_fails(scenarios::plain_udp(), rules);
    }

    /// An old reply is then taken for that to another GET of its name.
    #[test]
    fn a_get_that_is_answered_after_it_was_forgotten() {
        let rules = Rules::denying(Assumption::RequestsAreAnsweredWhileRemembered);
        assert_fails(scenarios::reused_ids(), rules);
    }

    /// A reset that the kernel ignores makes an answered write one that settles.
    #[test]
    fn an_answered_tcp_write_that_is_executed_after_it_settled() {
        let rules = Rules::denying(Assumption::AnsweredWritesAreExecutedInTime);
        assert_holds(scenarios::tcp(), rules);
        assert_fails(scenarios::resets(), rules);
    }
}
