//! Requests of one name, which is a flow and an id: ids are used again, and not all names can be
//! remembered.

use std::cell::Cell;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use prestack_abi::requests::{LOST_SHIFT, SEEN_SHIFT, Stamps};
use prestack_abi::time::{CLAIM_SHIFT, CLAIM_UNITS};
use prestack_testbed::pace;

use crate::bytes::{get, hit, item};
use crate::harness::{Datapath, Setup, Verdict, wait};
use crate::packet::{ACK, Checksum, Frame, PORT, PacketBuilder};

/// For longer than this no GET keeps others of its key from a ticket.
const CLAIMED: Duration = Duration::from_nanos((CLAIM_UNITS as u64 + 1) << CLAIM_SHIFT);
/// Enough requests for each set of the memory to overflow twice (4,096 fit).
const FLOOD: u32 = 12_000;

/// A `get` of the key under a name that all tests use.
fn ask() -> PacketBuilder {
    PacketBuilder::udp(get(&["key"])).id(7)
}

/// Many requests of other names that are never answered.
fn flood(path: &Datapath, port: u16, count: u32) {
    flood_with(path, "get nothing\r\n", port, count);
}

fn flood_with(path: &Datapath, text: &str, port: u16, count: u32) {
    let request = PacketBuilder::udp(text);
    for number in 0..count {
        path.pass(&request.clone().id(number as u16).client_port(port));
    }
}

/// The answer to a GET that was forgotten is not taken for the answer to the next of its name.
#[test]
fn a_forgotten_get_leaves_its_name_in_doubt() {
    let mut path = Datapath::new();
    path.pass(&ask());
    flood(&path, 50_000, FLOOD);
    assert!(path.stats().requests_lost > 0);
    path.exchange("set key 0 0 3\r\nnew\r\n", "STORED\r\n");
    path.pass(&ask());
    path.tx(&ask().reply(hit("key", "old")));
    path.assert_miss("key");
}

/// The same of several keys, whose tickets are kept elsewhere.
#[test]
fn a_forgotten_get_of_several_keys_leaves_its_name_in_doubt() {
    let mut path = Datapath::new();
    let both = PacketBuilder::udp(get(&["key", "other"])).id(7);
    path.pass(&both);
    flood(&path, 50_000, FLOOD);
    path.exchange("set key 0 0 3\r\nnew\r\n", "STORED\r\n");
    path.pass(&both);
    path.tx(&both.reply(item("key", 0, "old")));
    path.assert_miss("key");
}

/// Nor is it taken for the answer to a write.
#[test]
fn a_forgotten_get_does_not_end_a_write() {
    let mut path = Datapath::new();
    path.pass(&ask());
    flood(&path, 50_000, FLOOD);
    let write = ask().payload("set key 0 0 3\r\nnew\r\n");
    path.pass(&write);
    path.tx(&ask().reply("END\r\n"));
    assert!(!path.can_fill("key", "old"));
    // That nothing was found before may have left other names without tickets, but not this key.
    path.tx(&write.reply("STORED\r\n"));
    assert!(!path.can_fill("key", "old"));
}

/// Nor for the answer to the next but one: the reply to a GET that was forgotten has freed the name of the
/// second, whose own is still under way when the first would have been answered for certain.
#[test]
fn a_forgotten_get_leaves_its_successor_in_doubt() {
    let mut path = Datapath::new();
    path.pass(&ask());
    flood(&path, 50_000, FLOOD);
    path.pass(&ask());
    path.tx(&ask().reply(hit("key", "old")));
    assert_eq!(path.stats().fills, 0);
    path.kernel_mut()
        .alter_requests(|set| set.stamps.iter_mut().for_each(|stamps| stamps.lost = 0));
    assert_in_doubt(&mut path, "the second has not been answered");
    // That the third was in doubt puts nobody in doubt after it.
    path.kernel_mut()
        .alter_requests(|set| set.stamps.iter_mut().for_each(|stamps| stamps.unsure = 0));
    wait(CLAIMED);
    path.pass(&ask());
    path.tx(&ask().reply(hit("key", "new")));
    assert_eq!(path.stats().fills, 1);
}

