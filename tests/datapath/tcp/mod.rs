//! TCP segments: flows are followed by both byte streams.

pub mod connection;
mod doubt;
mod fills;
mod late;
mod order;
mod outstanding;
pub mod requests;
mod sockets;
mod strays;
mod table;
mod together;

use crate::harness::{Datapath, volume};

/// The step between the cases of a long series: in a virtual machine, which is slow, some are left out.
pub fn step(in_vm: usize) -> usize {
    if volume(20) < 20 { in_vm } else { 1 }
}

/// A cache with two keys.
pub fn filled() -> Datapath {
    let mut path = Datapath::new();
    path.fill("key", "value");
    path.fill("other", "value");
    path
}

/// Everything may have changed: the cache is empty and is not filled.
pub fn assert_forgotten(path: &mut Datapath) {
    assert!(path.epoch() > 0);
    path.assert_miss("key");
    path.assert_miss("other");
    assert!(!path.can_fill("other", "value"));
}

/// Nothing has happened to the cache.
pub fn assert_untouched(path: &mut Datapath) {
    assert_eq!(path.epoch(), 0, "{:?}", path.stats());
    path.assert_hit("key", "value");
    path.assert_hit("other", "value");
}

/// `key` alone was written.
pub fn assert_key_written(path: &mut Datapath) {
    assert_eq!(path.epoch(), 0, "{:?}", path.stats());
    path.assert_miss("key");
    path.assert_hit("other", "value");
}
