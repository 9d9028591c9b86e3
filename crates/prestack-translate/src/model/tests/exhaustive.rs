//! Short scripts in every network that does one of a few things to each of the first packets.

use super::{SHORT, gets, script};
use crate::model::faults::{Fate, Faults};
use crate::model::memcached::Command;
use crate::model::tcp::RTO;
use crate::model::world::{Script, Step, World};

/// Those that are tried together: with all of them at once there would be five times as many networks.
const FATES: [&[Fate]; 2] = [
    &[Fate::Arrives, Fate::Lost, Fate::Twice(150), Fate::Late(250)],
    // Within a command, and within the first line of a reply.
    &[Fate::Arrives, Fate::Lost, Fate::Cut(5)],
];

/// Every choice of fates for `len` packets.
fn fates(of: &[Fate], len: u32) -> impl Iterator<Item = Vec<Fate>> {
    let count = of.len();
    (0..count.pow(len)).map(move |mut number| {
        (0..len)
            .map(|_| {
                let fate = of[number % count];
                number /= count;
                fate
            })
            .collect()
    })
}

/// Runs the script in every network; the least and the most that were served.
fn in_every_network(script: &Script) -> (usize, usize) {
    let quiet = World::run(script).expect("without faults").took;
    let mut served = (usize::MAX, 0);
    for some in FATES {
        for up in fates(some, 4) {
            for down in fates(some, 3) {
                for inside in fates(&some[..2], 2) {
                    let script = Script {
                        faults: Faults {
                            up: up.clone(),
                            inside,
                            down: down.clone(),
                        },
                        ..script.clone()
                    };
                    let outcome = World::run(&script).unwrap_or_else(|error| {
                        panic!("{error}\n{:?}", script.faults);
                    });
                    let limit = outcome.last_fault + outcome.longest.max(RTO) + quiet;
                    assert!(outcome.took <= limit, "{outcome:?} {:?}", script.faults);
                    served = (served.0.min(outcome.served), served.1.max(outcome.served));
                }
            }
        }
    }
    served
}

fn steps(commands: &[(Command, bool)]) -> Vec<Step> {
    let mut steps = gets(2);
    steps.extend(commands.iter().map(|&(command, waits)| Step {
        waits,
        ..Step::waiting(command)
    }));
    steps
}

/// The script of these commands behind two GETs, without faults.
fn of(commands: &[(Command, bool)]) -> Script {
    Script {
        warm_up: 2,
        ..script(steps(commands))
    }
}

fn all(commands: &[(Command, bool)]) -> (usize, usize) {
    in_every_network(&of(commands))
}

#[test]
fn hits_one_after_the_other() {
    let get = (Command::Get(SHORT), true);
    assert_eq!(all(&[get, get, get]).1, 4);
}

#[test]
fn a_write_behind_a_hit() {
    let served = all(&[
        (Command::Get(SHORT), true),
        (Command::Set(100), false),
        (Command::Get(SHORT), true),
    ]);
    assert_eq!(served.1, 3);
}

#[test]
fn a_quiet_write_behind_a_hit() {
    let served = all(&[
        (Command::Get(SHORT), true),
        (Command::SetQuiet(100), false),
        (Command::Get(SHORT), false),
    ]);
    assert_eq!(served.1, 2);
}

#[test]
fn hits_without_waiting() {
    let get = Command::Get(SHORT);
    assert_eq!(all(&[(get, true), (get, false), (get, false)]).1, 2);
}

#[test]
fn a_write_behind_a_hit_without_options() {
    let mut script = of(&[
        (Command::Get(SHORT), true),
        (Command::Set(100), false),
        (Command::Get(SHORT), true),
    ]);
    for end in [&mut script.client, &mut script.server] {
        (end.has_sack, end.has_timestamps) = (false, false);
    }
    assert_eq!(in_every_network(&script).1, 3);
}

/// The first request that meets faults begins with number 0, or that is its fifth byte's; and so it is with its answer.
#[test]
fn hits_where_numbers_wrap() {
    let get = Command::Get(SHORT);
    for at in [0, 4] {
        let mut script = of(&[(get, true), (get, false), (get, true)]);
        let first = |bytes: Vec<u8>| (2 * bytes.len() as u32 + 1 + at).wrapping_neg();
        script.client.first = first(get.bytes());
        script.server.first = first(get.reply());
        assert_eq!(in_every_network(&script).1, 3);
    }
}

#[test]
fn memcached_hangs_up_behind_a_hit() {
    let get = (Command::Get(SHORT), true);
    let mut script = of(&[get, get]);
    script.hangs_up_at = Some(3);
    in_every_network(&script);
}
