//! `prestack memcached`: stock memcached with a UDP socket for every worker thread.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use prestack_testbed::memcached::program;
use prestack_testbed::{
    Memcached, MemcachedOptions, Namespace, Process, TcpClient, Testbed, UdpClient, binary, pace,
};
use prestack_tests::stage::{LASTING, PORT, Stage, behind, set, start_prestack, store, until_hit};

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// memcached with a socket for each of `threads` at each of `addresses`.
fn options(threads: u32, addresses: &[IpAddr]) -> Result<MemcachedOptions> {
    Ok(MemcachedOptions {
        threads,
        addresses: addresses.to_vec(),
        launcher: Some(binary()?),
        ..MemcachedOptions::default()
    })
}

/// A UDP socket on memcached's port.
#[derive(Debug)]
struct Socket {
    /// As the kernel writes it.
    address: String,
    /// Bytes that wait to be read.
    queued: u32,
    inode: u64,
}

/// The UDP sockets on memcached's port in the network namespace of a process.
fn sockets(pid: i32) -> Result<Vec<Socket>> {
    let mut found = Vec::new();
    for table in ["udp", "udp6"] {
        let text = fs::read_to_string(format!("/proc/{pid}/net/{table}"))?;
        for line in text.lines().skip(1) {
            let fields: Vec<_> = line.split_ascii_whitespace().collect();
            let (address, port) = fields[1].split_once(':').context("no address")?;
            let (_, queued) = fields[4].split_once(':').context("no queues")?;
            if u16::from_str_radix(port, 16)? == PORT {
                found.push(Socket {
                    address: address.to_owned(),
                    queued: u32::from_str_radix(queued, 16)?,
                    inode: fields[9].parse()?,
                });
            }
        }
    }
    Ok(found)
}

/// How many sockets there are at each address.
fn per_address(sockets: &[Socket]) -> Vec<usize> {
    let mut counts = BTreeMap::new();
    for socket in sockets {
        *counts.entry(&socket.address).or_default() += 1;
    }
    counts.into_values().collect()
}

/// What each thread's event loop waits for among the sockets: their inodes.
fn waited_for(pid: i32, sockets: &[Socket]) -> Result<Vec<BTreeSet<u64>>> {
    let inode = |fd: &str| -> Option<u64> {
        let link = fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok()?;
        let link = link.to_str()?.strip_prefix("socket:[")?;
        link.strip_suffix(']')?.parse().ok()
    };
    let mut loops = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // A connection may be closed meanwhile.
        let text = fs::read_to_string(entry?.path()).unwrap_or_default();
        let waited: BTreeSet<_> = text
            .lines()
            .filter_map(|line| inode(line.strip_prefix("tfd:")?.split_ascii_whitespace().next()?))
            .filter(|inode| sockets.iter().any(|socket| socket.inode == *inode))
            .collect();
        loops.extend((!waited.is_empty()).then_some(waited));
    }
    Ok(loops)
}

/// How often each worker thread has gone to sleep.
fn sleeps(pid: i32) -> Result<BTreeMap<String, u64>> {
    let mut sleeps = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?.path();
        let status = fs::read_to_string(task.join("status"))?;
        let count = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))
            .context("no count")?;
        if status.starts_with("Name:\tmc-worker") {
            sleeps.insert(task.display().to_string(), count.trim().parse()?);
        }
    }
    Ok(sleeps)
}

