//! The programs on two CPUs at once: what one run may see of another's that is half done.
//!
//! Two threads do something at the same moment, again and again, and what must hold whichever came
//! first is checked after each time. How often that hits the moment that matters depends on the
//! machine; one with a single CPU shows little.

use std::hint::spin_loop;
use std::mem::offset_of;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use prestack_abi::backend::Backend;
use prestack_abi::cache::{GRANULE, Group, HEADER_BYTES, Index, WAYS};

use crate::binary;
use crate::bytes::{get, hit, item};
use crate::harness::{Datapath, Verdict, random};
use crate::kernel::{Programs, Ran};
use crate::packet::PacketBuilder;

/// For how long each race goes on.
const SPAN: Duration = Duration::from_secs(1);
/// Looks at the other thread before the CPU is given away: it may be waiting for it.
const PATIENCE: u32 = 2000;

/// How far two threads have come.
#[derive(Default)]
struct Course([AtomicUsize; 2]);

/// One of the two.
struct Runner<'a> {
    own: &'a AtomicUsize,
    other: &'a AtomicUsize,
    steps: usize,
    random: fastrand::Rng,
}

impl Course {
    fn runners(&self) -> [Runner<'_>; 2] {
        let mut random = random();
        [0, 1].map(|number| Runner {
            own: &self.0[number],
            other: &self.0[1 - number],
            steps: 0,
            random: random.fork(),
        })
    }
}

impl Runner<'_> {
    fn is_alone(&self) -> bool {
        self.other.load(Ordering::Acquire) == usize::MAX
    }

    /// Waits until the other one has come as far, or has left.
    fn meet(&mut self) {
        self.steps += 1;
        self.own.store(self.steps, Ordering::Release);
        let mut looks = 0_u32;
        while self.other.load(Ordering::Acquire) < self.steps {
            looks += 1;
            if looks.is_multiple_of(PATIENCE) {
                thread::yield_now();
            }
            spin_loop();
        }
    }

    /// Lets pass about what a program takes, so that every two parts of two programs meet at times.
    fn hesitate(&mut self) {
        for _ in 0..self.random.u32(..100) {
            spin_loop();
        }
    }
}

impl Drop for Runner<'_> {
    /// The other one does not wait any more, also after a failure.
    fn drop(&mut self) {
        self.own.store(usize::MAX, Ordering::Release);
    }
}

/// Runs `rx` on two packets at once, which both pass, and then `after`, again and again.
fn race(path: &Datapath, packets: [&PacketBuilder; 2], after: impl FnMut()) {
    race_through(Programs::rx, path, packets, after);
}

/// The same with either program.
fn race_through(
    run: fn(&Programs, &[u8]) -> Ran,
    path: &Datapath,
    packets: [&PacketBuilder; 2],
    mut after: impl FnMut(),
) {
    let packets = packets.map(PacketBuilder::build);
    let mut is_first = true;
    at_once(
        path,
        || {
            if !std::mem::take(&mut is_first) {
                after();
            }
            packets.each_ref()
        },
        |programs, packet| {
            run(programs, packet);
        },
    );
    after();
}

/// Does two things at once, each of which `prepare` says anew, again and again.
pub fn at_once<T: Send>(
    path: &Datapath,
    mut prepare: impl FnMut() -> [T; 2],
    run: impl Fn(&Programs, T) + Sync,
) {
    let course = Course::default();
    let [mut here, mut there] = course.runners();
    let programs = &path.kernel().programs;
    let (run, second) = (&run, &Mutex::new(None));
    let take = move || second.lock().expect("the other thread is well").take();
    let mut rounds = 0;
    thread::scope(|scope| {
        scope.spawn(move || {
            while !there.is_alone() {
                there.meet();
                let Some(two) = take() else { break };
                there.hesitate();
                run(programs, two);
                there.meet();
            }
        });
        let start = Instant::now();
        while start.elapsed() < SPAN {
            let [one, two] = prepare();
            *second.lock().expect("the other thread is well") = Some(two);
            here.meet();
            here.hesitate();
            run(programs, one);
            here.meet();
            rounds += 1;
        }
        drop(here);
    });
    println!("{rounds} rounds");
}

