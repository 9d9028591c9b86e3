//! Clients with a TCP connection each, which check every byte that they read, over good networks and bad.
//!
//! What a client's own keys hold it knows, as nobody else writes them: every answer is compared byte by
//! byte. Keys that all read have rising versions. Commands come one by one, cut into pieces down to single
//! bytes, and many at a time. Nothing may stand still for longer than 10 s.
//!
//! `PRESTACK_SEED` makes the clients and the relay draw the same again; `PRESTACK_OPERATIONS` is the number
//! of commands of each course, `PRESTACK_STALL` the milliseconds in which something has to move, and
//! `PRESTACK_COURSE` a part of the names of those that are run.

mod answer;
mod client;
mod course;
mod shared;
mod source;
mod value;

use crate::clients::are_installed;
use anyhow::{Context, Result, ensure};
pub use client::Habit;
use course::{Arguments, Course, Ground, Offloads, PLAIN, run};
pub use course::{Load, STALL};
use prestack_tests::environment::{say, seed};
pub use source::Dialect;
use std::collections::BTreeMap;
use std::time::Duration;

use prestack_testbed::{Capture, Disturbance};

/// What tshark flags without anything being wrong; many large answers fill a window.
const HARMLESS: [&str; 4] = [
    "window_update",
    "window_full",
    "keep_alive",
    "keep_alive_ack",
];

/// Requests are answered over TCP.
pub const HITS: &[&str] = &["--tcp-hits"];

/// The same where most connections come to be in doubt, which empties the cache and ends only with time.
const SETTLING: &[&str] = &["--tcp-hits", "--settle", "300ms"];

/// What may be flagged as often as answers are sent again: of one that is sent in two pieces the second begins at a
/// multiple of 8 bytes of it, some of which are in the first, and tshark takes the acknowledgement of such a piece for
/// one of what it has not seen.
const IN_PIECES: &str = "ack_lost_segment";

/// What may be flagged so often over a bad network, whatever the server.
const RARE: u64 = 20;

/// A good network with VLAN tags.
const TAGS: Disturbance = Disturbance {
    lose: 0.0,
    reorder: 0.0,
    duplicate: 0.0,
    has_tags: true,
    ..BAD
};

/// A bad network.
const BAD: Disturbance = Disturbance {
    lose: 0.03,
    reorder: 0.1,
    duplicate: 0.03,
    alter: 0.0,
    delay: Duration::ZERO,
    has_tags: false,
};

/// A worse one.
const WORSE: Disturbance = Disturbance {
    lose: 0.05,
    reorder: 0.2,
    duplicate: 0.05,
    ..BAD
};

/// Clients that mostly read.
const READING: Course = Course {
    name: "reading",
    habit: Habit::Reading,
    hits: 0.3,
    ..PLAIN
};

/// Where nothing is lost. Shares of hits are about a third of the least that was seen.
const CLEAN: [Course; 8] = [
    Course {
        hits: 0.07,
        ..PLAIN
    },
    READING,
    Course {
        name: "VLAN, one thread, IPv6, bare options",
        relay: Some(TAGS),
        threads: 1,
        is_v6: true,
        has_timestamps: false,
        has_sack: false,
        hits: 0.07,
        ..PLAIN
    },
    Course {
        name: "small windows",
        has_small_windows: true,
        commands: 2_000,
        ..PLAIN
    },
    Course {
        name: "all offloads",
        offloads: Offloads::All,
        hits: 0.07,
        ..PLAIN
    },
    Course {
        name: "no offloads",
        offloads: Offloads::None,
        hits: 0.07,
        ..PLAIN
    },
    Course {
        name: "many connections, ECN",
        has_ecn: true,
        connections: 64,
        hits: 0.06,
        ..PLAIN
    },
    Course {
        name: "several queues",
        connections: 64,
        queues: 4,
        ..READING
    },
];

/// Where much is.
const LOSSY: [Course; 6] = [
    Course {
        name: "bad network, reading",
        relay: Some(BAD),
        connections: 32,
        commands: 6_000,
        // Mostly it is more than 0.3, but doubt empties the cache for a while.
        hits: 0.05,
        ..READING
    },
    Course {
        name: "bad network",
        relay: Some(BAD),
        connections: 32,
        commands: 1_000,
        ..PLAIN
    },
    Course {
        name: "worse network, IPv6, one thread",
        relay: Some(WORSE),
        is_v6: true,
        threads: 1,
        connections: 32,
        commands: 1_000,
        ..PLAIN
    },
    Course {
        name: "bad network, no SACK",
        relay: Some(BAD),
        has_sack: false,
        connections: 32,
        commands: 1_000,
        ..PLAIN
    },
    Course {
        name: "bad network, small windows",
        relay: Some(BAD),
        has_small_windows: true,
        largest: 20_000,
        commands: 1_000,
        ..PLAIN
    },
    Course {
        name: "bad network, VLAN, no timestamps",
        relay: Some(Disturbance {
            has_tags: true,
            ..BAD
        }),
        has_timestamps: false,
        connections: 32,
        commands: 1_000,
        ..PLAIN
    },
];

