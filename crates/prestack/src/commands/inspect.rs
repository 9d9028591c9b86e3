//! `prestack inspect`.

use std::{os::unix::ffi::OsStrExt as _, time::Duration};

use prestack_abi::{
    cache::EntryHeader,
    control::{Control, Outstanding, control_of, fingerprint},
    time::is_ahead,
};
use prestack_proto::MAX_KEY;

use super::{Running, table};
use crate::{
    cache::{self, Entry},
    cli::InspectArgs,
    clock, maps,
};

/// Bytes of a value that are shown.
const PREVIEW: usize = 64;

/// Why a key cannot be looked up.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum InspectError {
    #[error("keys have 1 to {MAX_KEY} bytes, not {0}")]
    Length(usize),
    #[error(
        "keys have no spaces or control characters, and byte {at} of this one is {byte:#04x}: give \
         the key alone, as after `get`"
    )]
    Byte { byte: u8, at: usize },
}

/// What every backend has cached under a key.
///
/// # Errors
/// The instance does not run, or cannot be asked.
pub fn inspect(args: &InspectArgs) -> anyhow::Result<String> {
    let key = args.key.as_bytes();
    check(key)?;
    let running = Running::find(&args.instance.instance)?;
    let maps = running.cache()?;
    let config = running.controls.config();
    let mut text = String::new();
    for backend in &running.state.backends {
        let number = backend.number;
        let (place, hash) = cache::place(&config, number, key);
        let entry = cache::find(&maps, place, number, key);
        let control = maps::control(&running.state.maps, control_of(hash, config.controls))?;
        let now = clock::now_ns();
        let epoch = running.controls.epoch_of(number);
        let mut rows = vec![("backend", format!("{number} (memcached {})", backend.pid))];
        match entry {
            None => rows.push(("cached", "no".into())),
            Some(entry) => describe(&entry, epoch, now, config.max_age_ns, &mut rows),
        }
        let has_ended = |place, number| {
            maps::flow(&running.state.maps, place).is_ok_and(|flow| {
                flow.answered > number || (flow.over_at != 0 && flow.over_at <= now)
            })
        };
        let writes = outstanding(&control, fingerprint(hash), now, has_ended);
        rows.push(("writes", writes));
        rows.push((
            "bucket",
            format!("{} (version {})", place.bucket, control.version),
        ));
        text += &table(&rows);
    }
    Ok(text)
}

/// Whether memcached can have such a key.
fn check(key: &[u8]) -> Result<(), InspectError> {
    if !(1..=MAX_KEY).contains(&key.len()) {
        return Err(InspectError::Length(key.len()));
    }
    match key
        .iter()
        .position(|byte| byte.is_ascii_whitespace() || byte.is_ascii_control())
    {
        Some(at) => Err(InspectError::Byte {
            byte: key[at],
            at: at + 1,
        }),
        None => Ok(()),
    }
}

fn describe(entry: &Entry, epoch: u64, now: u64, max_age: u64, rows: &mut Vec<(&str, String)>) {
    let age = now.saturating_sub(entry.header.time);
    let life = max_age.saturating_sub(age);
    let cached = if entry.header.epoch != epoch as u32 {
        "no: emptied since".into()
    } else if life == 0 {
        "no: too old".into()
    } else {
        "yes".into()
    };
    rows.push(("cached", cached));
    rows.push((
        "age",
        format!("{:.3} s, {:.3} s left", seconds(age), seconds(life)),
    ));
    let size = format!(
        "{} bytes in {} granules",
        entry.reply.len(),
        EntryHeader::granules(entry.header.reply_len.into())
    );
    rows.push(("reply", size));
    rows.push(("answers", answers(&entry.header)));
    if let Some((flags, value)) = entry.value() {
        let flags = if entry.header.knows & EntryHeader::FLAGS != 0 {
            flags.to_string()
        } else {
            "unknown".into()
        };
        rows.push((
            "value",
            format!("{} bytes, flags {flags}: {}", value.len(), preview(value)),
        ));
    }
    if entry.header.knows & EntryHeader::CAS != 0 {
        rows.push(("CAS", entry.header.cas.to_string()));
    }
}