fn get_key() -> PacketBuilder {
    PacketBuilder::udp(get(&["key"])).id(1)
}

fn set_key() -> PacketBuilder {
    PacketBuilder::udp("set key 0 0 3\r\nnew\r\n").id(2)
}

/// A write marks its key before it raises the version, and a ticket's version is read before the
/// marks: whichever came first, the ticket is void or not given.
#[test]
fn a_get_and_a_write() {
    let path = Datapath::new();
    // memcached has read the item before it carries the write out.
    let old = get_key().reply(hit("key", "old")).build();
    let stored = set_key().reply("STORED\r\n").build();
    race(&path, [&get_key(), &set_key()], || {
        path.tx_bytes(&old);
        path.tx_bytes(&stored);
    });
    assert_eq!(path.stats().fills, 0);
}

/// The same for all keys at once: the quiet time begins before the epoch is raised, and a ticket's
/// epoch is read before the quiet time.
#[test]
fn a_get_and_what_empties_the_cache() {
    let path = Datapath::new();
    let backends = path.kernel().backends();
    let quiet_until = backends.atomic_u64(0, offset_of!(Backend, quiet_until));
    let flush = PacketBuilder::udp("flush_all\r\n").id(2);
    let get = get_key().build();
    let old = get_key().reply(hit("key", "old")).build();
    let end = get_key().reply("END\r\n").build();
    race(&path, [&get_key(), &flush], || {
        path.tx_bytes(&old);
        // What was filled in the old epoch is dead.
        assert_eq!(path.rx_bytes(&get), Verdict::Passed);
        path.tx_bytes(&end);
        quiet_until.store(0, Ordering::SeqCst);
    });
}

/// Whoever sees the new epoch sees the quiet time.
#[test]
fn a_quiet_time_begins_before_its_epoch() {
    let path = Datapath::new();
    let backends = path.kernel().backends();
    let epoch = backends.atomic_u64(0, offset_of!(Backend, epoch));
    let quiet_until = backends.atomic_u64(0, offset_of!(Backend, quiet_until));
    let course = Course::default();
    let [mut here, mut there] = course.runners();
    let flush = PacketBuilder::udp("flush_all\r\n").id(2).build();
    let mut rounds = 0;
    let programs = &path.kernel().programs;
    thread::scope(|scope| {
        scope.spawn(move || {
            while !there.is_alone() {
                there.meet();
                there.hesitate();
                programs.rx(&flush);
                there.meet();
            }
        });
        let start = Instant::now();
        while start.elapsed() < SPAN {
            rounds += 1;
            quiet_until.store(0, Ordering::SeqCst);
            let before = epoch.load(Ordering::SeqCst);
            here.meet();
            let mut looks = 0_u32;
            while epoch.load(Ordering::Acquire) == before && !here.is_alone() {
                // The other thread may be waiting for this CPU.
                looks += 1;
                if looks.is_multiple_of(PATIENCE) {
                    thread::yield_now();
                }
            }
            assert_ne!(quiet_until.load(Ordering::Acquire), 0);
            here.meet();
        }
        drop(here);
    });
    println!("{rounds} rounds");
}

/// Neither is lost: the key is outstanding until both are answered.
#[test]
fn two_writes() {
    let path = Datapath::new();
    let (one, two) = (set_key().id(3), set_key());
    let answers = [&one, &two].map(|write| write.reply("STORED\r\n").build());
    let get = get_key().build();
    let old = get_key().reply(hit("key", "old")).build();
    race(&path, [&one, &two], || {
        path.tx_bytes(&answers[0]);
        path.rx_bytes(&get);
        path.tx_bytes(&old);
        path.tx_bytes(&answers[1]);
    });
    assert_eq!(path.stats().fills, 0);
}

/// Neither is lost: one answer is not the end of both.
#[test]
fn two_gets_of_one_name() {
    let path = Datapath::new();
    let get = get_key().build();
    let end = get_key().reply("END\r\n").build();
    let old = get_key().reply(hit("key", "old")).build();
    race(&path, [&get_key(), &get_key()], || {
        path.tx_bytes(&end);
        // The client asks again. The next answer may still be to the second.
        path.rx_bytes(&get);
        path.tx_bytes(&old);
        path.tx_bytes(&end);
    });
    assert_eq!(path.stats().fills, 0);
}

