//! What was done to every key, and when; whether that is linearizable.

use anyhow::{Context, Result, ensure};
use prestack_tests::history::{self, Operation, Time};
use prestack_tests::progress::{self, Step};

use super::command::{Action, Answer, Command};
use super::keys::{self, KINDS, Kind};

/// Numbers from here on stand for the absence of a register's value, which is not unique: whatever
/// removes a key, or finds it removed, counts as a write of its own.
const ABSENT: u64 = 1 << 48;
/// Most lines shown of a history that is wrong.
const SHOWN: usize = 80;

/// Something that was done, with its answer unless there was none.
pub struct Done {
    pub start: Time,
    pub end: Time,
    pub who: u32,
    pub command: Command,
    pub answer: Option<Answer>,
}

/// What has been done to one key.
#[derive(Default)]
struct Story {
    operations: Vec<Operation>,
    steps: Vec<Step>,
}

/// Fails when what was done to some key is not linearizable; the message has the key's history.
pub fn check(all: &[Done]) -> Result<()> {
    let mut stories: Vec<Story> = KINDS.iter().map(|_| Story::default()).collect();
    for (i, done) in all.iter().enumerate() {
        tell(&mut stories, done, ABSENT + i as u64)
            .with_context(|| format!("{:?}", done.command.shown()))?;
    }
    let is_flushed = all.iter().any(|done| done.command.action == Action::Flush);
    for (key, story) in stories.iter().enumerate() {
        let checked = if KINDS[key] == Kind::Register {
            history::check(&story.operations)
        } else if is_flushed {
            Ok(())
        } else {
            progress::check(&story.steps)
        };
        // A value that nobody wrote is one of an earlier round.
        checked.with_context(|| format!("stale: {}", show(all, key)))?;
    }
    Ok(())
}

fn tell(stories: &mut [Story], done: &Done, absent: u64) -> Result<()> {
    let (start, end) = (done.start, done.end);
    let operation = |value, write| Operation {
        start,
        end,
        value,
        write,
    };
    let answer = done.answer.as_ref();
    let is_refused = answer.is_some_and(|answer| !answer.is_done);
    match &done.command.action {
        Action::Read(asked) => {
            for &key in asked {
                let Some(answer) = answer else { continue };
                stories[key].see(key, answer, &operation, absent)?;
            }
        }
        Action::Write { key, number } if !is_refused => {
            stories[*key].operations.push(operation(*number, true));
        }
        Action::Remove { key, shows } => {
            let Some(answer) = answer else { return Ok(()) };
            if *shows && !answer.items.is_empty() {
                stories[*key].see(*key, answer, &operation, absent)?;
            }
            stories[*key].operations.push(operation(absent, true));
        }
        Action::Step(key) if !is_refused => {
            let told = answer.map(|answer| number_in(*key, answer)).transpose()?;
            stories[*key].steps.push(Step {
                start,
                end,
                progress: told.flatten(),
                write: true,
            });
        }
        Action::Flush if answer.is_some() => {
            for story in stories {
                story.operations.push(operation(absent, true));
            }
        }
        Action::Start(_)
        | Action::Nothing
        | Action::Flush
        | Action::Write { .. }
        | Action::Step(_) => {}
    }
    Ok(())
}

/// What the answer to a step tells of the key.
fn number_in(key: usize, answer: &Answer) -> Result<Option<u64>> {
    let text = answer.number.map(|number| number.to_string().into_bytes());
    let shown = answer.items.first().map(|(_, value)| value.clone());
    text.or(shown)
        .map(|text| keys::read(key, &text))
        .transpose()
}

impl Story {
    /// The answer to a GET of this key, and perhaps of others.
    fn see(
        &mut self,
        key: usize,
        answer: &Answer,
        operation: &dyn Fn(u64, bool) -> Operation,
        absent: u64,
    ) -> Result<()> {
        let name = keys::name(key);
        let item = answer
            .items
            .iter()
            .find(|(named, _)| named.is_empty() || *named == name);
        let seen = item.map(|(_, value)| keys::read(key, value)).transpose()?;
        if KINDS[key] == Kind::Register {
            let value = seen.unwrap_or(absent);
            self.operations.push(operation(value, seen.is_none()));
        } else if let Some(progress) = seen {
            let Operation { start, end, .. } = operation(0, false);
            self.steps.push(Step {
                start,
                end,
                progress: Some(progress),
                write: false,
            });
        }
        Ok(())
    }
}

/// Whether the action has to do with the key.
fn concerns(action: &Action, key: usize) -> bool {
    match action {
        Action::Read(asked) => asked.contains(&key),
        Action::Write { key: k, .. }
        | Action::Start(k)
        | Action::Remove { key: k, .. }
        | Action::Step(k) => *k == key,
        Action::Flush => true,
        Action::Nothing => false,
    }
}

/// The latest that was done to a key, in the order of the starts.
fn show(all: &[Done], key: usize) -> String {
    let mut of_key: Vec<&Done> = all
        .iter()
        .filter(|done| concerns(&done.command.action, key))
        .collect();
    of_key.sort_by_key(|done| done.start);
    let left_out = of_key.len().saturating_sub(SHOWN);
    let lines: Vec<String> = of_key[left_out..].iter().map(|done| line(done)).collect();
    format!(
        "{} (of its history {left_out} are left out):\n{}\n",
        String::from_utf8_lossy(&keys::name(key)),
        lines.join("\n")
    )
}

fn line(done: &Done) -> String {
    let end = if done.end == Time::MAX {
        "never".to_owned()
    } else {
        (done.end / 1000).to_string()
    };
    let answer = done.answer.as_ref().map(|answer| {
        let items: Vec<String> = answer
            .items
            .iter()
            .map(|(_, value)| String::from_utf8_lossy(&value[..value.len().min(16)]).into_owned())
            .collect();
        format!("{} {items:?} {:?}", answer.is_done, answer.number)
    });
    format!(
        "{:>12} to {end:>12} us, socket {:>2}: {:?} -> {}",
        done.start / 1000,
        done.who,
        done.command.shown(),
        answer.unwrap_or_default()
    )
}

/// Fails unless an answer shows of a key what memcached itself says of it.
pub fn agree(key: usize, answer: &Answer, truth: Option<&[u8]>) -> Result<()> {
    let shown = answer.items.first().map(|(_, value)| &value[..]);
    let start = |value: Option<&[u8]>| {
        value.map(|v| String::from_utf8_lossy(&v[..v.len().min(16)]).into_owned())
    };
    ensure!(
        shown == truth,
        "stale: {} is {:?}, not {:?}",
        String::from_utf8_lossy(&keys::name(key)),
        start(truth),
        start(shown)
    );
    Ok(())
}
