//! Connections as they usually are.

use super::{LONG, SHORT, gets, run, script};
use crate::model::faults::{Fate, Faults};
use crate::model::memcached::Command;
use crate::model::world::Step;

#[test]
fn hits_never_reach_memcached() {
    let outcome = run(&script(gets(900)));
    assert_eq!(outcome.served, 899);
    assert_eq!(
        outcome.kernel_retransmissions + outcome.client_retransmissions,
        0
    );
    assert!(outcome.longest_gap < 1000, "{outcome:?}");
}

#[test]
fn the_kernel_gets_its_acknowledgement_in_time() {
    let outcome = run(&script(gets(20_000)));
    assert_eq!(outcome.kernel_retransmissions, 0, "{outcome:?}");
    assert!(outcome.served > 19_900);
}

#[test]
fn a_lost_answer_comes_back_as_soon_as_the_client_asks_again() {
    let mut steps = gets(4);
    steps[2].pause = 100_000;
    let mut script = script(steps);
    script.warm_up = 2;
    // The third answer is lost, and the first copy of it.
    script.faults.down = vec![Fate::Lost, Fate::Lost];
    let outcome = run(&script);
    assert_eq!((outcome.served, outcome.resent), (3, 2), "{outcome:?}");
    assert_eq!(outcome.client_retransmissions, 2);
    assert_eq!(outcome.kernel_retransmissions, 0);
}

#[test]
fn repeated_acknowledgements_bring_a_lost_answer_back() {
    // Behind the answer that is lost comes a long one of memcached's.
    let mut steps = gets(2);
    steps.push(Step::waiting(Command::Get(SHORT)));
    steps.push(Step {
        waits: false,
        ..Step::waiting(Command::Get(LONG))
    });
    let mut script = script(steps);
    script.warm_up = 2;
    script.faults.down = vec![Fate::Lost];
    let outcome = run(&script);
    assert_eq!((outcome.served, outcome.resent), (2, 1), "{outcome:?}");
    assert_eq!(outcome.timeouts, 0);
    assert_eq!(outcome.reneged, 0);
}

#[test]
fn an_acknowledgement_that_was_held_back_is_made_up_for() {
    // What comes behind the request is acknowledged before the client has the answer, and owed no reply.
    let mut steps = gets(2);
    steps.push(Step::waiting(Command::Get(SHORT)));
    steps.push(Step {
        waits: false,
        ..Step::waiting(Command::SetQuiet(3000))
    });
    steps.push(Step {
        pause: 1_000_000,
        ..Step::waiting(Command::Get(SHORT))
    });
    let mut script = script(steps);
    script.warm_up = 2;
    script.faults.down = vec![Fate::Late(400)];
    let outcome = run(&script);
    assert_eq!(outcome.client_retransmissions, 0, "{outcome:?}");
    assert_eq!(outcome.timeouts, 0);
}

#[test]
fn probes_of_a_quiet_connection_are_answered() {
    let mut steps = gets(3);
    steps.push(Step {
        pause: 10_000_000,
        ..Step::waiting(Command::Get(SHORT))
    });
    let mut script = script(steps);
    script.client.keepalive = 500_000;
    script.server.keepalive = 700_000;
    script.policy.trickle = u64::MAX;
    let outcome = run(&script);
    assert_eq!(outcome.served, 3, "{outcome:?}");
    assert_eq!(outcome.resent, 0);
}

#[test]
fn one_request_now_and_then_goes_to_memcached() {
    let mut steps = gets(2);
    let slowly = Step {
        pause: 1_000_000,
        ..Step::waiting(Command::Get(SHORT))
    };
    steps.extend(vec![slowly; 20]);
    let outcome = run(&script(steps));
    // Every 5 s.
    assert_eq!(outcome.served, 22 - 1 - 4, "{outcome:?}");
}

