//! The classic demonstration, on the loopback interface.

use anyhow::Result;
use prestack_testbed::pace;
use prestack_tests::classic::{Classic, median};

#[test]
fn one_of_two_gets_reaches_memcached() -> Result<()> {
    let [set, first, second] = Classic::new()?.demonstrate()?;
    assert_eq!((first, second), (set + 1, set + 1));
    Ok(())
}

#[test]
fn one_client_on_loopback_is_faster_with_prestack() -> Result<()> {
    let classic = Classic::new()?;
    let rounds = (0..3).map(|_| classic.rates(pace::volume(10_000) as u32));
    let (without, with): (Vec<f64>, Vec<f64>) =
        rounds.collect::<Result<Vec<_>>>()?.into_iter().unzip();
    let (without, with) = (median(without), median(with));
    println!("{without:.0}/s without, {with:.0}/s with prestack");
    assert!(
        with > without,
        "{with:.0}/s with prestack, {without:.0}/s without"
    );
    Ok(())
}
