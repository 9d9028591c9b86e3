//! Requests as they were recorded: lines of Twitter's published traces
//! (<https://github.com/twitter/cache-trace>), `time,key,key size,value size,client,operation,TTL`.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::dataset::Dataset;
use crate::operations::Operation;
use crate::report::whole;

/// A trace in memory.
#[derive(Debug)]
pub(crate) struct Trace {
    /// The items that occur. Keys are not those of the trace, but as long.
    pub(crate) dataset: Dataset,
    /// What was done, in order, and the number of the item.
    pub(crate) operations: Vec<(Operation, u32)>,
    /// What is in it, in words.
    pub(crate) summary: String,
}

/// The names that operations have.
const READS: [&str; 2] = ["get", "gets"];
const SET: &str = "set";
const OTHERS: [&str; 8] = [
    "add", "replace", "cas", "append", "prepend", "delete", "incr", "decr",
];

/// How files begin that are compressed: gzip, zstd, xz, bzip2.
const COMPRESSED: [&[u8]; 4] = [b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ", b"BZh"];

impl Trace {
    /// Reads the first `limit` lines of a file.
    pub(crate) fn read(path: &Path, limit: usize) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        Self::parse(BufReader::new(file), limit)
            .with_context(|| format!("reading the trace {}", path.display()))
    }

    fn parse(mut lines: impl BufRead, limit: usize) -> Result<Self> {
        let start = lines.fill_buf()?;
        ensure!(
            !COMPRESSED.iter().any(|magic| start.starts_with(magic)),
            "it looks compressed: unpack it first"
        );
        let mut others = 0;
        let mut numbers = HashMap::new();
        let mut sizes = Vec::new();
        let mut operations = Vec::new();
        for (i, line) in lines.lines().take(limit).enumerate() {
            let line = line?;
            let (key, key_size, value_size, name) =
                fields(&line).with_context(|| format!("line {}: {line:?}", i + 1))?;
            let operation = if READS.contains(&name) {
                Operation::Get
            } else {
                Operation::Set
            };
            others += usize::from(OTHERS.contains(&name));
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
        let dataset = Dataset::with_each(&sizes);
        let summary = summary(&dataset, &sizes, &operations, others);
        Ok(Self {
            dataset,
            operations,
            summary,
        })
    }
}

/// What is in a trace, of whose items these are the sizes, and what became of what it has and others do not.
fn summary(
    dataset: &Dataset,
    sizes: &[(u32, u32)],
    operations: &[(Operation, u32)],
    others: usize,
) -> String {
    let range = |sizes: &mut dyn Iterator<Item = u32>| {
        let range = sizes.fold((u32::MAX, 0), |(least, most), size| {
            (least.min(size), most.max(size))
        });
        let (least, most) = range;
        format!("{} to {}", whole(least.into()), whole(most.into()))
    };
    let changed = |is_changed: &dyn Fn(u32, (u32, u32)) -> bool| {
        let items = (0..).zip(sizes);
        items.filter(|(n, sizes)| is_changed(*n, **sizes)).count()
    };
    let is_read = |(operation, _): &&(Operation, u32)| *operation == Operation::Get;
    let gets = operations.iter().filter(is_read).count();
    let mut summary = format!(
        "{} lines: {:.1} % GETs, {} keys of {} bytes, values of {} bytes",
        whole(operations.len() as f64),
        100.0 * gets as f64 / operations.len() as f64,
        whole(sizes.len() as f64),
        range(&mut sizes.iter().map(|(key, _)| *key)),
        range(&mut sizes.iter().map(|(_, value)| *value)),
    );
    let keys = changed(&|n, (key, _)| dataset.key_len(n) != key as usize);
    let values = changed(&|n, (_, value)| dataset.value_len(n) != value as usize);
    for (count, what) in [
        (keys, "keys brought into the range of sizes"),
        (values, "values shortened to what memcached takes"),
        (others, "other operations as SETs"),
    ] {
        if count > 0 {
            summary += &format!("; {} {what}", whole(count as f64));
        }
    }
    summary
}

/// Key, its size, the value's size, and the name of what was done, in a line.
fn fields(line: &str) -> Result<(&str, u32, u32, &str)> {
    // Keys may contain commas; nothing else does.
    let mut from_end = line.rsplitn(6, ',');
    let mut next = || from_end.next().context("there are too few fields");
    let (_ttl, operation, _client) = (next()?, next()?, next()?);
    let value_size = next()?.parse().context("the value's size")?;
    let key_size = next()?.parse().context("the key's size")?;
    let (_time, key) = next()?
        .split_once(',')
        .context("there are too few fields")?;
    let is_known = READS.contains(&operation) || OTHERS.contains(&operation) || operation == SET;
    ensure!(
        is_known,
        "{operation:?} is no operation of memcached's in a trace: {}, {SET}, {}",
        READS.join(", "),
        OTHERS.join(", ")
    );
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
    fn a_trace_says_what_is_in_it_and_what_became_of_it() {
        let text =
            "0,a,20,0,1,get,0\n0,b,300,2000000,2,set,60\n1,a,20,100,1,incr,0\n2,b,9,1,1,get,0\n";
        let trace = Trace::parse(text.as_bytes(), 10).unwrap();
        assert_eq!(
            trace.summary,
            "4 lines: 50.0 % GETs, 2 keys of 20 to 300 bytes, values of 100 to 2,000,000 bytes; 1 keys brought into the \
             range of sizes; 1 values shortened to what memcached takes; 1 other operations as SETs"
        );
        let plain = Trace::parse(&b"0,a,20,0,1,get,0\n"[..], 10).unwrap();
        assert!(plain.summary.ends_with("values of 0 to 0 bytes"));
    }

    #[test]
    fn what_is_compressed_is_told() {
        let refusal = Trace::parse(&b"\x1f\x8b\x08\0"[..], 10).unwrap_err();
        assert!(refusal.to_string().contains("compressed"), "{refusal}");
    }

    #[test]
    fn what_is_no_trace_is_refused() {
        let unknown = "0,a,1,1,1,gat,0\n";
        for text in ["", "x\n", "0,a,x,1,1,get,0\n", "0,a,1,x,1,get,0\n", unknown] {
            assert!(Trace::parse(text.as_bytes(), 10).is_err(), "{text:?}");
        }
    }
}
