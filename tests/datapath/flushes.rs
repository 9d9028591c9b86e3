//! `flush_all` with a delay: nothing happens until a while before its time, and nothing of before is
//! served after it.

use std::time::Duration;

use prestack::clock;
use prestack_abi::backend::{FLUSH_EARLY_NS, FLUSH_LATE_NS, PENDING_FLUSHES};

use crate::harness::{Datapath, Setup, wait};
use crate::packet::PacketBuilder;
use crate::tcp::connection::Connection;

const SETTLE: Duration = Duration::from_millis(1);
const SECOND: u64 = 1_000_000_000;

fn setup() -> Setup {
    Setup {
        settle: SETTLE,
        ..Setup::default()
    }
}

fn binary(opcode: u8, delay: u32) -> Vec<u8> {
    let mut bytes = vec![0x80, opcode, 0, 0, 4, 0, 0, 0, 0, 0, 0, 4];
    bytes.resize(24, 0);
    bytes.extend(delay.to_be_bytes());
    bytes
}

/// What `binary` is answered.
fn binary_reply() -> Vec<u8> {
    let mut bytes = vec![0x81, 8];
    bytes.resize(24, 0);
    bytes
}

/// A flush for 10 s from then has been asked for, and answered.
fn assert_delayed(path: &mut Datapath, asked: u64) {
    path.assert_hit("key", "old");
    let [flush] = path.kernel().flushes()[..] else {
        panic!("{:?}", path.kernel().flushes());
    };
    let slack = 2 * SECOND;
    let due = asked + 10 * SECOND - slack..clock::now_ns() + 10 * SECOND + slack;
    assert!(due.contains(&(flush.from + FLUSH_EARLY_NS)));
    assert!(due.contains(&(flush.until - FLUSH_LATE_NS)));

    // Its time comes.
    // (The datapath's clock may not have moved.)
    path.kernel_mut()
        .age_flushes(10 * SECOND - FLUSH_EARLY_NS + SECOND / 10);
    path.assert_miss("key");
    assert!(!path.can_fill("key", "old"));
    assert!(!path.can_fill("other", "old"));
    path.assert_miss("key");
    let epoch = path.epoch();
    // It is over.
    path.kernel_mut()
        .age_flushes(FLUSH_EARLY_NS + FLUSH_LATE_NS);
    wait(2 * SETTLE);
    path.assert_miss("key");
    assert_eq!(path.epoch(), epoch + 1);
    assert!(path.kernel().flushes().is_empty());
    path.fill("key", "new");
    path.assert_hit("key", "new");
}

#[test]
fn a_delayed_flush_over_tcp() {
    for (request, reply) in [
        (b"flush_all 10\r\n".to_vec(), b"OK\r\n".to_vec()),
        (
            b"flush_all 10 noreply\r\nmn\r\n".to_vec(),
            b"MN\r\n".to_vec(),
        ),
        (binary(8, 10), binary_reply()),
    ] {
        let mut path = Datapath::with(&setup());
        path.fill("key", "old");
        let mut connection = Connection::open(&path, 4000);
        let asked = clock::now_ns();
        connection.exchange(&path, &request, &reply);
        assert_delayed(&mut path, asked);
    }
}

/// A datagram that is not a GET or a write empties the cache in any case.
#[test]
fn a_delayed_flush_over_udp() {
    for request in [
        b"flush_all 10\r\n".to_vec(),
        b"get x\r\nflush_all 10\r\n".to_vec(),
        b"flush_all\r\nflush_all 10\r\n".to_vec(),
        b"get x\r\nflush_all\r\nget x\r\nflush_all 10\r\n".to_vec(),
        [binary(8, 0), binary(8, 10)].concat(),
        b"flush_all 0000000000000000000010\r\n".to_vec(),
        binary(8, 10),
        binary(0x18, 10),
    ] {
        let mut path = Datapath::with(&setup());
        let asked = clock::now_ns();
        path.exchange(&request, "OK\r\n");
        wait(2 * SETTLE);
        path.fill("key", "old");
        assert_delayed(&mut path, asked);
    }
}

