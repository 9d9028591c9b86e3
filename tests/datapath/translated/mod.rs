//! TCP connections on which GETs are answered: their segments, in and out.

mod carried;
pub mod connection;
mod doubt;
mod earning;
mod ends;
mod errors;
mod forms;
mod growth;
mod long;
mod now_and_then;
mod odd;
mod serving;
mod unserved;

use prestack_translate::Policy;

use crate::harness::{Datapath, Setup};

/// A setup in which GETs are answered over TCP.
pub fn setup() -> Setup {
    Setup {
        policy: Policy {
            is_serving: 1,
            forward_after: 3_600_000_000_000,
            trickle: 3_600_000_000_000,
            resend_after: 3_600_000_000_000,
            room: 1472,
        },
        ..Setup::default()
    }
}

/// A cache with two keys.
pub fn filled() -> Datapath {
    let mut path = Datapath::with(&setup());
    path.fill("key", "value");
    path.fill("other", "value");
    path
}
