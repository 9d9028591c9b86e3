//! The classic demonstration, on the loopback interface.

use anyhow::Result;
use prestack_tests::classic::Classic;

#[test]
fn one_of_two_gets_reaches_memcached() -> Result<()> {
    let [set, first, second] = Classic::new()?.demonstrate()?;
    assert_eq!((first, second), (set + 1, set + 1));
    Ok(())
}

/// How fast is the example's to say: see docs/benchmarks.md.
#[test]
fn one_client_on_loopback_is_answered_from_the_cache() -> Result<()> {
    Classic::new()?.rates(200)?;
    Ok(())
}
