//! Clients as people use them, with prestack before memcached: each works as it does without, and what
//! it writes is what a UDP client is answered, hit or not.

use std::fs;
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use memcache::{Client, CommandError, MemcacheError};
use prestack_testbed::{MemcachedOptions, pace};
use prestack_tests::stage::{LASTING, PORT, Stage, until_hit};

use crate::mixed::HITS;

/// Runs a program at the client's end.
fn run(stage: &Stage, program: &str, args: &[&str]) -> Result<Output> {
    let mut command = stage.bed.client.command(program);
    command.args(args);
    command
        .output()
        .with_context(|| format!("running {program} (`cargo xtask setup` installs it)"))
}

/// Whether the clients that are programs of their own are to be used: a virtual machine has none, and
/// what they do to another kernel is what the other tests do.
pub fn are_installed() -> bool {
    !pace::is_slow()
}

/// Runs a program at the client's end, which must succeed; returns what it prints.
pub fn succeed(stage: &Stage, program: &str, args: &[&str]) -> Result<String> {
    let output = run(stage, program, args)?;
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    ensure!(
        output.status.success(),
        "{program} {args:?} ended with {}: {stdout}{stderr}",
        output.status
    );
    Ok(stdout.into_owned())
}

/// memcached, and prestack with `args` beyond those of other tests.
fn stage(args: &[&str]) -> Result<Stage> {
    Stage::with(MemcachedOptions::default(), &[&LASTING[..], args].concat())
}

/// libmemcached's test of a server: every command, answered as the protocol says.
fn capable(protocol: &str, args: &[&str]) -> Result<()> {
    if !are_installed() {
        return Ok(());
    }
    let stage = stage(args)?;
    let (host, port) = (stage.server4().ip().to_string(), PORT.to_string());
    let said = succeed(&stage, "memccapable", &["-h", &host, "-p", &port, protocol])?;
    ensure!(said.contains("All tests passed"), "{said}");
    if protocol == "-b" {
        // In text it reads nothing twice.
        stage.prestack.check_tcp_hits()?;
    }
    Ok(())
}

#[test]
fn libmemcached_finds_the_text_protocol_complete() -> Result<()> {
    capable("-a", &[])?;
    capable("-a", HITS)
}

#[test]
fn libmemcached_finds_the_binary_protocol_complete() -> Result<()> {
    capable("-b", &[])?;
    capable("-b", HITS)
}

#[test]
fn libmemcacheds_tools_store_read_and_remove() -> Result<()> {
    tools(&[])
}

#[test]
fn libmemcacheds_tools_are_answered_over_tcp() -> Result<()> {
    tools(HITS)
}

fn tools(args: &[&str]) -> Result<()> {
    if !are_installed() {
        return Ok(());
    }
    let stage = stage(args)?;
    let servers = format!("--servers={}", stage.server4());
    let directory = tempfile::tempdir()?;
    let mut udp = stage.udp()?;
    for (round, protocol) in [&[][..], &["-b"]].into_iter().enumerate() {
        let tool = |name: &str, args: &[&str]| {
            let args = [&[servers.as_str()], protocol, args].concat();
            run(&stage, name, &args)
        };
        let value = format!("hello {round}\r\nEND\r\n");
        let file = directory.path().join("greeting");
        fs::write(&file, &value)?;
        let file = file.to_str().context("a path in text")?;

        ensure!(tool("memccp", &[file])?.status.success());
        until_hit(&stage.prestack, &mut udp, b"greeting", value.as_bytes())?;
        ensure!(tool("memcexist", &["greeting"])?.status.success());
        ensure!(
            tool("memctouch", &["--expire=1000", "greeting"])?
                .status
                .success()
        );
        let read = tool("memccat", &["greeting"])?;
        ensure!(read.stdout.starts_with(value.as_bytes()), "{read:?}");
        assert_eq!(udp.get(b"greeting")?.as_deref(), Some(value.as_bytes()));
        // Several over one connection.
        let read = tool("memccat", &["greeting"; 5])?;
        let times = read.stdout.windows(value.len());
        let times = times.filter(|&window| window == value.as_bytes()).count();
        ensure!(times == 5, "{read:?}");

        ensure!(tool("memcrm", &["greeting"])?.status.success());
        assert_eq!(udp.get(b"greeting")?, None);
        ensure!(!tool("memccat", &["greeting"])?.status.success());
        ensure!(!tool("memcrm", &["greeting"])?.status.success());
    }
    let stats = succeed(&stage, "memcstat", &[&servers])?;
    ensure!(stats.contains("cmd_get"), "{stats}");
    stage.prestack.check_tcp_hits()
}

