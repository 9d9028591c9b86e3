//! Races with a writer.

use std::mem::offset_of;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use prestack_abi::cache::{GROUPS, Group, Index};

use crate::binary::{self, GET, GETK};
use crate::bytes::{get, hit, item, key_of, value_for_reply};
use crate::harness::{Datapath, Setup, Verdict, random};
use crate::packet::PacketBuilder;

/// A request in each form that is answered in place, and the answer.
fn requests(key: &[u8], value: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let size = value.len().to_string();
    let block = item(key, 0, value);
    let with_cas = [b"VALUE ", key, b" 0 ", size.as_bytes(), b" 77\r\n"].concat();
    let size_line = [b"VA ", size.as_bytes()].concat();
    vec![
        (get(&[key]), hit(key, value)),
        (get(&[key, key]), [&block[..], &hit(key, value)].concat()),
        (
            [b"gets ", key, b"\r\n"].concat(),
            [&with_cas[..], value, b"\r\nEND\r\n"].concat(),
        ),
        (
            [b"mg ", key, b" v\r\n"].concat(),
            [&size_line[..], b"\r\n", value, b"\r\n"].concat(),
        ),
        (
            [b"mg ", key, b" k f v\r\n"].concat(),
            [&size_line[..], b" k", key, b" f0\r\n", value, b"\r\n"].concat(),
        ),
        (
            binary::get(GET, key, 9),
            binary::hit(GET, key, 0, 77, value, 9),
        ),
        (
            binary::get(GETK, key, 9),
            binary::hit(GETK, key, 0, 77, value, 9),
        ),
    ]
}

/// A datapath of one bucket, so that few seqlocks matter.
fn of_one_bucket() -> Datapath {
    Datapath::with(&Setup {
        buckets: 1,
        ..Setup::default()
    })
}

/// Lets memcached show all of an item.
fn learn(path: &mut Datapath, key: &[u8], value: &[u8]) {
    let line = format!("VA {} f0 c77 k", value.len());
    path.exchange(
        [b"mg ", key, b" v f c k\r\n"].concat(),
        [line.as_bytes(), key, b"\r\n", value, b"\r\n"].concat(),
    );
}

/// Calls `each` while it seems as if entries were written anew all the time.
fn while_disturbed(path: &Datapath, each: impl FnOnce()) {
    let seqs: [_; GROUPS] = std::array::from_fn(|number| {
        let group = offset_of!(Index, groups) + number * size_of::<Group>();
        let at = group + offset_of!(Group, seq);
        path.kernel().cache.index.atomic_u32(0, at)
    });
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::SeqCst) {
                for seq in seqs {
                    seq.fetch_add(2, Ordering::SeqCst);
                }
            }
        });
        let outcome = catch_unwind(AssertUnwindSafe(each));
        is_over.store(true, Ordering::SeqCst);
        outcome.unwrap_or_else(|panic| resume_unwind(panic));
    });
}

/// Who loses the race with a writer lets the request pass as it came, whatever its length and room.
#[test]
fn a_lost_race_leaves_the_request_as_it_was() {
    let mut path = of_one_bucket();
    let keys: Vec<_> = (1..=20)
        .chain([63, 64, 65, 247, 248, 249, 250])
        .map(key_of)
        .collect();
    let mut random = random();
    for key in &keys {
        let value = value_for_reply(key, key.len() + random.usize(40..1000)).unwrap_or_default();
        learn(&mut path, key, &value);
        while_disturbed(&path, || {
            for (request, reply) in requests(key, &value) {
                for padding in [0, 2, 80] {
                    let request = PacketBuilder::udp(&request).padding(vec![0xa5; padding]);
                    for _ in 0..20 {
                        // Who is answered gets the value, and who is not has what was sent.
                        if let Verdict::Served(served) = path.rx(&request) {
                            assert_eq!(served, reply);
                        }
                    }
                }
            }
        });
        path.exchange([b"delete ", &key[..], b"\r\n"].concat(), "DELETED\r\n");
    }
    let stats = path.stats();
    println!("{} races, {} hits", stats.races, stats.udp_hits);
}

/// Every form sees that a writer has come between.
#[test]
fn a_race_is_lost_in_every_form() {
    // Longer than it ever takes.
    const PATIENCE: Duration = Duration::from_secs(60);
    if thread::available_parallelism().is_ok_and(|cpus| cpus.get() == 1) {
        return;
    }
    let mut path = of_one_bucket();
    let key = key_of(8);
    let value = value_for_reply(&key, 600).expect("a length that can be had");
    learn(&mut path, &key, &value);
    while_disturbed(&path, || {
        for (request, _) in requests(&key, &value) {
            let before = path.stats().races;
            let start = Instant::now();
            let shown = request.escape_ascii();
            let packet = PacketBuilder::udp(&request);
            while path.stats().races == before {
                assert!(start.elapsed() < PATIENCE, "{shown} is never disturbed");
                path.rx(&packet);
            }
        }
    });
}
