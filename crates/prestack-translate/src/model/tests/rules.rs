//! Each rule left out once: a script that goes well with all of them then does not.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{LONG, SHORT, gets, script};
use crate::model::faults::Fate::{Arrives, Lost, TooMuch, Twice};
use crate::model::memcached::Command;
use crate::model::world::{Outcome, Script, Step, World};
use crate::rules::{Rule, leave_out};

/// The script goes well with all rules, and does not do `well` without this one.
fn needs(rule: Rule, script: &Script, well: impl Fn(&Outcome) -> bool) {
    let with = World::run(script).expect("with all rules");
    assert!(well(&with), "with all rules {with:?}");
    // Garbled commands are a panic of the model's memcached.
    let without = leave_out(Some(rule), || {
        catch_unwind(AssertUnwindSafe(|| World::run(script)))
    });
    if let Ok(Ok(outcome)) = without {
        assert!(!well(&outcome), "{rule:?} is idle: {outcome:?}");
    }
}

fn at_once(command: Command) -> Step {
    Step {
        waits: false,
        ..Step::waiting(command)
    }
}

#[test]
fn only_at_rest() {
    // Two requests are answered before either answer has come, and the first is lost: only the second is
    // there to be sent again.
    let mut steps = gets(2);
    steps.push(Step::waiting(Command::Get(SHORT)));
    steps.push(at_once(Command::Get(SHORT + 1)));
    let mut script = script(steps);
    script.warm_up = 2;
    script.faults.down = vec![Lost];
    needs(Rule::OnlyAtRest, &script, |_| true);
}

#[test]
fn by_position() {
    // The kernel has not heard that its last reply has come, for the acknowledgement came with a request that
    // was answered, and sends it again where the answer belongs, which is lost.
    let mut steps = gets(1);
    steps.push(Step::waiting(Command::Get(SHORT - 1)));
    let mut script = script(steps);
    script.warm_up = 1;
    script.faults.down = vec![Lost];
    needs(Rule::ByPosition, &script, |_| true);
}

#[test]
fn hold_acknowledgement() {
    // An answer is lost, and an old copy of what is before it makes the kernel say what it has got.
    let mut script = script(gets(2));
    script.faults.up = vec![Twice(600)];
    script.faults.down = vec![Arrives, Lost];
    needs(Rule::HoldAcknowledgement, &script, |_| true);
}

#[test]
fn forward_when_the_kernel_waits() {
    let script = script(gets(5000));
    needs(Rule::ForwardWhenKernelWaits, &script, |outcome| {
        outcome.kernel_retransmissions == 0
    });
}

#[test]
fn reset_by_syn_ack() {
    let mut script = script(gets(6));
    script.spoofed_at = Some(4);
    needs(Rule::ResetBySynAck, &script, |outcome| outcome.served == 5);
}

#[test]
fn hold_behind_parts() {
    // The answer is lost. It comes in parts then, of which the second is lost.
    let mut steps = gets(2);
    // Of its own the kernel has nothing to send again.
    steps.push(Step {
        pause: 100_000,
        ..Step::waiting(Command::Get(620))
    });
    let mut script = script(steps);
    script.warm_up = 2;
    script.tail_room = 1500;
    script.faults.down = vec![Lost, Arrives, Lost];
    needs(Rule::HoldBehindParts, &script, |_| true);
}

#[test]
fn room_to_spare() {
    // The client has no memory for the answer, as it has not read the one before, and what says that there is again is
    // lost.
    let mut steps = gets(3);
    steps.push(Step {
        pause: 300,
        ..at_once(Command::Get(SHORT))
    });
    let mut script = script(steps);
    script.client.buffer = 4000;
    script.warm_up = 2;
    script.reads = 10;
    script.faults.down = vec![Arrives, TooMuch];
    script.faults.up = vec![Arrives, Arrives, Arrives, Lost];
    needs(Rule::RoomToSpare, &script, |_| true);
}

#[test]
fn translate_blocks() {
    // Of a long reply behind hits a segment is lost: the client's blocks bring it back without a timeout.
    let mut steps = gets(12);
    steps.push(Step::waiting(Command::Get(LONG + 190)));
    let mut script = script(steps);
    script.warm_up = 12;
    script.faults.down = vec![Arrives, Lost];
    needs(Rule::TranslateBlocks, &script, |outcome| {
        outcome.timeouts == 0 && outcome.kernel_retransmissions == 1 && outcome.reneged == 0
    });
}

#[test]
fn translate_while_draining() {
    let mut script = script(gets(6));
    script.drains_at = Some(4);
    needs(Rule::TranslateWhileDraining, &script, |outcome| {
        outcome.served == 3
    });
}
