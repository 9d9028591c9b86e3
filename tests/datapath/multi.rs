//! GETs of several keys, and of one key written in an unusual way.

use crate::bytes::{get, hit, item, key_of, value_for_reply};
use crate::harness::{Datapath, Setup, Verdict, random, volume};
use crate::packet::Checksum;

/// The reply to a `get` of these keys, whose values are [`value_of`] them, in one datagram.
fn all_hit<K: AsRef<[u8]>>(keys: &[K]) -> Vec<u8> {
    let mut reply: Vec<u8> = keys
        .iter()
        .flat_map(|key| item(key, 0, value_of(key)))
        .collect();
    reply.extend(b"END\r\n");
    reply
}

fn value_of(key: impl AsRef<[u8]>) -> Vec<u8> {
    [b"value of ", key.as_ref()].concat()
}

fn filled<K: AsRef<[u8]>>(keys: &[K]) -> Datapath {
    let mut path = Datapath::new();
    for key in keys {
        path.fill(key, value_of(key));
    }
    path
}

fn assert_served<K: AsRef<[u8]>>(path: &mut Datapath, keys: &[K]) {
    let request = path.request(get(keys));
    assert_eq!(path.rx(&request), Verdict::Served(all_hit(keys)));
}

#[test]
fn all_keys_hit() {
    let mut path = filled(&["a", "bb", "ccc", "dddddddd", "eeeeeeeee"]);
    assert_served(&mut path, &["a", "bb"]);
    assert_served(&mut path, &["bb", "a"]);
    assert_served(&mut path, &["eeeeeeeee", "dddddddd", "ccc", "bb", "a"]);
    assert_eq!(path.stats().udp_hits, 3);
}

#[test]
fn a_key_may_come_twice() {
    let mut path = filled(&["a", "b"]);
    assert_served(&mut path, &["a", "a"]);
    assert_served(&mut path, &["a", "b", "a", "a"]);
}

#[test]
fn one_missing_key_passes_them_all() {
    let mut path = filled(&["a", "b", "c"]);
    for keys in [["a", "b", "zz"], ["zz", "a", "b"], ["a", "zz", "c"]] {
        let request = path.request(get(&keys));
        path.pass(&request);
        // What memcached then sends, one datagram for each hit, changes nothing.
        for key in keys.iter().filter(|key| **key != "zz") {
            path.tx(&request.reply(item(key, 0, value_of(key))));
        }
        path.tx(&request.reply("END\r\n"));
    }
    assert_served(&mut path, &["a", "b", "c"]);
}

#[test]
fn forty_keys() {
    let keys: Vec<_> = (0..40).map(|i| format!("k{i}")).collect();
    let mut path = filled(&keys);
    assert_served(&mut path, &keys);
}

#[test]
fn more_keys_than_are_looked_at_are_passed() {
    let mut path = Datapath::new();
    // So short that not the length of the reply decides.
    path.fill("a", "");
    let request = path.request(get(&["a"; 64]));
    let all = [item("a", 0, "").repeat(64), b"END\r\n".to_vec()].concat();
    assert_eq!(path.rx(&request), Verdict::Served(all));
    for count in [65, 66, 80, 100, 600] {
        path.exchange(get(&vec!["a"; count]), "END\r\n");
    }
    path.assert_hit("a", "");
}

#[test]
fn a_reply_over_one_datagram_is_passed() {
    let mut path = Datapath::new();
    let value = value_for_reply("aa", 700).expect("a length that can be had");
    path.fill("aa", &value);
    // Two replies share their `END`.
    let mut room = 1392 - (700 - 5);
    for (number, extra) in [0, 1, 2].into_iter().enumerate() {
        room += extra;
        let key = format!("b{number}");
        let other = value_for_reply(&key, room).expect("a length that can be had");
        path.fill(&key, &other);
        let request = path.request(get(&["aa", &key]));
        let verdict = path.rx(&request);
        if extra == 0 {
            let both = [item("aa", 0, &value), hit(&key, &other)].concat();
            assert_eq!(both.len(), 1392);
            assert_eq!(verdict, Verdict::Served(both));
        } else {
            assert_eq!(verdict, Verdict::Passed);
        }
    }
}

#[test]
fn replies_over_the_mtu_are_passed() {
    let mut path = filled(&["a", "b"]);
    let reply = all_hit(&["a", "b"]).len() as u32;
    for (around, v6) in [(20 + 16, false), (40 + 16, true)] {
        let mut setup = Setup {
            mtu: around + reply,
            ..Setup::default()
        };
        let request = path.request(get(&["a", "b"]));
        let request = if v6 { request.v6() } else { request };
        path.configure(&setup);
        assert_eq!(path.rx(&request), Verdict::Served(all_hit(&["a", "b"])));
        setup.mtu -= 1;
        path.configure(&setup);
        path.pass(&request);
    }
}

#[test]
fn spellings_that_memcached_accepts() {
    let mut path = filled(&["a", "bb"]);
    let one = Verdict::Served(all_hit(&["a"]));
    let two = Verdict::Served(all_hit(&["a", "bb"]));
    for (text, expected) in [
        ("get a\n", &one),
        ("get  a\r\n", &one),
        ("get a \r\n", &one),
        ("get  a \r\n", &one),
        ("get   a   \n", &one),
        ("get a bb\n", &two),
        ("get a  bb\r\n", &two),
        ("get  a   bb  \r\n", &two),
    ] {
        let request = path.request(text);
        assert_eq!(&path.rx(&request), expected, "{text:?}");
    }
}

