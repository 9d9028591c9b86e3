//! The last commands, to be shown when something differs.

use std::collections::VecDeque;
use std::fmt;

/// How many are kept.
const KEPT: usize = 24;
/// Bytes of a command that are shown.
const SHOWN: usize = 700;

/// Something that was sent.
struct Entry {
    number: u64,
    to: String,
    bytes: Vec<u8>,
}

/// The last commands, and the number of all.
#[derive(Default)]
pub struct History {
    last: VecDeque<Entry>,
    /// How many commands there were.
    pub commands: u64,
}

impl History {
    /// Adds a command.
    pub fn add(&mut self, to: String, bytes: Vec<u8>) {
        self.commands += 1;
        if self.last.len() == KEPT {
            self.last.pop_front();
        }
        self.last.push_back(Entry {
            number: self.commands,
            to,
            bytes,
        });
    }
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Entry { number, to, bytes } in &self.last {
            let shown = bytes[..bytes.len().min(SHOWN)].escape_ascii();
            writeln!(f, "#{number} {to}, {} bytes: \"{shown}\"", bytes.len())?;
        }
        Ok(())
    }
}