/// Every thread has a socket at every address, is the only one to wait for it, and answers what comes there.
fn spreads(
    threads: u32,
    given: impl Fn(&Testbed) -> MemcachedOptions,
    addresses: usize,
) -> Result<()> {
    let bed = Testbed::new()?;
    let memcached = Memcached::start(&bed.server, given(&bed))?;
    let (pid, count) = (memcached.pid(), threads as usize);
    store(&mut behind(&bed, LOCALHOST, PORT)?, b"key", b"value")?;

    let all = sockets(pid)?;
    assert_eq!(per_address(&all), vec![count; addresses], "{all:?}");
    let mut seen = BTreeSet::new();
    let loops = waited_for(pid, &all)?;
    assert_eq!(loops.len(), count);
    for waited in loops {
        assert_eq!(waited.len(), addresses, "one for each address");
        assert!(waited.iter().all(|inode| seen.insert(*inode)), "shared");
    }

    // While it stands still, what comes from many clients is found in all queues.
    memcached.pause()?;
    let servers = [bed.links[0].server4, bed.links[0].server6];
    let mut clients = Vec::new();
    for client in 0..40 * count {
        let server = (servers[client % 2], PORT).into();
        let mut client = UdpClient::connect(&bed.client, server)?;
        let id = client.send(b"get key\r\n")?;
        clients.push((client, id));
    }
    let is_asked = |socket: &Socket| socket.queued > 0;
    pace::wait_for("requests in all queues", Duration::from_secs(5), || {
        let asked = sockets(pid)?.into_iter().filter(is_asked).count();
        Ok((asked == 2 * count).then_some(()))
    })?;
    memcached.resume()?;
    for (client, id) in &mut clients {
        let items = client.items(*id)?;
        assert_eq!(items.len(), 1);
        assert_eq!(items[0].value, b"value");
    }
    assert!(!sockets(pid)?.iter().any(is_asked));

    // When it runs, every thread is woken by some of them.
    let before = sleeps(pid)?;
    assert_eq!(before.len(), count);
    for (client, _) in &mut clients {
        assert_eq!(client.get(b"key")?.as_deref(), Some(&b"value"[..]));
    }
    let after = sleeps(pid)?;
    let woken: Vec<_> = before.iter().map(|(thread, n)| after[thread] - n).collect();
    assert!(woken.iter().all(|&times| times >= 5), "{woken:?}");
    Ok(())
}

#[test]
fn every_thread_reads_from_a_socket_of_its_own() -> Result<()> {
    for threads in [1, 2, 4] {
        // All addresses: one socket for IPv4, one for IPv6.
        let given = options(threads, &[])?;
        spreads(threads, |_| given.clone(), 2)?;
    }
    Ok(())
}

#[test]
fn every_thread_serves_every_address() -> Result<()> {
    let addresses = |bed: &Testbed| [LOCALHOST, bed.links[0].server4, bed.links[0].server6];
    for threads in [2, 3] {
        let given = options(threads, &[])?;
        spreads(
            threads,
            |bed| MemcachedOptions {
                addresses: addresses(bed).to_vec(),
                ..given.clone()
            },
            3,
        )?;
        // The same, each in an argument of its own.
        spreads(
            threads,
            |bed| {
                let [one, two, three] = addresses(bed);
                let lists = [one.to_string(), two.to_string(), format!("[{three}]")];
                let args = lists.into_iter().flat_map(|list| ["-l".to_owned(), list]);
                MemcachedOptions {
                    args: args.collect(),
                    ..given.clone()
                }
            },
            3,
        )?;
    }
    Ok(())
}

/// What the above is compared with.
#[test]
fn stock_threads_share_a_socket() -> Result<()> {
    let bed = Testbed::new()?;
    let memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
    let all = sockets(memcached.pid())?;
    assert_eq!(per_address(&all), [1, 1]);
    let loops = waited_for(memcached.pid(), &all)?;
    assert_eq!(loops.len(), 4);
    assert!(loops.iter().all(|waited| *waited == loops[0]));
    Ok(())
}

#[test]
fn a_client_is_answered_in_order() -> Result<()> {
    let bed = Testbed::new()?;
    let memcached = Memcached::start(&bed.server, options(4, &[])?)?;
    let server = (bed.links[0].server4, PORT).into();
    for round in 0..20 {
        let mut client = UdpClient::connect(&bed.client, server)?;
        memcached.pause()?;
        let values: Vec<_> = (0..20).map(|n| format!("{round}-{n}")).collect();
        let mut asked = Vec::new();
        for value in &values {
            asked.push((client.send(&set(b"key", value.as_bytes()))?, None));
            asked.push((client.send(b"get key\r\n")?, Some(value)));
        }
        memcached.resume()?;
        for (id, value) in asked {
            match value {
                None => assert_eq!(client.receive(id)?, b"STORED\r\n"),
                Some(value) => assert_eq!(client.items(id)?[0].value, value.as_bytes()),
            }
        }
    }
    Ok(())
}