/// A GET that is remembered by a CPU whose clock is ahead is remembered by the others as well.
#[test]
fn a_get_of_the_next_moment_keeps_its_name() {
    let mut path = Datapath::new();
    path.pass(&ask());
    path.kernel_mut().alter_requests(|set| {
        for request in &mut set.requests {
            request.seen += 1000;
        }
    });
    path.pass(&ask());
    path.tx(&ask().reply("END\r\n"));
    path.pass(&ask());
    // This may be the answer to the second.
    path.tx(&ask().reply(hit("key", "old")));
    assert_eq!(path.stats().fills, 0);
}

/// The same of one that another CPU has forgotten.
#[test]
fn a_get_forgotten_in_the_next_moment_leaves_its_name_in_doubt() {
    let mut path = Datapath::new();
    let now = (prestack::clock::now_ns() >> LOST_SHIFT) as u8;
    path.kernel_mut().alter_requests(|set| {
        for stamps in &mut set.stamps {
            stamps.lost = now.wrapping_add(2).max(1);
        }
    });
    assert!(!path.can_fill("key", "old"));
}

/// Among many the latest are remembered.
#[test]
fn the_oldest_request_is_forgotten_first() {
    let path = Datapath::new();
    flood(&path, 50_000, FLOOD);
    let requests: Vec<_> = (0..100)
        .map(|number| {
            let key = format!("key-{number}");
            (PacketBuilder::udp(get(&[&key])).id(number), key)
        })
        .collect();
    for (request, _) in &requests {
        path.pass(request);
    }
    // By the datapath's clock, which is coarse.
    wait(Duration::from_millis(10));
    flood(&path, 50_001, 2000);
    for (request, key) in &requests {
        path.tx(&request.reply(hit(key, "value")));
    }
    // Some have no ticket because their name shares a stamp with one that was forgotten.
    let fills = path.stats().fills;
    println!(
        "{fills} of {} answers were to requests that are remembered",
        requests.len()
    );
    assert!(fills > 50);
}

/// A request that is never answered does not spoil its name for good.
#[test]
fn a_name_is_free_after_its_time() {
    let remember = Duration::from_millis(300);
    let mut path = Datapath::with(&Setup {
        remember,
        ..Setup::default()
    });
    // Of the first kind that can be answered, and of the first that cannot.
    path.pass(&ask());
    path.pass(&ask().id(8).payload("stats\r\n"));
    // It counts in units of a millisecond.
    wait(remember + Duration::from_millis(5));
    for (number, request) in [ask(), ask().id(8)].iter().enumerate() {
        path.pass(request);
        path.tx(&request.reply(hit("key", "value")));
        assert_eq!(path.stats().fills, number as u64 + 1);
        path.exchange("delete key\r\n", "DELETED\r\n");
    }
}

/// What was forgotten is in doubt no longer than it would have been remembered.
#[test]
fn a_forgotten_quiet_write_leaves_its_name_soon() {
    // Long enough that what overflows has not been forgotten by its time.
    let settle = pace::patience(Duration::from_millis(100));
    let path = Datapath::with(&Setup {
        settle,
        ..Setup::default()
    });
    flood_with(&path, "delete other noreply\r\n", 50_000, FLOOD);
    assert!(path.stats().requests_lost > 5000);
    // A second more than the settle time, and three units of the stamps.
    wait(settle + Duration::from_secs(1) + Duration::from_nanos(4 << LOST_SHIFT));
    for number in 0..100 {
        let request = ask().id(number).client_port(50_000);
        let key = format!("key-{number}");
        let request = request.payload(get(&[&key]));
        path.pass(&request);
        path.tx(&request.reply(hit(&key, "value")));
    }
    assert_eq!(path.stats().fills, 100);
}

/// A stamp stands for the latest of those that were forgotten under it.
#[test]
fn a_forgotten_get_keeps_its_stamp() {
    let settle = Duration::from_millis(10);
    let path = Datapath::with(&Setup {
        settle,
        ..Setup::default()
    });
    path.pass(&ask());
    flood(&path, 50_000, FLOOD);
    // All stamps of its set are overwritten.
    for port in 50_001..50_005 {
        flood_with(&path, "delete other noreply\r\n", port, 60_000);
    }
    wait(settle + Duration::from_secs(1) + Duration::from_nanos(4 << LOST_SHIFT));
    path.pass(&ask());
    path.tx(&ask().reply(hit("key", "old")));
    assert_eq!(path.stats().fills, 0);
}

