//! Every command that changes an item, over UDP and TCP: once it is answered, nobody reads what
//! was there before.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use prestack_testbed::pace::wait_for;
use prestack_testbed::{TcpClient, UdpClient};
use prestack_tests::base64::base64;
use prestack_tests::binary::{self, COUNT, EXPIRED, Opcode, STORAGE};
use prestack_tests::stage::{Stage, store, until_hit};

/// The item before each command: a number, so that it can be counted up.
const OLD: &[u8] = b"10";

/// A text command and its answer; `KEY` stands for the key, `CAS` for its unique number and `B64`
/// for the key in base64.
struct Text {
    command: &'static str,
    answer: &'static str,
}

const fn text(command: &'static str, answer: &'static str) -> Text {
    Text { command, answer }
}

/// Commands that are answered.
const ANSWERED: &[Text] = &[
    text("set KEY 0 0 3\r\nnew\r\n", "STORED\r\n"),
    text("set KEY 0 0 3\nnew\r\n", "STORED\r\n"),
    text("set KEY 0 -1 3\r\nnew\r\n", "STORED\r\n"),
    text("set  KEY  7  0  3 \r\nnew\r\n", "STORED\r\n"),
    text("add KEY 0 0 3\r\nnew\r\n", "NOT_STORED\r\n"),
    text("replace KEY 0 0 3\r\nnew\r\n", "STORED\r\n"),
    text("append KEY 0 0 3\r\nnew\r\n", "STORED\r\n"),
    text("prepend KEY 0 0 3\r\nnew\r\n", "STORED\r\n"),
    text("cas KEY 0 0 3 CAS\r\nnew\r\n", "STORED\r\n"),
    text("cas KEY 0 0 3 1\r\nnew\r\n", "EXISTS\r\n"),
    text("delete KEY\r\n", "DELETED\r\n"),
    text("delete KEY 0\r\n", "DELETED\r\n"),
    text("incr KEY 5\r\n", "15\r\n"),
    text("decr KEY 5\r\n", "5\r\n"),
    text("touch KEY 0\r\n", "TOUCHED\r\n"),
    text("touch KEY -1\r\n", "TOUCHED\r\n"),
    text("gat -1 KEY\r\n", "VALUE KEY 0 2\r\n10\r\nEND\r\n"),
    text("gat 0 KEY\r\n", "VALUE KEY 0 2\r\n10\r\nEND\r\n"),
    text("gats -1 KEY\r\n", "VALUE KEY 0 2 CAS\r\n10\r\nEND\r\n"),
    text("flush_all\r\n", "OK\r\n"),
    text("flush_all 0\r\n", "OK\r\n"),
    text("ms KEY 3\r\nnew\r\n", "HD\r\n"),
    text("ms KEY 3 T0 F5\r\nnew\r\n", "HD\r\n"),
    text("ms KEY 3 MA\r\nnew\r\n", "HD\r\n"),
    text("ms B64 3 b\r\nnew\r\n", "HD\r\n"),
    text("md KEY\r\n", "HD\r\n"),
    text("md B64 b\r\n", "HD\r\n"),
    text("md KEY I\r\n", "HD\r\n"),
    text("ma KEY\r\n", "HD\r\n"),
    text("ma KEY MD D3 v\r\n", "VA 1\r\n7\r\n"),
    text("ma B64 b v\r\n", "VA 2\r\n11\r\n"),
    text("mg KEY v T-1\r\n", "VA 2\r\n10\r\n"),
    text("mg B64 b v T-1\r\n", "VA 2\r\n10\r\n"),
];