/// The requests that what is known of the item can answer.
fn answers(header: &EntryHeader) -> String {
    const FLAGS_AND_CAS: u8 = EntryHeader::FLAGS | EntryHeader::CAS;
    [
        ("get", EntryHeader::FLAGS),
        ("gets", FLAGS_AND_CAS),
        ("binary GET", FLAGS_AND_CAS),
        ("mg", EntryHeader::META),
        ("mg … f", EntryHeader::META | EntryHeader::FLAGS),
        ("mg … c", EntryHeader::META | EntryHeader::CAS),
        ("mg … k", EntryHeader::META | EntryHeader::KEY_PLAIN),
        ("mg … k b", EntryHeader::META | EntryHeader::KEY_BASE64),
    ]
    .into_iter()
    .filter(|(_, needs)| header.knows & needs == *needs)
    .map(|(request, _)| request)
    .collect::<Vec<_>>()
    .join(", ")
}

fn seconds(ns: u64) -> f64 {
    Duration::from_nanos(ns).as_secs_f64()
}

/// The beginning of a value, with what is not printable escaped.
fn preview(value: &[u8]) -> String {
    let shown = &value[..value.len().min(PREVIEW)];
    let more = if value.len() > PREVIEW { "…" } else { "" };
    format!("\"{}\"{more}", shown.escape_ascii())
}

/// Whether writes to the key are under way. `has_ended` tells whether a command with a number on a TCP
/// flow has.
fn outstanding(
    control: &Control,
    fingerprint: u16,
    now: u64,
    has_ended: impl Fn(u32, u64) -> bool,
) -> String {
    let is_under_way = |write: &&Outstanding| match write.writes {
        0 => false,
        Outstanding::OWED => !has_ended(write.flow.into(), write.command()),
        Outstanding::QUIET => {
            is_ahead(write.until, now) && !has_ended(write.flow.into(), write.command())
        }
        _ => is_ahead(write.until, now),
    };
    let mine: Vec<_> = control
        .outstanding
        .iter()
        .filter(|write| write.fingerprint == fingerprint)
        .filter(is_under_way)
        .map(|write| match write.writes {
            Outstanding::OWED => "outstanding over TCP".into(),
            Outstanding::QUIET => "outstanding over TCP, without reply".into(),
            Outstanding::SETTLES => "outstanding until they settle".into(),
            count => format!("{count} outstanding over UDP"),
        })
        .collect();
    if !mine.is_empty() {
        mine.join(", ")
    } else if is_ahead(control.crowded_until, now) {
        "outstanding somewhere in the bucket".into()
    } else {
        "none outstanding".into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prestack_abi::time::SETTLE_SHIFT;

    #[test]
    fn keys_are_those_of_the_text_protocol() {
        assert_eq!(check(b"key\xff"), Ok(()));
        assert_eq!(check(b""), Err(InspectError::Length(0)));
        assert_eq!(check(&[b'k'; 251]), Err(InspectError::Length(251)));
        assert_eq!(check(b"a b"), Err(InspectError::Byte { byte: b' ', at: 2 }));
        assert_eq!(
            check(b"a\n"),
            Err(InspectError::Byte { byte: b'\n', at: 2 })
        );
    }

    #[test]
    fn values_are_shown_escaped_and_cut() {
        assert_eq!(preview(b"a\r\n\xff"), r#""a\r\n\xff""#);
        assert_eq!(preview(&[b'x'; 65]), format!("\"{}\"…", "x".repeat(64)));
    }

    #[test]
    fn writes_are_outstanding_until_their_time() {
        const UNIT: u64 = 1 << SETTLE_SHIFT;
        let mut control = Control::default();
        control.outstanding[1] = Outstanding {
            fingerprint: 5,
            writes: 2,
            until: 100,
            ..Outstanding::default()
        };
        let show = |control: &Control, fingerprint, now| {
            outstanding(control, fingerprint, now * UNIT, |flow, number| {
                (flow, number) == (7, 1 << 40 | 3)
            })
        };
        assert_eq!(show(&control, 5, 99), "2 outstanding over UDP");
        assert_eq!(show(&control, 5, 100), "none outstanding");
        assert_eq!(show(&control, 6, 99), "none outstanding");
        control.crowded_until = 200;
        assert!(show(&control, 6, 150).contains("bucket"));
        control.outstanding[2] = Outstanding {
            fingerprint: 6,
            writes: Outstanding::OWED,
            flow: 7,
            number_high: 1 << 8,
            number: 4,
            ..Outstanding::default()
        };
        assert_eq!(show(&control, 6, 300), "outstanding over TCP");
        control.outstanding[2].number = 3;
        assert_eq!(show(&control, 6, 300), "none outstanding");
    }
}
