//! The workloads of the benchmarks.

use serde::Serialize;

use crate::bench::BenchOptions;
use crate::comparison::{BRIEF, Workload};
use crate::load::Transport;
use crate::popularity::Popularity;

/// Connections over TCP, unless the options say otherwise.
const CONNECTIONS: u32 = 64;
/// Keys over TCP, unless the options say otherwise.
const MANY_KEYS: u32 = 100_000;

/// What workloads are to show together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Series {
    /// The essence, as the README tells it.
    Overview,
    /// Hits, by the number of keys.
    Keys,
    /// Hits, by the value's size.
    Values,
    /// Misses, and reads mixed with writes.
    Mixes,
    /// Server and client on the same CPUs.
    Cpus,
    /// What is followed but not answered.
    Tcp,
    /// What is answered over TCP, and what passes beside it.
    TcpHits,
    /// What is let through, of every kind.
    Passing,
}

impl Series {
    /// All of them, in the order in which they are shown.
    pub(crate) const ALL: [Self; 8] = [
        Self::Overview,
        Self::Keys,
        Self::Values,
        Self::Mixes,
        Self::Cpus,
        Self::Tcp,
        Self::TcpHits,
        Self::Passing,
    ];

    /// By which docs/benchmarks.md knows it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Overview => "closed-loop",
            Self::Keys => "keys",
            Self::Values => "values",
            Self::Mixes => "mixes",
            Self::Cpus => "cpus",
            Self::Tcp => "tcp",
            Self::TcpHits => "tcp-hits",
            Self::Passing => "passing",
        }
    }

    /// Its heading.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Overview => "Closed loop over UDP",
            Self::Keys => "Hits by number of keys",
            Self::Values => "Hits by size of the value",
            Self::Mixes => "Misses, and reads mixed with writes",
            Self::Cpus => "Server and client on the same CPUs",
            Self::Tcp => "TCP, which is followed and not answered",
            Self::TcpHits => "GETs answered over TCP (`--tcp-hits`)",
            Self::Passing => "What passes: the server's CPU time for a request",
        }
    }
}

/// Hits alone (a high `max-age`) with a small and a large set of keys, then the product's default
/// `max-age` with the skew that caches usually see. Where the number of keys is given, hits alone with so many.
pub(crate) fn overview(options: &BenchOptions) -> Vec<(Series, Workload)> {
    if let Some(keys) = options.keys {
        return vec![(Series::Overview, Workload::gets(keys))];
    }
    let zipf = Workload {
        popularity: Popularity::Zipf(0.99),
        max_age: BRIEF.to_owned(),
        ..Workload::gets(100_000)
    };
    [Workload::gets(1_000), Workload::gets(100_000), zipf]
        .map(|workload| (Series::Overview, workload))
        .into()
}

/// What prestack does not answer, but follows: writes, reads of what is there and of what is not.
pub(crate) fn tcp(options: &BenchOptions) -> Vec<(Series, Workload)> {
    let workload = |write_ratio, is_absent| Workload {
        max_age: BRIEF.to_owned(),
        transport: Transport::Tcp,
        write_ratio,
        connections: connections(options),
        is_absent,
        ..Workload::gets(options.keys.unwrap_or(MANY_KEYS))
    };
    let workloads = match options.write_ratio {
        Some(ratio) => vec![workload(ratio, false)],
        None => vec![
            workload(0.5, false),
            workload(0.0, false),
            workload(0.0, true),
        ],
    };
    let of_tcp = |workload| (Series::Tcp, workload);
    workloads.into_iter().map(of_tcp).collect()
}

/// With `--tcp-hits`: hits alone, hits and writes, misses, what is too long to be answered, one connection.
pub(crate) fn tcp_hits(options: &BenchOptions) -> Vec<(Series, Workload)> {
    let hits = Workload {
        value_size: 100,
        transport: Transport::Tcp,
        connections: connections(options),
        has_tcp_hits: true,
        ..Workload::gets(1_000)
    };
    let many = Workload {
        keys: options.keys.unwrap_or(MANY_KEYS),
        memory: Some("256MiB".to_owned()),
        ..hits.clone()
    };
    let mixed = Workload {
        write_ratio: 0.1,
        max_age: BRIEF.to_owned(),
        ..hits.clone()
    };
    // All GETs are hits.
    let apart = Workload {
        writes_apart: true,
        ..mixed.clone()
    };
    let missing = Workload {
        is_absent: true,
        max_age: BRIEF.to_owned(),
        ..hits.clone()
    };
    let long = Workload {
        value_size: 1_000,
        ..hits.clone()
    };
    let single = Workload {
        connections: 1,
        ..hits.clone()
    };
    [hits, many, mixed, apart, missing, long, single]
        .map(|workload| (Series::TcpHits, workload))
        .into()
}

/// What prestack lets through: requests that it could not answer, and another service's.
pub(crate) fn passing(options: &BenchOptions) -> Vec<(Series, Workload)> {
    let usual = || Workload {
        max_age: BRIEF.to_owned(),
        is_passing: true,
        ..Workload::gets(10_000)
    };
    let of_tcp = |write_ratio| Workload {
        transport: Transport::Tcp,
        connections: connections(options),
        write_ratio,
        ..usual()
    };
    let workloads = [
        Workload {
            is_absent: true,
            ..usual()
        },
        Workload {
            write_ratio: 1.0,
            ..usual()
        },
        Workload {
            value_size: 4_000,
            ..usual()
        },
        Workload {
            is_elsewhere: true,
            ..usual()
        },
        of_tcp(0.0),
        of_tcp(1.0),
    ];
    workloads.map(|workload| (Series::Passing, workload)).into()
}

/// Connections over TCP.
fn connections(options: &BenchOptions) -> usize {
    options.connections.unwrap_or(CONNECTIONS) as usize
}

/// One thing varied at a time.
pub(crate) fn suite() -> Vec<(Series, Workload)> {
    let default_age = |workload| Workload {
        max_age: BRIEF.to_owned(),
        ..workload
    };
    let mut all = Vec::new();
    let mut add = |series, workload| all.push((series, workload));
    for keys in [1, 1_000, 10_000, 100_000, 1_000_000] {
        add(
            Series::Keys,
            Workload {
                // The default is too small for a million.
                memory: (keys == 1_000_000).then(|| "512MiB".to_owned()),
                ..Workload::gets(keys)
            },
        );
    }
    for value_size in [1, 100, 400, 1_000, 1_300] {
        add(
            Series::Values,
            Workload {
                value_size,
                ..Workload::gets(1_000)
            },
        );
    }
    add(
        Series::Mixes,
        default_age(Workload {
            is_absent: true,
            ..Workload::gets(100_000)
        }),
    );
    for write_ratio in [0.05, 0.5] {
        add(
            Series::Mixes,
            default_age(Workload {
                popularity: Popularity::Zipf(0.99),
                write_ratio,
                ..Workload::gets(100_000)
            }),
        );
    }
    add(
        Series::Cpus,
        Workload {
            shares_cpus: true,
            ..Workload::gets(1_000)
        },
    );
    all
}
