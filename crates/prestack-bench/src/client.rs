//! What clients over UDP and TCP have in common: what they ask, when, and whether the answers are right.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::dataset::Dataset;
use crate::operations::{Operation, Operations};
use crate::pace::Pace;
use crate::protocol::{Answer, Protocol, Start};
use crate::tally::Tally;
use crate::versions::{Versions, Write};

/// How often clients look for late answers, and at the clock when nothing comes.
pub(crate) const TICK: Duration = Duration::from_millis(50);

/// What a client asks, and when.
pub(crate) struct Asker {
    pub(crate) dataset: Arc<Dataset>,
    /// What may be read, if anything is written.
    pub(crate) versions: Option<Arc<Versions>>,
    pub(crate) protocol: Protocol,
    /// Writes ask for no answer.
    pub(crate) is_quiet: bool,
    pub(crate) operations: Operations,
    pub(crate) pace: Pace,
    /// Requests that may still be sent.
    pub(crate) left: u64,
    pub(crate) tally: Tally,
}

/// A request under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    n: u32,
    /// From when on its latency counts.
    since: Instant,
    /// When it was sent.
    pub(crate) sent: Instant,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// A read that may return no version older than this.
    Get {
        oldest: u32,
    },
    Set(Write),
    /// A write that nothing answers: over when a later request of its connection is answered.
    QuietSet(Write),
}

impl Request {
    /// Whether nothing will answer it.
    pub(crate) fn is_quiet(&self) -> bool {
        matches!(self.kind, Kind::QuietSet(_))
    }
}

/// What the start of some bytes is to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// Its answer, of so many bytes.
    Answer(usize),
    /// More must come.
    Partial,
    /// Not an answer to it.
    Wrong,
}

impl Asker {
    /// The next request, if one is due: appended to `to`, as a read if `is_read` says so.
    pub(crate) fn ask(&mut self, now: Instant, is_read: bool, to: &mut Vec<u8>) -> Option<Request> {
        if self.left == 0 {
            return None;
        }
        let since = self.pace.next(now)?;
        self.left -= 1;
        let (operation, n) = self.operations.next();
        let kind = match (operation, &self.versions) {
            (Operation::Set, Some(versions)) if !is_read => {
                let write = versions.write(n);
                self.protocol
                    .set(&self.dataset, n, write.version, self.is_quiet, to);
                if self.is_quiet {
                    self.tally.quiet += 1;
                    Kind::QuietSet(write)
                } else {
                    Kind::Set(write)
                }
            }
            (_, versions) => {
                self.protocol.get(&self.dataset, n, to);
                let oldest = versions.as_ref().map_or(0, |versions| versions.oldest(n));
                Kind::Get { oldest }
            }
        };
        Some(Request {
            n,
            since,
            sent: now,
            kind,
        })
    }

    /// Takes the answer to a request, if it is at the start of `bytes`, and counts it.
    pub(crate) fn take(&mut self, request: &Request, bytes: &[u8], now: Instant) -> Taken {
        let n = request.n;
        let start = match request.kind {
            Kind::Get { .. } => self.protocol.read_get(&self.dataset, n, bytes),
            Kind::Set(_) | Kind::QuietSet(_) => self.protocol.read_set(bytes),
        };
        let (len, answer) = match start {
            Start::Whole(len, answer) => (len, answer),
            Start::Partial => return Taken::Partial,
            Start::Wrong => {
                self.tally.wrong += 1;
                return Taken::Wrong;
            }
        };
        match (request.kind, answer) {
            (Kind::Get { oldest }, Answer::Value(range)) => {
                let newest = self.versions.as_ref().map_or(0, |v| v.newest(n));
                if !self.dataset.is_value(n, oldest..=newest, &bytes[range]) {
                    self.tally.wrong += 1;
                    return Taken::Answer(len);
                }
            }
            (Kind::Set(write), Answer::Stored) => self.written(n, write),
            // An echo.
            (Kind::Get { .. }, Answer::Stored) => {}
            (_, Answer::Missing) => self.tally.missing += 1,
            _ => self.tally.refused += 1,
        }
        let latency = now.saturating_duration_since(request.since);
        self.tally
            .latencies
            .saturating_record(latency.as_nanos() as u64);
        Taken::Answer(len)
    }

    /// A write that nothing answers is over.
    pub(crate) fn is_over(&self, request: &Request) {
        if let Kind::QuietSet(write) = request.kind {
            self.written(request.n, write);
        }
    }

    fn written(&self, n: u32, write: Write) {
        if let Some(versions) = &self.versions {
            versions.written(n, write);
        }
    }
}
