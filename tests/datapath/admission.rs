//! What may evict: only what was missed twice of late.

use std::time::Duration;

use prestack_abi::cache::{ENTRY_GRANULES, EntryHeader, Place, fingerprint};

use crate::bytes::{get, hit};
use crate::harness::{Datapath, Setup, Verdict, doors_of_wildcard, wait, wait_to_settle};
use crate::packet::PORT;

/// The port of the second backend.
const OTHER: u16 = 11_212;
const SETTLE: Duration = Duration::from_millis(1);
/// So large that few fill a bucket, and no group of it.
const VALUE: &str = "a value so long that 15 entries fill a bucket: \
    0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789\
    0123456789012345678901234567890123456789012345678901234567890123";

fn one_bucket() -> Setup {
    Setup {
        buckets: 1,
        settle: SETTLE,
        doors: [doors_of_wildcard(PORT, 0), doors_of_wildcard(OTHER, 1)].concat(),
        ..Setup::default()
    }
}

/// Keys of one length.
fn keys(prefix: &str) -> impl Iterator<Item = String> {
    (0..10_000_000).map(move |i| format!("{prefix}-{i:07}"))
}

fn place(path: &Datapath, key: &str) -> (Place, u16) {
    let config = path.kernel().controls.config();
    let (place, hash) = prestack::cache::place(&config, 0, key.as_bytes());
    (place, fingerprint(hash))
}

/// A bucket without room, and what it holds.
fn full(setup: &Setup) -> (Datapath, Vec<String>) {
    let mut path = Datapath::with(setup);
    let granules = EntryHeader::granules(hit("key-0000000", VALUE).len() as u64);
    let cached: Vec<_> = keys("key")
        .take(ENTRY_GRANULES / granules as usize)
        .collect();
    for key in &cached {
        assert!(path.can_fill(key, VALUE), "{key}: there is room");
    }
    assert_eq!(path.stats().fills_deferred, 0);
    assert_all_hit(&mut path, &cached);
    (path, cached)
}

fn assert_all_hit(path: &mut Datapath, cached: &[String]) {
    for key in cached {
        path.assert_hit(key, VALUE);
    }
}

/// The evictions and the fills that were deferred.
fn counted(path: &Datapath) -> [u64; 2] {
    let stats = path.stats();
    [stats.evictions, stats.fills_deferred]
}

#[test]
fn what_would_evict_is_stored_when_it_is_missed_again() {
    let (mut path, cached) = full(&one_bucket());
    assert!(!path.can_fill("new-0000000", VALUE));
    assert_eq!((counted(&path), path.stats().fills_refused), ([0, 1], 0));
    assert_all_hit(&mut path, &cached);
    assert!(path.can_fill("new-0000000", VALUE));
    path.assert_hit("new-0000000", VALUE);
    assert_eq!(counted(&path), [1, 1]);
    path.assert_miss(&cached[0]);
    assert_all_hit(&mut path, &cached[1..]);
    // To have been missed once counts once.
    let group = place(&path, "new-0000000").0.group;
    let elsewhere = |key: &String| place(&path, key).0.group >> 1 != group >> 1;
    let elsewhere: Vec<_> = keys("other").filter(elsewhere).take(cached.len()).collect();
    for key in elsewhere {
        path.fill(&key, VALUE);
    }
    path.assert_miss("new-0000000");
    assert!(!path.can_fill("new-0000000", VALUE));
}

#[test]
fn a_key_is_not_admitted_for_another() {
    let (mut path, cached) = full(&one_bucket());
    let (first, proof) = place(&path, "new-0000000");
    let same_tag = keys("new").skip(1).find(|key| {
        let (place, its_proof) = place(&path, key);
        place == first && its_proof != proof
    });
    let neighbour = keys("new").skip(1).find(|key| {
        let (place, its_proof) = place(&path, key);
        place.group == first.group ^ 1 && its_proof != proof
    });
    assert!(!path.can_fill("new-0000000", VALUE));
    for other in [same_tag, neighbour] {
        let other = other.expect("such a key");
        assert!(
            !path.can_fill(&other, VALUE),
            "its place is that of another"
        );
        assert!(!path.can_fill("new-0000000", VALUE), "the other was last");
    }
    assert_all_hit(&mut path, &cached);
    // Keys of other groups do not matter.
    let elsewhere = keys("new").find(|key| place(&path, key).0.group >> 1 != first.group >> 1);
    assert!(!path.can_fill(elsewhere.expect("such a key"), VALUE));
    assert!(path.can_fill("new-0000000", VALUE));
}

#[test]
fn a_scan_evicts_nothing() {
    let (mut path, cached) = full(&one_bucket());
    for key in keys("new").take(1_000) {
        assert!(!path.can_fill(&key, VALUE), "{key}");
    }
    assert_all_hit(&mut path, &cached);
    assert_eq!(counted(&path), [0, 1_000]);
}

/// Of a full bucket and a full group, what is dead makes room at once.
#[test]
fn what_is_dead_makes_room_at_once() {
    let aged = Setup {
        max_age: Duration::from_millis(100),
        ..one_bucket()
    };
    for setup in [one_bucket(), aged] {
        for len in [VALUE.len(), 4] {
            let mut path = Datapath::with(&one_bucket());
            let value = &VALUE[..len];
            let mut cached = Vec::new();
            for key in keys("key").take(ENTRY_GRANULES) {
                if !path.can_fill(&key, value) {
                    break;
                }
                cached.push(key);
            }
            if setup.max_age < one_bucket().max_age {
                path.configure(&setup);
                wait(setup.max_age);
            } else {
                path.exchange("flush_all\r\n", "OK\r\n");
                wait_to_settle(SETTLE);
            }
            for key in keys("new").take(cached.len() / 2) {
                assert!(path.can_fill(&key, value), "{key} of {}", cached.len());
            }
            assert_eq!(path.stats().fills_deferred, 1);
        }
    }
}