/// Commands that are not; the two last ones are answered all the same when they fail.
const SILENT: &[&str] = &[
    "set KEY 0 0 3 noreply\r\nnew\r\n",
    "replace KEY 0 0 3 noreply\r\nnew\r\n",
    "append KEY 0 0 3 noreply\r\nnew\r\n",
    "prepend KEY 0 0 3 noreply\r\nnew\r\n",
    "cas KEY 0 0 3 CAS noreply\r\nnew\r\n",
    "delete KEY noreply\r\n",
    "incr KEY 5 noreply\r\n",
    "decr KEY 5 noreply\r\n",
    "touch KEY -1 noreply\r\n",
    "flush_all noreply\r\n",
    "flush_all 0 noreply\r\n",
    "ms KEY 3 q\r\nnew\r\n",
    "md KEY q\r\n",
    "ma KEY q\r\n",
];

/// Binary requests that are answered, with their extras and value.
const BINARY: &[(Opcode, &[u8], &[u8])] = &[
    (Opcode::Set, &STORAGE, b"new"),
    (Opcode::Add, &STORAGE, b"new"),
    (Opcode::Replace, &STORAGE, b"new"),
    (Opcode::Append, &[], b"new"),
    (Opcode::Prepend, &[], b"new"),
    (Opcode::Delete, &[], b""),
    (Opcode::Increment, &COUNT, b""),
    (Opcode::Decrement, &COUNT, b""),
    (Opcode::Touch, &EXPIRED, b""),
    (Opcode::Gat, &EXPIRED, b""),
    (Opcode::GatK, &EXPIRED, b""),
    (Opcode::Flush, &[], b""),
];

/// Binary requests that are answered only when they fail (and `GatQ` only when it finds).
const BINARY_QUIET: &[(Opcode, &[u8], &[u8])] = &[
    (Opcode::SetQ, &STORAGE, b"new"),
    (Opcode::AddQ, &STORAGE, b"new"),
    (Opcode::ReplaceQ, &STORAGE, b"new"),
    (Opcode::AppendQ, &[], b"new"),
    (Opcode::PrependQ, &[], b"new"),
    (Opcode::DeleteQ, &[], b""),
    (Opcode::IncrementQ, &COUNT, b""),
    (Opcode::DecrementQ, &COUNT, b""),
    (Opcode::GatQ, &EXPIRED, b""),
    (Opcode::GatKQ, &EXPIRED, b""),
    (Opcode::FlushQ, &[], b""),
];

/// One command after the other against one memcached.
struct Trial {
    stage: Stage,
    udp: UdpClient,
    tcp: TcpClient,
    reader: UdpClient,
    /// Over loopback: what memcached really holds.
    behind: TcpClient,
    count: u32,
}

/// A key, cached with the value [`OLD`].
struct Item {
    key: Vec<u8>,
    cas: u64,
}

impl Trial {
    fn new() -> Result<Self> {
        let stage = Stage::new()?;
        let (udp, reader, tcp) = (stage.udp()?, stage.udp()?, stage.tcp()?);
        let behind = stage.behind()?;
        Ok(Self {
            stage,
            udp,
            tcp,
            reader,
            behind,
            count: 0,
        })
    }

    /// A new key of 6 bytes (a multiple of 3 needs no padding in base64) that is in the cache.
    fn cached(&mut self) -> Result<Item> {
        self.count += 1;
        let key = format!("k{:05}", self.count).into_bytes();
        store(&mut self.behind, &key, OLD)?;
        until_hit(&self.stage.prestack, &mut self.reader, &key, OLD)?;
        self.behind.send(&[b"gets ", &key[..], b"\r\n"].concat())?;
        let cas = self.behind.items()?[0]
            .cas
            .context("gets tells no unique number")?;
        Ok(Item { key, cas })
    }

    /// What memcached holds, asked behind prestack's back.
    fn truth(&mut self, item: &Item) -> Result<Option<Vec<u8>>> {
        self.behind.get(&item.key)
    }

    /// Reads the item through prestack, which must agree with memcached, now and when the item
    /// has had the time to be cached again.
    fn check(&mut self, item: &Item) -> Result<()> {
        let truth = self.truth(item)?;
        for _ in 0..3 {
            let got = self.reader.get(&item.key)?;
            ensure!(
                got == truth,
                "read {} instead of {}",
                show(&got),
                show(&truth)
            );
        }
        if let Some(value) = truth {
            until_hit(&self.stage.prestack, &mut self.reader, &item.key, &value)?;
        }
        Ok(())
    }