/// What pymemcache is made to do; its writes wait for no reply unless told to.
const PYMEMCACHE: &str = r#"
import sys, time
from pymemcache.client.base import Client
client = Client((sys.argv[1], int(sys.argv[2])), timeout=5)
assert client.default_noreply
for round in range(40):
    value = b"value %d\r\nEND\r\n" % round
    client.set("key", value)
    assert client.get("key") == value
    client.set("other", value, noreply=False)
    assert client.get_many(["key", "missing", "other"]) == {"key": value, "other": value}
    old, number = client.gets("key")
    assert old == value
    assert client.cas("key", b"swapped", number, noreply=False) is True
    assert client.cas("key", b"lost", number, noreply=False) is False
    assert client.get("key") == b"swapped"
    client.set("number", b"41")
    assert client.incr("number", 1) == 42
    client.incr("number", 1, noreply=True)
    assert client.get("number") == b"43"
    assert client.decr("number", 2) == 41
    client.append("key", b"!")
    client.prepend("key", b"<")
    assert client.get("key") == b"<swapped!"
    assert client.add("key", b"no", noreply=False) is False
    assert client.replace("key", b"yes", noreply=False) is True
    assert client.touch("key", 1000, noreply=False) is True
    client.delete("key")
    assert client.get("key") is None
    assert client.delete("key", noreply=False) is False
client.set("key", b"last")
assert client.get("key") == b"last"
client.flush_all()
assert client.get("key") is None
client.set("key", b"after")
for round in range(200):
    # Until it has settled, and longer.
    assert client.get("key") == b"after"
    time.sleep(0.005)
print("done")
"#;

#[test]
fn pymemcache_reads_its_own_writes() -> Result<()> {
    pymemcache(&[])
}

#[test]
fn pymemcache_is_answered_over_tcp() -> Result<()> {
    pymemcache(HITS)
}

fn pymemcache(args: &[&str]) -> Result<()> {
    if !are_installed() {
        return Ok(());
    }
    let stage = stage(args)?;
    let mut udp = stage.udp()?;
    let (host, port) = (stage.server4().ip().to_string(), PORT.to_string());
    // Debian's own interpreter has Debian's packages.
    let said = succeed(
        &stage,
        "/usr/bin/python3",
        &["-c", PYMEMCACHE, &host, &port],
    )?;
    assert_eq!(said, "done\n");
    until_hit(&stage.prestack, &mut udp, b"key", b"after")?;
    stage.prestack.check_tcp_hits()
}

/// The `memcache` crate over UDP (`memcache+udp`) or TCP (`memcache`).
fn crate_client(stage: &Stage, scheme: &str, protocol: &str) -> Result<Client> {
    let url = format!("{scheme}://{}?protocol={protocol}", stage.server4());
    // Threads of the client's pool are in the namespace of the thread that makes it.
    stage.bed.client.run(|| {
        let client = Client::with_pool_size(url.as_str(), 1)?;
        client.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(client)
    })
}

/// Whether a write was refused because there is such an item.
fn is_refused(answer: Result<(), MemcacheError>) -> bool {
    matches!(
        answer,
        Err(MemcacheError::CommandError(CommandError::KeyExists))
    )
}

