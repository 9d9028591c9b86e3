//! Which versions of a value a read may return while values are written.
//!
//! Writes are numbered when they are sent. Of two that are under way at a time memcached may execute
//! either first, so what is certainly over is told by the times at which nothing was: a write that is
//! sent while no other is outstanding replaces all that went before, from its answer on.

use std::sync::{Mutex, PoisonError};

/// The versions of all keys.
#[derive(Debug)]
pub(crate) struct Versions(Box<[Mutex<Key>]>);

#[derive(Clone, Copy, Debug, Default)]
struct Key {
    /// The version sent last.
    sent: u32,
    /// The oldest version that a read may still return.
    oldest: u32,
    /// Writes that were sent and not answered.
    outstanding: u32,
    /// The first of the versions sent since there were none.
    busy_since: u32,
}

/// A write under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Write {
    /// The version that it writes.
    pub(crate) version: u32,
    /// The oldest version that may be read after its answer.
    oldest: u32,
}

impl Versions {
    /// Version 0 of `keys` keys, stored already.
    pub(crate) fn new(keys: u32) -> Self {
        Self((0..keys).map(|_| Mutex::default()).collect())
    }

    fn with<T>(&self, n: u32, f: impl FnOnce(&mut Key) -> T) -> T {
        let key = self.0[n as usize].lock();
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
            if key.outstanding == 0 {
                key.busy_since = key.sent;
            }
            key.outstanding += 1;
            Write {
                version: key.sent,
                oldest: key.busy_since,
            }
        })
    }

    /// A write was answered.
    pub(crate) fn written(&self, n: u32, write: Write) {
        self.with(n, |key| {
            key.outstanding -= 1;
            key.oldest = key.oldest.max(write.oldest);
        });
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
}