    /// Waits until memcached has done what it was not to answer.
    fn until_changed(&mut self, item: &Item) -> Result<()> {
        wait_for(
            "memcached to change the item",
            Duration::from_secs(5),
            || Ok((self.truth(item)?.as_deref() != Some(OLD)).then_some(())),
        )
    }
}

impl Item {
    fn fill_in(&self, template: &str) -> Vec<u8> {
        let key = std::str::from_utf8(&self.key).expect("keys are ASCII");
        let text = template
            .replace("B64", &base64(&self.key))
            .replace("KEY", key)
            .replace("CAS", &self.cas.to_string());
        text.into_bytes()
    }
}

fn show(value: &Option<Vec<u8>>) -> String {
    value.as_ref().map_or("nothing".into(), |value| {
        String::from_utf8_lossy(value).into()
    })
}

#[test]
fn answered_text_commands_over_udp() -> Result<()> {
    let mut trial = Trial::new()?;
    for Text { command, answer } in ANSWERED {
        let item = trial.cached()?;
        let request = item.fill_in(command);
        let id = trial.udp.send(&request)?;
        let mut reply = trial.udp.receive(id)?;
        // A text GET may be answered by several datagrams.
        while reply.len() < item.fill_in(answer).len() {
            let more = trial.udp.receive(id)?;
            reply.extend(more);
        }
        assert_eq!(reply, item.fill_in(answer), "{command:?}");
        trial
            .check(&item)
            .with_context(|| format!("after {command:?} over UDP"))?;
    }
    Ok(())
}

#[test]
fn answered_text_commands_over_tcp() -> Result<()> {
    let mut trial = Trial::new()?;
    for Text { command, answer } in ANSWERED {
        let item = trial.cached()?;
        let answer = item.fill_in(answer);
        trial.tcp.send(&item.fill_in(command))?;
        assert_eq!(trial.tcp.bytes(answer.len())?, answer, "{command:?}");
        trial
            .check(&item)
            .with_context(|| format!("after {command:?} over TCP"))?;
    }
    Ok(())
}

#[test]
fn silent_text_commands_over_udp() -> Result<()> {
    let mut trial = Trial::new()?;
    for command in SILENT {
        let item = trial.cached()?;
        let request = item.fill_in(command);
        trial.udp.send(&request)?;
        trial
            .until_changed(&item)
            .with_context(|| format!("after {command:?}"))?;
        trial
            .check(&item)
            .with_context(|| format!("after {command:?} over UDP"))?;
    }
    Ok(())
}

#[test]
fn silent_text_commands_over_tcp() -> Result<()> {
    let mut trial = Trial::new()?;
    for command in SILENT {
        let item = trial.cached()?;
        let request = [&item.fill_in(command)[..], b"mn\r\n"].concat();
        // The answer to the second command says that the first one is done.
        assert_eq!(trial.tcp.command(&request)?, b"MN\r\n", "{command:?}");
        trial
            .check(&item)
            .with_context(|| format!("after {command:?} over TCP"))?;
    }
    Ok(())
}

#[test]
fn binary_requests_over_tcp() -> Result<()> {
    let mut trial = Trial::new()?;
    let mut client = trial.stage.tcp()?;
    for (opcode, extras, value) in BINARY {
        let item = trial.cached()?;
        let key = binary_key(*opcode, &item);
        client.send(&binary::request(*opcode, extras, key, value))?;
        binary::status(&mut client, *opcode)?;
        trial
            .check(&item)
            .with_context(|| format!("after {opcode:?} over TCP"))?;
    }
    for (opcode, extras, value) in BINARY_QUIET {
        let item = trial.cached()?;
        let request = binary::request(*opcode, extras, binary_key(*opcode, &item), value);
        let noop = binary::request(Opcode::Noop, &[], &[], &[]);
        client.send(&[request, noop].concat())?;
        binary::status(&mut client, Opcode::Noop)?;
        trial
            .check(&item)
            .with_context(|| format!("after {opcode:?} over TCP"))?;
    }
    Ok(())
}