/// Where the datapath keeps the entry of a key.
struct Kept<'a> {
    /// The seqlock.
    seq: &'a AtomicU32,
    /// The entry's words, its header first.
    words: Vec<&'a AtomicU64>,
}

impl<'a> Kept<'a> {
    /// The entry of this key, which is cached with this value.
    fn of(path: &'a Datapath, key: &str, value: &str) -> Self {
        let cache = &path.kernel().cache;
        let config = path.kernel().controls.config();
        let (place, _) = prestack::cache::place(&config, 0, key.as_bytes());
        let number = place.group as usize;
        let group = cache.index.read(place.bucket).groups[number];
        let way = (0..WAYS).position(|way| {
            let of_way = |bytes: u64| bytes.to_le_bytes()[way];
            of_way(group.tags) == place.tag && of_way(group.upper) == place.upper
        });
        let at = group.at.to_le_bytes()[way.expect("the key is cached")];
        // What follows it in its last word is not its own.
        let len = HEADER_BYTES + hit(key, value).len();
        let word = |number| usize::from(at) * GRANULE + 8 * number;
        Self {
            seq: cache.index.atomic_u32(
                place.bucket,
                offset_of!(Index, groups) + number * size_of::<Group>() + offset_of!(Group, seq),
            ),
            words: (0..len / 8)
                .map(|number| cache.blocks.atomic_u64(place.bucket, word(number)))
                .collect(),
        }
    }

    fn read(&self) -> Vec<u64> {
        self.words
            .iter()
            .map(|word| word.load(Ordering::Acquire))
            .collect()
    }

    /// Writes as the datapath does.
    fn write(&self, words: &[u64]) {
        self.seq.fetch_add(1, Ordering::SeqCst);
        for (word, new) in self.words.iter().zip(words) {
            word.store(*new, Ordering::Release);
        }
        self.seq.fetch_add(1, Ordering::SeqCst);
    }
}

/// Two values of one length.
fn two_values() -> [String; 2] {
    ["a", "b"].map(|letter| letter.repeat(1300))
}

/// The words of the entry of `key` with each of the values, as `fill` caches it.
fn two_versions(
    path: &mut Datapath,
    values: &[String; 2],
    fill: impl Fn(&mut Datapath, &str),
) -> [Vec<u64>; 2] {
    values.each_ref().map(|value| {
        fill(path, value);
        let words = Kept::of(path, "key", value).read();
        path.exchange("delete key\r\n", "DELETED\r\n");
        words
    })
}

#[test]
fn an_entry_that_is_being_written_is_not_served() {
    let mut path = Datapath::new();
    path.fill("key", "value");
    let kept = Kept::of(&path, "key", "value");
    for text in [get(&["key"]), get(&["key", "key"])] {
        let request = PacketBuilder::udp(text);
        kept.seq.fetch_add(1, Ordering::SeqCst);
        path.pass(&request);
        kept.seq.fetch_add(1, Ordering::SeqCst);
        assert!(matches!(path.rx(&request), Verdict::Served(_)));
    }
}

/// Caches `key` for requests of all forms.
fn fill_for_all(path: &mut Datapath, value: &str) {
    let reply = format!("VA {} f0 c1\r\n{value}\r\n", value.len());
    path.exchange("mg key v f c\r\n", reply);
}

/// A request, and its answer with a value of `key`.
type Form = (Vec<u8>, fn(&str) -> Vec<u8>);

fn forms() -> [Form; 4] {
    [
        (get(&["key"]), |value| hit("key", value)),
        (get(&["other", "key"]), |value| {
            [item("other", 0, "value"), hit("key", value)].concat()
        }),
        (b"mg key v\r\n".to_vec(), |value| {
            format!("VA {}\r\n{value}\r\n", value.len()).into_bytes()
        }),
        (binary::get(binary::GET, b"key", 1), |value| {
            binary::hit(binary::GET, b"key", 0, 1, value.as_bytes(), 1)
        }),
    ]
}