/// Of what has no end nothing is learnt: it makes room for what has one.
#[test]
fn endless_requests_are_forgotten_first() {
    let path = Datapath::new();
    let requests: Vec<_> = (0..100)
        .map(|number| {
            let key = format!("key-{number}");
            (PacketBuilder::udp(get(&[&key])).id(number), key)
        })
        .collect();
    for (request, _) in &requests {
        path.pass(request);
    }
    wait(Duration::from_millis(10));
    flood_with(&path, "version\r\nversion\r\n", 50_000, FLOOD);
    for (request, key) in &requests {
        path.tx(&request.reply(hit(key, "value")));
    }
    assert_eq!(path.stats().fills, 100);
}

/// memcached may be waiting for more of it.
#[test]
fn odd_requests_are_forgotten_last() {
    let path = Datapath::new();
    let odd = ask().payload("set key 0 0 22\r\nabc");
    path.pass(&odd);
    wait(Duration::from_millis(10));
    flood(&path, 50_000, FLOOD);
    flood_with(&path, "version\r\nversion\r\n", 50_001, FLOOD);
    assert_eq!(path.epoch(), 1);
    path.tx(&odd.reply("STORED\r\n"));
    assert_eq!(path.epoch(), 2);
}

/// Nor does one that was forgotten, and whoever shares its stamp.
#[test]
fn a_forgotten_name_is_free_after_its_time() {
    let mut path = Datapath::new();
    let start = Instant::now();
    path.pass(&ask());
    flood(&path, 50_000, FLOOD);
    path.configure(&Setup {
        remember: Duration::ZERO,
        ..Setup::default()
    });
    wait(Duration::from_millis(5));
    path.pass(&ask());
    path.tx(&ask().reply(hit("key", "value")));
    if path.stats().fills == 0 {
        // Two units more than requests are remembered.
        wait(Duration::from_nanos(3 << LOST_SHIFT));
        path.pass(&ask());
        path.tx(&ask().reply(hit("key", "value")));
    } else {
        // On a machine that is slow and busy it is over already.
        assert!(start.elapsed() >= Duration::from_nanos(1 << LOST_SHIFT));
    }
    path.assert_hit("key", "value");
}

/// A write whose reply may be another's does not keep its name, nor a place: what is answered is not in doubt any
/// more once the stamps are old.
#[test]
fn the_reply_to_a_write_in_doubt_frees_its_name() {
    let mut path = Datapath::new();
    let now = (prestack::clock::now_ns() >> LOST_SHIFT) as u8;
    path.kernel_mut().alter_requests(|set| {
        for stamps in &mut set.stamps {
            stamps.unsure = now.max(1);
        }
    });
    let write = ask().payload("set other 0 0 3\r\nnew\r\n");
    path.pass(&write);
    path.tx(&write.reply("STORED\r\n"));
    // It has ended nothing.
    assert!(!path.can_fill("other", "old"));
    path.kernel_mut()
        .alter_requests(|set| set.stamps.fill(Stamps::default()));
    path.pass(&ask());
    path.tx(&ask().reply(hit("key", "value")));
    path.assert_hit("key", "value");
}

/// Its counter goes round in minutes.
#[test]
fn a_stamp_that_is_old_is_cleared() {
    let mut path = Datapath::with(&Setup {
        remember: Duration::from_secs(30),
        ..Setup::default()
    });
    let now = (prestack::clock::now_ns() >> LOST_SHIFT) as u8;
    let old = now.wrapping_sub(40).max(1);
    path.kernel_mut().alter_requests(|set| {
        for stamps in &mut set.stamps {
            *stamps = Stamps {
                lost: old,
                unsure: old,
                strange: old,
                ..*stamps
            };
        }
    });
    path.pass(&ask());
    let clear = Cell::new(0);
    path.kernel_mut().alter_requests(|set| {
        let stamps = set.stamps.iter();
        let none = stamps.filter(|stamps| **stamps == Stamps::default());
        clear.set(clear.get() + none.count());
    });
    assert_eq!(clear.get(), 1);
}

