//! Which requests are answered, and that what else comes and goes is translated.

use super::connection::Ready;
use super::filled;
use crate::bytes::hit;
use crate::harness::Datapath;

#[test]
fn a_get_is_answered_and_what_follows_is_translated() {
    let mut path = filled();
    let mut ready = Ready::open(&mut path, 4000);
    let answer = ready.served(&path, "get key\r\n", hit("key", "value"));
    assert_eq!((answer.flags, answer.options.len()), (0x18, 0));
    ready.served(&path, "get other\r\n", hit("other", "value"));
    ready.sends(&path, "set key 0 0 3\r\nnew\r\n");
    ready.replies(&path, "STORED\r\n");
    ready.sends(&path, "get key\r\n");
    ready.replies(&path, "VALUE key 0 3\r\nnew\r\nEND\r\n");
    ready.served(&path, "get key\r\n", hit("key", "new"));
    let stats = path.stats();
    assert_eq!((stats.tcp_hits, stats.flows_translated), (3, 1));
    assert_eq!((stats.doubted_requests, stats.doubted_replies), (0, 0));
}

/// A reply counts as answered before it has left, and another CPU may be at that: what is answered meanwhile would
/// overtake it.
#[test]
fn nothing_overtakes_a_reply_that_is_leaving() {
    let mut path = filled();
    let mut ready = Ready::open(&mut path, 4000);
    ready.served(&path, "get key\r\n", hit("key", "value"));
    let alter = |path: &mut Datapath, by: u32| {
        path.kernel_mut()
            .used_flows(|flow| flow.sent = flow.sent.wrapping_add(by));
    };
    alter(&mut path, 5);
    ready.sends(&path, "get key\r\n");
    alter(&mut path, 5_u32.wrapping_neg());
    ready.replies(&path, hit("key", "value"));
    ready.served(&path, "get key\r\n", hit("key", "value"));
}
