//! How large tables are: by the memory that is given, or as is said.

use bytesize::ByteSize;
use prestack_abi::{
    cache::BUCKET_BYTES,
    flow::{FLOW_WAYS, Flow, MAX_FLOWS, MOST_FLOWS},
    translated::{AnswerRest, SHORT_ANSWER, Translated},
};

use super::SettingsError;

/// Fewest buckets that make a cache.
const MIN_BUCKETS: u64 = 16;
/// The table of TCP connections takes no more than this part of the cache's memory, if nothing else is asked
/// for and requests are answered over TCP.
const FLOWS_PART: u64 = 8;

/// How many buckets fit in `memory`.
pub(super) fn buckets(memory: ByteSize) -> Result<u32, SettingsError> {
    let size = BUCKET_BYTES as u64;
    let buckets = memory.as_u64() / size;
    if buckets < MIN_BUCKETS {
        return Err(SettingsError::TooLittleMemory {
            given: memory,
            least: ByteSize::b((MIN_BUCKETS * size).next_multiple_of(1024)),
        });
    }
    // Array maps are indexed by 32 bits, and mapped into this process as a whole.
    u32::try_from(buckets).map_err(|_| SettingsError::TooMuchMemory {
        given: memory,
        most: ByteSize::b(u64::from(u32::MAX) * size),
    })
}

/// How many sets hold so many TCP connections.
pub(super) fn sets_for(given: u32) -> Result<u32, SettingsError> {
    if !(FLOW_WAYS..=MOST_FLOWS).contains(&(given as usize)) {
        return Err(SettingsError::FlowsOutOfRange { given });
    }
    Ok(given.next_power_of_two() / FLOW_WAYS as u32)
}

/// Whether answers of so many bytes do not fit in what is kept with a connection.
pub(super) const fn has_long_answers(most: u64) -> bool {
    most > SHORT_ANSWER as u64
}

/// The greatest power of two of sets that takes no more than its part of the memory, but no less than there
/// are without answers over TCP.
pub(super) fn default_sets(memory: ByteSize, has_long_answers: bool) -> u32 {
    let (least, most) = (MAX_FLOWS / FLOW_WAYS, MOST_FLOWS / FLOW_WAYS);
    let rest = if has_long_answers {
        size_of::<AnswerRest>()
    } else {
        0
    };
    let size = (size_of::<Flow>() + size_of::<Translated>() + rest) * FLOW_WAYS;
    let fit = memory.as_u64() / FLOWS_PART / size as u64;
    let fit = fit.clamp(least as u64, most as u64) as u32;
    1 << fit.ilog2()
}

#[cfg(test)]
mod tests {
    use super::*;
    use prestack_abi::{
        control::{CONTROLS, Control, LOCKS, Lock},
        flow::{FlowSet, HOLES, Hole},
        requests::{KeyTickets, REQUEST_SETS, RequestKey, RequestSet, SET_WAYS},
    };

    /// docs/NAME, its lines joined.
    macro_rules! manual {
        ($name:literal) => {
            include_str!(concat!("../../../../docs/", $name))
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
        };
    }

    #[test]
    fn maps_are_as_large_as_the_manual_says() {
        const MIB: usize = 1 << 20;
        let kib = |bytes: usize| format!("{:.1} KiB", bytes as f64 / 1024.0);
        let mib = |bytes: usize| format!("{:.1} MiB", bytes as f64 / MIB as f64);
        let whole_mib = |bytes: usize| format!("{:.0} MiB", bytes as f64 / MIB as f64);
        let followed = size_of::<Flow>() + size_of::<FlowSet>() / FLOW_WAYS;
        let (translated, rest) = (size_of::<Translated>(), size_of::<AnswerRest>());
        let holes = HOLES * size_of::<Hole>();
        let of_all = |size: usize| whole_mib(MAX_FLOWS * size + holes);
        let (table, with_hits) = (of_all(followed), of_all(followed + translated + rest));
        let request = size_of::<KeyTickets>() + size_of::<RequestKey>();
        let requests = mib(REQUEST_SETS * (size_of::<RequestSet>() + SET_WAYS * request));
        let marks = mib(CONTROLS * size_of::<Control>() + LOCKS * size_of::<Lock>());
        let first = (1..).find(|&size| {
            let sets = default_sets(ByteSize::mib(size), true) as usize;
            sets * FLOW_WAYS > MAX_FLOWS
        });
        let first = first.expect("there are more with much memory");

        let check = |manual: &str, said: &[String]| {
            for said in said {
                assert!(manual.contains(said), "{said}");
            }
        };
        check(
            &manual!("operations.md"),
            &[
                format!("request memory, {requests}, locks and marks, {marks}"),
                format!("{} for each that can be followed", kib(followed)),
                format!("{} more with `--tcp-hits`", kib(translated)),
                format!(
                    "another {} if answers may have more than {SHORT_ANSWER}",
                    kib(rest)
                ),
                format!("{} for what comes out of order", whole_mib(holes)),
                format!("{table} for 8,192 connections, and {with_hits} with `--tcp-hits`"),
                format!("more than 8,192 from {first} MiB"),
            ],
        );
        check(
            &manual!("architecture.md"),
            &[
                format!("take about {requests}"),
                format!(
                    "(8,192 of {}, or `--max-flows`) and `HOLES` {table}",
                    kib(size_of::<Flow>())
                ),
            ],
        );
        check(
            &manual!("limitations.md"),
            &[format!(
                "(about {table}; with `--tcp-hits` about {with_hits})"
            )],
        );
    }

    #[test]
    fn the_least_memory_is_enough() {
        let least = (MIN_BUCKETS * BUCKET_BYTES as u64).next_multiple_of(1024);
        assert_eq!(
            u64::from(buckets(ByteSize::b(least)).expect("enough")),
            MIN_BUCKETS
        );
    }
}
