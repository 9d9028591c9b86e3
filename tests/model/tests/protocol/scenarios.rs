//! Who does what.

use prestack_model::scenario::{Budget, Kind, Reply, Scenario};

const GET: Kind = Kind::Get;
const SET: Kind = Kind::Set(Reply::Always);
const SILENT: Kind = Kind::Set(Reply::Never);
const QUIET: Kind = Kind::Set(Reply::Failure);

/// Nothing goes wrong but delay and reordering.
const NONE: Budget = Budget {
    copies: 0,
    drops: 0,
    garbled: 0,
    repeats: 0,
    resets: 0,
    losses: 0,
};

/// Two UDP readers, one of which reads twice.
fn readers() -> Scenario {
    Scenario::new().udp(&[(GET, 0), (GET, 1)]).udp(&[(GET, 0)])
}

/// UDP readers and a UDP writer.
pub fn udp() -> Scenario {
    readers().udp(&[(SET, 0)]).budget(Budget {
        copies: 1,
        drops: 1,
        ..NONE
    })
}

/// UDP readers and a UDP writer, without accidents.
pub fn plain_udp() -> Scenario {
    udp().budget(NONE)
}

/// Two UDP writers, each of whose datagrams may come twice.
pub fn two_udp_writers() -> Scenario {
    Scenario::new()
        .udp(&[(GET, 0), (GET, 1)])
        .udp(&[(SET, 0)])
        .udp(&[(SET, 0)])
        .budget(Budget {
            copies: 1,
            drops: 1,
            ..NONE
        })
}

/// A UDP client whose requests all have one id, whether they were answered or not, and a reader.
pub fn reused_ids() -> Scenario {
    Scenario::new()
        .udp(&[(GET, 0), (GET, 0)])
        .impatient()
        .udp(&[(GET, 0)])
        .udp(&[(SET, 0)])
        .budget(Budget {
            copies: 1,
            drops: 1,
            ..NONE
        })
}

/// A UDP client with several requests under way, each with its own id.
pub fn one_flow() -> Scenario {
    Scenario::new()
        .udp(&[(GET, 0), (GET, 1)])
        .impatient()
        .udp(&[(GET, 0)])
        .udp(&[(SET, 0)])
        .budget(Budget {
            copies: 1,
            drops: 1,
            ..NONE
        })
}

/// A UDP client that writes twice under one id, and readers.
pub fn reused_ids_of_writes() -> Scenario {
    readers()
        .udp(&[(SET, 0), (SET, 0)])
        .impatient()
        .budget(Budget { drops: 1, ..NONE })
}

/// A UDP client that writes and reads under one id.
pub fn reused_ids_of_both() -> Scenario {
    Scenario::new()
        .udp(&[(GET, 0), (GET, 1)])
        .udp(&[(SET, 0), (GET, 0), (SET, 0)])
        .impatient()
}

/// A UDP client that gives up on what it asks and asks under the same id again, where requests are lost.
pub fn lost_get() -> Scenario {
    Scenario::new()
        .udp(&[(GET, 0), (GET, 1)])
        .udp(&[(GET, 0), (SET, 0), (SET, 0)])
        .impatient()
        .budget(Budget { losses: 1, ..NONE })
}

/// The same, whose writes are lost.
pub fn lost_write() -> Scenario {
    Scenario::new()
        .udp(&[(GET, 0), (GET, 1)])
        .udp(&[(SET, 0), (GET, 0), (SET, 0)])
        .impatient()
        .budget(Budget { losses: 1, ..NONE })
}

/// A UDP client that may not be served, which reads and writes under one id.
pub fn stranger() -> Scenario {
    Scenario::new()
        .udp(&[(GET, 0), (GET, 1)])
        .udp(&[(GET, 0), (SET, 0), (SET, 0)])
        .impatient()
        .strange()
}

/// UDP writes without reply.
pub fn silent_udp() -> Scenario {
    readers().udp(&[(SILENT, 0), (GET, 0)]).budget(Budget {
        copies: 1,
        drops: 1,
        ..NONE
    })
}

/// A TCP writer.
pub fn tcp() -> Scenario {
    readers().tcp(&[SET]).budget(Budget {
        copies: 1,
        drops: 1,
        garbled: 1,
        ..NONE
    })
}