/// Nor one that nobody has used for a month: the time of requests goes round in two.
#[test]
fn a_name_is_free_after_a_month() {
    const DAYS: u64 = (24 * 3600 * 1_000_000_000) >> SEEN_SHIFT;
    for days in [1, 20, 27, 30, 51] {
        let mut path = Datapath::new();
        path.pass(&ask());
        path.kernel_mut().alter_requests(|set| {
            for request in &mut set.requests {
                request.seen = request.seen.wrapping_sub((days * DAYS) as u32);
            }
        });
        wait(CLAIMED);
        path.pass(&ask());
        path.tx(&ask().reply("END\r\n"));
        path.pass(&ask());
        path.tx(&ask().reply(hit("key", "value")));
        assert_eq!(path.stats().fills, 1, "{days} days");
    }
}

/// The client gives up twice; two answers are under way.
#[test]
fn every_get_of_a_name_has_to_be_answered() {
    let mut path = Datapath::new();
    path.pass(&ask());
    path.pass(&ask());
    path.tx(&ask().reply("END\r\n"));
    path.exchange("set key 0 0 3\r\nnew\r\n", "STORED\r\n");
    path.pass(&ask());
    path.tx(&ask().reply(hit("key", "old")));
    path.assert_miss("key");
    path.tx(&ask().reply(hit("key", "new")));
    path.pass(&ask());
    path.tx(&ask().reply(hit("key", "new")));
    path.assert_hit("key", "new");
}

/// One datagram of an answer that takes four, under the name that all tests use.
fn part(sequence: u16) -> PacketBuilder {
    ask().reply("part of something long").frame(Frame {
        id: 7,
        sequence,
        count: 4,
        reserved: 0,
    })
}

/// A request of the name has not been answered: what seems to answer the next one may be older.
fn assert_in_doubt(path: &mut Datapath, case: &str) {
    path.exchange("set key 0 0 3\r\nnew\r\n", "STORED\r\n");
    // Another GET for the key does not keep this one from a ticket any more.
    wait(CLAIMED);
    path.pass(&ask());
    path.tx(&ask().reply(hit("key", "old")));
    let last = path.get_of("key");
    assert_eq!(path.rx(&last), Verdict::Passed, "{case}");
}

/// What it shows, requests, and what leaves under their name.
type Case<'a> = (&'a str, &'a [&'a [u8]], &'a [PacketBuilder]);

#[test]
fn what_does_not_end_an_answer() {
    let many = get(&["a", "b"]);
    let item = item("a", 0, "x");
    // Requests of one name, and what leaves under it: not the last of their answers.
    let spaced = ["get a", &" ".repeat(40), "long b\r\n"].concat();
    let cases: [Case<'_>; 10] = [
        (
            "two items are no end of two answers",
            &[b"get key\r\n", &many],
            &[ask().reply(&item), ask().reply(&item)],
        ),
        (
            "the end of a long item, among several keys, is not that of a get",
            &[b"get key\r\n", &many],
            &[part(0), part(3), ask().reply("END\r\n")],
        ),
        (
            "whichever was asked first",
            &[&many, b"get key\r\n"],
            &[part(0), part(3), ask().reply("END\r\n")],
        ),
        (
            "nor is it where more spaces than are skipped hide the other keys",
            &[spaced.as_bytes()],
            &[ask().reply(&item), part(0), part(3)],
        ),
        (
            "nor is one that is not understood",
            &[&many],
            &[ask().reply("VALUE a 0 1 17\r\nx\r\n")],
        ),
        (
            "the answer to a meta command goes on",
            &[b"mg key v\r\n"],
            &[part(0)],
        ),
        ("the answer to a GET goes on", &[b"get key\r\n"], &[part(2)]),
        (
            "nothing is no answer to a GET of one key",
            &[b"get key\r\n"],
            &[ask().nothing()],
        ),
        (
            "that of several keys goes on behind a long item",
            &[&many],
            &[part(3)],
        ),
        (
            "nobody knows how long statistics are",
            &[b"stats\r\n"],
            &[ask().reply("END\r\n")],
        ),
    ];
    for (case, requests, replies) in cases {
        let mut path = Datapath::new();
        for request in requests {
            path.pass(&ask().payload(request));
        }
        for reply in replies {
            path.tx(reply);
        }
        assert_in_doubt(&mut path, case);
    }
}