fn all(courses: &[Course], prestack: Arguments) -> Result<()> {
    let wanted = std::env::var("PRESTACK_COURSE").unwrap_or_default();
    courses
        .iter()
        .filter(|course| course.name.contains(&wanted))
        .try_for_each(|course| run(course, prestack).map(drop))
}

#[test]
fn answers_are_right_without_prestack() -> Result<()> {
    all(&CLEAN[..1], None)?;
    all(&LOSSY[..1], None)
}

#[test]
fn answers_are_right_over_clean_networks() -> Result<()> {
    all(&CLEAN, Some(&[]))
}

#[test]
fn answers_are_right_over_clean_networks_with_tcp_hits() -> Result<()> {
    all(&CLEAN, Some(HITS))
}

#[test]
fn answers_are_right_over_bad_networks_with_tcp_hits() -> Result<()> {
    all(&LOSSY, Some(SETTLING))
}

#[test]
fn answers_are_right_over_bad_networks() -> Result<()> {
    all(&LOSSY, Some(&[]))
}

/// What tshark flags in a capture.
type Flags = BTreeMap<&'static str, u64>;

/// Runs a course while what passes the client's device is captured; what tshark flags in that, and how often answers
/// were sent again.
fn flags(course: &Course, prestack: Arguments, seed: u64) -> Result<(Flags, u64)> {
    let ground = Ground::new(course, prestack, seed)?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("client.pcap");
    let file = file.to_str().context("a path in text")?;
    let capture = Capture::start(&ground.bed.client, &ground.bed.links[0].client_dev, file)?;
    let tally = ground.run(course, seed)?;
    // Of the few commands of all kinds over a bad network all may be said while the cache is empty.
    let may_miss_all = course.habit == Habit::Mixed && course.relay.is_some();
    ensure!(
        may_miss_all || ground.has_hits(course, &tally)?,
        "too few hits"
    );
    let (flags, resent) = (capture.flags()?, ground.resent()?);
    say(&format!(
        "{}, {prestack:?}: {flags:?}, {resent} answers sent again",
        course.name
    ));
    Ok((flags, resent))
}

/// How often a course is run over a clean network before what tshark flags each time counts: now and then
/// a busy machine drops a segment or leaves a window closed, whatever the server.
const CAPTURES: usize = 3;

/// Fails when tshark flags the same thing in what passes over a clean network again and again.
fn nothing_flagged(prestack: Arguments) -> Result<()> {
    if !are_installed() {
        return Ok(());
    }
    for course in [PLAIN, READING] {
        // Larger ones fill windows and the queues of devices.
        let course = Course {
            largest: 20_000,
            has_probes: false,
            ..course
        };
        let (mut odd, _) = flags(&course, prestack, seed()?)?;
        odd.retain(|flag, _| !HARMLESS.contains(flag));
        for _ in 1..CAPTURES {
            if odd.is_empty() {
                break;
            }
            let (flags, _) = flags(&course, prestack, seed()?)?;
            odd.retain(|flag, _| flags.contains_key(flag));
        }
        ensure!(odd.is_empty(), "{}: {odd:?}", course.name);
    }
    Ok(())
}

/// The same flags with one count for segments that are late, as tshark tells those that were overtaken
/// from those that were sent again by how many milliseconds late they are.
fn with_one_for_late(mut flags: Flags) -> Flags {
    let overtaken = flags.remove("out_of_order").unwrap_or_default();
    *flags.entry("retransmission").or_default() += overtaken;
    flags
}

/// Fails when tshark flags something over a bad network that it would not, or not as often, in
/// memcached's own connections.
fn nothing_odd(prestack: Arguments) -> Result<()> {
    if !are_installed() {
        return Ok(());
    }
    let seed = seed()?;
    for course in &LOSSY[..2] {
        // How often larger ones have to be sent again differs widely from run to run.
        let course = &Course {
            largest: 20_000,
            ..*course
        };
        let bare = with_one_for_late(flags(course, None, seed)?.0);
        let (flags, resent) = flags(course, prestack, seed)?;
        for (flag, count) in with_one_for_late(flags) {
            let by_itself = bare.get(flag).copied().unwrap_or_default();
            let pieces = if flag == IN_PIECES { resent } else { 0 };
            ensure!(
                HARMLESS.contains(&flag) || count <= 2 * by_itself + RARE + pieces,
                "{}: {flag} {count} times, without prestack {by_itself} times",
                course.name
            );
        }
    }
    Ok(())
}

#[test]
fn captures_of_clean_networks_show_nothing() -> Result<()> {
    nothing_flagged(None)?;
    nothing_flagged(Some(HITS))
}

#[test]
fn captures_of_bad_networks_show_nothing_odd() -> Result<()> {
    nothing_odd(Some(SETTLING))
}

#[test]
fn a_changed_byte_is_noticed() -> Result<()> {
    let course = Course {
        relay: Some(Disturbance {
            alter: 0.01,
            ..Disturbance::default()
        }),
        ..PLAIN
    };
    let seed = seed()?;
    let ground = Ground::new(&course, None, seed)?;
    let result = ground.run(&course, seed);
    result.expect_err("words of segments have changed places");
    assert!(ground.relayed().altered > 0);
    Ok(())
}
