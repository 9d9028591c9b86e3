//! Every history of every scenario is linearizable, and would not be without any of the rules.

mod aside;
mod growth;
mod holds;
mod needed;
mod orders;
mod scenarios;

use std::time::Instant;

use prestack_model::model::{CURRENT, FILLED, LINEARIZABLE, Protocol};
use prestack_model::rules::Rules;
use prestack_model::scenario::Scenario;
use stateright::{Checker, HasDiscoveries, Model};

/// Explores every state, and asserts that no answer was stale.
fn assert_holds(scenario: Scenario, rules: Rules) {
    let start = Instant::now();
    let checker = Protocol { scenario, rules }.checker().spawn_bfs().join();
    println!(
        "{} states, at most {} steps, {:.1} s",
        checker.unique_state_count(),
        checker.max_depth(),
        start.elapsed().as_secs_f32()
    );
    for property in [LINEARIZABLE, CURRENT] {
        if let Some(path) = checker.discovery(property) {
            panic!("not {property}: {:#?}", path.into_actions());
        }
    }
    checker.assert_any_discovery(FILLED);
}

/// Asserts that some client gets a stale answer, and prints how.
fn assert_fails(scenario: Scenario, rules: Rules) {
    let start = Instant::now();
    let checker = Protocol { scenario, rules }
        .checker()
        .finish_when(HasDiscoveries::AnyOf([LINEARIZABLE].into()))
        .spawn_bfs()
        .join();
    let Some(path) = checker.discovery(LINEARIZABLE) else {
        panic!("no stale answer in {} states", checker.unique_state_count());
    };
    println!(
        "{} states, {:.1} s: {:?}",
        checker.unique_state_count(),
        start.elapsed().as_secs_f32(),
        path.into_actions()
    );
}
