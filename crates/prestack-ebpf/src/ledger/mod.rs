//! What is under way between clients and memcached: writes that have not ended, requests that have
//! not been answered, and the tickets that let replies fill the cache.

pub mod backend;
pub mod flushes;
pub mod requests;
pub mod tickets;
pub mod writes;
