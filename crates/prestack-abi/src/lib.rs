//! The contract between prestack's BPF programs and its user space: the layout of every map,
//! the counters and the configuration. Both sides compile this crate, so a layout has one
//! definition; sizes and alignments are asserted at compile time.
//!
//! Integers are in host byte order unless a field says otherwise.
#![no_std]

pub mod backend;
pub mod cache;
pub mod config;
pub mod control;
pub mod extent;
pub mod flow;
pub mod requests;
pub mod socket;
pub mod stats;
pub mod time;
pub mod translated;

/// Names of the maps and programs in the BPF object, as the loader looks them up.
pub mod names {
    /// The XDP program.
    pub const RX: &str = "rx";
    /// The TC egress program.
    pub const TX: &str = "tx";
    /// The XDP program for TCP segments, to which `rx` hands them.
    pub const RX_TCP: &str = "rx_tcp";
    /// The TC egress program for TCP segments, to which `tx` hands them.
    pub const TX_TCP: &str = "tx_tcp";
    /// The XDP program for segments of connections on which requests are answered, to which `rx` hands them.
    pub const RX_HITS: &str = "rx_hits";
    /// The TC egress program for such segments, to which `tx` hands them.
    pub const TX_HITS: &str = "tx_hits";
    /// The TC egress program of `lo`.
    pub const LO: &str = "lo";
    /// The TC egress program for TCP segments of requests, to which `lo` hands them.
    pub const LO_TCP: &str = "lo_tcp";
    /// A program that lets every packet pass, for the far end of a veth pair.
    pub const PASS: &str = "pass";

    /// The program that is run when a socket of the host is released.
    pub const RELEASED: &str = "released";

    /// The program that closes a flow that has no socket any more, run by user space.
    pub const SWEEP: &str = "sweep";

    /// The [`SocketFields`](crate::socket::SocketFields), a constant that user space sets.
    pub const SOCKET_FIELDS: &str = "SOCKET_FIELDS";

    /// The programs that `rx` goes on with.
    pub const RX_STEPS: &str = "RX_STEPS";
    /// The programs that `lo` goes on with.
    pub const LO_STEPS: &str = "LO_STEPS";
    /// The programs that `tx` goes on with, and `lo` with replies.
    pub const TX_STEPS: &str = "TX_STEPS";
    /// One [`Config`](crate::config::Config).
    pub const CONFIG: &str = "CONFIG";
    /// [`Backend`](crate::backend::Backend), by backend number.
    pub const BACKENDS: &str = "BACKENDS";
    /// [`Flushes`](crate::backend::Flushes), by backend number.
    pub const FLUSHES: &str = "FLUSHES";
    /// [`Index`](crate::cache::Index), by bucket.
    pub const INDEX: &str = "INDEX";
    /// [`Block`](crate::cache::Block), by bucket.
    pub const BLOCKS: &str = "BLOCKS";
    /// [`Control`](crate::control::Control), by what [`control_of`](crate::control::control_of) says of a
    /// key.
    pub const CONTROL: &str = "CONTROL";
    /// [`RequestSet`](crate::requests::RequestSet), by request name.
    pub const REQUESTS: &str = "REQUESTS";
    /// [`KeyTickets`](crate::requests::KeyTickets), by place of the request in `REQUESTS`.
    pub const KEY_TICKETS: &str = "KEY_TICKETS";
    /// [`RequestKey`](crate::requests::RequestKey), by place of the request in `REQUESTS`.
    pub const REQUEST_KEYS: &str = "REQUEST_KEYS";
    /// [`FlowSet`](crate::flow::FlowSet), by flow name.
    pub const FLOW_SETS: &str = "FLOW_SETS";
    /// [`Flow`](crate::flow::Flow), by place in `FLOW_SETS`.
    pub const FLOWS: &str = "FLOWS";
    /// [`Translated`](crate::translated::Translated), by place in `FLOWS`. User space gives it as many elements if
    /// requests are answered over TCP.
    pub const TRANSLATIONS: &str = "TRANSLATIONS";
    /// [`AnswerRest`](crate::translated::AnswerRest), by place in `FLOWS`. User space gives it as many elements if
    /// long answers are given over TCP.
    pub const ANSWER_RESTS: &str = "ANSWER_RESTS";
    /// [`Hole`](crate::flow::Hole), by a hash of the place in `FLOWS`.
    pub const HOLES: &str = "HOLES";
    /// Numbers of the backends, by the cookies of the sockets on which they listen.
    pub const SOCKETS: &str = "SOCKETS";
    /// Time in ns until which a source has used its hits, by address (four words in network byte
    /// order, IPv4 mapped).
    pub const RATES: &str = "RATES";
    /// [`Stats`](crate::stats::Stats), one per CPU.
    pub const STATS: &str = "STATS";
    /// Per-CPU working memory of the BPF programs; its layout is theirs alone.
    pub const SCRATCH: &str = "SCRATCH";

    /// Maps that belong to the programs with which they are loaded: others do not go on with them.
    pub const OWN: [&str; 4] = [SCRATCH, RX_STEPS, LO_STEPS, TX_STEPS];
}

/// Changes with every incompatible change of a map layout: what is pinned under another number
/// is not adopted.
pub const LAYOUT: u32 = 16;