#[test]
fn a_flush_at_a_point_in_time() {
    let wall = 1_795_268_222;
    let asked = clock::now_ns();
    let mut path = Datapath::with(&Setup {
        wall_offset: Duration::from_nanos(wall * SECOND - asked),
        ..setup()
    });
    path.fill("key", "old");
    let mut connection = Connection::open(&path, 4000);
    connection.exchange(&path, format!("flush_all {}\r\n", wall + 10), "OK\r\n");
    assert_delayed(&mut path, asked);
    // One that is over.
    path.assert_hit("key", "new");
    connection.exchange(&path, format!("flush_all {}\r\n", wall - 10), "OK\r\n");
    path.assert_miss("key");
    assert!(path.kernel().flushes().is_empty());
}

/// A ticket from before the time of the flush fills nothing that is served afterwards.
#[test]
fn a_reply_that_is_under_way_meanwhile() {
    let mut path = Datapath::with(&setup());
    let mut connection = Connection::open(&path, 4000);
    connection.exchange(&path, "flush_all 10\r\n", "OK\r\n");
    let get = path.get_of("key");
    path.pass(&get);
    path.kernel_mut().age_flushes(20 * SECOND);
    path.tx(&get.reply("VALUE key 0 3\r\nold\r\nEND\r\n"));
    path.assert_miss("key");
}

/// memcached may carry it out as late as it answers.
#[test]
fn a_flush_that_is_answered_late() {
    for text in [
        "flush_all 20\r\n",
        "flush_all 20\r\nget x\r\n",
        "get x\r\nflush_all 20\r\n",
    ] {
        let mut path = Datapath::with(&setup());
        let mut connection = Connection::open(&path, 4000);
        connection.send(&path, "flush_all 10\r\n");
        let udp = path.request(text);
        path.pass(&udp);
        let before = path.kernel().flushes();
        wait(Duration::from_millis(500));
        connection.reply(&path, "OK\r\n");
        path.tx(&udp.reply("OK\r\n"));
        let after = path.kernel().flushes();
        assert_eq!((before.len(), after.len()), (2, 2), "{text:?}");
        for (before, after) in before.iter().zip(&after) {
            assert_eq!(before.from, after.from);
            let later = after.until - before.until;
            assert!((400_000_000..SECOND).contains(&later), "{text:?}: {later}");
        }
    }
}

/// What is to be at once does not come late.
#[test]
fn flushes_at_once_among_other_commands_are_over() {
    for text in ["flush_all\r\nget x\r\n", "get x\r\nflush_all 0\r\n"] {
        let mut path = Datapath::with(&setup());
        let udp = path.request(text);
        path.pass(&udp);
        wait(Duration::from_millis(20));
        path.tx(&udp.reply("OK\r\n"));
        assert!(path.kernel().flushes().is_empty(), "{text:?}");
    }
}

/// The same if other requests of its name came before or after it, of which nobody knows whose the reply is.
#[test]
fn a_flush_among_others_of_its_name_that_is_answered_late() {
    let others = ["get key\r\n", "delete key\r\n", "stats\r\n", "unknown\r\n"];
    for other in others {
        for requests in [["flush_all 10\r\n", other], [other, "flush_all 10\r\n"]] {
            let path = Datapath::with(&setup());
            for text in requests {
                path.pass(&PacketBuilder::udp(text).id(7));
                wait(Duration::from_millis(50));
            }
            let before = path.kernel().flushes();
            path.tx(&PacketBuilder::udp("").id(7).reply("OK\r\n"));
            let after = path.kernel().flushes();
            assert_eq!((before.len(), after.len()), (1, 1), "{requests:?}");
            // By the whole of the time since it was asked for, or by more.
            let since = if requests[0] == other { 45 } else { 90 };
            let later = after[0].until - before[0].until;
            assert!((since * 1_000_000..SECOND).contains(&later), "{later}");
        }
    }
}

/// The hash of a key is no time.
#[test]
fn an_odd_request_without_a_delay_that_is_answered_late() {
    for other in ["get key\r\n", "delete key\r\n", "mg key v\r\n"] {
        for requests in [["unknown\r\n", other], [other, "unknown\r\n"]] {
            let path = Datapath::with(&setup());
            for text in requests {
                path.pass(&PacketBuilder::udp(text).id(7));
            }
            wait(Duration::from_millis(20));
            path.tx(&PacketBuilder::udp("").id(7).reply("ERROR\r\n"));
            let flushes = path.kernel().flushes();
            assert!(flushes.is_empty(), "{requests:?}: {flushes:?}");
        }
    }
}

