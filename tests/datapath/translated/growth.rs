//! Answers for which a packet has no room: for a while no more are tried that need as much.

use prestack_testbed::cpu;
use prestack_tests::kernel;

use super::connection::Ready;
use super::filled;
use crate::bytes::hit;
use crate::packet::{ACK, PSH};

/// So many answers are not tried; then one is.
const SPARED: usize = 256;
/// Position behind a TCP header without options.
const BEHIND_HEADER: usize = 54;

#[test]
fn what_does_not_fit_is_not_tried_for_a_while() {
    if kernel::version() < (6, 18) {
        return;
    }
    // Each CPU sees for itself.
    let cpus = cpu::all().expect("the CPUs");
    cpu::pin_thread(&cpus[..1]).expect("the thread stays on one");
    let mut path = filled();
    let value = "a".repeat(500);
    path.fill("long", &value);
    let (short, long) = (hit("key", "value"), hit("long", value));
    let mut ready = Ready::open(&mut path, 4800);

    // The packet is in pieces, and these do not grow.
    let segment = ready.segment(ACK | PSH, "get key\r\n");
    let (packet, programs) = (segment.build(), &path.kernel().programs);
    let ran = programs.rx_in_pieces(&packet, BEHIND_HEADER);
    assert_eq!((ran.action, ran.packet), (2, packet));
    ready.connection.client = ready.connection.client.wrapping_add(9);
    ready.replies(&path, &short);

    // What needs less is answered all the time.
    for _ in 0..SPARED {
        ready.sends(&path, "get long\r\n");
        ready.replies(&path, &long);
        ready.served(&path, "get key\r\n", &short);
    }
    for _ in 0..2 {
        ready.served(&path, "get long\r\n", &long);
    }
    cpu::pin_thread(&cpus).expect("the thread may go on anywhere");
}
