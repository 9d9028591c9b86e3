//! A client whose requests all have one name: what changes everything under it costs what it has to, and
//! ends.

use std::time::Duration;

use prestack_abi::requests::{Kind, SEEN_SHIFT};
use prestack_abi::time::{CLAIM_SHIFT, CLAIM_UNITS};

use crate::binary;
use crate::bytes::{get, hit};
use crate::harness::{Datapath, Setup, wait, wait_to_settle};
use crate::packet::PacketBuilder;

const SETTLE: Duration = Duration::from_millis(10);
const FLUSH: u8 = 0x08;
const FLUSHQ: u8 = 0x18;

fn setup() -> Setup {
    Setup {
        settle: SETTLE,
        ..Setup::default()
    }
}

/// A request of the client's.
fn ask(payload: impl AsRef<[u8]>) -> PacketBuilder {
    PacketBuilder::udp(payload).id(0)
}

/// Lets the client ask for the key and memcached answer: whether that fills the cache.
fn fills(path: &Datapath, key: &str) -> bool {
    let before = path.stats().fills;
    let request = ask(get(&[key]));
    path.pass(&request);
    path.tx(&request.reply(hit(key, "value")));
    path.stats().fills > before
}

/// Lets those that were not understood become older than requests are remembered.
fn age_odd(path: &mut Datapath) {
    let span = u64::try_from(setup().remember.as_nanos()).expect("a short time") >> SEEN_SHIFT;
    path.kernel_mut().alter_requests(|set| {
        for request in &mut set.requests {
            if Kind::may_change_all(request.kind) {
                request.version = request.version.wrapping_sub(span as u32 + 1);
            }
        }
    });
}

/// memcached answers it in one datagram, whatever it says.
#[test]
fn a_flush_ends_with_its_reply() {
    let refused = "CLIENT_ERROR invalid exptime argument\r\n";
    for (text, reply) in [
        (b"flush_all\r\n".to_vec(), b"OK\r\n".to_vec()),
        (b"flush_all\n".to_vec(), b"OK\r\n".to_vec()),
        (b"flush_all x\r\n".to_vec(), refused.into()),
        (
            binary::request(FLUSH, b"", b"", b"", 0),
            binary::done(FLUSH, 0),
        ),
        (
            binary::request(FLUSH, &[0; 4], b"", b"", 0),
            binary::done(FLUSH, 0),
        ),
    ] {
        let mut path = Datapath::with(&setup());
        let flush = ask(&text);
        path.pass(&flush);
        assert_eq!(path.epoch(), 1, "{flush:?}");
        path.tx(&flush.reply(&reply));
        assert_eq!(path.epoch(), 2, "{flush:?}");
        assert!(!path.can_fill("other", "value"), "{flush:?}");
        wait_to_settle(SETTLE);
        for key in ["first", "second"] {
            assert!(fills(&path, key), "{flush:?}");
        }
        assert_eq!(path.epoch(), 2, "{flush:?}");
    }
}

/// What says nothing, or is part of a longer answer, is no answer to it.
#[test]
fn what_does_not_end_a_flush() {
    let flush = ask("flush_all\r\n");
    let part = flush.reply("part").frame(crate::packet::Frame {
        id: 0,
        sequence: 3,
        count: 4,
        reserved: 0,
    });
    for other in [flush.nothing(), part] {
        let path = Datapath::with(&setup());
        path.pass(&flush);
        path.tx(&other);
        let before = path.epoch();
        path.tx(&flush.reply("OK\r\n"));
        assert_eq!(path.epoch(), before + 1, "{other:?}");
    }
}

