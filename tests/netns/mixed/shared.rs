//! Keys that every client reads and one writes, with rising versions.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, ensure};

/// A key that all read.
#[derive(Debug, Default)]
pub struct Shared {
    /// The version that was last begun to be written.
    begun: AtomicU64,
    /// The highest that anybody has been told of.
    known: AtomicU64,
}

impl Shared {
    /// A version to write.
    pub fn begin(&self) -> u64 {
        self.begun.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// The version that was last begun to be written.
    pub fn begun(&self) -> u64 {
        self.begun.load(Ordering::SeqCst)
    }

    /// The highest version that anybody has been told of: no request that is sent later reads an older.
    pub fn known(&self) -> u64 {
        self.known.load(Ordering::SeqCst)
    }

    /// Takes note of what an answer told.
    pub fn learn(&self, version: u64) {
        self.known.fetch_max(version, Ordering::SeqCst);
    }

    /// Fails when a version must not be read by one who knew of `floor` before it asked.
    pub fn check(&self, version: u64, floor: u64) -> Result<()> {
        ensure!(
            version >= floor,
            "stale: version {version}, but {floor} was known before the request was sent"
        );
        let begun = self.begun();
        ensure!(
            version <= begun,
            "version {version}, but only {begun} were begun"
        );
        self.learn(version);
        Ok(())
    }
}
