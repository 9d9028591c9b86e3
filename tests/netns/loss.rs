//! Packets that are lost.

use std::time::Duration;

use anyhow::Result;
use prestack_bench::loss::{self, Offer, measure};
use prestack_testbed::{binary, pace};

/// How much lower the hit rate may be, by chance. A connection in doubt would empty the cache for a second, and of the
/// frames that are lost there are several in each.
const MARGIN: f64 = 0.05;

/// Clients that read and write over UDP and TCP, with and without replies, have as many hits with one
/// frame of a thousand lost as with none.
#[test]
fn a_thousandth_of_the_frames_lost_leaves_the_hit_rate() -> Result<()> {
    let slowdown = if pace::is_slow() { 10.0 } else { 1.0 };
    let offer = Offer {
        udp_gets: 10_000.0 / slowdown,
        tcp: 1_000.0 / slowdown,
        tcp_noreply: 500.0 / slowdown,
        duration: Duration::from_secs(6),
        ..Offer::default()
    };
    let rows = measure(binary()?, &offer, &[0.0, 0.001])?;
    let shown = loss::text(&rows);
    println!("{shown}");
    let [without, with] = rows.as_slice() else {
        unreachable!("two shares were asked for");
    };
    assert_eq!(without.lost, 0);
    assert!(with.lost > 0, "{shown}");
    assert!(without.hit_ratio > 0.3, "{shown}");
    assert!(with.hit_ratio > without.hit_ratio - MARGIN, "{shown}");
    Ok(())
}