/// A reader who meets a writer lets the request pass, as it came; who is answered gets one value.
#[test]
fn readers_and_a_writer() {
    let mut path = Datapath::new();
    let values = two_values();
    let versions = two_versions(&mut path, &values, fill_for_all);
    path.fill("other", "value");
    fill_for_all(&mut path, &values[0]);
    let kept = Kept::of(&path, "key", &values[0]);
    let course = Course::default();
    let [here, mut there] = course.runners();
    let (mut served, mut passed) = (0, 0);
    thread::scope(|scope| {
        scope.spawn(move || {
            while !there.is_alone() {
                for words in &versions {
                    kept.write(words);
                    // Between two writes there is time to read.
                    there.hesitate();
                }
            }
        });
        let start = Instant::now();
        while start.elapsed() < SPAN {
            for (request, whole) in &forms() {
                match path.rx(&PacketBuilder::udp(request)) {
                    Verdict::Passed => passed += 1,
                    Verdict::Served(reply) => {
                        let is_one = values.iter().any(|value| reply == whole(value));
                        assert!(is_one, "\"{}\" is torn", reply.escape_ascii());
                        served += 1;
                    }
                }
            }
        }
        drop(here);
    });
    println!(
        "{served} served, {passed} passed, {} races",
        path.stats().races
    );
    assert!(served > 0);
}

/// What `tx` writes is whole for whoever heeds the seqlock.
#[test]
fn a_fill_and_a_reader() {
    let mut path = Datapath::new();
    let values = two_values();
    let versions = two_versions(&mut path, &values, |path, value| path.fill("key", value));
    path.fill("key", &values[0]);
    let kept = Kept::of(&path, "key", &values[0]);
    let course = Course::default();
    let [here, there] = course.runners();
    let programs = &path.kernel().programs;
    // From where nobody is served, so that memcached is asked.
    let stranger = get_key().from(([10, 9, 9, 9], 1));
    let replies = values
        .each_ref()
        .map(|value| stranger.reply(hit("key", value)).build());
    let stranger = stranger.build();
    let (mut whole, mut torn) = (0, 0);
    thread::scope(|scope| {
        scope.spawn(move || {
            while !there.is_alone() {
                for reply in &replies {
                    programs.rx(&stranger);
                    programs.tx(reply);
                }
            }
        });
        let start = Instant::now();
        while start.elapsed() < SPAN {
            let seq = kept.seq.load(Ordering::Acquire);
            let words = kept.read();
            if !seq.is_multiple_of(2) || kept.seq.load(Ordering::Acquire) != seq {
                torn += 1;
                continue;
            }
            whole += 1;
            // The first word is the time.
            let is_one = versions.iter().any(|version| version[1..] == words[1..]);
            assert!(is_one, "torn: {words:x?}");
        }
        drop(here);
    });
    let fills = path.stats().fills;
    println!("{whole} times whole, {torn} times not, {fills} fills");
    assert!(whole > 0 && fills > 1);
}

/// What a reply adds to is not what another one has dropped in between.
#[test]
fn a_reply_that_adds_to_an_entry_and_one_that_drops_it() {
    let path = Datapath::new();
    let value = "v".repeat(1200);
    let ask = |text: &str, id| PacketBuilder::udp(text).id(id);
    let gets = ask("gets key\r\n", 1);
    let filled = gets.reply(format!("VALUE key 0 1200 7\r\n{value}\r\nEND\r\n"));
    let [one, two] = [2, 3].map(|id| ask("mg key v f\r\n", id));
    let adds = one.reply(format!("VA 1200 f0\r\n{value}\r\n"));
    let prepare = || {
        path.pass(&gets);
        path.tx(&filled);
        path.pass(&one);
        path.pass(&two);
    };
    prepare();
    race_through(Programs::tx, &path, [&adds, &two.reply("EN\r\n")], || {
        // The CAS number went with the entry.
        path.pass(&gets);
        path.tx(&gets.reply("END\r\n"));
        prepare();
    });
}
