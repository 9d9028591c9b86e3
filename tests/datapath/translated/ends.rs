//! How a connection on which GETs were answered ends.

use std::time::Duration;

use prestack::clock;
use prestack::maps::open_flows;

use super::connection::Ready;
use super::setup;
use crate::bytes::hit;
use crate::harness::{Datapath, wait};
use crate::packet::{ACK, FIN, PSH, RST};
use crate::tcp::connection::Connection;

const GET: &str = "get key\r\n";
const SETTLE: Duration = Duration::from_secs(5);
/// How long a connection is translated after the kernel's FIN.
const LINGER: Duration = Duration::from_secs(60);

/// How long it is when both ends seem to have got everything.
const LAST: Duration = Duration::from_secs(4);

/// A connection whose last GET was answered.
fn answered(port: u16) -> (Datapath, Ready) {
    answered_with(port, SETTLE)
}

/// The same, with this settle time.
fn answered_with(port: u16, settle: Duration) -> (Datapath, Ready) {
    let mut setup = setup();
    setup.settle = settle;
    let mut path = Datapath::with(&setup);
    path.fill("key", "value");
    let mut ready = Ready::open(&mut path, port);
    ready.served(&path, GET, hit("key", "value"));
    (path, ready)
}

/// In how many seconds the connection's place is free, `None` if it is not to be.
fn free_in(path: &mut Datapath) -> Option<u64> {
    let mut times = Vec::new();
    path.kernel_mut()
        .used_translations(|translated| times.push(translated.over_at));
    assert_eq!(times.len(), 1);
    let left = times[0].checked_sub(clock::now_ns())?;
    Some(Duration::from_nanos(left).as_secs_f64().round() as u64)
}

/// The client's FIN, then the kernel's, which acknowledges it.
fn close(path: &Datapath, ready: &mut Ready) {
    ready.passed(path, &ready.segment(FIN | ACK, ""));
    let connection = &mut ready.connection;
    connection.client = connection.client.wrapping_add(1);
    connection.acked = connection.client;
    ready.leaves(path, &ready.connection.answer(FIN | ACK, ""));
    ready.connection.server = ready.connection.server.wrapping_add(1);
}

#[test]
fn it_is_translated_until_both_ends_have_got_everything() {
    let (mut path, mut ready) = answered(4700);
    assert_eq!(free_in(&mut path), None);
    close(&path, &mut ready);
    // What is lost is sent again.
    assert_eq!(free_in(&mut path), Some(LINGER.as_secs()));
    ready.passed(&path, &ready.segment(ACK, ""));
    assert_eq!(free_in(&mut path), Some(SETTLE.as_secs()));
    // The FIN was followed, so that its acknowledgement is of nothing unknown.
    assert_eq!(path.stats().doubted_requests, 0);
}

/// The last acknowledgement may be lost: the client sends its FIN again, or the kernel does.
#[test]
fn what_is_lost_last_is_sent_again() {
    let settle = Duration::from_millis(50);
    let (mut path, mut ready) = answered_with(4709, settle);
    close(&path, &mut ready);
    let last = ready.segment(ACK, "");
    ready.passed(&path, &last);
    assert_eq!(free_in(&mut path), Some(LAST.as_secs()));
    wait(2 * settle);
    let before = ready.connection.server.wrapping_sub(1);
    let again = ready.connection.answer(FIN | ACK, "").sequence(before);
    let left = ready.leaves(&path, &again);
    assert_eq!(left.sequence, before.wrapping_add(ready.given));
    ready.passed(&path, &last);

    // The kernel has closed first.
    let (mut path, mut ready) = answered_with(4710, settle);
    ready.passed(&path, &ready.segment(ACK, ""));
    ready.leaves(&path, &ready.connection.answer(FIN | ACK, ""));
    ready.connection.server = ready.connection.server.wrapping_add(1);
    let fin = ready.segment(FIN | ACK, "");
    ready.passed(&path, &fin);
    ready.connection.client = ready.connection.client.wrapping_add(1);
    ready.connection.acked = ready.connection.client;
    ready.leaves(&path, &ready.connection.answer(ACK, ""));
    assert_eq!(free_in(&mut path), Some(LAST.as_secs()));
    wait(2 * settle);
    let passed = ready.passed(&path, &fin);
    assert_eq!(passed.sequence, ready.connection.client.wrapping_sub(1));
    let left = ready.leaves(&path, &ready.connection.answer(ACK, ""));
    let all = ready.connection.client.wrapping_add(ready.taken);
    assert_eq!(left.acknowledgement, all);
}

#[test]
fn one_end_may_go_on() {
    let (mut path, mut ready) = answered(4706);
    ready.passed(&path, &ready.segment(FIN | ACK, ""));
    let connection = &mut ready.connection;
    connection.client = connection.client.wrapping_add(1);
    connection.acked = connection.client;
    ready.leaves(&path, &ready.connection.answer(ACK, ""));
    assert_eq!(free_in(&mut path), None);
    ready.replies(&path, "more\r\n");
    assert_eq!(path.stats().doubted_requests, 0);
}