/// Of too many the first to come is forgotten, and none takes more than its own time: whoever may ask for flushes cannot
/// keep the cache from serving.
#[test]
fn many_flushes() {
    let path = Datapath::with(&setup());
    let mut connection = Connection::open(&path, 4000);
    let delays = [4000, 7, 1000, 2_000_000, 2000, 1001, 3000, 10_000, 5010, 30];
    for delay in delays {
        connection.exchange(&path, format!("flush_all {delay}\r\n"), "OK\r\n");
        // The datapath's clock moves on.
        wait(Duration::from_millis(10));
    }
    let flushes = path.kernel().flushes();
    assert_eq!(flushes.len(), PENDING_FLUSHES);
    for (number, delay) in delays.into_iter().enumerate() {
        let due = clock::now_ns() + delay * SECOND;
        let is_kept = flushes
            .iter()
            .any(|flush| (flush.from..flush.until).contains(&due));
        let is_late = number >= delays.len() - PENDING_FLUSHES;
        assert_eq!(is_kept, is_late, "{delay}: {flushes:?}");
    }
    let most = FLUSH_EARLY_NS + FLUSH_LATE_NS + SECOND;
    assert!(
        flushes.iter().all(|flush| flush.until - flush.from < most),
        "{flushes:?}"
    );
}

/// The datapath's clock is coarse: those of one tick come one after the other all the same.
#[test]
fn many_flushes_at_once() {
    let path = Datapath::with(&setup());
    let mut connection = Connection::open(&path, 4000);
    let delays = 1000..1003 + PENDING_FLUSHES as u64;
    for delay in delays.clone() {
        connection.exchange(&path, format!("flush_all {delay}\r\n"), "OK\r\n");
    }
    let mut kept: Vec<_> = path.kernel().flushes();
    kept.sort_by_key(|flush| flush.from);
    let first = delays.start + 3;
    let due = clock::now_ns() + first * SECOND;
    assert!(
        kept[0].from.abs_diff(due - FLUSH_EARLY_NS) < SECOND / 2,
        "{kept:?}"
    );
}

/// One that is forgotten while it may be taking effect has taken effect.
#[test]
fn a_flush_that_is_forgotten_in_its_time() {
    let mut path = Datapath::with(&setup());
    path.fill("key", "old");
    let mut connection = Connection::open(&path, 4000);
    connection.exchange(&path, "flush_all 10\r\n", "OK\r\n");
    path.kernel_mut().age_flushes(9 * SECOND);
    wait(Duration::from_millis(10));
    let epoch = path.epoch();
    for delay in 1000..1000 + PENDING_FLUSHES {
        connection.exchange(&path, format!("flush_all {delay}\r\n"), "OK\r\n");
    }
    assert_eq!(path.epoch(), epoch + 1);
    path.assert_miss("key");
}

/// Other forms of GET, and GETs on TCP, heed it as well.
#[test]
fn every_form_waits() {
    let mut path = Datapath::with(&setup());
    path.fill("key", "old");
    let mut connection = Connection::open(&path, 4000);
    connection.exchange(&path, "flush_all 10\r\n", "OK\r\n");
    path.kernel_mut().age_flushes(9 * SECOND);
    let fills = path.stats().fills;
    connection.exchange(&path, "get key\r\n", "VALUE key 0 3\r\nold\r\nEND\r\n");
    assert_eq!(path.stats().fills, fills);
    for request in [
        "get key\r\n",
        "gets key\r\n",
        "get key key\r\n",
        "mg key v\r\n",
    ] {
        path.pass(&PacketBuilder::udp(request).id(999));
    }
    // Not even the first GET afterwards.
    path.kernel_mut().age_flushes(9 * SECOND);
    for request in ["get key key\r\n", "get key\r\n"] {
        path.pass(&PacketBuilder::udp(request).id(998));
    }
}
