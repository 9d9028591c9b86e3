//! Requests as they were recorded: lines of Twitter's published traces
//! (<https://github.com/twitter/cache-trace>), `time,key,key size,value size,client,operation,TTL`.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::dataset::Dataset;
use crate::operations::Operation;

/// A trace in memory.
#[derive(Debug)]
pub(crate) struct Trace {
    /// The items that occur. Keys are not those of the trace, but as long.
    pub(crate) dataset: Dataset,
    /// What was done, in order, and the number of the item.
    pub(crate) operations: Vec<(Operation, u32)>,
}

impl Trace {
    /// Reads the first `limit` lines of a file.
    pub(crate) fn read(path: &Path, limit: usize) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        Self::parse(BufReader::new(file), limit)
            .with_context(|| format!("reading the trace {}", path.display()))
    }

    fn parse(lines: impl BufRead, limit: usize) -> Result<Self> {
        let mut numbers = HashMap::new();
        let mut sizes = Vec::new();
        let mut operations = Vec::new();
        for (i, line) in lines.lines().take(limit).enumerate() {
            let line = line?;
            let (key, key_size, value_size, operation) =
                fields(&line).with_context(|| format!("line {}: {line:?}", i + 1))?;
            let n = *numbers.entry(key.to_owned()).or_insert_with(|| {
                sizes.push((key_size, value_size));
                sizes.len() as u32 - 1
            });
            // A read of what is not there has no size; the write that follows does.
            let size = &mut sizes[n as usize].1;
            *size = (*size).max(value_size);
            operations.push((operation, n));
        }
        ensure!(!operations.is_empty(), "there is nothing in it");
        Ok(Self {
            dataset: Dataset::with_each(&sizes),
            operations,
        })
    }
}

/// Key, its size, the value's size, and what was done, in a line.
fn fields(line: &str) -> Result<(&str, u32, u32, Operation)> {
    // Keys may contain commas; nothing else does.
    let mut from_end = line.rsplitn(6, ',');
    let mut next = || from_end.next().context("there are too few fields");
    let (_ttl, operation, _client) = (next()?, next()?, next()?);
    let value_size = next()?.parse().context("the value's size")?;
    let key_size = next()?.parse().context("the key's size")?;
    let (_time, key) = next()?
        .split_once(',')
        .context("there are too few fields")?;
    let operation = match operation {
        "get" | "gets" => Operation::Get,
        _ => Operation::Set,
    };
    Ok((key, key_size, value_size, operation))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_requests() {
        let text = "0,a,b,20,0,1,get,0\n0,c,30,7,2,set,60\n1,a,b,20,100,1,add,0\n";
        let trace = Trace::parse(text.as_bytes(), 10).unwrap();
        let expected = [
            (Operation::Get, 0),
            (Operation::Set, 1),
            (Operation::Set, 0),
        ];
        assert_eq!(trace.operations, expected);
        let sizes = [0, 1].map(|n| (trace.dataset.key_len(n), trace.dataset.value_len(n)));
        assert_eq!(sizes, [(20, 100), (30, 7)]);
        let first = Trace::parse(text.as_bytes(), 1).unwrap();
        assert_eq!(first.operations.len(), 1);
    }

    #[test]
    fn what_is_no_trace_is_refused() {
        for text in ["", "x\n", "0,a,x,1,1,get,0\n", "0,a,1,x,1,get,0\n"] {
            assert!(Trace::parse(text.as_bytes(), 10).is_err(), "{text:?}");
        }
    }
}
