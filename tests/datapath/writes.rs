//! Writes over UDP: from when they arrive until they are answered nothing is cached of their key.

use std::time::{Duration, Instant};

use crate::bytes::{get, hit};
use crate::harness::{Datapath, Setup, wait, wait_to_settle};
use crate::packet::{ACK, Frame, PacketBuilder};

/// A settle time that a test can wait for.
const SETTLE: Duration = Duration::from_millis(600);

fn filled() -> Datapath {
    filled_with(&Setup::default())
}

/// A filled cache whose settle time is [`SETTLE`]; for as long requests are remembered.
fn settling() -> Datapath {
    filled_with(&Setup {
        settle: SETTLE,
        remember: SETTLE,
        ..Setup::default()
    })
}

/// From now on requests are remembered longer, those that are known as well.
fn remember_longer(path: &mut Datapath) {
    path.configure(&Setup {
        settle: SETTLE,
        ..Setup::default()
    });
}

fn filled_with(setup: &Setup) -> Datapath {
    let mut path = Datapath::with(setup);
    path.fill("key", "value");
    path.fill("other", "value");
    path
}

/// Sends a write of `key`: it invalidates that key alone, and keeps it out of the cache.
fn begin(path: &mut Datapath, text: &str) -> PacketBuilder {
    let write = path.request(text);
    path.pass(&write);
    assert_eq!(path.epoch(), 0, "{text:?}");
    path.assert_miss("key");
    path.assert_hit("other", "value");
    assert!(!path.can_fill("key", "value"), "{text:?} is under way");
    write
}

/// Writes that memcached answers, whether it carries them out or not.
const ANSWERED: [(&str, &str); 21] = [
    ("set key 0 0 3\r\nnew\r\n", "STORED\r\n"),
    ("set key 4294967295 -1 0\r\n\r\n", "STORED\r\n"),
    ("set  key  0  0  3 \r\nnew\r\n", "STORED\r\n"),
    ("set key 0 0 3\nnew\r\n", "STORED\r\n"),
    ("add key 0 0 3\r\nnew\r\n", "NOT_STORED\r\n"),
    ("replace key 0 0 3\r\nnew\r\n", "STORED\r\n"),
    ("append key 0 0 3\r\nnew\r\n", "STORED\r\n"),
    ("prepend key 0 0 3\r\nnew\r\n", "STORED\r\n"),
    ("cas key 0 0 3 17\r\nnew\r\n", "EXISTS\r\n"),
    ("delete key\r\n", "DELETED\r\n"),
    ("delete key\n", "DELETED\r\n"),
    ("incr key 1\r\n", "2\r\n"),
    ("decr key 1\r\n", "1\r\n"),
    ("touch key 100\r\n", "TOUCHED\r\n"),
    ("ms key 3\r\nnew\r\n", "HD\r\n"),
    ("md key\r\n", "HD\r\n"),
    ("ma key N0 J13 v\r\n", "VA 2\r\n13\r\n"),
    ("ms a2V5 3 b\r\nnew\r\n", "HD\r\n"),
    ("md a2V5 b\r\n", "HD\r\n"),
    ("gat 100 key\r\n", "VALUE key 0 5\r\nvalue\r\nEND\r\n"),
    ("gats 100 key\r\n", "END\r\n"),
];

/// Writes whose answer may not come, or does not show that it is the last one.
const UNANSWERED: [&str; 17] = [
    "set key 0 0 3 noreply\r\nnew\r\n",
    "add key 0 0 3 noreply\r\nnew\r\n",
    "replace key 0 0 3 noreply\r\nnew\r\n",
    "append key 0 0 3 noreply\r\nnew\r\n",
    "prepend key 0 0 3 noreply\r\nnew\r\n",
    "cas key 0 0 3 17 noreply\r\nnew\r\n",
    "delete key noreply\r\n",
    "delete key 0 noreply\r\n",
    "incr key 1 noreply\r\n",
    "decr key 1 noreply\r\n",
    "touch key 100 noreply\r\n",
    "ms key 3 q\r\nnew\r\n",
    "ms key 3 MA q\r\nnew\r\n",
    "md key q\r\n",
    "md key I T30 q\r\n",
    "ma key q\r\n",
    "mg key v N30 q\r\n",
];

