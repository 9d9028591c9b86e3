//! Whether what clients saw of one key fits a register that changes at one instant per write.
//!
//! Every value is written once only, so a read names the write that it saw. With all operations
//! of one value (its write and its reads) taken together, let `first_end` be the time at which the
//! first of them ended and `last_start` the time at which the last of them started. If `first_end`
//! lies before `last_start`, the key had that value throughout between the two: the value owns
//! that zone. Otherwise all operations of the value overlap in one instant at least, which lies
//! anywhere between `last_start` and `first_end`. Such a history is linearizable exactly if no read
//! ended before its write started, no two owned zones overlap, and no unowned zone lies within an
//! owned one (Gibbons and Korach, "Testing Shared Memories", SIAM J. Comput. 26, 1997).

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

/// A time on some common clock.
pub type Time = u64;

/// Something a client did to the key.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// When the request was sent.
    pub start: Time,
    /// When the answer had been received; [`Time::MAX`] if it never was.
    pub end: Time,
    /// The value written or read.
    pub value: u64,
    /// Whether it was written.
    pub write: bool,
}

/// The operations of one value.
#[derive(Clone, Copy, Debug)]
struct Zone {
    value: u64,
    write: Option<Operation>,
    first_end: Time,
    last_start: Time,
}

impl Zone {
    fn is_owned(&self) -> bool {
        self.first_end < self.last_start
    }
}

/// Fails when the history of one key is not linearizable; the message names the values.
///
/// # Errors
/// Then, and when a value was read that nobody wrote, or was written twice.
pub fn check(operations: &[Operation]) -> Result<()> {
    let zones = zones(operations)?;
    let mut owned: Vec<&Zone> = zones.iter().filter(|zone| zone.is_owned()).collect();
    owned.sort_by_key(|zone| zone.first_end);
    for pair in owned.windows(2) {
        ensure!(
            pair[0].last_start <= pair[1].first_end,
            "stale: value {} was seen, then {}, then {} again: {pair:?}",
            pair[0].value,
            pair[1].value,
            pair[0].value
        );
    }
    for zone in zones.iter().filter(|zone| !zone.is_owned()) {
        let within = owned
            .iter()
            .find(|other| other.first_end < zone.last_start && zone.first_end < other.last_start);
        ensure!(
            within.is_none(),
            "stale: value {} came and went while {} was there throughout: {zone:?} {within:?}",
            zone.value,
            within.map_or(0, |other| other.value)
        );
    }
    Ok(())
}

