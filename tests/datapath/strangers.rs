//! Sources that may not be served: their GETs are not remembered, but their writes are.

use std::time::Duration;

use crate::bytes::{get, hit};
use crate::harness::{Datapath, Setup};
use crate::packet::PacketBuilder;

/// A datagram from outside the allow list, under a name that all tests use.
fn strange(text: impl AsRef<[u8]>) -> PacketBuilder {
    PacketBuilder::udp(text)
        .id(1)
        .from(([192, 0, 2, 1], 40_000))
}

/// What strangers may ask that changes nothing.
const READS: [&str; 6] = [
    "get z\r\n",
    "get  z\r\n",
    "get y z\r\n",
    "mg z v\r\n",
    "version\r\n",
    "version\r\nversion\r\n",
];

/// memcached's threads may answer in either order: the reply that seems to be the write's may be the
/// GET's.
#[test]
fn a_read_of_the_same_name_puts_a_write_in_doubt() {
    for read in READS {
        for is_read_first in [false, true] {
            let mut path = Datapath::new();
            let write = strange("set key 0 0 3\r\nnew\r\n");
            if is_read_first {
                path.pass(&strange(read));
                path.pass(&write);
            } else {
                path.pass(&write);
                path.pass(&strange(read));
            }
            path.tx(&write.reply("END\r\n"));
            assert!(!path.can_fill("key", "old"), "{read:?} {is_read_first}");
        }
    }
}

/// Nor does the reply to a write in doubt, which the reply to a read has freed its name of, end the next one.
#[test]
fn a_write_in_doubt_puts_the_next_one_in_doubt() {
    let mut path = Datapath::with(&Setup {
        remember: Duration::from_secs(30),
        ..Setup::default()
    });
    path.pass(&strange("get z\r\n"));
    for key in ["key", "other"] {
        // The second time, what the read has left is older than a write would be remembered.
        path.kernel_mut().alter_requests(|set| {
            for stamps in &mut set.stamps {
                if stamps.strange != 0 {
                    stamps.strange = stamps.strange.wrapping_sub(20).max(1);
                }
            }
        });
        let write = strange(format!("delete {key}\r\n"));
        path.pass(&write);
        path.tx(&write.reply("DELETED\r\n"));
        assert!(!path.can_fill(key, "old"), "{key}");
    }
}

/// One whose id nobody else uses ends with its reply.
#[test]
fn a_write_alone_ends_with_its_reply() {
    let mut path = Datapath::new();
    let write = strange("set key 0 0 3\r\nnew\r\n");
    path.pass(&write);
    path.pass(&strange("get z\r\n").id(2));
    assert!(!path.can_fill("key", "old"));
    path.tx(&write.reply("STORED\r\n"));
    assert!(path.can_fill("key", "new"));
}

/// However much strangers ask, the requests of clients are remembered, and their names are free.
#[test]
fn reads_take_no_room() {
    let path = Datapath::new();
    let client = |id: u16| PacketBuilder::udp(get(&[&format!("key-{id}")])).id(id);
    for id in 0..100 {
        path.pass(&client(id));
    }
    for port in 40_000..40_030 {
        for id in 0..1000 {
            let read = READS[usize::from(id) % READS.len()];
            path.pass(&strange(read).id(id).from(([192, 0, 2, 1], port)));
        }
    }
    for id in 0..100 {
        path.tx(&client(id).reply(hit(format!("key-{id}"), "value")));
    }
    for id in 100..200 {
        path.pass(&client(id));
        path.tx(&client(id).reply(hit(format!("key-{id}"), "value")));
    }
    assert_eq!(path.stats().fills, 200);
    assert_eq!(path.stats().requests_lost, 0);
}
