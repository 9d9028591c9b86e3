//! Keys that share a place in the cache, or all of it but the tag.

use prestack_abi::cache::{Place, WAYS};

use crate::bytes::{get, hit};
use crate::harness::{Datapath, Setup, Verdict, doors_of_wildcard};
use crate::packet::PORT;

/// The port of the second backend.
const OTHER: u16 = 11_212;

/// One bucket, and two backends.
fn one_bucket() -> Datapath {
    Datapath::with(&Setup {
        buckets: 1,
        doors: [doors_of_wildcard(PORT, 0), doors_of_wildcard(OTHER, 1)].concat(),
        ..Setup::default()
    })
}

fn place(path: &Datapath, backend: u8, key: &str) -> Place {
    let config = path.kernel().controls.config();
    prestack::cache::place(&config, backend, key.as_bytes()).0
}

/// Keys of one length.
fn keys() -> impl Iterator<Item = String> {
    (0..10_000_000).map(|i| format!("key-{i:07}"))
}

/// `count` keys of the first backend in one group, each with a tag of its own.
fn neighbours(path: &Datapath, count: usize) -> Vec<String> {
    let group = place(path, 0, "key").group;
    let mut tags = Vec::new();
    keys()
        .filter(|key| {
            let place = place(path, 0, key);
            let is_new = place.group == group && !tags.contains(&place.tag);
            if is_new {
                tags.push(place.tag);
            }
            is_new
        })
        .take(count)
        .collect()
}

#[test]
fn a_key_in_the_place_of_another() {
    let mut path = one_bucket();
    let shared = place(&path, 0, "key-of-some");
    let other = keys().find(|key| place(&path, 0, key) == shared);
    let other = other.expect("two keys of one place");
    path.fill("key-of-some", "value");
    path.assert_miss(&other);
    path.fill("key-of-some", "value");
    path.fill(&other, "other");
    path.assert_hit(&other, "other");
    path.assert_miss("key-of-some");
}

/// Their hashes are unrelated, but may agree by chance.
#[test]
fn a_key_in_the_place_of_the_same_key_of_another_backend() {
    let mut path = one_bucket();
    let key = keys().find(|key| place(&path, 0, key) == place(&path, 1, key));
    let key = key.expect("a key with one place in both");
    path.fill(&key, "value");
    let elsewhere = path.get_of(&key).server_port(OTHER);
    assert_eq!(path.rx(&elsewhere), Verdict::Passed);
    path.assert_hit(&key, "value");
    let both = path.request(get(&[&key, &key])).server_port(OTHER);
    assert_eq!(path.rx(&both), Verdict::Passed);
    path.tx(&elsewhere.reply(hit(&key, "other")));
    assert_eq!(path.rx(&elsewhere), Verdict::Served(hit(&key, "other")));
    path.assert_miss(&key);
}

#[test]
fn what_is_written_dies_and_its_neighbours_stay() {
    let mut path = one_bucket();
    let keys = neighbours(&path, WAYS);
    for key in &keys {
        path.fill(key, "value");
    }
    for (number, key) in keys.iter().enumerate() {
        path.exchange(format!("delete {key}\r\n"), "DELETED\r\n");
        path.assert_miss(key);
        for neighbour in &keys[number + 1..] {
            path.assert_hit(neighbour, "value");
        }
    }
}

#[test]
fn the_oldest_of_a_full_group_gives_way() {
    let mut path = one_bucket();
    let keys = neighbours(&path, 3 * WAYS);
    for (number, key) in keys.iter().enumerate() {
        assert_eq!(path.can_fill(key, "value"), number < WAYS, "at once");
        if number >= WAYS {
            path.fill(key, "value");
        }
        let oldest = (number + 1).saturating_sub(WAYS);
        for kept in &keys[oldest..=number] {
            path.assert_hit(kept, "value");
        }
        for gone in &keys[..oldest] {
            path.assert_miss(gone);
        }
    }
}