#[test]
fn binary_requests_over_udp() -> Result<()> {
    let mut trial = Trial::new()?;
    for (opcode, extras, value) in BINARY {
        let item = trial.cached()?;
        let key = binary_key(*opcode, &item);
        let reply = trial
            .udp
            .request(&binary::request(*opcode, extras, key, value))?;
        assert_eq!(reply[..2], [0x81, *opcode as u8]);
        trial
            .check(&item)
            .with_context(|| format!("after {opcode:?} over UDP"))?;
    }
    for (opcode, extras, value) in BINARY_QUIET {
        let item = trial.cached()?;
        let key = binary_key(*opcode, &item);
        trial
            .udp
            .send(&binary::request(*opcode, extras, key, value))?;
        if !matches!(opcode, Opcode::AddQ) {
            trial
                .until_changed(&item)
                .with_context(|| format!("after {opcode:?}"))?;
        }
        trial
            .check(&item)
            .with_context(|| format!("after {opcode:?} over UDP"))?;
    }
    Ok(())
}

/// The request's key: none empties the cache of all.
fn binary_key(opcode: Opcode, item: &Item) -> &[u8] {
    match opcode {
        Opcode::Flush | Opcode::FlushQ => &[],
        _ => &item.key,
    }
}

#[test]
fn a_command_in_pieces_is_seen() -> Result<()> {
    let mut trial = Trial::new()?;
    let request = "set KEY 0 0 3\r\nnew\r\n";
    for cut in 1..request.len() {
        let item = trial.cached()?;
        let bytes = item.fill_in(request);
        let (first, second) = bytes.split_at(cut);
        trial.tcp.send(first)?;
        // Reading in between must not bring the old value back for later.
        trial.reader.get(&item.key)?;
        trial.tcp.send(second)?;
        assert_eq!(trial.tcp.line()?, b"STORED\r\n");
        trial
            .check(&item)
            .with_context(|| format!("after a SET cut at {cut}"))?;
    }
    Ok(())
}

#[test]
fn commands_behind_others_are_seen() -> Result<()> {
    let mut trial = Trial::new()?;
    let set = "set KEY 0 0 3\r\nnew\r\n";
    let before = [
        ("get other\r\n", "END\r\n"),
        ("get KEY\r\n", "VALUE KEY 0 2\r\n10\r\nEND\r\n"),
        ("mn\r\n", "MN\r\n"),
        ("nonsense\r\n", "ERROR\r\n"),
        (
            "set other 0 0 33\r\nset KEY 0 0 3\r\nxxx\r\n0123456789\r\n",
            "STORED\r\n",
        ),
        ("delete other\r\n", "NOT_FOUND\r\n"),
    ];
    for (command, answer) in before {
        // What is no command leaves the connection in doubt.
        trial.tcp = trial.stage.tcp()?;
        trial.behind.command(b"delete other\r\n")?;
        let item = trial.cached()?;
        let answer = item.fill_in(&format!("{answer}STORED\r\n"));
        trial.tcp.send(&item.fill_in(&format!("{command}{set}")))?;
        assert_eq!(trial.tcp.bytes(answer.len())?, answer, "{command:?}");
        trial
            .check(&item)
            .with_context(|| format!("after a SET behind {command:?} over TCP"))?;

        trial.behind.command(b"delete other\r\n")?;
        let item = trial.cached()?;
        trial.udp.send(&item.fill_in(&format!("{command}{set}")))?;
        trial
            .until_changed(&item)
            .with_context(|| format!("behind {command:?} over UDP"))?;
        trial
            .check(&item)
            .with_context(|| format!("after a SET behind {command:?} over UDP"))?;
    }
    Ok(())
}
