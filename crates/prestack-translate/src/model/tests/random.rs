//! Random scripts in random networks.

use proptest::prelude::*;

use super::{gets, script};
use crate::model::faults::{Fate, Faults};
use crate::model::memcached::{Command, MISSING};
use crate::model::tcp::{RTO, Settings};
use crate::model::world::{Outcome, Script, Step, World};

/// Scripts that are tried: 3,000, or `PRESTACK_CASES`.
fn cases() -> u32 {
    let wanted = std::env::var("PRESTACK_CASES").ok();
    wanted.map_or(3000, |cases| cases.parse().expect("a number"))
}

/// What a client may do.
fn command() -> impl Strategy<Value = Command> {
    prop_oneof![
        6 => (0u16..300).prop_map(Command::Get),
        2 => (600u16..640).prop_map(Command::Get),
        1 => (600u16..MISSING).prop_map(Command::Get),
        1 => Just(Command::Get(MISSING)),
        2 => (0u16..4000).prop_map(Command::Set),
        1 => (0u16..2000).prop_map(Command::SetQuiet),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    (
        command(),
        prop_oneof![4 => Just(0), 1 => 1usize..40],
        prop::bool::weighted(0.7),
        prop_oneof![4 => Just(0u64), 1 => 1u64..60_000],
    )
        .prop_map(|(command, cut, waits, pause)| Step {
            command,
            cut,
            waits,
            pause,
        })
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        8 => Just(Fate::Arrives),
        3 => Just(Fate::Lost),
        1 => (1u64..2000).prop_map(Fate::Twice),
        1 => (1u64..300_000).prop_map(Fate::Twice),
        2 => (1u64..2000).prop_map(Fate::Late),
        1 => (1u64..300_000).prop_map(Fate::Late),
        1 => (1usize..30).prop_map(Fate::Cut),
        1 => (1usize..1448).prop_map(Fate::Cut),
        1 => (1u32..3000).prop_map(|sequence| Fate::Damaged(sequence, 0)),
        1 => Just(Fate::TooMuch),
    ]
}

fn faults() -> impl Strategy<Value = Faults> {
    let fates = || prop::collection::vec(fate(), 0..25);
    (fates(), fates(), fates()).prop_map(|(up, inside, down)| Faults { up, inside, down })
}

fn end() -> impl Strategy<Value = Settings> {
    (
        prop_oneof![any::<u32>(), (0u32..10_000).prop_map(|n| u32::MAX - n)],
        prop_oneof![Just(1448u32), 60u32..1448],
        prop_oneof![2 => Just(60_000u32), 1 => 600u32..5000],
        prop::bool::ANY,
        prop_oneof![3 => Just(0u64), 1 => Just(700_000u64)],
    )
        .prop_map(|(first, mss, buffer, has_nagle, keepalive)| Settings {
            first,
            mss,
            buffer,
            scale: 3,
            has_sack: true,
            has_timestamps: true,
            has_nagle,
            keepalive,
        })
}

fn scripts() -> impl Strategy<Value = Script> {
    let ending = (
        prop::option::weighted(0.2, 0usize..12),
        prop::option::weighted(0.1, 0usize..12),
        prop::bool::weighted(0.05),
        prop::option::weighted(0.1, 2usize..12),
    );
    (
        prop::collection::vec(step(), 1..12),
        (end(), end()),
        (prop::bool::weighted(0.8), prop::bool::weighted(0.7)),
        faults(),
        0usize..3,
        (
            1u64..30_000,
            prop_oneof![Just(100_000usize), 100usize..2000],
            prop_oneof![Just(1500usize), 200usize..600],
            prop_oneof![Just(1500usize), 200usize..600],
        ),
        ending,
    )
        .prop_map(
            |(steps, (client, server), (has_sack, has_timestamps), faults, warm_up, io, ending)| {
                let both = |end| Settings {
                    has_sack,
                    has_timestamps,
                    ..end
                };
                let mut all = gets(2);
                all.extend(steps);
                let mut faults = faults;
                if client.buffer > 5000 {
                    // Its windows are not those of one that runs out of memory. If it does, and what says that there
                    // is some again is lost, nobody sends again: see docs/tcp.md.
                    for fate in faults
                        .down
                        .iter_mut()
                        .filter(|fate| **fate == Fate::TooMuch)
                    {
                        *fate = Fate::Arrives;
                    }
                }
                Script {
                    client: both(client),
                    server: both(server),
                    faults,
                    warm_up,
                    thinks: io.0,
                    reads: io.1,
                    tail_room: io.2,
                    part_room: io.3,
                    drains_at: ending.0,
                    spoofed_at: ending.1,
                    resets: ending.2,
                    hangs_up_at: ending.3,
                    ..script(all)
                }
            },
        )
}

/// The same without anything being answered.
fn without_answering(script: &Script) -> Script {
    let mut script = script.clone();
    script.policy.is_serving = 0;
    script
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_ends_read_what_they_should(script in scripts()) {
        let outcome = World::run(&script).map_err(TestCaseError::fail)?;
        let plain = World::run(&without_answering(&script)).map_err(|e| TestCaseError::fail(format!("plain {e}")))?;
        prop_assert_eq!(outcome.reneged, 0);
        // Every timeout that follows another has its own loss.
        prop_assert_eq!(plain.idle_timeouts, 0, "plain");
        // What the kernel sends behind a lost answer may not fit a small window with it, and brings it back only.
        let is_small = script.client.buffer < 5000;
        prop_assert!(outcome.idle_timeouts <= u64::from(is_small), "{:?}", outcome);
        // Nothing compares a run with the plain one of the same script: faults meet packets by their number, and what
        // is answered early makes other packets, so that not the same is lost. The limit is of the run's own timeouts,
        // of which none is idle.
        // Once the network is well, what takes longest is one timeout, as backed off as it was by then, and
        // the connection's own time.
        let quiet = World::run(&Script { faults: Faults::default(), ..script.clone() }).map_err(TestCaseError::fail)?;
        let limit = |outcome: &Outcome| outcome.last_fault + 2 * outcome.longest.max(RTO) + 2 * quiet.took;
        prop_assert!(plain.took <= limit(&plain), "plain {:?} {:?}", plain, quiet);
        prop_assert!(outcome.took <= limit(&outcome), "{:?} {:?}", outcome, quiet);
    }
}
