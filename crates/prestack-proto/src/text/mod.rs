//! The text protocol (doc/protocol.txt), meta commands included.

pub mod meta;
pub mod number;
pub mod reply;
pub mod request;
pub mod scan;
