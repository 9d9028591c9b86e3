//! A model of prestack's coherence protocol (`docs/coherence.md`), checked exhaustively by
//! [`stateright`].
//!
//! Clients send GETs and writes of one key over UDP and TCP. Packets are delayed, reordered, copied,
//! lost, and dropped or garbled between `rx` and the sockets; memcached executes and answers whatever
//! it has at any time, in any order that its threads allow; `tx` sees what it answers. Every
//! interleaving of a small [scenario](scenario::Scenario) is tried, and in every state
//!
//! - what the clients have been told so far is [linearizable](history::History);
//! - what is in the cache is what memcached holds, which is the reason for it.
//!
//! Each [rule](rules::Rule) of the protocol can be left out, and each
//! [assumption](rules::Assumption) denied. The tests show what goes wrong then: without a rule that
//! nothing needs, the model would be too weak, or the rule idle.
//!
//! # Parts
//!
//! | | |
//! |---|---|
//! | [`scenario`] | what the clients do, and how many accidents may happen |
//! | [`rules`] | what can be left out |
//! | [`cache`] | the entry, outstanding writes and tickets: what `rx` and `tx` do over any transport |
//! | [`names`] | UDP: the memory of requests |
//! | [`tracker`] | TCP: the tracker of connections |
//! | [`kernel`] | sockets and memcached |
//! | [`history`] | whether what was seen is linearizable |
//! | [`action`] | what may happen |
//! | [`orders`] | a model of its own: what `rx` stores and loads without a lock |
//! | [`growth`] | another: the cache grows |
//! | [`aside`] | another: the datapath stands aside, and comes back |
//! | [`model`] | all together: the state, when what may happen, and what it does |
//!
//! # What is assumed
//!
//! Of memcached: each command takes effect at one instant. The commands of a connection are executed
//! and answered in order; datagrams in any order, each once per copy. An answer is fixed when the
//! command is executed, and may leave at any time after. A quiet write answers only if it is refused,
//! and then writes nothing. A write that may settle is executed before it does, if ever, and a UDP
//! request is answered before its name is forgotten, if ever.
//!
//! Of the kernel: a TCP segment is executed only if it passed `rx` first, as `rx` saw it, and once,
//! however often it comes; it is executed only after all before it. What it acknowledges, it does
//! not drop. It shows `tx` every answer before the client gets it.
//!
//! Of clients: they know the answer to one request from that to another. One that uses the id of a
//! request that was not answered could not, with or without prestack.
//!
//! # What is left out
//!
//! - Other keys and backends: version, entries, marks and tickets are per key. Keys that share a bucket's
//!   version void each other's tickets, which costs hits only, and so does emptying the cache.
//! - Time. What takes longer than something else is expressed by what must have happened before.
//! - Steps within `rx` and `tx`: each deals with a packet at one instant. That the order of loads and
//!   stores makes it look so where it matters is checked by itself, in [`orders`].
//! - Commands cut into segments: a segment holds one command.
//! - Hits over TCP; the end of a connection and another one of the same addresses; following a connection
//!   again after it was not followed.

pub mod action;
pub mod aside;
pub mod cache;
pub mod growth;
pub mod history;
pub mod kernel;
pub mod model;
pub mod names;
pub mod orders;
pub mod rules;
pub mod scenario;
pub mod tracker;