#[test]
fn an_answered_write_ends_with_its_answer() {
    for (text, answer) in ANSWERED {
        let mut path = filled();
        let write = begin(&mut path, text);
        assert!(!path.can_fill("key", "value"), "{text:?} is under way");
        path.tx(&write.reply(answer));
        path.fill("key", "new");
        path.assert_hit("key", "new");
        assert_eq!(path.stats().invalidations, 1);
    }
}

#[test]
fn meta_gets_that_write() {
    for text in [
        "mg key v T30\r\n",
        "mg key N30 v\r\n",
        "mg key v R30\r\n",
        "mg key E9 v\r\n",
    ] {
        let mut path = filled();
        path.exchange(text, "VA 5\r\nvalue\r\n");
        assert_eq!(path.stats().invalidations, 1, "{text:?}");
        path.assert_miss("key");
        path.assert_hit("other", "value");
    }
}

#[test]
fn a_write_without_answer_ends_with_the_settle_time() {
    for text in UNANSWERED {
        let mut path = settling();
        let start = Instant::now();
        let write = begin(&mut path, text);
        // Whatever memcached says, for quiet is not silent, ends nothing.
        path.tx(&write.reply("NS\r\n"));
        let can_fill = path.can_fill("key", "value");
        // A busy machine may come to it late.
        let is_under_way = start.elapsed() < SETTLE;
        assert!(!can_fill || !is_under_way, "{text:?} is under way");
        wait_to_settle(SETTLE);
        path.fill("key", "new");
        path.assert_hit("key", "new");
    }
}

#[test]
fn a_write_that_is_never_answered_ends_when_it_is_forgotten() {
    let mut path = settling();
    let write = path.request("set key 0 0 3\r\nnew\r\n");
    path.pass(&write);
    assert!(!path.can_fill("key", "value"));
    wait_to_settle(SETTLE);
    path.fill("key", "new");
    // An answer after all, in the middle of the next write.
    path.pass(&PacketBuilder::udp("delete key\r\n").id(9999));
    path.tx(&write.reply("STORED\r\n"));
    assert!(
        !path.can_fill("key", "value"),
        "the second write is under way"
    );
}

/// However long memcached takes, as long as its request is remembered.
#[test]
fn a_write_that_is_owed_an_answer_does_not_settle() {
    let mut path = filled_with(&Setup {
        settle: SETTLE,
        ..Setup::default()
    });
    let write = path.request("set key 0 0 3\r\nnew\r\n");
    path.pass(&write);
    wait_to_settle(SETTLE);
    assert!(!path.can_fill("key", "old"));
    path.tx(&write.reply("STORED\r\n"));
    path.fill("key", "new");
}

#[test]
fn a_write_that_is_answered_after_its_time_kills_what_was_fetched_meanwhile() {
    let mut path = settling();
    let write = path.request("set key 0 0 3\r\nnew\r\n");
    path.pass(&write);
    wait_to_settle(SETTLE);
    remember_longer(&mut path);
    path.fill("key", "old");
    let get = path.request("get key2\r\n");
    path.pass(&get);
    path.tx(&write.reply("STORED\r\n"));
    path.assert_miss("key");
    // The others keep theirs.
    path.tx(&get.reply(hit("key2", "value")));
    path.assert_hit("key2", "value");
    path.assert_hit("other", "value");
}

#[test]
fn a_fetch_that_overlaps_an_answer_after_its_time_is_void() {
    let mut path = settling();
    let write = path.request("set key 0 0 3\r\nnew\r\n");
    path.pass(&write);
    wait_to_settle(SETTLE);
    remember_longer(&mut path);
    let get = path.request("get key\r\n");
    path.pass(&get);
    path.tx(&write.reply("STORED\r\n"));
    path.tx(&get.reply(hit("key", "old")));
    path.assert_miss("key");
}

#[test]
fn each_of_several_writes_has_to_be_answered() {
    let mut path = filled();
    let writes: Vec<_> = (0..5)
        .map(|_| path.request("set key 0 0 3\r\nnew\r\n"))
        .collect();
    for write in &writes {
        path.pass(write);
    }
    for write in &writes {
        assert!(!path.can_fill("key", "value"));
        path.tx(&write.reply("STORED\r\n"));
    }
    path.fill("key", "new");
}

