//! Races with a writer.

use std::mem::offset_of;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use prestack_abi::cache::{GROUPS, Group, Index};

use crate::bytes::{get, hit, key_of, value_for_reply};
use crate::harness::{Datapath, Setup, Verdict, random};
use crate::packet::PacketBuilder;

/// Who loses the race with a writer lets the request pass as it came, whatever its length and room.
#[test]
fn a_lost_race_leaves_the_request_as_it_was() {
    let setup = Setup {
        buckets: 1,
        ..Setup::default()
    };
    let mut path = Datapath::with(&setup);
    let keys: Vec<_> = (1..=20)
        .chain([63, 64, 65, 247, 248, 249, 250])
        .map(key_of)
        .collect();
    let mut random = random();
    let is_over = AtomicBool::new(false);
    let paddings = [0, 2, 80];
    for key in &keys {
        let value = value_for_reply(key, key.len() + random.usize(40..1000)).unwrap_or_default();
        path.fill(key, &value);
        let seqs: [_; GROUPS] = std::array::from_fn(|number| {
            let group = offset_of!(Index, groups) + number * size_of::<Group>();
            let at = group + offset_of!(Group, seq);
            path.kernel().cache.index.atomic_u32(0, at)
        });
        is_over.store(false, Ordering::SeqCst);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::SeqCst) {
                    // As if the entry had been written anew.
                    for seq in seqs {
                        seq.fetch_add(2, Ordering::SeqCst);
                    }
                }
            });
            for padding in paddings {
                let request = PacketBuilder::udp(get(&[key])).padding(vec![0xa5; padding]);
                for _ in 0..20 {
                    // Who is answered gets the value, and who is not has what was sent.
                    if let Verdict::Served(reply) = path.rx(&request) {
                        assert_eq!(reply, hit(key, &value));
                    }
                }
            }
            is_over.store(true, Ordering::SeqCst);
        });
        path.exchange([b"delete ", &key[..], b"\r\n"].concat(), "DELETED\r\n");
    }
    println!("{} races", path.stats().races);
}
