//! More items than fit: what is still there is right.

use crate::bytes::{get, hit};
use crate::harness::{Datapath, Setup, Verdict, random, volume};

/// A value that names its key and how often it has been written.
fn value(key: &str, written: u32, len: usize) -> Vec<u8> {
    let mut value = format!("{key}/{written}/").into_bytes();
    let start = value.len();
    value.extend((0..len).map(|i| b'!' + ((start + i + written as usize) * 7 % 90) as u8));
    value
}

#[test]
fn whatever_is_left_is_right() {
    let mut random = random();
    let keys = volume(1500);
    let mut path = Datapath::with(&Setup {
        seed: random.u64(..),
        buckets: 4,
        ..Setup::default()
    });
    let names: Vec<_> = (0..keys)
        .map(|i| format!("{i}-{}", "k".repeat(random.usize(..60))))
        .collect();
    let values: Vec<_> = names
        .iter()
        .map(|name| {
            let len = match random.u32(..4) {
                0 => random.usize(..1200),
                _ => random.usize(..100),
            };
            value(name, 0, len)
        })
        .collect();
    for (name, value) in names.iter().zip(&values) {
        path.fill(name, value);
        path.assert_hit(name, value);
    }
    let mut hits = 0;
    for (name, value) in names.iter().zip(&values) {
        let request = path.get_of(name);
        if let Verdict::Served(reply) = path.rx(&request) {
            assert_eq!(reply, hit(name, value), "{name}");
            hits += 1;
        }
    }
    assert!(hits > 0, "the cache is not empty");
    assert!(hits < keys, "four buckets do not hold {keys} items");
    assert!(path.stats().evictions > 0);
}

/// Items change and come back in other sizes while others push them out.
#[test]
fn items_that_change_size_among_others() {
    let mut random = random();
    let mut path = Datapath::with(&Setup {
        seed: random.u64(..),
        buckets: 2,
        ..Setup::default()
    });
    let mut values: Vec<_> = (0..150).map(|i| value(&i.to_string(), 0, 10)).collect();
    let mut hits = 0;
    for written in 1..volume(4000) as u32 {
        let i = random.usize(..values.len());
        let name = i.to_string();
        if random.u32(..4) == 0 {
            let new = value(&name, written, random.usize(..400));
            let text = format!("set {name} 0 0 {}\r\n", new.len());
            let text = [text.as_bytes(), &new, b"\r\n"].concat();
            path.exchange(text, "STORED\r\n");
            values[i] = new;
        }
        let request = path.request(get(&[&name]));
        let current = hit(&name, &values[i]);
        match path.rx(&request) {
            Verdict::Served(reply) => {
                assert_eq!(reply, current, "{name}");
                hits += 1;
            }
            Verdict::Passed => path.tx(&request.reply(current)),
        }
    }
    assert!(hits > 0);
    println!("{hits} hits, {} evictions", path.stats().evictions);
}

/// More and more of the cache comes into use. What is written dies where it is then, and what it has left
/// elsewhere is never found again.
#[test]
fn nothing_stale_comes_back_when_the_cache_grows() {
    let mut random = random();
    let mut path = Datapath::with(&Setup {
        seed: random.u64(..),
        buckets: 4,
        ..Setup::default()
    });
    let names: Vec<_> = (0..volume(600)).map(|i| format!("key-{i}")).collect();
    let mut written = vec![0; names.len()];
    for parts in [1, 2, 4, 8, 16] {
        path.kernel().controls.use_parts(parts);
        let mut hits = 0;
        for _ in 0..2 * names.len() {
            let i = random.usize(..names.len());
            let name = &names[i];
            let request = path.get_of(name);
            let current = hit(name, value(name, written[i], 20));
            match path.rx(&request) {
                Verdict::Served(reply) => {
                    assert_eq!(reply, current, "{name}, {parts} parts");
                    hits += 1;
                }
                Verdict::Passed => path.tx(&request.reply(current)),
            }
            if random.u32(..4) == 0 {
                written[i] += 1;
                let new = value(name, written[i], 20);
                let text = format!("set {name} 0 0 {}\r\n", new.len());
                let text = [text.as_bytes(), &new, b"\r\n"].concat();
                path.exchange(text, "STORED\r\n");
                path.assert_miss(name);
                path.fill(name, &new);
            }
        }
        assert!(hits > 0, "{parts} parts");
    }
    let request_of = |name| path.get_of(name);
    let requests: Vec<_> = names.iter().map(request_of).collect();
    let hits = requests
        .iter()
        .filter(|request| path.rx(request) != Verdict::Passed);
    let hits = hits.count();
    assert!(
        hits > names.len() / 2,
        "{hits} of {} are there",
        names.len()
    );
}