#[test]
fn spellings_fill_as_well() {
    for text in ["get a\n", "get  a \r\n", "get a \n"] {
        let mut path = Datapath::new();
        path.exchange(text, hit("a", "value"));
        assert_eq!(path.stats().fills, 1, "{text:?}");
        path.assert_hit("a", "value");
    }
}

#[test]
fn replies_to_many_keys_fill_each() {
    let mut path = Datapath::new();
    let keys = ["a", "bb", "ccc"];
    let request = path.request(get(&keys));
    path.pass(&request);
    path.tx(&request.reply(item("a", 0, value_of("a"))));
    path.tx(&request.reply(item("ccc", 0, value_of("ccc"))));
    path.tx(&request.reply("END\r\n"));
    assert_eq!(path.stats().fills, 2);
    path.assert_hit("a", value_of("a"));
    path.assert_hit("ccc", value_of("ccc"));
    path.assert_miss("bb");
    // After its end nothing is owed any more.
    path.tx(&request.reply(item("bb", 0, "late")));
    path.assert_miss("bb");
}

#[test]
fn missing_keys_alone_are_filled() {
    let mut path = filled(&["a", "b"]);
    let request = path.request(get(&["a", "new", "b"]));
    path.pass(&request);
    path.tx(&request.reply(item("a", 0, "not asked for")));
    path.tx(&request.reply(item("new", 0, value_of("new"))));
    path.tx(&request.reply(item("b", 0, "not asked for")));
    path.tx(&request.reply("END\r\n"));
    assert_served(&mut path, &["a", "b", "new"]);
}

#[test]
fn forty_keys_are_filled_at_once() {
    let keys: Vec<_> = (0..40).map(|i| format!("key-{i}")).collect();
    let mut path = Datapath::new();
    let request = path.request(get(&keys));
    path.pass(&request);
    for key in &keys {
        path.tx(&request.reply(item(key, 0, value_of(key))));
    }
    path.tx(&request.reply("END\r\n"));
    assert_eq!(path.stats().fills, 40);
    for key in &keys {
        path.assert_hit(key, value_of(key));
    }
}

#[test]
fn a_write_between_cancels_one_ticket_of_many() {
    let mut path = Datapath::new();
    let request = path.request(get(&["a", "b"]));
    path.pass(&request);
    path.exchange("set a 0 0 3\r\nnew\r\n", "STORED\r\n");
    path.tx(&request.reply(item("a", 0, "old")));
    path.tx(&request.reply(item("b", 0, value_of("b"))));
    path.tx(&request.reply("END\r\n"));
    path.assert_miss("a");
    path.assert_hit("b", value_of("b"));
}

/// While nothing may be cached no tickets are given, and those of the request that was remembered
/// in the same place before do not count.
#[test]
fn tickets_are_not_inherited() {
    let mut path = Datapath::new();
    let request = path.request(get(&["a", "b"]));
    path.pass(&request);
    path.tx(&request.reply("END\r\n"));
    path.exchange("flush_all\r\n", "OK\r\n");
    path.pass(&request);
    path.tx(&request.reply(item("a", 0, "old")));
    path.tx(&request.reply("END\r\n"));
    assert_eq!(path.stats().fills, 0);
}

#[test]
fn over_ipv6_and_without_checksum() {
    let mut path = filled(&["a", "bb"]);
    let expected = Verdict::Served(all_hit(&["a", "bb"]));
    let request = path.request(get(&["a", "bb"]));
    assert_eq!(path.rx(&request.clone().v6()), expected);
    assert_eq!(path.rx(&request.clone().checksum(Checksum::None)), expected);
    assert_eq!(path.rx(&request.checksum(Checksum::Partial)), expected);
}

#[test]
fn padding_is_no_payload() {
    let mut path = filled(&["a", "bb"]);
    let request = path.request(get(&["a", "bb"])).padding([0; 9]);
    assert_eq!(path.rx(&request), Verdict::Served(all_hit(&["a", "bb"])));
    // Also where the reply is shorter than what came.
    let request = path.request("get a  \r\n").padding([b'x'; 200]);
    assert_eq!(path.rx(&request), Verdict::Served(all_hit(&["a"])));
}

#[test]
fn long_keys() {
    let keys = [key_of(250), key_of(249), key_of(248)];
    let mut path = Datapath::new();
    for key in &keys {
        path.fill(key, "v");
    }
    let request = path.request(get(&keys));
    let expected = [
        item(&keys[0], 0, "v"),
        item(&keys[1], 0, "v"),
        hit(&keys[2], "v"),
    ];
    assert_eq!(path.rx(&request), Verdict::Served(expected.concat()));
}

#[test]
fn random_selections_are_served_in_order() {
    let mut random = random();
    // Always the same: of others two could share a place in the cache.
    let keys: Vec<Vec<u8>> = (0..60)
        .map(|i| [format!("{i}:").as_bytes(), &key_of(i * 7 % 40)].concat())
        .collect();
    let mut path = filled(&keys);
    let mut served = 0;
    for _ in 0..volume(400) {
        let chosen: Vec<&Vec<u8>> = (0..random.usize(1..=30))
            .map(|_| &keys[random.usize(..keys.len())])
            .collect();
        let request = path.request(get(&chosen));
        let expected = all_hit(&chosen);
        if expected.len() <= 1392 {
            assert_eq!(path.rx(&request), Verdict::Served(expected));
            served += 1;
        } else {
            path.pass(&request);
            path.tx(&request.reply("END\r\n"));
        }
    }
    assert!(served > 0);
}