#[test]
fn prestack_serves_it() -> Result<()> {
    let bed = Testbed::new()?;
    let addresses = [bed.links[0].server4, bed.links[0].server6, LOCALHOST];
    let mut memcached = Memcached::start(&bed.server, options(4, &addresses)?)?;
    let prestack = start_prestack(&bed, 0, &LASTING)?;
    for round in 0..3 {
        if round > 0 {
            memcached.stop()?;
            memcached = Memcached::start(&bed.server, options(4, &addresses)?)?;
        }
        store(&mut behind(&bed, LOCALHOST, PORT)?, b"key", b"old")?;
        let mut readers = Vec::new();
        for address in &addresses[..2] {
            let mut reader = UdpClient::connect(&bed.client, (*address, PORT).into())?;
            until_hit(&prestack, &mut reader, b"key", b"old")?;
            readers.push(reader);
        }
        // From many ports, and so to many threads.
        for n in 0..20 {
            let value = format!("{round}-{n}").into_bytes();
            let mut writer = UdpClient::connect(&bed.client, (addresses[n % 2], PORT).into())?;
            assert_eq!(writer.request(&set(b"key", &value))?, b"STORED\r\n");
            for reader in &mut readers {
                assert_eq!(reader.get(b"key")?.as_deref(), Some(&value[..]));
            }
        }
        let mut writer = TcpClient::connect(&bed.client, (addresses[0], PORT).into())?;
        store(&mut writer, b"key", b"new")?;
        for reader in &mut readers {
            until_hit(&prestack, reader, b"key", b"new")?;
        }
        // None of its sockets is taken for one that has ended.
        let epoch = prestack.stats()?.get("epoch")?;
        std::thread::sleep(Duration::from_millis(1_500));
        assert_eq!(prestack.stats()?.get("epoch")?, epoch);
    }
    let status = prestack.instance().command(&["status"])?;
    assert!(!status.contains("problem"), "{status}");
    Ok(())
}

/// `prestack memcached` with arguments of memcached's, `memcached` alone with the same: output and status.
fn both(namespace: &Namespace, args: &[&str]) -> Result<[Output; 2]> {
    let mut through = namespace.command(binary()?);
    through
        .args(["memcached", "--binary"])
        .arg(program())
        .arg("--");
    let alone = namespace.command(program());
    let mut outputs = Vec::new();
    for mut command in [through, alone] {
        outputs.push(command.args(args).output()?);
    }
    outputs.try_into().map_err(|_| anyhow::anyhow!("not two"))
}

#[test]
fn help_and_mistakes_are_memcacheds_own() -> Result<()> {
    let namespace = Namespace::new()?;
    for args in [&["-h"][..], &["-V"], &["--license"]] {
        let [through, alone] = both(&namespace, args)?;
        assert_eq!(through.stdout, alone.stdout, "{args:?}");
        assert_eq!(through.stderr, alone.stderr, "{args:?}");
        assert_eq!(through.status, alone.status, "{args:?}");
    }
    for args in [
        &["-U", "11211", "-?"][..],
        &["-U", "11211", "-u", "no-such-user"],
        &["-U", "11211", "-u", "root", "-l", "192.0.2.1"],
        &["-U", "11211", "-u", "root", "-t", "0"],
    ] {
        let [through, alone] = both(&namespace, args)?;
        assert!(!alone.status.success(), "{args:?}");
        assert_eq!(through.status, alone.status, "{args:?}");
        let said = String::from_utf8_lossy(&through.stderr).into_owned();
        let alone = String::from_utf8_lossy(&alone.stderr).into_owned();
        let last = alone.lines().last().context("memcached says nothing")?;
        let last = last.strip_prefix("memcached").unwrap_or(last);
        assert!(said.contains(last), "{said} {alone}");
    }
    Ok(())
}

/// Waits until memcached answers: it has all its sockets then.
fn until_it_answers(namespace: &Namespace) -> Result<()> {
    Memcached::wait_until_accepting(namespace, PORT)?;
    let mut client = TcpClient::connect(namespace, (LOCALHOST, PORT).into())?;
    client.command(b"version\r\n")?;
    Ok(())
}