#[test]
fn long_transfers_between_hits_are_exact() {
    let mut steps = Vec::new();
    for i in 0..30 {
        steps.extend(gets(3));
        steps.push(Step::waiting(Command::Get(LONG + 6 * i)));
        steps.push(Step::waiting(Command::Set(20_000 + 1000 * i)));
    }
    let mut script = script(steps);
    let drops = |n: usize| {
        (0..400).map(move |i| {
            if i % n == 0 {
                Fate::Lost
            } else {
                Fate::Arrives
            }
        })
    };
    script.faults = Faults {
        up: drops(13).collect(),
        inside: drops(37).collect(),
        down: drops(11).collect(),
    };
    let outcome = run(&script);
    assert!(outcome.served > 40 && outcome.resent > 0, "{outcome:?}");
    assert_eq!(outcome.reneged, 0);
}

#[test]
fn a_long_answer_that_was_lost_comes_back_part_by_part() {
    // 1,200 bytes: in parts of 512, or of what fits a packet without data.
    for (part_room, parts) in [(1500, 3), (200, 7)] {
        let mut steps = gets(2);
        steps.push(Step {
            pause: 100_000,
            ..Step::waiting(Command::Get(630))
        });
        steps.push(Step::waiting(Command::Get(SHORT)));
        let mut script = script(steps);
        script.warm_up = 2;
        script.tail_room = 1500;
        let quiet = run(&script);
        assert_eq!((quiet.served, quiet.resent), (3, 0), "{quiet:?}");
        script.faults.down = vec![Fate::Lost];
        script.part_room = part_room;
        let outcome = run(&script);
        assert_eq!((outcome.served, outcome.resent), (3, parts), "{outcome:?}");
        assert_eq!(outcome.client_retransmissions, 1);
        assert_eq!(outcome.timeouts, 1);
    }
}

#[test]
fn what_the_kernel_drops_does_not_stop_a_lost_answer() {
    let mut steps = gets(2);
    steps[1].pause = 100_000;
    let mut script = script(steps);
    // The answer is lost. The request comes again, but damaged, as if there were more behind it. Then an old copy of
    // what is before it makes the kernel say what it has got: that the client must not hear.
    let damaged = Fate::Damaged(500, 0);
    script.faults.up = vec![Fate::Twice(450_000), Fate::Arrives, Fate::Arrives, damaged];
    script.faults.down = vec![Fate::Arrives, Fate::Lost];
    let outcome = run(&script);
    assert_eq!((outcome.served, outcome.resent), (1, 1), "{outcome:?}");
}

#[test]
fn a_damaged_acknowledgement_of_part_of_an_answer_does_not_stop_it() {
    let mut steps = gets(2);
    steps.push(Step {
        pause: 100_000,
        ..Step::waiting(Command::Get(630))
    });
    let mut script = script(steps);
    script.warm_up = 2;
    script.tail_room = 1500;
    // The answer is lost. The request comes again, but damaged, as if the client had some of it.
    script.faults.up = vec![Fate::Arrives, Fate::Damaged(0, 700)];
    script.faults.down = vec![Fate::Lost];
    let outcome = run(&script);
    assert_eq!(outcome.served, 2, "{outcome:?}");
}

#[test]
fn an_answer_that_was_thrown_away_comes_again_when_there_is_room() {
    let mut steps = gets(2);
    steps.push(Step::waiting(Command::Get(SHORT)));
    // The client has not read all of the answer before.
    steps.push(Step {
        waits: false,
        pause: 300,
        ..Step::waiting(Command::Get(SHORT))
    });
    let mut script = script(steps);
    script.warm_up = 2;
    script.reads = 10;
    script.faults.down = vec![Fate::Arrives, Fate::TooMuch];
    let outcome = run(&script);
    assert_eq!((outcome.served, outcome.resent), (3, 1), "{outcome:?}");
    assert_eq!(outcome.timeouts, 0);
    assert!(outcome.longest_gap < 5000, "{outcome:?}");
}