/// A later connection from this port, with numbers of its own.
fn opened_again(path: &Datapath, port: u16) -> Connection {
    let mut again = Connection::new(port);
    again.client = again.client.wrapping_add(1_000_000);
    again.server = again.server.wrapping_add(2_000_000);
    again.acked = again.client;
    again.shake_hands(path);
    again
}

#[test]
fn a_new_connection_of_the_same_name_is_not_closed() {
    let (mut path, mut ready) = answered(4708);
    close(&path, &mut ready);
    ready.passed(&path, &ready.segment(ACK, ""));
    let again = opened_again(&path, 4708);
    assert_eq!(free_in(&mut path), None);
    // Its numbers are its own, and one FIN does not end it.
    let mut ready = Ready::of(&mut path, again, None);
    ready.served(&path, GET, hit("key", "value"));
    ready.sends(&path, "version\r\n");
    ready.replies(&path, "VERSION 1\r\n");
    ready.passed(&path, &ready.segment(FIN | ACK, ""));
    ready.connection.client = ready.connection.client.wrapping_add(1);
    ready.connection.acked = ready.connection.client;
    ready.leaves(&path, &ready.connection.answer(ACK, ""));
    assert_eq!(free_in(&mut path), None);
}

#[test]
fn the_kernel_may_close_first() {
    let (mut path, mut ready) = answered(4701);
    ready.passed(&path, &ready.segment(ACK, ""));
    ready.leaves(&path, &ready.connection.answer(FIN | ACK, ""));
    assert_eq!(free_in(&mut path), Some(LINGER.as_secs()));
    ready.connection.server = ready.connection.server.wrapping_add(1);
    ready.passed(&path, &ready.segment(FIN | ACK, ""));
    // The kernel has not acknowledged that.
    assert_eq!(free_in(&mut path), Some(LINGER.as_secs()));
    let connection = &mut ready.connection;
    connection.client = connection.client.wrapping_add(1);
    connection.acked = connection.client;
    ready.leaves(&path, &ready.connection.answer(ACK, ""));
    assert_eq!(free_in(&mut path), Some(SETTLE.as_secs()));
}

/// Outside its window the kernel does not take the client's FIN, who then goes on.
#[test]
fn a_fin_that_is_not_heeded_is_no_end() {
    let (mut path, mut ready) = answered(4711);
    ready.passed(&path, &ready.segment(ACK, ""));
    ready.leaves(&path, &ready.connection.answer(FIN | ACK, ""));
    ready.connection.server = ready.connection.server.wrapping_add(1);
    let (sequence, _) = ready.segment(ACK, "").numbers();
    for off in [1 << 30, 1_u32.wrapping_neg() << 30] {
        let fin = ready.segment(FIN | ACK, "");
        ready.passed(&path, &fin.sequence(sequence.wrapping_add(off)));
    }
    ready.passed(&path, &ready.segment(ACK, ""));
    assert_eq!(free_in(&mut path), Some(LINGER.as_secs()));
}

#[test]
fn a_reset_is_no_data() {
    let (path, ready) = answered(4702);
    // Outside the window the kernel does not heed it, nor does it count as data that was passed.
    let (sequence, _) = ready.segment(ACK, "").numbers();
    let reset = ready
        .segment(RST, "")
        .sequence(sequence.wrapping_add(1 << 30));
    ready.passed(&path, &reset);
    let mut ready = ready;
    ready.served(&path, GET, hit("key", "value"));
}

/// In the window, but not what comes next: the kernel asks whether it was meant (RFC 5961).
#[test]
fn a_reset_that_is_not_heeded_is_no_data() {
    let mut setup = setup();
    setup.settle = SETTLE;
    let mut path = Datapath::with(&setup);
    path.fill("key", "value");
    let mut ready = Ready::open(&mut path, 4707);
    // Before anything was answered, and after.
    for _ in 0..2 {
        let (sequence, _) = ready.segment(ACK, "").numbers();
        let reset = ready.segment(RST, "").sequence(sequence.wrapping_add(5));
        path.kernel().programs.rx(&reset.build());
        ready.leaves(&path, &ready.connection.answer(ACK, ""));
        ready.served(&path, GET, hit("key", "value"));
    }
    // One that the kernel heeds ends it.
    let reset = ready.segment(RST, "");
    path.kernel().programs.rx(&reset.build());
    ready.sends(&path, GET);
}

/// A filter drops it behind this program, or its checksum is wrong: the connection goes on, however late.
#[test]
fn a_reset_that_does_not_arrive_at_the_kernel_ends_nothing() {
    let settle = Duration::from_millis(50);
    for flags in [RST, RST | ACK] {
        let (mut path, mut ready) = answered_with(4712, settle);
        ready.passed(&path, &ready.segment(flags, ""));
        assert_eq!(free_in(&mut path), None);
        wait(2 * settle);
        ready.sends(&path, GET);
        ready.replies(&path, hit("key", "value"));
        ready.passed(&path, &ready.segment(ACK, ""));
        ready.served(&path, GET, hit("key", "value"));
        assert_eq!(path.stats().doubted_requests, 0);
    }
}

