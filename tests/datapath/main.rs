//! Packets through the programs, as the kernel runs them: a packet in, a verdict and a packet out.
//!
//! Nothing is attached and no memcached runs: a test plays both ends, the client's and memcached's.
//! These tests need root.

mod admission;
mod aside;
mod backends;
mod binary;
mod bytes;
mod check;
mod eviction;
mod express;
mod flushes;
mod forms;
mod harness;
mod headers;
mod hits;
mod hostile;
mod kernel;
mod links;
mod lo;
mod loading;
mod marks;
mod model;
mod multi;
mod names;
mod odd;
mod owners;
mod packet;
mod passing;
mod pieces;
mod places;
mod protocols;
mod races;
mod refresh;
mod reused;
mod security;
mod strangers;
mod tcp;
mod tickets;
mod translated;
mod united;
mod writes;