/// Which of two answers is whose is not known, and more may come behind the first one.
#[test]
fn a_flush_among_others_is_heeded_with_every_reply() {
    let flush = ask("flush_all\r\n");
    for other in [
        "get key\r\n",
        "get a b\r\n",
        "delete other\r\n",
        "version\r\n",
        "stats\r\n",
        "flush_all\r\n",
        "unknown\r\n",
        "delete other noreply\r\n",
    ] {
        let other = ask(other);
        for requests in [[&flush, &other], [&other, &flush]] {
            let path = Datapath::with(&setup());
            for request in requests {
                path.pass(request);
            }
            let before = path.epoch();
            for more in 1..4 {
                path.tx(&flush.reply("OK\r\n"));
                assert_eq!(path.epoch(), before + more, "{requests:?}");
            }
        }
    }
    for several in ["flush_all\r\nversion\r\n", "version\r\nflush_all\r\n"] {
        let path = Datapath::with(&setup());
        let several = ask(several);
        path.pass(&several);
        for epoch in 2..4 {
            path.tx(&several.reply("OK\r\n"));
            assert_eq!(path.epoch(), epoch, "{several:?}");
        }
    }
}

/// The reply may be that to another request of the name, which was forgotten.
#[test]
fn a_flush_in_doubt_is_heeded_with_every_reply() {
    let mut path = Datapath::with(&setup());
    let now = (prestack::clock::now_ns() >> prestack_abi::requests::LOST_SHIFT) as u8;
    path.kernel_mut().alter_requests(|set| {
        for stamps in &mut set.stamps {
            stamps.lost = now.max(1);
        }
    });
    let flush = ask("flush_all\r\n");
    path.pass(&flush);
    for epoch in 2..4 {
        path.tx(&flush.reply("END\r\n"));
        assert_eq!(path.epoch(), epoch);
    }
}

/// It is answered with an error, and soon, or never.
#[test]
fn a_quiet_flush_costs_what_it_does_at_once() {
    for text in [
        b"flush_all noreply\r\n".to_vec(),
        b"flush_all 0 noreply\r\n".to_vec(),
        binary::request(FLUSHQ, b"", b"", b"", 0),
    ] {
        let path = Datapath::with(&setup());
        let flush = ask(&text);
        path.pass(&flush);
        assert_eq!(path.epoch(), 1, "{flush:?}");
        path.tx(&flush.nothing());
        assert!(!fills(&path, "first"), "{flush:?}");
        // Nothing is asked meanwhile.
        let path = Datapath::with(&setup());
        path.pass(&flush);
        wait(SETTLE + Duration::from_millis(1100));
        assert!(fills(&path, "first"), "{flush:?}");
        assert_eq!(path.epoch(), 1, "{flush:?}");
    }
}

/// However often its name is used, it is over when requests of its age are.
#[test]
fn an_odd_request_of_a_name_in_use_is_forgotten() {
    for requests in [
        &["GET key\r\n"][..],
        &["get key\r\n", "GET key\r\n"],
        &["delete key\r\n", "GET key\r\n"],
        &["flush_all\r\n", "get key\r\n"],
        &["flush_all 10\r\n", "GET key\r\n"],
    ] {
        let mut path = Datapath::with(&setup());
        for request in requests {
            path.pass(&ask(request));
        }
        // Others join it.
        let mut epoch = path.epoch();
        for _ in 0..3 {
            assert!(!fills(&path, "key"), "{requests:?}");
            epoch += 1;
            assert_eq!(path.epoch(), epoch, "{requests:?}");
        }
        age_odd(&mut path);
        for _ in 0..3 {
            // Nothing is learnt, for it was not silent.
            assert!(!fills(&path, "key"), "{requests:?}");
            assert_eq!(path.epoch(), epoch, "{requests:?}");
        }
        wait_to_settle(SETTLE);
        wait(Duration::from_nanos(
            (CLAIM_UNITS as u64 + 1) << CLAIM_SHIFT,
        ));
        assert!(path.can_fill("other", "value"), "{requests:?}");
    }
}

/// As long as such come, that counts from the last one on.
#[test]
fn the_last_odd_request_of_a_name_counts() {
    let mut path = Datapath::with(&setup());
    for text in ["GET key\r\n", "flush_all\r\n"] {
        path.pass(&ask(text));
        age_odd(&mut path);
        path.pass(&ask(text));
        fills(&path, "key");
        let before = path.epoch();
        path.tx(&ask(text).reply("OK\r\n"));
        assert_eq!(path.epoch(), before + 1, "{text:?}");
    }
}
