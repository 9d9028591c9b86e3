//! Two TCP ends, a client and a kernel with a memcached behind it, a network that loses, copies, delays and
//! reorders what they send, and a host between them that answers requests as prestack does.
//!
//! The ends are small, but do what TCP does: retransmission timeouts that back off, fast retransmission,
//! SACK and D-SACK, delayed acknowledgements, windows and their probes, timestamps and PAWS, Nagle's
//! algorithm, reassembly, keepalive. Everything happens in simulated time, and runs are repeatable.

mod faults;
mod host;
mod memcached;
mod tcp;
mod tests;
mod world;