#[test]
fn what_ends_an_answer() {
    let requests: [(&str, &[PacketBuilder]); 6] = [
        ("get key\r\n", &[part(0), part(3)]),
        ("get key\r\n", &[ask().reply("END\r\n")]),
        ("get a b\r\n", &[ask().reply("END\r\n")]),
        (
            "gets other\r\n",
            &[ask().reply("VALUE other 0 1 17\r\nx\r\nEND\r\n")],
        ),
        ("mg key v\r\n", &[part(0), part(3)]),
        ("delete other\r\n", &[ask().reply("DELETED\r\n")]),
    ];
    for (text, replies) in requests {
        let path = Datapath::new();
        path.pass(&ask().payload(text));
        for reply in replies {
            path.tx(reply);
        }
        let before = path.stats().fills;
        path.pass(&ask());
        path.tx(&ask().reply(hit("key", "value")));
        assert_eq!(path.stats().fills, before + 1, "{text:?}");
    }
}

/// No answer to a write takes several datagrams: such a one belongs to another request.
#[test]
fn part_of_a_long_answer_ends_no_write() {
    for sequence in [0, 3] {
        let mut path = Datapath::new();
        let write = |key: &str| ask().payload(format!("delete {key}\r\n"));
        path.pass(&write("key"));
        path.tx(&part(sequence));
        assert!(!path.can_fill("key", "value"));
        // The first is still unanswered, so this may be its answer.
        path.pass(&write("other"));
        path.tx(&ask().reply("DELETED\r\n"));
        assert!(!path.can_fill("other", "value"));
    }
}

/// A GET that has no ticket, for a write is under way, may be answered with what was before it.
#[test]
fn a_get_without_ticket_is_remembered() {
    for text in ["get key\r\n", "get  key\r\n", "get key key\r\n"] {
        let mut path = Datapath::new();
        let write = path.request("set key 0 0 3\r\nnew\r\n");
        path.pass(&write);
        let request = ask().payload(text);
        path.pass(&request);
        path.tx(&write.reply("STORED\r\n"));
        // The client gives it up, and asks again.
        path.pass(&request);
        path.tx(&request.reply(hit("key", "old")));
        path.assert_miss("key");
    }
}

/// What is asked at an address that only a wildcard covers (of a group, or one that is routed here) is
/// answered from another address of memcached's.
#[test]
fn a_request_at_a_wildcard_keeps_its_name() {
    for text in [
        &b"get key\r\n"[..],
        b"get  key\r\n",
        b"get a b\r\n",
        b"gets key\r\n",
        b"mg other v\r\n",
        b"mg other\r\n",
        b"version\r\n",
        b"version\r\nversion\r\n",
        b"stats\r\n",
        &crate::binary::get(crate::binary::GET, b"other", 1),
    ] {
        let mut path = Datapath::new();
        path.pass(&ask().payload(text).to((Ipv4Addr::new(10, 0, 0, 255), PORT)));
        let request = ask().payload("mg key v\r\n");
        path.pass(&request);
        path.tx(&request.reply("VA 5\r\nother\r\n"));
        let what = text.escape_ascii();
        assert_eq!(path.stats().fills, 0, "{what}");
        path.only_pass("mg key v\r\n");
    }
}

/// A segment whose acknowledgement, read as a frame, is one of a reply.
#[test]
fn tcp_answers_nothing_that_was_asked_over_udp() {
    let mut path = Datapath::new();
    path.pass(&ask());
    let segment = PacketBuilder::tcp(1, ACK, "END\r\n")
        .from(ask().destination)
        .to(ask().source);
    let mut segment = segment.build();
    segment[14 + 20 + 8..][..4].copy_from_slice(&[0, 7, 0xf0, 0]);
    path.tx_bytes(&segment);
    assert_in_doubt(&mut path, "TCP");
}

