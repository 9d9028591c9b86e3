//! Entries that grow old: one GET fetches them anew, the others are answered meanwhile.

use std::time::Duration;

use prestack::clock;
use prestack_abi::time::{CLAIM_SHIFT, CLAIM_UNITS};

use crate::bytes::{hit, value_for_reply};
use crate::forms::{forms, known};
use crate::harness::{Datapath, Setup, Verdict, volume, wait};
use crate::packet::PacketBuilder;

const REFRESH_AGE: Duration = Duration::from_millis(100);
/// GETs in a burst, fewer where they are slow: a burst is to be over before a claim is.
const BURST: usize = 50;

/// For how long one GET keeps others from fetching the same key.
fn claim() -> Duration {
    Duration::from_nanos(u64::from(CLAIM_UNITS + 1) << CLAIM_SHIFT)
}

/// `key` is cached, and old enough to be fetched anew.
fn aged() -> Datapath {
    let mut path = Datapath::with(&Setup {
        refresh_age: REFRESH_AGE,
        ..Setup::default()
    });
    path.fill("key", "value");
    path.fill("other", "value");
    path.assert_hit("key", "value");
    wait(REFRESH_AGE);
    path
}

/// Those of a burst of GETs that are let through; the others are answered. Tries again with
/// another datapath if the burst took longer than a claim holds.
fn burst() -> (Datapath, PacketBuilder) {
    for _ in 0..50 {
        let mut path = aged();
        let start = clock::now_ns();
        let mut passed = Vec::new();
        for _ in 0..volume(BURST) {
            let request = path.get_of("key");
            match path.rx(&request) {
                Verdict::Passed => passed.push(request),
                served => assert_eq!(served, Verdict::Served(hit("key", "value"))),
            }
        }
        if clock::now_ns() - start < clock::nanoseconds(claim()) / 2 {
            assert_eq!(passed.len(), 1, "GETs that fetch the key");
            assert_eq!(path.stats().refreshes, 1);
            let refresher = passed.pop().expect("the one that was passed");
            return (path, refresher);
        }
    }
    panic!("{BURST} GETs always take longer than a claim holds");
}

#[test]
fn one_of_a_burst_fetches_the_item() {
    let (mut path, refresher) = burst();
    let before = path.stats().fills;
    path.tx(&refresher.reply(hit("key", "newer")));
    assert_eq!(path.stats().fills, before + 1);
    path.assert_hit("key", "newer");
}

/// The first that asks for an old item in any form fetches it anew. Of several keys none is fetched: the
/// answer does not name those that memcached has lost.
#[test]
fn every_form_of_one_key_fetches_the_item() {
    for (request, reply) in forms() {
        let mut path = known(&Setup {
            refresh_age: REFRESH_AGE,
            // As long as it takes.
            max_age: Duration::from_secs(1000),
            ..Setup::default()
        });
        wait(REFRESH_AGE);
        let is_single = request != b"get key key\r\n";
        let expected = if is_single {
            Verdict::Passed
        } else {
            Verdict::Served(reply)
        };
        let asked = path.request(&request);
        assert_eq!(path.rx(&asked), expected, "{}", request.escape_ascii());
        assert_eq!(path.stats().refreshes, u64::from(is_single));
    }
}

#[test]
fn a_fetch_that_is_never_answered_is_tried_again() {
    let (mut path, _) = burst();
    wait(claim());
    let request = path.get_of("key");
    path.pass(&request);
    path.tx(&request.reply(hit("key", "newer")));
    path.assert_hit("key", "newer");
}

#[test]
fn a_fetch_that_brings_nothing_ends_the_entry() {
    let too_long = value_for_reply("key", 1400).expect("a length that can be had");
    let replies = [
        b"END\r\n".to_vec(),
        hit("key", too_long),
        b"SERVER_ERROR out of memory\r\n".to_vec(),
        // An item, but not the whole answer.
        [&hit("key", "value")[..], b"END\r\n"].concat(),
    ];
    for reply in replies {
        let (mut path, refresher) = burst();
        path.tx(&refresher.reply(&reply));
        // The next may be one that fetches the item, but not the one after it.
        let next = path.get_of("key");
        path.pass(&next);
        path.assert_miss("key");
        // It can be cached again at once.
        path.fill("key", "again");
    }
}

#[test]
fn a_write_cancels_the_fetch() {
    let (mut path, refresher) = burst();
    path.exchange("set key 0 0 3\r\nnew\r\n", "STORED\r\n");
    path.tx(&refresher.reply(hit("key", "old")));
    path.assert_miss("key");
    path.fill("key", "new");
    path.assert_hit("key", "new");
}

/// No fetch: the item changes, and the entry with it, before it is old.
#[test]
fn a_young_entry_is_not_fetched() {
    let mut path = aged();
    path.exchange("set key 0 0 3\r\nnew\r\n", "STORED\r\n");
    let start = clock::now_ns();
    path.fill("key", "new");
    let before = path.stats().refreshes;
    for _ in 0..BURST {
        let request = path.get_of("key");
        let verdict = path.rx(&request);
        if clock::now_ns() - start > clock::nanoseconds(REFRESH_AGE) / 2 {
            return;
        }
        assert_eq!(verdict, Verdict::Served(hit("key", "new")));
    }
    assert_eq!(path.stats().refreshes, before);
}

#[test]
fn age_counts_from_the_question() {
    let max_age = Duration::from_millis(150);
    let mut path = Datapath::with(&Setup {
        max_age,
        ..Setup::default()
    });
    let request = path.get_of("key");
    path.pass(&request);
    wait(max_age);
    path.tx(&request.reply(hit("key", "value")));
    path.assert_miss("key");
}

#[test]
fn nobody_is_answered_from_an_entry_that_is_too_old() {
    let max_age = Duration::from_millis(150);
    let mut path = Datapath::with(&Setup {
        max_age,
        refresh_age: Duration::from_millis(50),
        ..Setup::default()
    });
    path.fill("key", "value");
    wait(max_age);
    for _ in 0..BURST {
        let request = path.get_of("key");
        path.pass(&request);
    }
}
