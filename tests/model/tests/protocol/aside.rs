//! The datapath stands aside, and comes back.

use prestack_model::aside::{Aside, Kind, NEVER_OLD, Rule};
use stateright::{Checker, HasDiscoveries, Model};

use Kind::{Get, Set, SetOverTcp};

/// A connection that writes, and readers.
const CONNECTION: &[&[Kind]] = &[&[SetOverTcp, SetOverTcp], &[Get, Get], &[Get]];
/// Datagrams that write, and readers.
const DATAGRAMS: &[&[Kind]] = &[&[Set], &[Set], &[Get, Get], &[Get]];

fn assert_holds(clients: &'static [&'static [Kind]]) {
    let aside = Aside {
        clients,
        left_out: None,
    };
    let checker = aside.checker().spawn_bfs().join();
    println!("{} states", checker.unique_state_count());
    checker.assert_properties();
}

/// Asserts that some client gets an old value, and prints how.
fn assert_stale(clients: &'static [&'static [Kind]], left_out: Rule) {
    let aside = Aside {
        clients,
        left_out: Some(left_out),
    };
    let checker = aside.checker();
    let checker = checker.finish_when(HasDiscoveries::AnyOf([NEVER_OLD].into()));
    let checker = checker.spawn_bfs().join();
    let path = checker.assert_any_discovery(NEVER_OLD);
    println!("{:?}", path.into_actions());
}

#[test]
fn no_old_value_with_a_connection() {
    assert_holds(CONNECTION);
}

#[test]
fn no_old_value_with_datagrams() {
    assert_holds(DATAGRAMS);
}

macro_rules! stale {
    ($($name:ident: without $rule:ident with $clients:ident;)*) => {
        $(
            #[test]
            fn $name() {
                assert_stale($clients, Rule::$rule);
            }
        )*
    };
}

stale! {
    a_flow_that_went_out_of_date: without CloseFlows with CONNECTION;
    data_of_a_flow_that_is_not_over: without AwaitFlows with CONNECTION;
    a_write_that_passes_unseen_in_the_end: without EndPassing with DATAGRAMS;
    what_is_served_before_the_epoch_is_raised: without ServeNothing with DATAGRAMS;
    an_entry_of_before: without RaiseEpoch with DATAGRAMS;
    a_write_that_was_not_seen_and_is_under_way: without StayEmpty with DATAGRAMS;
}
