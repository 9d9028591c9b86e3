//! The orders in which `rx` stores and loads.

use prestack_model::orders::{CURRENT, Load, Orders, Store};
use stateright::{Checker, Model};

#[test]
fn the_orders_that_rx_keeps() {
    let checker = Orders::RIGHT.checker().spawn_bfs().join();
    println!("{} states", checker.unique_state_count());
    checker.assert_properties();
}

#[test]
fn a_write_that_raises_the_version_before_it_marks() {
    let orders = Orders {
        write: [Store::Raise, Store::Mark, Store::Kill],
        ..Orders::RIGHT
    };
    let checker = orders.checker().spawn_bfs().join();
    checker.assert_any_discovery(CURRENT);
}

#[test]
fn a_ticket_that_looks_for_marks_before_the_version() {
    let orders = Orders {
        get: [Load::Mark, Load::Version],
        ..Orders::RIGHT
    };
    let checker = orders.checker().spawn_bfs().join();
    checker.assert_any_discovery(CURRENT);
}
