//! What must come back, byte by byte.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};

use super::shared::Shared;
use super::value;

/// A part of the stream of answers.
pub enum Part {
    /// These bytes.
    Bytes(Vec<u8>),
    /// The unique number of an item of the client's own: that of its last write, up to a CR.
    Cas { key: usize, version: u64 },
    /// An item of a shared key as GET answers it: no older than `floor`.
    Item {
        key: usize,
        name: String,
        floor: u64,
    },
    /// Not a byte: by now a shared key has been written in this version.
    Written { key: usize, version: u64 },
}

/// Checks a stream of answers against its parts.
pub struct Checker {
    shared: Arc<Vec<Shared>>,
    /// Version and unique number of items of the client's own.
    cas: HashMap<usize, (u64, u64)>,
    /// What has come and is not checked yet.
    have: Vec<u8>,
    /// Bytes checked so far.
    pub checked: u64,
}

impl Checker {
    pub fn new(shared: Arc<Vec<Shared>>) -> Self {
        Self {
            shared,
            cas: HashMap::new(),
            have: Vec::new(),
            checked: 0,
        }
    }

    /// Takes in what has come; takes out of `parts`, which are in reverse order, those that are complete.
    pub fn take(&mut self, bytes: &[u8], parts: &mut Vec<Part>) -> Result<()> {
        self.have.extend_from_slice(bytes);
        let mut at = 0;
        while let Some(part) = parts.last() {
            let Some(len) = self.check(part, at)? else {
                break;
            };
            at += len;
            parts.pop();
        }
        self.have.drain(..at);
        self.checked += at as u64;
        ensure!(
            !parts.is_empty() || self.have.is_empty(),
            "behind the last answer came {:?}",
            shown(&self.have)
        );
        Ok(())
    }

    /// The length of a part at `at`, or nothing if more must come.
    fn check(&mut self, part: &Part, at: usize) -> Result<Option<usize>> {
        let have = &self.have[at..];
        match part {
            Part::Bytes(bytes) => {
                let len = have.len().min(bytes.len());
                if have[..len] != bytes[..len] {
                    let place = have.iter().zip(bytes).position(|(a, b)| a != b);
                    let from = place.unwrap_or_default().saturating_sub(20);
                    bail!(
                        "byte {place:?} differs: {:?} came instead of {:?}",
                        shown(&have[from..]),
                        shown(&bytes[from..])
                    );
                }
                Ok((len == bytes.len()).then_some(len))
            }
            Part::Cas { key, version } => {
                let Some(len) = have.iter().position(|byte| *byte == b'\r') else {
                    ensure!(have.len() < 20, "{:?} is not a number", shown(have));
                    return Ok(None);
                };
                let number: u64 = std::str::from_utf8(&have[..len])?
                    .parse()
                    .with_context(|| format!("{:?}", shown(have)))?;
                let (last_version, last) = self.cas.get(key).copied().unwrap_or_default();
                ensure!(
                    (last_version == *version && last == number)
                        || (last_version < *version && last < number),
                    "version {version} of own key {key} has the number {number}, version {last_version} {last}"
                );
                self.cas.insert(*key, (*version, number));
                Ok(Some(len))
            }
            Part::Item { key, name, floor } => {
                let Some(line) = have.windows(2).position(|w| w == b"\r\n") else {
                    ensure!(have.len() < 300, "{:?} is not an item", shown(have));
                    return Ok(None);
                };
                let head = format!("VALUE {name} 0 ");
                let text = std::str::from_utf8(&have[..line])?;
                let rest = text.strip_prefix(&head);
                let rest =
                    rest.with_context(|| format!("{text:?} does not begin with {head:?}"))?;
                let len: usize = rest.parse().with_context(|| format!("{text:?}"))?;
                let end = line + 2 + len;
                let Some(item) = have.get(line + 2..end + 2) else {
                    return Ok(None);
                };
                let (bytes, end_of_line) = item.split_at(len);
                ensure!(end_of_line == b"\r\n", "no end of line behind a value");
                let version = value::version(shared_id(*key), bytes)?;
                self.shared[*key]
                    .check(version, *floor)
                    .with_context(|| format!("shared key {name}"))?;
                Ok(Some(end + 2))
            }
            Part::Written { key, version } => {
                self.shared[*key].learn(*version);
                Ok(Some(0))
            }
        }
    }
}

/// The number of a shared key among all keys.
pub fn shared_id(key: usize) -> u64 {
    1 << 20 | key as u64
}

fn shown(bytes: &[u8]) -> String {
    bytes[..bytes.len().min(120)].escape_ascii().to_string()
}
