//! Doubt about a connection on which GETs were answered: nothing more is, until it is over.

use std::time::Duration;

use super::connection::Ready;
use super::setup;
use crate::bytes::hit;
use crate::harness::{Datapath, Setup, wait};
use crate::tcp::connection::Connection;

const GET: &str = "get key\r\n";
const SETTLE: Duration = Duration::from_millis(100);

fn answer() -> Vec<u8> {
    hit("key", "value")
}

#[test]
fn an_unknown_command_bars_a_connection_for_a_while() {
    for v6 in [false, true] {
        let mut path = Datapath::with(&Setup {
            settle: SETTLE,
            remember: SETTLE,
            ..setup()
        });
        path.fill("key", "value");
        let mut connection = Connection::new(4950);
        connection.v6 = v6;
        connection.shake_hands(&path);
        let mut ready = Ready::of(&mut path, connection, None);
        ready.served(&path, GET, answer());
        ready.sends(&path, "nonsense\r\n");
        ready.replies(&path, "ERROR\r\n");
        assert_eq!(path.stats().doubted_requests, 1);
        wait(3 * SETTLE);
        for number in 0..2 {
            // Others are answered, it is not: what it sends empties the cache.
            path.fill("key", "value");
            path.assert_hit("key", "value");
            assert_eq!(path.stats().regained, 0, "after {number} exchanges");
            ready.sends(&path, GET);
            ready.replies(&path, answer());
            wait(3 * SETTLE);
        }
        assert_eq!(path.stats().regained, 1);
        path.fill("key", "value");
        ready.served(&path, GET, answer());
        assert_eq!(path.stats().tcp_hits, 2);
    }
}
