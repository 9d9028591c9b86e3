//! Marks of outstanding writes: for how long they hold, and what they leave alone.

use std::time::Duration;

use prestack::clock;

use crate::harness::{Datapath, Setup, wait, wait_to_settle};

const SETTLE: Duration = Duration::from_millis(600);

/// One bucket, so that all keys share its marks.
fn one_bucket(settle: Duration) -> Datapath {
    Datapath::with(&Setup {
        buckets: 1,
        settle,
        remember: settle,
        ..Setup::default()
    })
}

/// A write whose answer is lost.
fn write(path: &mut Datapath, key: &str) {
    let request = path.request(format!("delete {key}\r\n"));
    path.pass(&request);
}

#[test]
fn the_last_of_several_writes_has_the_whole_settle_time() {
    // Again if the machine was busy with something else until all was over.
    assert!((0..20).any(|_| last_of_several_writes()));
}

fn last_of_several_writes() -> bool {
    let mut path = one_bucket(SETTLE);
    let start = clock::now_ns();
    write(&mut path, "loud");
    write(&mut path, "quiet");
    wait(SETTLE * 3 / 5);
    let last = clock::now_ns();
    write(&mut path, "loud");
    write(&mut path, "quiet noreply");
    // The first ones are over, the last ones are not.
    wait(SETTLE * 3 / 5);
    let cached = ["loud", "quiet"].map(|key| path.can_fill(key, "value"));
    let settle = clock::nanoseconds(SETTLE);
    if clock::now_ns() >= last + settle || last >= start + settle {
        return false;
    }
    assert_eq!(cached, [false, false]);
    wait_to_settle(SETTLE * 2 / 5);
    for key in ["loud", "quiet"] {
        path.fill(key, "value");
    }
    true
}

#[test]
fn writes_keep_no_other_key_from_the_cache() {
    let mut path = one_bucket(Setup::default().settle);
    for key in ["one", "two", "three"] {
        write(&mut path, key);
        path.fill("key", "value");
        path.assert_hit("key", "value");
        path.exchange("delete key\r\n", "DELETED\r\n");
    }
    for key in ["one", "two", "three"] {
        assert!(!path.can_fill(key, "value"), "{key} is being written");
    }
}

/// What a lost answer leaves is as good as gone when its time is over.
#[test]
fn a_mark_can_be_used_again_after_its_time() {
    let mut path = one_bucket(SETTLE);
    for key in ["key", "two", "three"] {
        write(&mut path, key);
    }
    wait_to_settle(SETTLE);
    // A new write ends with its own answer.
    path.exchange("delete key\r\n", "DELETED\r\n");
    path.fill("key", "value");
    // There is room for others.
    for key in ["four", "five", "six"] {
        write(&mut path, key);
    }
    path.fill("seven", "value");
}
