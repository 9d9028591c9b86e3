//! The cache grows.

use prestack_model::growth::{Growth, Load, NEVER_OLD, Store};
use stateright::{Checker, Model};

fn assert_stale(growth: Growth) {
    let checker = growth.checker().spawn_bfs().join();
    let path = checker.assert_any_discovery(NEVER_OLD);
    println!("{:?}", path.into_actions());
}

/// A key moves every time, once, or never.
#[test]
fn no_old_value_while_the_cache_grows() {
    for places in [[0, 1, 2], [0, 0, 1], [0, 1, 1], [0, 0, 0]] {
        let growth = Growth {
            places,
            ..Growth::RIGHT
        };
        let checker = growth.checker().spawn_bfs().join();
        println!("{} states", checker.unique_state_count());
        checker.assert_no_discovery(NEVER_OLD);
    }
    let checker = Growth::RIGHT.checker().spawn_bfs().join();
    checker.assert_properties();
}

/// What was killed elsewhere would be found again.
#[test]
fn a_place_that_a_key_comes_back_to() {
    assert_stale(Growth {
        places: [0, 1, 0],
        ..Growth::RIGHT
    });
}

/// A fill that knows of more parts than the write may not know of the write.
#[test]
fn a_write_that_reads_the_parts_before_it_raises_the_version() {
    assert_stale(Growth {
        write: [Store::Parts, Store::Version, Store::Kill],
        ..Growth::RIGHT
    });
}

/// The write may have killed by the time that the fill knows where.
#[test]
fn a_fill_that_compares_the_version_before_it_reads_the_parts() {
    assert_stale(Growth {
        fill: [Load::Version, Load::Parts, Load::Lock],
        ..Growth::RIGHT
    });
}

/// The same where it knows.
#[test]
fn a_fill_that_compares_the_version_without_the_lock() {
    assert_stale(Growth {
        fill: [Load::Parts, Load::Version, Load::Lock],
        ..Growth::RIGHT
    });
}