/// What has been left where it is no longer looked for must not keep others out.
#[test]
fn what_is_older_than_the_cache_is_large_makes_room_at_once() {
    let (mut path, cached) = full(&one_bucket());
    wait(Duration::ZERO);
    path.kernel().controls.use_parts(2);
    wait(Duration::ZERO);
    let there = keys("new").filter(|key| place(&path, key).0.bucket == 0);
    let there: Vec<_> = there.take(cached.len() + 1).collect();
    let (last, first) = there.split_last().expect("some");
    for key in first {
        assert!(path.can_fill(key, VALUE), "{key}");
    }
    assert!(!path.can_fill(last, VALUE));
    assert_all_hit(&mut path, first);
}

/// What of another backend is dead is not known.
#[test]
fn what_is_anothers_is_alive() {
    let (mut path, cached) = full(&one_bucket());
    let flush = path.request("flush_all\r\n").server_port(OTHER);
    path.pass(&flush);
    path.tx(&flush.reply("OK\r\n"));
    wait_to_settle(SETTLE);
    let get = path.get_of("new-0000000").server_port(OTHER);
    for verdict in [
        Verdict::Passed,
        Verdict::Passed,
        Verdict::Served(hit("new-0000000", VALUE)),
    ] {
        assert_all_hit(&mut path, &cached[1..]);
        assert_eq!(path.rx(&get), verdict);
        path.tx(&get.reply(hit("new-0000000", VALUE)));
    }
}

#[test]
fn what_is_known_needs_no_proof() {
    let (mut path, cached) = full(&one_bucket());
    for (number, key) in cached.iter().enumerate() {
        let with_cas = hit(key, VALUE);
        let request = path.request(format!("gets {key}\r\n"));
        path.pass(&request);
        let mut text = with_cas;
        let end = text.iter().position(|byte| *byte == b'\r').expect("a line");
        text.splice(end..end, *b" 7");
        path.tx(&request.reply(text));
        let fills = (cached.len() + number + 1) as u64;
        assert_eq!(path.stats().fills, fills, "{key}");
        assert!(matches!(path.rx(&request), Verdict::Served(_)), "{key}");
    }
    assert_eq!(counted(&path), [0, 0]);
    assert_all_hit(&mut path, &cached);
}

#[test]
fn what_is_written_comes_back_to_its_place() {
    let (mut path, cached) = full(&one_bucket());
    let set = |path: &mut Datapath, key: &str, value: &str| {
        let text = format!("set {key} 0 0 {}\r\n{value}\r\n", value.len());
        path.exchange(text, "STORED\r\n");
    };
    for key in &cached {
        set(&mut path, key, VALUE);
        path.assert_miss(key);
        assert!(path.can_fill(key, VALUE));
        assert_all_hit(&mut path, &cached);
    }
    assert_eq!(counted(&path), [0, 0]);
    // A value of another size goes where the next entry goes, and needs no proof either.
    let key = &cached[7];
    set(&mut path, key, "short");
    assert!(path.can_fill(key, "short"));
    path.assert_hit(key, "short");
    assert_eq!(counted(&path), [1, 0]);
    path.assert_miss(&cached[0]);
    assert_all_hit(&mut path, &cached[1..7]);
    assert_all_hit(&mut path, &cached[8..]);
}

#[test]
fn a_place_is_kept_while_there_are_others() {
    let (mut path, cached) = full(&one_bucket());
    // What is evicted leaves another group, and something else is evicted next.
    let evicted = place(&path, &cached[0]).0.group;
    let key = cached[2..]
        .iter()
        .find(|key| place(&path, key).0.group != evicted);
    let key = key.expect("such a key");
    path.exchange(format!("delete {key}\r\n"), "DELETED\r\n");
    path.assert_miss(key);
    let group = place(&path, key).0.group;
    let neighbour = keys("new").find(|key| place(&path, key).0.group == group);
    path.fill(neighbour.expect("such a key"), VALUE);
    assert!(path.can_fill(key, VALUE));
    assert_all_hit(&mut path, &cached[1..]);
}

/// The place of what was killed is given to others when their turn comes, and then it is theirs.
#[test]
fn a_place_that_was_given_away_is_not_taken_back() {
    let (mut path, cached) = full(&one_bucket());
    let key = &cached[0];
    path.exchange(format!("delete {key}\r\n"), "DELETED\r\n");
    path.assert_miss(key);
    // Nothing else begins there.
    assert!(path.can_fill("new-0000000", VALUE));
    path.assert_hit("new-0000000", VALUE);
    assert!(!path.can_fill(key, VALUE));
    path.assert_hit("new-0000000", VALUE);
    assert!(path.can_fill(key, VALUE));
    path.assert_hit("new-0000000", VALUE);
    path.assert_miss(&cached[1]);
    let request = path.request(get(&[key.as_str(), "new-0000000"]));
    let both = [&hit(key, VALUE)[..], &hit("new-0000000", VALUE)].concat();
    let both = String::from_utf8(both)
        .expect("text")
        .replacen("END\r\n", "", 1);
    assert_eq!(path.rx(&request), Verdict::Served(both.into_bytes()));
}