/// Runs `command` until memcached answers, with `check` on its process id, and returns what
/// it has said.
fn said(
    namespace: &Namespace,
    command: Command,
    check: impl Fn(i32) -> Result<()>,
) -> Result<String> {
    let mut process = Process::spawn(command)?;
    let waited = until_it_answers(namespace);
    let checked = waited.and_then(|()| check(process.pid()));
    let (_, said) = process.kill()?;
    checked.with_context(|| said.clone())?;
    Ok(said)
}

fn launch(namespace: &Namespace, memcached: &Path, args: &[&str]) -> Result<Command> {
    let mut command = namespace.command(binary()?);
    command.args(["memcached", "--binary"]).arg(memcached);
    command.args(["--", "-u", "root"]).args(args);
    Ok(command)
}

#[test]
fn what_is_not_understood_runs_as_it_is() -> Result<()> {
    let namespace = Namespace::new()?;
    let memcached = Path::new(&program()).to_owned();
    let without_udp = |pid| {
        let found = sockets(pid)?;
        ensure!(found.is_empty(), "{found:?}");
        Ok(())
    };
    for args in [&[][..], &["-U", "0"]] {
        let message = said(
            &namespace,
            launch(&namespace, &memcached, args)?,
            without_udp,
        )?;
        assert!(
            message.contains("is not told to listen on UDP"),
            "{message}"
        );
    }

    let shared = |pid| {
        let found = per_address(&sockets(pid)?);
        ensure!(found == [1, 1], "{found:?}");
        Ok(())
    };
    let udp = ["-U", "11211", "-t", "4"];
    let folder = tempfile::tempdir()?;
    let script = folder.path().join("memcached");
    let text = format!("#!/bin/sh\nexec {} \"$@\"\n", program().display());
    fs::write(&script, text)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    let message = said(&namespace, launch(&namespace, &script, &udp)?, shared)?;
    assert!(
        message.contains("as it is: it is no program for x86-64"),
        "{message}"
    );

    // What is not there is not started as it is either.
    let mut prestack = Command::new(binary()?);
    prestack.args([
        "memcached",
        "--binary",
        "/no/such/memcached",
        "--",
        "-U",
        "1",
    ]);
    let output = prestack.output()?;
    let message = String::from_utf8(output.stderr)?;
    ensure!(
        !output.status.success() && message.lines().count() == 1,
        "{message}"
    );
    ensure!(
        message.contains("cannot start /no/such/memcached: No such"),
        "{message}"
    );
    Ok(())
}

/// Kills a process that is nobody's child when dropped.
struct Daemon(Pid);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGKILL);
    }
}

#[test]
fn it_may_become_a_daemon_of_another_user() -> Result<()> {
    let namespace = Namespace::new()?;
    let folder = tempfile::tempdir()?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777))?;
    let file = folder.path().join("pid");
    let mut command = namespace.command(binary()?);
    command.args(["memcached", "--binary"]).arg(program());
    command.args(["--", "-d", "-u", "nobody", "-U", "11211", "-t", "3", "-P"]);
    let output = command.arg(&file).output()?;
    ensure!(output.status.success(), "{output:?}");
    let pid = pace::wait_for("memcached's pid", Duration::from_secs(5), || {
        let pid = fs::read_to_string(&file).unwrap_or_default();
        Ok(pid.trim().parse::<i32>().ok())
    })?;
    let _daemon = Daemon(Pid::from_raw(pid));
    until_it_answers(&namespace)?;
    assert_eq!(per_address(&sockets(pid)?), [3, 3]);
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    assert!(status.contains("\nUid:\t65534\t"), "{status}");
    let mut client = UdpClient::connect(&namespace, (LOCALHOST, PORT).into())?;
    assert_eq!(client.get(b"key")?, None);
    Ok(())
}

/// memcached has taken the place of prestack: it has its process id, and ends by its signals.
#[test]
fn it_is_the_process_that_was_started() -> Result<()> {
    let mut stage = Stage::with(options(2, &[])?, &LASTING)?;
    let pid = stage.memcached.pid();
    let name = fs::read_to_string(format!("/proc/{pid}/comm"))?;
    assert_eq!(name, "memcached\n");
    stage.memcached.stop()
}