/// Two requests of several keys under one name: the tickets of the second would be younger than
/// the reply to the first.
#[test]
fn the_second_get_of_a_name_has_no_tickets() {
    let mut path = Datapath::new();
    let both = PacketBuilder::udp(get(&["key", "other"])).id(7);
    path.pass(&both);
    path.exchange("set key 0 0 3\r\nnew\r\n", "STORED\r\n");
    wait(Duration::from_millis(25));
    path.pass(&both);
    path.tx(&both.reply(item("key", 0, "old")));
    path.assert_miss("key");
}
/// A name that is used again and again is remembered from the last time on.
#[test]
fn a_name_in_use_is_not_forgotten() {
    let remember = Duration::from_millis(600);
    let mut path = Datapath::with(&Setup {
        remember,
        ..Setup::default()
    });
    path.pass(&ask());
    wait(remember * 2 / 3);
    // memcached takes its time over this one.
    path.pass(&ask());
    wait(remember * 2 / 3);
    path.exchange("set key 0 0 3\r\nnew\r\n", "STORED\r\n");
    path.pass(&ask());
    path.tx(&ask().reply(hit("key", "old")));
    let last = path.get_of("key");
    assert_eq!(path.rx(&last), Verdict::Passed);
}

/// It is answered with an error, and soon, or never.
#[test]
fn the_name_of_a_quiet_write_is_soon_free() {
    let settle = Duration::from_millis(10);
    for text in ["delete other noreply\r\n", "md other q\r\n"] {
        let path = Datapath::with(&Setup {
            settle,
            ..Setup::default()
        });
        // Said once, said twice, and with a GET that has not been answered before or after it.
        let [once, twice, before, after] = [7, 8, 9, 10].map(|id| ask().id(id));
        for name in [&once, &twice, &twice, &before, &after] {
            let write = name.clone().payload(text);
            if name.build() == before.build() {
                path.pass(name);
            }
            path.pass(&write);
            if name.build() == after.build() {
                path.pass(name);
            }
        }
        wait(settle + Duration::from_millis(1100));
        for (request, fills) in [(after, 0), (before, 0), (once, 1), (twice, 2)] {
            let key = format!("key-{fills}");
            let request = request.payload(get(&[&key]));
            path.pass(&request);
            path.tx(&request.reply(hit(&key, "value")));
            assert_eq!(path.stats().fills, fills, "{text:?} {request:?}");
        }
    }
}

/// What was not understood is over when it is answered, and which of two answers that is is not
/// known.
#[test]
fn an_odd_request_stays_odd_under_a_name_that_is_used_again() {
    let odd = ask().payload("set key 0 0 22\r\nabc");
    for other in [
        "get key\r\n",
        "get a b\r\n",
        "delete other\r\n",
        "version\r\n",
        "stats\r\n",
    ] {
        let other = ask().payload(other);
        for requests in [[&odd, &other], [&other, &odd]] {
            let path = Datapath::new();
            for request in requests {
                path.pass(request);
            }
            for expected in [2, 3] {
                path.tx(&ask().reply("STORED\r\n"));
                assert_eq!(path.epoch(), expected, "{requests:?}");
            }
        }
    }
}

/// memcached minds neither the sequence number nor the reserved field, and answers.
#[test]
fn a_frame_that_is_odd_keeps_its_name() {
    let [sequence, reserved] = [(1, 0), (0, 1)].map(|(sequence, reserved)| Frame {
        id: 7,
        sequence,
        count: 1,
        reserved,
    });
    let settle = Duration::from_millis(10);
    for odd in [
        ask().frame(sequence),
        ask().v6().frame(sequence),
        ask().frame(reserved).payload("mg other v\r\n"),
        // The kernel hands on as much as the header of UDP says.
        ask().udp_length_lie(-1).checksum(Checksum::None),
    ] {
        let path = Datapath::with(&Setup {
            settle,
            ..Setup::default()
        });
        path.pass(&odd);
        assert_eq!(path.epoch(), 1, "{odd:?}");
        wait(settle);
        let request = ask().from(odd.source).to(odd.destination);
        path.pass(&request);
        path.tx(&request.reply(hit("key", "old")));
        assert_eq!(path.stats().fills, 0, "{odd:?}");
        assert_eq!(path.epoch(), 2, "{odd:?}");
    }
}
