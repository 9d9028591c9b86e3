//! What the tests share.

pub mod attached;
pub mod base64;
pub mod binary;
pub mod classic;
pub mod crafted;
pub mod environment;
pub mod flood;
pub mod history;
pub mod kernel;
pub mod pinned;
pub mod progress;
pub mod raw;
pub mod stage;
