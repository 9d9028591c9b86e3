//! Short scripts in every network that does one of a few things to each of the first packets.

use super::{SHORT, gets, script};
use crate::model::faults::{Fate, Faults};
use crate::model::memcached::Command;
use crate::model::tcp::RTO;
use crate::model::world::{Script, Step, World};

const FATES: [Fate; 4] = [Fate::Arrives, Fate::Lost, Fate::Twice(150), Fate::Late(250)];

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
    for up in fates(&FATES, 4) {
        for down in fates(&FATES, 3) {
            for inside in fates(&FATES[..2], 2) {
                let script = Script {
                    faults: Faults {
                        up: up.clone(),
                        inside: inside.clone(),
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

fn all(commands: &[(Command, bool)]) -> (usize, usize) {
    let mut script = script(steps(commands));
    script.warm_up = 2;
    in_every_network(&script)
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
fn memcached_hangs_up_behind_a_hit() {
    let get = (Command::Get(SHORT), true);
    let mut script = script(steps(&[get, get]));
    script.warm_up = 2;
    script.hangs_up_at = Some(3);
    in_every_network(&script);
}
