use stateright::semantics::register::{Register, RegisterOp, RegisterRet};
use stateright::semantics::{ConsistencyTester, LinearizabilityTester};

use super::*;

/// Starts a read and a write of 5 that overlap.
fn overlapping() -> History {
    let mut history = History::default();
    history.start(0, Effect::Read, None);
    history.start(1, Effect::Write(5), None);
    history
}

#[test]
fn an_overlapping_read_sees_either_value() {
    for value in [0, 5] {
        let mut history = overlapping();
        history.end(1, Answer::Stored);
        history.end(0, Answer::Value(value));
        assert!(history.is_linearizable());
    }
}

#[test]
fn an_old_value_after_the_write_is_stale() {
    let mut history = overlapping();
    history.end(1, Answer::Stored);
    history.start(2, Effect::Read, None);
    history.end(2, Answer::Value(0));
    assert!(!history.is_linearizable());
}

#[test]
fn an_old_value_after_a_new_one_is_stale() {
    let mut history = overlapping();
    history.end(0, Answer::Value(5));
    history.start(2, Effect::Read, None);
    history.end(2, Answer::Value(0));
    assert!(!history.is_linearizable());
}

#[test]
fn a_copy_of_a_write_takes_effect_at_any_time() {
    let mut history = History::default();
    history.start(0, Effect::Write(1), None);
    history.start_copy(Effect::Write(1));
    history.end(0, Answer::Stored);
    for (op, value) in [(1, 2), (2, 2), (3, 1)] {
        if op == 1 {
            history.start(op, Effect::Write(value), None);
            history.end(op, Answer::Stored);
        } else {
            history.start(op, Effect::Read, None);
            history.end(op, Answer::Value(value));
        }
    }
    assert!(history.is_linearizable());
    history.start(4, Effect::Read, None);
    history.end(4, Answer::Value(2));
    assert!(!history.is_linearizable(), "a copy takes effect once");
}

#[test]
fn a_reply_on_a_connection_ends_the_silent_writes_before() {
    for (connection, is_linearizable) in [(None, true), (Some(0), false)] {
        let mut history = History::default();
        history.start(0, Effect::Write(1), connection);
        history.start(1, Effect::Read, connection);
        history.end(1, Answer::Value(0));
        assert_eq!(history.is_linearizable(), is_linearizable);
    }
}

#[test]
fn a_refused_write_writes_nothing() {
    for (value, is_linearizable) in [(0, true), (1, false)] {
        let mut history = History::default();
        history.start(0, Effect::TryWrite(1), None);
        history.end(0, Answer::Refused);
        history.start(1, Effect::Read, None);
        history.end(1, Answer::Value(value));
        assert_eq!(history.is_linearizable(), is_linearizable);
    }
}

/// The monitor agrees with stateright's own check of whole histories.
#[test]
fn random_histories_are_judged_as_by_stateright() {
    const THREADS: usize = 3;
    let mut random = fastrand::Rng::with_seed(4);
    let mut judged = [0; 2];
    for _ in 0..20_000 {
        let mut history = History::default();
        let mut tester = LinearizabilityTester::new(Register(0));
        let mut running: [Option<(Op, bool)>; THREADS] = [None; THREADS];
        let mut next = 0;
        for _ in 0..14 {
            let thread = random.usize(..THREADS);
            match running[thread].take() {
                None if usize::from(next) < MAX_OPS => {
                    let writes = random.bool();
                    let (effect, op) = if writes {
                        (Effect::Write(next + 1), RegisterOp::Write(next + 1))
                    } else {
                        (Effect::Read, RegisterOp::Read)
                    };
                    history.start(next, effect, None);
                    tester.on_invoke(thread, op).unwrap();
                    running[thread] = Some((next, writes));
                    next += 1;
                }
                None => {}
                Some((op, true)) => {
                    history.end(op, Answer::Stored);
                    tester.on_return(thread, RegisterRet::WriteOk).unwrap();
                }
                Some((op, false)) => {
                    let value = random.u8(..=next);
                    history.end(op, Answer::Value(value));
                    tester
                        .on_return(thread, RegisterRet::ReadOk(value))
                        .unwrap();
                }
            }
        }
        let is_linearizable = history.is_linearizable();
        assert_eq!(is_linearizable, tester.is_consistent(), "{tester:?}");
        judged[usize::from(is_linearizable)] += 1;
    }
    assert!(judged.iter().all(|&count| count > 1_000), "{judged:?}");
}
