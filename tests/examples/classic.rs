//! Set once over TCP, get twice over UDP: the second GET does not reach memcached. Then the rate of one
//! client on the loopback interface, without and with prestack. All in a network namespace of its own;
//! to be run as root after `cargo xtask build`:
//!
//! ```text
//! cargo run --release --package prestack-tests --example classic
//! ```

use anyhow::Result;
use prestack_tests::classic::{Classic, median};

/// How often each side is measured.
const ROUNDS: usize = 5;
/// GETs of one measurement.
const COUNT: u32 = 10_000;

fn main() -> Result<()> {
    let classic = Classic::new()?;
    let [set, first, second] = classic.demonstrate()?;
    println!("set key over TCP         memcached has counted {set} GETs");
    println!("get key over UDP         memcached has counted {first} GETs");
    println!("get key over UDP again   memcached has counted {second} GETs");

    println!("\n{COUNT} GETs one after the other on lo, generic XDP:");
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        let (memcached, prestack) = classic.rates(COUNT)?;
        println!("round {round}: {memcached:.0}/s without, {prestack:.0}/s with prestack");
        without.push(memcached);
        with.push(prestack);
    }
    let (without, with) = (median(without), median(with));
    println!(
        "median:  {without:.0}/s without, {with:.0}/s with prestack: {:.2}×",
        with / without
    );
    Ok(())
}