#[test]
fn a_quiet_write_among_others_ends_with_time_alone() {
    // Not with the time for which those that are owed an answer are remembered.
    let mut path = filled_with(&Setup {
        settle: SETTLE,
        ..Setup::default()
    });
    let first = path.request("set key 0 0 3\r\nnew\r\n");
    let quiet = path.request("delete key noreply\r\n");
    let last = path.request("set key 0 0 3\r\nnew\r\n");
    for write in [&first, &quiet, &last] {
        path.pass(write);
    }
    path.tx(&first.reply("STORED\r\n"));
    path.tx(&last.reply("STORED\r\n"));
    assert!(!path.can_fill("key", "value"));
    wait_to_settle(SETTLE);
    path.fill("key", "new");
}

/// More keys than a bucket tells apart.
#[test]
fn many_writes_in_one_bucket() {
    let settle = Duration::from_millis(300);
    let mut path = Datapath::with(&Setup {
        settle,
        remember: settle,
        buckets: 1,
        ..Setup::default()
    });
    let keys: Vec<_> = (0..12).map(|i| format!("key-{i}")).collect();
    for key in &keys {
        path.fill(key, "value");
    }
    let writes: Vec<_> = keys
        .iter()
        .map(|key| path.request(format!("delete {key}\r\n")))
        .collect();
    for write in &writes {
        path.pass(write);
    }
    for key in &keys {
        path.assert_miss(key);
        assert!(!path.can_fill(key, "value"));
    }
    for (key, write) in keys.iter().zip(&writes).rev() {
        assert!(!path.can_fill(key, "value"), "{key} is being written");
        path.tx(&write.reply("DELETED\r\n"));
    }
    wait_to_settle(settle);
    for key in &keys {
        path.fill(key, "new");
    }
    for key in &keys {
        path.assert_hit(key, "new");
    }
}

#[test]
fn an_answer_whose_owner_is_in_doubt_ends_nothing() {
    let mut path = filled();
    let write = PacketBuilder::udp("set key 0 0 3\r\nnew\r\n").id(7);
    // Twice the same id: one of two answers may be to either.
    path.pass(&write);
    path.pass(&write);
    path.tx(&write.reply("STORED\r\n"));
    path.tx(&write.reply("STORED\r\n"));
    assert!(!path.can_fill("key", "value"));
    // A write under the id of a GET that is not answered.
    let mut path = filled();
    path.pass(&PacketBuilder::udp(get(&["nothing"])).id(7));
    path.pass(&write);
    path.tx(&write.reply("END\r\n"));
    assert!(!path.can_fill("key", "value"));
    path.tx(&write.reply("STORED\r\n"));
    assert!(!path.can_fill("key", "value"));
    // The other way around.
    let mut path = filled();
    path.pass(&write);
    path.pass(&PacketBuilder::udp(get(&["nothing"])).id(7));
    path.tx(&write.reply("END\r\n"));
    assert!(!path.can_fill("key", "value"));
}

/// Their answers, which cannot be told apart, are not waited for.
#[test]
fn writes_of_one_name_settle() {
    let write = |text: &str| PacketBuilder::udp(text).id(7);
    let odd = write("get key\r\n").frame(Frame {
        id: 7,
        sequence: 0,
        count: 1,
        reserved: 1,
    });
    for requests in [
        &[write("delete key\r\n"), write("delete key\r\n")][..],
        &[write("delete key\r\n"), write("delete other\r\n")],
        &[write("delete other\r\n"), write("delete key\r\n")],
        &[
            write("delete key\r\n"),
            write("set key 0 0 3\r\nnew\r\n"),
            write("delete key\r\n"),
        ],
        &[write("delete key\r\n"), write("get third\r\n")],
        &[write("get third\r\n"), write("delete key\r\n")],
        &[write("delete key\r\n"), odd],
    ] {
        let mut path = filled_with(&Setup {
            settle: SETTLE,
            ..Setup::default()
        });
        for request in requests {
            path.pass(request);
        }
        // Nothing comes meanwhile that might bring it about.
        wait_to_settle(SETTLE);
        assert!(path.can_fill("key", "new"), "{requests:?}");
        path.assert_hit("key", "new");
    }
}

/// A GET that is let through to fetch an entry anew is a request like any other.
#[test]
fn a_write_settles_whose_name_a_refresh_takes() {
    let mut path = filled_with(&Setup {
        settle: SETTLE,
        refresh_age: Duration::ZERO,
        ..Setup::default()
    });
    wait(Duration::from_millis(1));
    path.pass(&PacketBuilder::udp("delete key\r\n").id(7));
    path.pass(&PacketBuilder::udp(get(&["other"])).id(7));
    assert_eq!(path.stats().refreshes, 1);
    wait_to_settle(SETTLE);
    path.fill("key", "new");
}

