//! Commands, what they do to which key, and their answers.

use std::str;

use anyhow::{Context, Result, bail, ensure};

/// What a command does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Shows these keys.
    Read(Vec<usize>),
    /// Sets a register to the value with this number.
    Write { key: usize, number: u64 },
    /// Sets a key that is not a register to what it starts from.
    Start(usize),
    /// Removes a register; it may show it first.
    Remove { key: usize, shows: bool },
    /// Brings a key one step further; it may show how far.
    Step(usize),
    /// Removes all keys.
    Flush,
    /// Nothing that can be seen.
    Nothing,
}

/// How a command is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Not at all, or by an error.
    Silent,
    /// `VALUE` blocks and `END`.
    Items,
    /// One line.
    Line,
    /// One line of the meta protocol, or `VA` with data.
    Meta,
    /// `MN`; what comes before it is for quiet commands.
    Noop,
    /// A response with this `opaque`; what comes before it is for quiet commands.
    Binary(u32),
}

/// A command.
#[derive(Clone, Debug)]
pub struct Command {
    /// What is sent.
    pub bytes: Vec<u8>,
    /// What it does.
    pub action: Action,
    /// How it is answered.
    pub shape: Shape,
}

/// An answer.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// Whether the command has done what it says.
    pub is_done: bool,
    /// Items: the keys are empty where the answer does not name them.
    pub items: Vec<(Vec<u8>, Vec<u8>)>,
    /// A number of a binary response.
    pub number: Option<u64>,
}

impl Command {
    /// Its beginning, to be shown.
    pub fn shown(&self) -> String {
        let start = &self.bytes[..self.bytes.len().min(48)];
        String::from_utf8_lossy(start).into_owned()
    }

    /// The answer at the start of `bytes`, and its length; nothing if it is not all there.
    pub fn answer(&self, bytes: &[u8]) -> Result<Option<(Answer, usize)>> {
        let mut rest = bytes;
        let answer = match self.shape {
            Shape::Silent => bail!("{:?} is not answered", self.shown()),
            Shape::Items => items(&mut rest),
            Shape::Line => line(&mut rest).map(|line| line.map(done).transpose())?,
            Shape::Meta => meta(&mut rest),
            Shape::Noop => noop(&mut rest),
            Shape::Binary(opaque) => binary(&mut rest, opaque),
        };
        let answer = answer.with_context(|| {
            let start = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]);
            format!("{:?} was answered {start:?}", self.shown())
        })?;
        Ok(answer.map(|answer| (answer, bytes.len() - rest.len())))
    }
}

/// Takes `len` bytes.
fn take<'a>(rest: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(len)?;
    *rest = left;
    Some(taken)
}

/// Takes a line, and returns it without its end.
fn line<'a>(rest: &mut &'a [u8]) -> Result<Option<&'a [u8]>> {
    let Some(len) = rest.iter().position(|&b| b == b'\n') else {
        return Ok(None);
    };
    let line = take(rest, len + 1).and_then(|line| line.strip_suffix(b"\r\n"));
    line.map(Some).context("a line without CR")
}

/// Takes a value of as many bytes as `digits` say.
fn value<'a>(rest: &mut &'a [u8], digits: &[u8]) -> Result<Option<&'a [u8]>> {
    let len: usize = str::from_utf8(digits)?.parse().context("no length")?;
    let Some(block) = take(rest, len + 2) else {
        return Ok(None);
    };
    ensure!(block.ends_with(b"\r\n"), "no CR LF after a value");
    Ok(Some(&block[..len]))
}

fn items(rest: &mut &[u8]) -> Result<Option<Answer>> {
    let mut answer = Answer {
        is_done: true,
        ..Answer::default()
    };
    loop {
        let Some(line) = line(rest)? else {
            return Ok(None);
        };
        let words: Vec<&[u8]> = line.split(|&b| b == b' ').collect();
        match words[..] {
            [b"END"] => return Ok(Some(answer)),
            [b"VALUE", key, _, len] | [b"VALUE", key, _, len, _] => {
                let Some(value) = value(rest, len)? else {
                    return Ok(None);
                };
                answer.items.push((key.to_vec(), value.to_vec()));
            }
            _ => bail!("neither VALUE nor END"),
        }
    }
}

/// What a line says that answers anything but a GET.
fn done(line: &[u8]) -> Result<Answer> {
    let is_number = !line.is_empty() && line.iter().all(u8::is_ascii_digit);
    let is_done = match line {
        b"STORED" | b"DELETED" | b"TOUCHED" | b"OK" => true,
        b"NOT_STORED" | b"NOT_FOUND" | b"EXISTS" => false,
        _ => {
            ensure!(is_number, "neither done nor refused");
            true
        }
    };
    let items = is_number.then(|| (Vec::new(), line.to_vec()));
    Ok(Answer {
        is_done,
        items: items.into_iter().collect(),
        number: None,
    })
}

fn meta(rest: &mut &[u8]) -> Result<Option<Answer>> {
    let Some(line) = line(rest)? else {
        return Ok(None);
    };
    let words: Vec<&[u8]> = line.split(|&b| b == b' ').collect();
    let mut answer = Answer::default();
    match words[..] {
        [b"VA", len, ..] => {
            let Some(value) = value(rest, len)? else {
                return Ok(None);
            };
            answer.items.push((Vec::new(), value.to_vec()));
            answer.is_done = true;
        }
        [b"HD", ..] => answer.is_done = true,
        [b"EN" | b"NF" | b"NS" | b"EX", ..] => {}
        _ => bail!("nothing of the meta protocol"),
    }
    Ok(Some(answer))
}

fn noop(rest: &mut &[u8]) -> Result<Option<Answer>> {
    while !rest.starts_with(b"MN") {
        if meta(rest)?.is_none() {
            return Ok(None);
        }
    }
    Ok(line(rest)?.map(|_| Answer::default()))
}

fn binary(rest: &mut &[u8], opaque: u32) -> Result<Option<Answer>> {
    loop {
        let Some(header) = take(rest, 24) else {
            return Ok(None);
        };
        let short = |at: usize| usize::from(u16::from_be_bytes([header[at], header[at + 1]]));
        let (key, extras, body) = (short(2), usize::from(header[4]), short(8) << 16 | short(10));
        let Some(body) = take(rest, body) else {
            return Ok(None);
        };
        ensure!(
            header[0] == 0x81 && key + extras <= body.len(),
            "no response"
        );
        if header[12..16] != opaque.to_be_bytes() {
            continue;
        }
        let is_done = match short(6) {
            0 => true,
            1 | 2 | 5 => false,
            status => bail!("status {status}"),
        };
        let mut answer = Answer {
            is_done,
            ..Answer::default()
        };
        let value = &body[extras + key..];
        if !is_done {
            return Ok(Some(answer));
        }
        match header[1] {
            0x05 | 0x06 => answer.number = value.try_into().ok().map(u64::from_be_bytes),
            0x00 | 0x0c | 0x1d | 0x23 => answer.items.push((Vec::new(), value.to_vec())),
            _ => {}
        }
        return Ok(Some(answer));
    }
}