/// A TCP writer, without accidents.
pub fn plain_tcp() -> Scenario {
    tcp().budget(NONE)
}

/// Writes over TCP and UDP.
pub fn tcp_and_udp() -> Scenario {
    Scenario::new()
        .udp(&[(GET, 0), (GET, 1)])
        .udp(&[(SET, 0)])
        .tcp(&[SET, GET])
        .budget(Budget {
            copies: 1,
            drops: 1,
            ..NONE
        })
}

/// TCP writes without reply, with a GET behind them on the connection.
pub fn silent_tcp() -> Scenario {
    readers().tcp(&[SILENT, GET]).budget(Budget {
        copies: 1,
        drops: 1,
        garbled: 1,
        ..NONE
    })
}

/// A TCP client that pipelines, so that segments may come out of order.
pub fn pipelined() -> Scenario {
    readers().tcp(&[GET, SILENT]).impatient().budget(Budget {
        copies: 1,
        drops: 1,
        ..NONE
    })
}

/// Quiet TCP writes, which answer only when refused, before one that always answers.
pub fn quiet_tcp() -> Scenario {
    readers()
        .tcp(&[QUIET, SET, GET])
        .impatient()
        .budget(Budget { drops: 1, ..NONE })
}

/// Two connections that write and read.
pub fn two_connections() -> Scenario {
    Scenario::new()
        .udp(&[(GET, 0)])
        .tcp(&[SET, GET])
        .tcp(&[SET, GET])
        .budget(Budget { copies: 1, ..NONE })
}

/// A connection that reads while another client writes.
pub fn tcp_reader() -> Scenario {
    Scenario::new()
        .udp(&[(GET, 0), (GET, 1)])
        .udp(&[(SET, 0)])
        .tcp(&[GET, GET])
        .impatient()
        .budget(Budget {
            copies: 1,
            drops: 1,
            ..NONE
        })
}

/// TCP replies that leave again.
pub fn resent_replies() -> Scenario {
    readers()
        .tcp(&[SET, SET])
        .budget(Budget { repeats: 1, ..NONE })
}

/// Connections that are reset, or seem to be.
pub fn resets() -> Scenario {
    Scenario::new()
        .udp(&[(GET, 0)])
        .udp(&[(GET, 0)])
        .tcp(&[SET, SET])
        .impatient()
        .budget(Budget {
            copies: 1,
            resets: 1,
            ..NONE
        })
}

/// The larger ones, which take minutes.
pub mod large {
    use super::*;

    /// Each of three UDP clients may be copied twice.
    pub fn udp_copied_twice() -> Scenario {
        udp().budget(Budget {
            copies: 2,
            drops: 1,
            ..NONE
        })
    }

    /// Three requests of one id.
    pub fn one_id_three_times() -> Scenario {
        Scenario::new()
            .udp(&[(GET, 0), (GET, 0), (GET, 0)])
            .impatient()
            .udp(&[(GET, 0)])
            .udp(&[(SET, 0)])
            .budget(Budget {
                copies: 1,
                drops: 1,
                ..NONE
            })
    }

    /// A connection with everything on it, on which anything may happen.
    pub fn pipeline_with_accidents() -> Scenario {
        Scenario::new()
            .udp(&[(GET, 0)])
            .tcp(&[GET, SILENT, SET])
            .impatient()
            .budget(Budget {
                copies: 1,
                drops: 1,
                garbled: 1,
                repeats: 1,
                resets: 1,
                losses: 0,
            })
    }

    /// Quiet writes among others, garbled and sent again.
    pub fn quiet_with_accidents() -> Scenario {
        Scenario::new()
            .udp(&[(GET, 0), (GET, 1)])
            .tcp(&[QUIET, GET, SET])
            .impatient()
            .budget(Budget {
                copies: 1,
                drops: 1,
                garbled: 1,
                ..NONE
            })
    }

    /// Two connections that write, with copies and drops.
    pub fn two_connections_with_accidents() -> Scenario {
        two_connections().budget(Budget {
            copies: 2,
            drops: 1,
            ..NONE
        })
    }
}
