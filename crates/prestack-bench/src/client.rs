//! What clients over UDP and TCP have in common: what they ask, when, and whether the answers are right.

use std::fmt;
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

/// Bytes of a wrong answer that are shown.
const SHOWN: usize = 80;

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
    /// When the time is over, once it is known: what is answered later is late.
    pub(crate) end: Option<Instant>,
    /// When it asked for the last time, once it is over.
    pub(crate) closed: Option<Instant>,
    /// Requests that may still be sent.
    pub(crate) left: u64,
    /// Requests that were answered when the same load was offered before.
    pub(crate) answered_before: u64,
    pub(crate) tally: Tally,
}

/// An answer after which nobody knows where the next begins.
#[derive(Debug)]
pub(crate) struct WrongAnswer(pub(crate) String);

impl fmt::Display for WrongAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an answer was wrong: {}", self.0)
    }
}

impl std::error::Error for WrongAnswer {}

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
    fn operation(&self) -> Operation {
        match self.kind {
            Kind::Get { .. } => Operation::Get,
            Kind::Set(_) | Kind::QuietSet(_) => Operation::Set,
        }
    }

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
    /// Begins to ask, until `end`.
    pub(crate) fn begin(&mut self, pace: Pace, end: Instant) {
        self.pace = pace;
        self.end = Some(end);
    }

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
            _ => return Some(self.get(n, since, now, to)),
        };
        Some(Request {
            n,
            since,
            sent: now,
            kind,
        })
    }

    /// A read of item `n`, appended to `to`, whose latency counts from `since`.
    fn get(&self, n: u32, since: Instant, now: Instant, to: &mut Vec<u8>) -> Request {
        self.protocol.get(&self.dataset, n, to);
        let versions = self.versions.as_ref();
        let oldest = versions.map_or(0, |versions| versions.oldest(n));
        Request {
            n,
            since,
            sent: now,
            kind: Kind::Get { oldest },
        }
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
                self.wrong(request, bytes);
                return Taken::Wrong;
            }
        };
        match (request.kind, answer) {
            (Kind::Get { oldest }, Answer::Value(range)) => {
                if !self.may_be(n, oldest, &bytes[range]) {
                    self.wrong(request, &bytes[..len]);
                    return Taken::Answer(len);
                }
            }
            (Kind::Set(write), Answer::Stored) => self.written(n, write),
            (Kind::Get { .. }, Answer::Stored) if self.protocol == Protocol::Echo => {}
            (Kind::Get { .. }, Answer::Missing) => self.tally.missing += 1,
            (kind, _) => {
                self.tally.refused(request.operation());
                if let (Kind::Set(write), Some(versions)) = (kind, &self.versions) {
                    versions.refused(n, write);
                }
            }
        }
        let is_late = self.end.is_some_and(|end| now > end);
        let latency = now.saturating_duration_since(request.since);
        self.tally
            .answer(request.operation(), latency, now, is_late);
        Taken::Answer(len)
    }

    /// Counts an answer that is none to this request, or not the one.
    pub(crate) fn wrong(&mut self, request: &Request, bytes: &[u8]) {
        let Self {
            tally,
            dataset,
            versions,
            protocol,
            ..
        } = self;
        tally.wrong(|| {
            let (n, mut wanted) = (request.n, Vec::new());
            let expected = match request.kind {
                Kind::Get { oldest } => {
                    let newest = versions.as_ref().map_or(0, |versions| versions.newest(n));
                    dataset.write_value(n, newest, &mut wanted);
                    format!(
                        "a value of {} bytes, {} (version {newest}{})",
                        wanted.len(),
                        shown(&wanted),
                        if oldest < newest {
                            format!(", or one from {oldest} on")
                        } else {
                            String::new()
                        }
                    )
                }
                _ => "that it is stored".to_owned(),
            };
            format!(
                "{protocol} {} of {}: {} bytes, {}, where this was expected: {expected}",
                request.operation(),
                dataset.key(n).escape_ascii(),
                bytes.len(),
                shown(bytes)
            )
        });
    }

    /// Whether a read may return this value: a version from `oldest` on, or one of a write that was given up.
    pub(crate) fn may_be(&self, n: u32, oldest: u32, value: &[u8]) -> bool {
        let Some(versions) = &self.versions else {
            return self.dataset.is_value(n, oldest..=0, value);
        };
        let is_one = |range| self.dataset.is_value(n, range, value);
        is_one(oldest..=versions.newest(n)) || versions.lost(n).into_iter().any(|v| is_one(v..=v))
    }

    /// Nobody waits for the answer to a request any longer.
    pub(crate) fn give_up(&self, request: &Request) {
        if let (Kind::Set(write), Some(versions)) = (request.kind, &self.versions) {
            versions.give_up(request.n, write);
        }
    }

    /// A request is unanswered, and given up.
    pub(crate) fn time_out(&mut self, request: &Request, now: Instant) {
        let waited = now.saturating_duration_since(request.since);
        self.tally
            .timed_out(request.operation(), waited, request.sent);
        self.give_up(request);
    }

    /// A read of the item that a quiet write is about, appended to `to`: its answer says that the write is
    /// over.
    pub(crate) fn ask_whether_over(
        &self,
        write: &Request,
        now: Instant,
        to: &mut Vec<u8>,
    ) -> Request {
        self.get(write.n, now, now, to)
    }

    /// Nothing is sent after `end`. Of an open loop it counts what was due before and has not been sent.
    pub(crate) fn close(&mut self, end: Instant) {
        if let Pace::Open(arrivals) = &mut self.pace
            && self.left > 0
        {
            while let Some(since) = arrivals.next(end) {
                self.tally.not_sent(end - since);
            }
        }
        self.closed = Some(end);
        // Nothing is due that would be waited for.
        self.pace = Pace::Closed;
        self.left = 0;
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

/// The start of some bytes, as text.
fn shown(bytes: &[u8]) -> String {
    let rest = bytes.len().saturating_sub(SHOWN);
    format!(
        "\"{}\"{}",
        bytes[..bytes.len() - rest].escape_ascii(),
        if rest > 0 { "…" } else { "" }
    )
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::operations::Sequence;

    /// Asks for one item, or writes it where `write_ratio` says so, `left` times.
    pub(crate) fn asker(write_ratio: f64, is_quiet: bool, left: u64) -> Asker {
        Asker {
            dataset: Arc::new(Dataset::new(1, 16, 32).expect("sizes in range")),
            versions: Some(Arc::new(Versions::new(1))),
            protocol: Protocol::Text,
            is_quiet,
            operations: Operations::new(Sequence::mix([0].into(), write_ratio), 0, 1, 0),
            pace: Pace::Closed,
            end: None,
            closed: None,
            left,
            answered_before: 0,
            tally: Tally::new(),
        }
    }
}