fn zones(operations: &[Operation]) -> Result<Vec<Zone>> {
    let mut zones: BTreeMap<u64, Zone> = BTreeMap::new();
    for operation in operations {
        let value = operation.value;
        let fresh = Zone {
            value,
            write: None,
            first_end: Time::MAX,
            last_start: 0,
        };
        let zone = zones.entry(value).or_insert(fresh);
        zone.first_end = zone.first_end.min(operation.end);
        zone.last_start = zone.last_start.max(operation.start);
        if operation.write {
            ensure!(zone.write.is_none(), "value {value} was written twice");
            zone.write = Some(*operation);
        }
    }
    let reads = operations.iter().filter(|operation| !operation.write);
    for read in reads {
        let write = zones[&read.value].write;
        let write = write.with_context(|| format!("nobody wrote what was read: {read:?}"))?;
        ensure!(
            write.start <= read.end,
            "{read:?} saw the future: {write:?}"
        );
    }
    Ok(zones.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(value: u64, start: Time, end: Time) -> Operation {
        Operation {
            start,
            end,
            value,
            write: true,
        }
    }

    fn read(value: u64, start: Time, end: Time) -> Operation {
        Operation {
            start,
            end,
            value,
            write: false,
        }
    }

    #[test]
    fn concurrent_reads_may_see_either() {
        let history = [
            write(1, 0, 1),
            write(2, 10, 20),
            read(1, 11, 13),
            read(2, 14, 16),
        ];
        check(&history).unwrap();
    }

    #[test]
    fn an_old_value_after_a_write_is_stale() {
        let history = [write(1, 0, 1), write(2, 10, 20), read(1, 21, 22)];
        assert!(check(&history).is_err());
    }

    #[test]
    fn an_old_value_after_a_new_one_was_read_is_stale() {
        // The write has not ended when the new value is first seen, or never does.
        for end in [30, Time::MAX] {
            let history = [
                write(1, 0, 1),
                write(2, 10, end),
                read(2, 12, 13),
                read(1, 14, 15),
            ];
            assert!(check(&history).is_err(), "{end}");
        }
    }

    #[test]
    fn concurrent_writes_may_land_in_either_order_but_in_one() {
        let writes = [write(0, 0, 1), write(1, 10, 20), write(2, 10, 20)];
        check(&[&writes[..], &[read(1, 21, 22), read(1, 23, 24)]].concat()).unwrap();
        check(&[&writes[..], &[read(2, 21, 22), read(2, 23, 24)]].concat()).unwrap();
        assert!(check(&[&writes[..], &[read(1, 21, 22), read(2, 23, 24)]].concat()).is_err());
    }

    #[test]
    fn an_unanswered_write_may_never_have_happened() {
        let history = [write(1, 0, 1), write(2, 10, Time::MAX), read(1, 90, 91)];
        check(&history).unwrap();
    }

    #[test]
    fn values_from_nowhere_or_the_future_are_refused() {
        assert!(check(&[write(1, 0, 1), read(7, 2, 3)]).is_err());
        assert!(check(&[write(1, 10, 11), read(1, 2, 3)]).is_err());
        assert!(check(&[write(1, 0, 1), write(1, 2, 3)]).is_err());
    }

    #[test]
    fn a_value_that_comes_and_goes_while_another_stays_is_stale() {
        // The first is there from 1 to 40 at least, whenever the other write happened.
        let around = [write(1, 0, 1), read(1, 40, 41)];
        let within = [write(2, 10, 20), read(2, 21, 22)];
        assert!(check(&[&around[..], &within].concat()).is_err());
        assert!(check(&[&around[..], &within[..1]].concat()).is_err());
        // But it may have ended with either edge.
        check(&[&around[..], &[write(2, 1, 20)]].concat()).unwrap();
        check(&[&around[..], &[write(2, 10, 40)]].concat()).unwrap();
    }

    /// Whether some order of the operations, none before one that had ended when it began, has
    /// every read find what was written last.
    fn some_order_fits(rest: &[Operation], current: Option<u64>) -> bool {
        rest.is_empty()
            || (0..rest.len()).any(|next| {
                let chosen = rest[next];
                let mut others = rest.to_vec();
                others.swap_remove(next);
                others.iter().all(|other| other.end >= chosen.start)
                    && (chosen.write || current == Some(chosen.value))
                    && some_order_fits(&others, Some(chosen.value))
            })
    }

    #[test]
    fn it_agrees_with_trying_every_order() {
        let mut random = fastrand::Rng::with_seed(1);
        let mut fitting = 0;
        let rounds = 20_000;
        for _ in 0..rounds {
            let writes = random.u64(1..=3);
            let history: Vec<_> = (0..writes + random.u64(..=4))
                .map(|number| {
                    let start = random.u64(..24);
                    let end = start + random.u64(1..8);
                    if number >= writes {
                        read(random.u64(..writes), start, end)
                    } else if random.u32(..8) == 0 {
                        write(number, start, Time::MAX)
                    } else {
                        write(number, start, end)
                    }
                })
                .collect();
            let fits = some_order_fits(&history, None);
            assert_eq!(check(&history).is_ok(), fits, "{history:?}");
            fitting += u32::from(fits);
        }
        assert!((rounds / 5..rounds * 4 / 5).contains(&fitting), "{fitting}");
    }
}
