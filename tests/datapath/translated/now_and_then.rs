//! Requests that pass although they hit: now and then, and when the kernel has waited for long.

use prestack_translate::Translation;

use super::connection::Ready;
use super::{filled, setup};
use crate::bytes::hit;
use crate::harness::Datapath;
use crate::packet::ACK;
use crate::tcp::connection::Connection;

const GET: &str = "get key\r\n";
/// In ns: longer than the test takes.
const MARGIN: u64 = 600_000_000_000;

fn answer() -> Vec<u8> {
    hit("key", "value")
}

/// Lets a time of the only connection be earlier by so many ns.
fn age(path: &mut Datapath, by: u64, time: fn(&mut Translation) -> &mut u64) {
    path.kernel_mut().used_translations(|element| {
        let time = time(&mut element.translation);
        *time = time.wrapping_sub(by);
    });
}

/// By the express way, and over IPv6 by the steps for all: a connection on which a request was answered.
fn each_way(check: impl Fn(Datapath, Ready)) {
    for v6 in [false, true] {
        let mut path = filled();
        let mut connection = Connection::new(4900);
        connection.v6 = v6;
        connection.shake_hands(&path);
        let mut ready = Ready::of(&mut path, connection, None);
        ready.served(&path, GET, answer());
        check(path, ready);
    }
}

/// memcached's idle timeout, its LRU and connection tracking have to see that the connection is in use.
#[test]
fn one_passes_when_none_has_for_the_time_of_the_trickle() {
    each_way(|mut path, mut ready| {
        let trickle = setup().policy.trickle;
        for _ in 0..2 {
            age(&mut path, trickle - MARGIN, |of| &mut of.passed_at);
            ready.served(&path, GET, answer());
            age(&mut path, MARGIN, |of| &mut of.passed_at);
            ready.sends(&path, GET);
            ready.replies(&path, answer());
            // The time begins anew.
            ready.served(&path, GET, answer());
        }
        assert_eq!(path.stats().tcp_hits, 5);
    });
}

/// The acknowledgement came with requests that it has not got: otherwise it sends again what the client has.
#[test]
fn one_passes_when_the_kernel_waits_for_long() {
    each_way(|mut path, mut ready| {
        let long = setup().policy.forward_after;
        for _ in 0..2 {
            age(&mut path, long - MARGIN, |of| &mut of.waits_since);
            ready.served(&path, GET, answer());
            age(&mut path, MARGIN, |of| &mut of.waits_since);
            ready.sends(&path, GET);
            // That has brought it; then it waits for that of the reply, but not for long yet.
            ready.replies(&path, answer());
            ready.served(&path, GET, answer());
        }
        // What acknowledges everything passes: it waits for nothing any more.
        ready.passed(&path, &ready.segment(ACK, ""));
        age(&mut path, 2 * long, |of| &mut of.waits_since);
        ready.served(&path, GET, answer());
        assert_eq!(path.stats().tcp_hits, 6);
    });
}
