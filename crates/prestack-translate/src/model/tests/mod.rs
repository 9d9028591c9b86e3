mod exhaustive;
mod random;
mod rules;
mod usual;

use super::faults::Faults;
use super::memcached::Command;
use super::tcp::Settings;
use super::world::{Outcome, Script, Step, World};
use crate::Policy;

pub(super) const MS: u64 = 1_000_000;

pub(super) fn settings(first: u32) -> Settings {
    Settings {
        first,
        mss: 1448,
        buffer: 60_000,
        scale: 3,
        has_sack: true,
        has_timestamps: true,
        has_nagle: false,
        keepalive: 0,
    }
}

pub(super) fn policy() -> Policy {
    Policy {
        is_serving: 1,
        forward_after: 100 * MS,
        trickle: 5000 * MS,
        resend_after: 20 * MS,
        room: 1448,
    }
}

pub(super) fn script(steps: Vec<Step>) -> Script {
    Script {
        steps,
        client: settings(u32::MAX - 100),
        server: settings(u32::MAX - 700),
        faults: Faults::default(),
        warm_up: 0,
        thinks: 20,
        reads: 100_000,
        policy: policy(),
        tail_room: 400,
        part_room: 400,
        drains_at: None,
        spoofed_at: None,
        hangs_up_at: None,
        resets: false,
    }
}

/// A key whose value is short, and one whose value takes several segments and is not served.
pub(super) const SHORT: u16 = 100;
pub(super) const LONG: u16 = 700;

pub(super) fn gets(count: usize) -> Vec<Step> {
    vec![Step::waiting(Command::Get(SHORT)); count]
}

pub(super) fn run(script: &Script) -> Outcome {
    World::run(script).unwrap_or_else(|error| panic!("{error}\n{script:?}"))
}