/// The crate (all versions to 0.21) does not send what it has written for its text `get`, `incr`,
/// `decr` and `flush_all` over UDP, whatever the server. Everything else works.
#[test]
fn the_memcache_crate_writes_over_udp_in_text() -> Result<()> {
    let stage = Stage::new()?;
    let (client, mut udp) = (crate_client(&stage, "memcache+udp", "ascii")?, stage.udp()?);
    for round in 0..20 {
        let value = format!("value {round}\r\nEND\r\n");
        client.set("key", value.as_str(), 0)?;
        until_hit(&stage.prestack, &mut udp, b"key", value.as_bytes())?;
        client.append("key", "!")?;
        client.prepend("key", "<")?;
        let value = format!("<{value}!");
        assert_eq!(udp.get(b"key")?.as_deref(), Some(value.as_bytes()));
        // The crate takes NOT_STORED for success.
        client.add("key", "no", 0)?;
        until_hit(&stage.prestack, &mut udp, b"key", value.as_bytes())?;
        client.replace("key", "yes", 0)?;
        assert_eq!(udp.get(b"key")?.as_deref(), Some(&b"yes"[..]));
        assert!(client.touch("key", 1000)?);
        until_hit(&stage.prestack, &mut udp, b"key", b"yes")?;
        assert!(client.delete("key")?);
        assert_eq!(udp.get(b"key")?, None);
        assert!(!client.delete("key")?);
    }
    Ok(())
}

#[test]
fn the_memcache_crate_works_over_udp_in_binary() -> Result<()> {
    crate_works("memcache+udp", "binary", &[])
}

#[test]
fn the_memcache_crate_works_over_tcp() -> Result<()> {
    crate_works("memcache", "ascii", &[])?;
    crate_works("memcache", "binary", &[])
}

/// The crate writes a GET in pieces, each a segment of its own: none is answered, but all are passed.
#[test]
fn the_memcache_crate_works_where_others_are_answered_over_tcp() -> Result<()> {
    crate_works("memcache", "ascii", HITS)?;
    crate_works("memcache", "binary", HITS)
}

fn crate_works(scheme: &str, protocol: &str, args: &[&str]) -> Result<()> {
    let stage = stage(args)?;
    let (client, mut udp) = (crate_client(&stage, scheme, protocol)?, stage.udp()?);
    for round in 0..20 {
        let value = format!("value {round}\r\nEND\r\n");
        client.set("key", value.as_str(), 0)?;
        until_hit(&stage.prestack, &mut udp, b"key", value.as_bytes())?;
        for _ in 0..20 {
            assert_eq!(client.get::<String>("key")?.as_ref(), Some(&value));
        }
        assert_eq!(client.get::<String>("missing")?, None);
        client.set("number", 41, 0)?;
        assert_eq!(client.increment("number", 1)?, 42);
        assert_eq!(client.get::<u64>("number")?, Some(42));
        assert_eq!(client.decrement("number", 2)?, 40);
        client.append("key", "!")?;
        client.prepend("key", "<")?;
        assert_eq!(client.get::<String>("key")?, Some(format!("<{value}!")));
        // In text the crate takes NOT_STORED for success.
        assert_eq!(is_refused(client.add("key", "no", 0)), protocol == "binary");
        client.replace("key", "yes", 0)?;
        assert_eq!(client.get::<String>("key")?.as_deref(), Some("yes"));
        assert!(client.touch("key", 1000)?);
        assert!(client.delete("key")?);
        assert!(!client.delete("key")?);
        assert_eq!(client.get::<String>("key")?, None);
        assert_eq!(udp.get(b"key")?, None);
    }
    // Larger than a datagram.
    let large = "x".repeat(5_000);
    client.set("large", large.as_str(), 0)?;
    for _ in 0..3 {
        assert_eq!(client.get::<String>("large")?.as_ref(), Some(&large));
    }
    client.flush()?;
    assert_eq!(client.get::<String>("large")?, None);
    assert_eq!(stage.prestack.stats()?.get("tcp.hits")?, 0);
    Ok(())
}
