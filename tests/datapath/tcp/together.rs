//! Segments of one flow on two CPUs at once: a client's thread has moved to another CPU, or the network card
//! has several receive queues.

use std::time::Instant;

use prestack_abi::flow::Finding;

use super::connection::Connection;
use crate::harness::{Datapath, Setup};
use crate::kernel::{BUCKETS, Programs};
use crate::packet::ACK;
use crate::races::at_once;

fn datapath() -> Datapath {
    let mut path = Datapath::with(&Setup {
        buckets: BUCKETS,
        ..Setup::default()
    });
    path.fill("other", "value");
    path
}

fn rx(programs: &Programs, packet: Vec<u8>) {
    programs.rx(&packet);
}

/// Nothing was in doubt, and every write was seen and has ended.
fn assert_exact(path: &mut Datapath) {
    let stats = path.stats();
    println!("{stats:?}");
    assert_eq!(stats.doubted_requests, 0);
    assert_eq!(stats.doubted_replies, 0);
    assert_eq!(stats.forgets, 0);
    path.assert_hit("other", "value");
    assert!(path.can_fill("key", "new"));
}

/// Two segments of a stream, cut at every place of it in turn; memcached answers before the next.
#[test]
fn two_segments_in_a_row() {
    let mut path = datapath();
    let stream = b"set key 0 0 3\r\nnew\r\nget x\r\ndelete key\r\n";
    let mut connection = Connection::open(&path, 1);
    let mut rounds = 0;
    at_once(
        &path,
        || {
            if rounds != 0 {
                connection.reply(&path, "STORED\r\nEND\r\nDELETED\r\n");
            }
            rounds += 1;
            let (one, two) = stream.split_at(1 + rounds % (stream.len() - 1));
            [one, two].map(|data| connection.lose(data).build())
        },
        rx,
    );
    assert_eq!(path.stats().invalidations, 2 * rounds as u64);
    connection.reply(&path, "STORED\r\nEND\r\nDELETED\r\n");
    assert_exact(&mut path);
}

/// One that is sent again while the first copy is looked at.
#[test]
fn two_copies_of_a_segment() {
    let mut path = datapath();
    let mut connection = Connection::open(&path, 1);
    let mut rounds = 0;
    at_once(
        &path,
        || {
            if rounds != 0 {
                connection.reply(&path, "DELETED\r\n");
            }
            rounds += 1;
            let segment = connection.lose("delete key\r\n").build();
            [segment.clone(), segment]
        },
        rx,
    );
    connection.reply(&path, "DELETED\r\n");
    assert!(path.stats().invalidations >= rounds);
    assert_exact(&mut path);
}

/// User space takes the flow for one that has lost its socket, and is mistaken.
#[test]
fn a_segment_and_the_sweep() {
    /// What is done.
    enum Deed {
        Segment(Vec<u8>),
        Sweep(Finding),
    }
    let mut path = datapath();
    let mut connection = Connection::open(&path, 1);
    connection.exchange(&path, "get x\r\n", "END\r\n");
    let open = prestack::maps::open_flows(&path.kernel().programs.ids).expect("the maps");
    let dead = open[0].found;
    let mut rounds = 0;
    at_once(
        &path,
        || {
            if rounds != 0 {
                connection.reply(&path, "DELETED\r\n");
            }
            rounds += 1;
            let segment = connection.lose("delete key\r\n").build();
            // Something has happened since.
            let before = Finding {
                next: dead.next.wrapping_sub(1),
                ..dead
            };
            [Deed::Segment(segment), Deed::Sweep(before)]
        },
        |programs, deed| match deed {
            Deed::Segment(packet) => rx(programs, packet),
            Deed::Sweep(dead) => assert!(!programs.end_flow(&dead)),
        },
    );
    connection.reply(&path, "DELETED\r\n");
    assert_eq!(path.stats().invalidations, rounds);
    assert_exact(&mut path);
}

/// Work that does not end is not waited for without end: what was not looked at empties the cache.
#[test]
fn waiting_in_vain() {
    let mut path = datapath();
    let connection = Connection::open(&path, 1);
    path.kernel_mut().used_flows(|flow| flow.busy = 1);
    let start = Instant::now();
    path.pass(&connection.segment(ACK, "get x\r\n"));
    println!("given up after {:?}", start.elapsed());
    assert_eq!(path.stats().doubted_requests, 1);
    assert_eq!(path.stats().forgets, 1);
}