/// One that does arrive is its end, of which the kernel says nothing.
#[test]
fn a_reset_is_followed_by_another_connection() {
    let (mut path, ready) = answered(4713);
    ready.passed(&path, &ready.segment(RST, ""));
    let again = opened_again(&path, 4713);
    let mut ready = Ready::of(&mut path, again, None);
    ready.served(&path, GET, hit("key", "value"));
}

/// What comes late may bring the kernel's reset about.
#[test]
fn the_reset_of_the_kernel_is_the_end() {
    let (mut path, mut ready) = answered(4714);
    ready.passed(&path, &ready.segment(RST, ""));
    ready.sends(&path, GET);
    assert_eq!(free_in(&mut path), None);
    ready.leaves(&path, &ready.connection.answer(RST, ""));
    assert_eq!(free_in(&mut path), Some(SETTLE.as_secs()));
}

/// As it is by the daemon, which sees no socket.
#[test]
fn a_reset_connection_gives_its_place_back() {
    let (mut path, ready) = answered(4715);
    ready.passed(&path, &ready.segment(RST, ""));
    let open = open_flows(&path.kernel().programs.ids).expect("the flows");
    let [flow] = &open[..] else {
        panic!("{open:?}");
    };
    assert!(path.kernel().end_flow(&flow.found));
    assert_eq!(free_in(&mut path), Some(SETTLE.as_secs()));
}

/// As long as the kernel asks for an acknowledgement.
#[test]
fn what_is_sent_again_is_translated_for_longer() {
    const AGAIN: Duration = Duration::from_secs(125);
    let (mut path, mut ready) = answered(4716);
    ready.passed(&path, &ready.segment(ACK, ""));
    let fin = ready.connection.answer(FIN | ACK, "");
    ready.leaves(&path, &fin);
    assert_eq!(free_in(&mut path), Some(LINGER.as_secs()));
    ready.leaves(&path, &fin);
    assert_eq!(free_in(&mut path), Some(AGAIN.as_secs()));
    // The client has all, and nothing is waited for.
    ready.connection.server = ready.connection.server.wrapping_add(1);
    ready.passed(&path, &ready.segment(ACK, ""));
    path.kernel_mut()
        .used_translations(|translated| translated.over_at = clock::now_ns() + 5_000_000_000);
    ready.leaves(&path, &ready.connection.answer(ACK, ""));
    assert_eq!(free_in(&mut path), Some(5));
    // Nor after the kernel's reset.
    let (mut path, ready) = answered(4717);
    ready.leaves(&path, &ready.connection.answer(FIN | ACK, ""));
    ready.leaves(&path, &ready.connection.answer(RST, ""));
    assert_eq!(free_in(&mut path), Some(SETTLE.as_secs()));
}

#[test]
fn a_fin_does_not_go_before_the_answer_with_data_that_is_sent_again() {
    let (path, ready) = answered(4703);
    let server = ready.connection.server;
    let reply = "END\r\n";
    let before = server.wrapping_sub(reply.len() as u32);
    let again = ready
        .connection
        .answer(FIN | PSH | ACK, reply)
        .sequence(before);
    let left = ready.leaves(&path, &again);
    assert_eq!((left.sequence, left.flags), (before, PSH | ACK));
    assert_eq!(left.data, reply.as_bytes());
    // The FIN alone is behind the answer.
    let left = ready.leaves(&path, &ready.connection.answer(FIN | ACK, ""));
    assert_eq!(
        (left.sequence, left.flags),
        (server.wrapping_add(ready.given), FIN | ACK)
    );
}

#[test]
fn nothing_leaves_across_the_answer() {
    let (path, ready) = answered(4704);
    let before = ready.connection.server.wrapping_sub(5);
    let across = ready
        .connection
        .answer(PSH | ACK, "END\r\nmore")
        .sequence(before);
    let ran = path.kernel().programs.tx(&across.build());
    assert_eq!(ran.action, 2, "it is dropped");
}

#[test]
fn the_answer_takes_its_part_of_the_window_and_its_acknowledgement_is_counted() {
    let (path, ready) = answered(4705);
    let answer = hit("key", "value").len();
    let lacking = ready.segment(ACK, "");
    let (_, acknowledgement) = lacking.numbers();
    let lacking = lacking.acknowledging(acknowledgement.wrapping_sub(answer as u32));
    let passed = ready.passed(&path, &lacking);
    assert_eq!(usize::from(passed.window), 0xffff - answer);
    assert_eq!(path.stats().tcp_received, 0);
    // Once.
    for _ in 0..2 {
        ready.passed(&path, &ready.segment(ACK, ""));
        assert_eq!(path.stats().tcp_received, 1);
    }
}
