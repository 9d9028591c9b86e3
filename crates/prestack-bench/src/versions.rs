//! Which versions of a value a read may return while values are written.
//!
//! Writes are numbered when they are sent. Of two that are under way at a time memcached may execute
//! either first. So a write replaces, from its answer on, all that were answered before it was sent.
//!
//! A write that is given up may be executed at any time, or never. Later ones are judged as if it had never
//! been, and what it wrote may be read from then on.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// The versions of all keys.
#[derive(Debug)]
pub(crate) struct Versions {
    keys: Box<[Mutex<Key>]>,
    /// Of each key, the versions of the writes that were given up: few, if any.
    lost: Mutex<HashMap<u32, Vec<u32>>>,
}

#[derive(Debug, Default)]
struct Key {
    /// The version sent last.
    sent: u32,
    /// The oldest version that a read may still return.
    oldest: u32,
    /// The versions that were sent, and neither answered nor given up, the oldest first.
    outstanding: Vec<u32>,
}

/// A write under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Write {
    /// The version that it writes.
    pub(crate) version: u32,
    /// The oldest version that may be read after its answer.
    oldest: u32,
}

impl Key {
    /// A write is not outstanding any more.
    fn end(&mut self, write: Write) {
        self.outstanding.retain(|version| *version != write.version);
    }
}

impl Versions {
    /// Version 0 of `keys` keys, stored already.
    pub(crate) fn new(keys: u32) -> Self {
        Self {
            keys: (0..keys).map(|_| Mutex::default()).collect(),
            lost: Mutex::default(),
        }
    }

    fn with<T>(&self, n: u32, f: impl FnOnce(&mut Key) -> T) -> T {
        let key = self.keys[n as usize].lock();
        f(&mut key.unwrap_or_else(PoisonError::into_inner))
    }

    /// The oldest version that a read sent now may return.
    pub(crate) fn oldest(&self, n: u32) -> u32 {
        self.with(n, |key| key.oldest)
    }

    /// The version sent last: nothing newer can have been read.
    pub(crate) fn newest(&self, n: u32) -> u32 {
        self.with(n, |key| key.sent)
    }

    /// A write is about to be sent.
    pub(crate) fn write(&self, n: u32) -> Write {
        self.with(n, |key| {
            key.sent += 1;
            key.outstanding.push(key.sent);
            Write {
                version: key.sent,
                oldest: key.outstanding[0],
            }
        })
    }

    /// A write was answered.
    pub(crate) fn written(&self, n: u32, write: Write) {
        self.with(n, |key| {
            key.end(write);
            key.oldest = key.oldest.max(write.oldest);
        });
    }

    /// memcached refused a write: nothing was written, and there may be nothing now.
    pub(crate) fn refused(&self, n: u32, write: Write) {
        self.with(n, |key| key.end(write));
    }

    /// Nobody waits for a write's answer any longer.
    pub(crate) fn give_up(&self, n: u32, write: Write) {
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        lost.entry(n).or_default().push(write.version);
        drop(lost);
        self.with(n, |key| key.end(write));
    }

    /// The versions of the writes that were given up.
    pub(crate) fn lost(&self, n: u32) -> Vec<u32> {
        let lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        lost.get(&n).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_alone_replaces_what_was() {
        let versions = Versions::new(2);
        let write = versions.write(1);
        assert_eq!((versions.oldest(1), versions.newest(1)), (0, 1));
        versions.written(1, write);
        assert_eq!((versions.oldest(1), versions.newest(1)), (1, 1));
        assert_eq!((versions.oldest(0), versions.newest(0)), (0, 0));
    }

    #[test]
    fn writes_at_a_time_leave_all_of_them_possible() {
        let versions = Versions::new(1);
        let (a, b) = (versions.write(0), versions.write(0));
        versions.written(0, b);
        // `a` may be executed yet, or have been.
        assert_eq!((versions.oldest(0), versions.newest(0)), (1, 2));
        let c = versions.write(0);
        versions.written(0, a);
        versions.written(0, c);
        assert_eq!((versions.oldest(0), versions.newest(0)), (1, 3));
        let d = versions.write(0);
        versions.written(0, d);
        assert_eq!(versions.oldest(0), 4);
    }

    #[test]
    fn a_write_replaces_what_was_over_though_others_overlap_both() {
        let versions = Versions::new(1);
        let (a, b) = (versions.write(0), versions.write(0));
        versions.written(0, a);
        let c = versions.write(0);
        versions.written(0, b);
        assert_eq!(versions.oldest(0), 1);
        versions.written(0, c);
        assert_eq!((versions.oldest(0), versions.newest(0)), (2, 3));
    }

    #[test]
    fn a_write_given_up_hides_none_that_follow() {
        let versions = Versions::new(1);
        let lost = versions.write(0);
        versions.give_up(0, lost);
        let write = versions.write(0);
        versions.written(0, write);
        assert_eq!((versions.oldest(0), versions.newest(0)), (2, 2));
        // It may have been executed last.
        assert_eq!(versions.lost(0), [1]);
    }

    #[test]
    fn a_refused_write_hides_none_that_follow() {
        let versions = Versions::new(1);
        let refused = versions.write(0);
        versions.refused(0, refused);
        assert_eq!((versions.oldest(0), versions.newest(0)), (0, 1));
        let write = versions.write(0);
        versions.written(0, write);
        assert_eq!((versions.oldest(0), versions.newest(0)), (2, 2));
    }
}