#[test]
fn answers_to_others_end_nothing() {
    let mut path = filled();
    let write = path.request("set key 0 0 3\r\nnew\r\n");
    path.pass(&write);
    for other in [
        write.clone().id(9999),
        write.clone().client_port(1),
        write.clone().from((crate::packet::SERVER4, 40_000)),
        write.clone().v6(),
    ] {
        path.tx(&other.reply("STORED\r\n"));
        assert!(!path.can_fill("key", "value"));
    }
    path.tx(&write.reply("STORED\r\n"));
    path.fill("key", "new");
}

/// memcached refuses these commands by their first line, without their data block: it takes that
/// for the next command (1.6.18).
const REFUSED_LINES: [&str; 10] = [
    "set key x 0 14",
    "set key -1 0 14",
    "set key 1x 0 14",
    "set key 0 x 14",
    "set key 0 0 14 noreply extra",
    "append key 0 0 14 17 noreply",
    "cas key 0 0 14",
    "cas key 0 0 14 x",
    "cas key 0 0 14 1 noreply extra",
    "ms key 14 k k k k k k k k k k k k k k k k k k k k k k k k k",
];

#[test]
fn a_write_in_the_data_of_a_refused_write() {
    for line in REFUSED_LINES {
        let text = format!("{line}\r\ndelete   other\r\n");
        let mut path = filled();
        path.pass(&PacketBuilder::udp(&text).id(7));
        path.assert_miss("other");
        assert!(!path.can_fill("other", "value"), "{text:?}");

        let mut path = filled();
        let segment = PacketBuilder::tcp(1, ACK, &text);
        path.accept(&segment);
        path.pass(&segment);
        path.assert_miss("other");
        assert!(!path.can_fill("other", "value"), "{text:?}");
    }
}

#[test]
fn commands_that_change_everything_or_are_not_understood() {
    for text in [
        "flush_all\r\n",
        "flush_all -1\r\n",
        "md a2V5= b\r\n",
        "md a2V b\r\n",
        "md a*V5 b\r\n",
        "gat 0 key other\r\n",
        "set key 0 0 4\r\nnew\r\n",
        "set key 0 0 2\r\nnew\r\n",
        "set key 0 0 3\r\nnew",
        "set key 0 0 3\r\nnewer",
        "set key 0 0 3\r\n",
        "set key 0 0\r\nnew\r\n",
        "incr key\r\n",
        "\x01\r\n",
    ] {
        let mut path = settling();
        let write = path.request(text);
        path.pass(&write);
        assert_eq!(path.epoch(), 1, "{text:?}");
        assert_eq!(path.stats().forgets, 1);
        for key in ["key", "other", "third"] {
            path.assert_miss(key);
            assert!(!path.can_fill(key, "value"), "{text:?}");
        }
        path.tx(&write.reply("OK\r\n"));
        assert!(!path.can_fill("key", "value"), "{text:?}");
        wait_to_settle(SETTLE);
        path.fill("key", "new");
        path.assert_hit("key", "new");
        path.assert_miss("other");
    }
}

#[test]
fn short_keys_and_long_keys() {
    for key in [
        "k".to_owned(),
        "k".repeat(7),
        "k".repeat(8),
        "k".repeat(250),
    ] {
        for verb in [
            "md {}\r\n",
            "delete {}\r\n",
            "ms {} 1\r\nx\r\n",
            "set {} 0 0 1\r\nx\r\n",
        ] {
            let mut path = Datapath::new();
            path.fill(&key, "value");
            path.fill("other", "value");
            let text = verb.replace("{}", &key);
            path.exchange(&text, "HD\r\n");
            path.assert_miss(&key);
            path.assert_hit("other", "value");
            assert_eq!(path.epoch(), 0, "{text:?}");
        }
    }
}

#[test]
fn a_write_through_either_family_counts() {
    let mut path = filled();
    path.pass(&PacketBuilder::udp("delete key\r\n").id(7).v6());
    path.assert_miss("key");
    let request = path.get_of("other").v6();
    path.pass(&PacketBuilder::udp("delete other\r\n").id(7));
    path.pass(&request);
    path.tx(&request.reply(hit("other", "value")));
    path.assert_miss("other");
}
