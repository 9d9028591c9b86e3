//! Start-up errors: each says what is wrong, and leaves nothing attached.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::unistd::Uid;
use prestack_testbed::{
    Memcached, MemcachedOptions, Prestack, Process, Signal, Testbed, binary, bpf, pace,
};
use prestack_tests::attached::nothing_attached;
use prestack_tests::stage::{LASTING, PORT, start_prestack, until_hit};

/// Runs prestack on the only interface with `args`; it must refuse, with all of `words` in its
/// message, and leave nothing attached.
fn refused(bed: &Testbed, args: &[&str], words: &[&str]) -> Result<()> {
    let dev = &bed.links[0].server_dev;
    let said = Prestack::refusal(&bed.server, &[&["--interface", dev], args].concat())?;
    says(&said, words)?;
    nothing_attached(&bed.server, dev)?;
    nothing_attached(&bed.server, "lo")
}

fn says(said: &str, words: &[&str]) -> Result<()> {
    for word in words {
        let found = said.to_lowercase().contains(&word.to_lowercase());
        ensure!(found, "the message does not name {word:?}: {said}");
    }
    ensure!(!said.contains("panicked"), "{said}");
    Ok(())
}

#[test]
fn no_such_interface() -> Result<()> {
    let bed = Testbed::new()?;
    let _memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
    let said = Prestack::refusal(&bed.server, &["--interface", "nosuch0"])?;
    says(&said, &["nosuch0", &bed.links[0].server_dev])
}

#[test]
fn no_interface_given() -> Result<()> {
    let bed = Testbed::new()?;
    says(
        &Prestack::refusal(&bed.server, &[])?,
        &["--interface", &bed.links[0].server_dev],
    )
}

#[test]
fn one_of_two_interfaces_is_missing() -> Result<()> {
    let bed = Testbed::new()?;
    let _memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
    refused(&bed, &["--interface", "nosuch0"], &["nosuch0"])
}

#[test]
fn one_of_two_interfaces_is_on_top_of_the_other() -> Result<()> {
    let bed = Testbed::new()?;
    let _memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
    let (server, dev) = (&bed.server, &bed.links[0].server_dev);
    let kinds: [&[&str]; 3] = [
        &["link", dev, "name", "upper", "type", "vlan", "id", "7"],
        &["link", dev, "name", "upper", "type", "macvlan"],
        &["name", "upper", "type", "bridge"],
    ];
    for kind in kinds {
        match server.ip([&["link", "add"], kind].concat()) {
            Err(error) if error.to_string().contains("Unknown device type") => {
                println!("this kernel does not have it: {kind:?}");
                continue;
            }
            added => added.map(drop)?,
        }
        if kind.contains(&"bridge") {
            server.ip(["link", "set", dev, "master", "upper"])?;
        }
        let words = ["upper is on top of", dev];
        refused(&bed, &["--interface", "upper"], &words)?;
        nothing_attached(server, "upper")?;
        server.ip(["link", "delete", "upper"])?;
    }
    Ok(())
}

#[test]
fn nobody_listens() -> Result<()> {
    let bed = Testbed::new()?;
    refused(&bed, &[], &["memcached", "11211"])?;
    let _memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
    refused(&bed, &["--port", "11999"], &["11999"])
}

#[test]
fn memcached_without_udp() -> Result<()> {
    let bed = Testbed::new()?;
    let options = MemcachedOptions {
        udp_port: 0,
        ..MemcachedOptions::default()
    };
    let _memcached = Memcached::start(&bed.server, options)?;
    refused(&bed, &[], &["UDP", "-U", "--tcp-hits"])
}

#[test]
fn two_memcacheds_on_one_udp_port() -> Result<()> {
    let bed = Testbed::new()?;
    let _one = Memcached::start(&bed.server, MemcachedOptions::default())?;
    // Nothing stops a second one from taking the same UDP port.
    let options = MemcachedOptions {
        port: 11300,
        ..MemcachedOptions::default()
    };
    let _two = Memcached::start(&bed.server, options)?;
    refused(&bed, &[], &["11211", "share"])
}

#[test]
fn memcached_with_tls() -> Result<()> {
    let bed = Testbed::new()?;
    let directory = tempfile::tempdir()?;
    let (cert, key) = (
        directory.path().join("cert.pem"),
        directory.path().join("key.pem"),
    );
    std::fs::write(&cert, include_str!("tls/cert.pem"))?;
    std::fs::write(&key, include_str!("tls/key.pem"))?;
    let ssl = format!(
        "ssl_chain_cert={},ssl_key={}",
        cert.display(),
        key.display()
    );
    let options = MemcachedOptions {
        args: vec!["-Z".into(), "-o".into(), ssl],
        ..MemcachedOptions::default()
    };
    let _memcached = Memcached::spawn(&bed.server, &options)?;
    Memcached::wait_until_accepting(&bed.server, PORT)?;
    refused(&bed, &[], &["TLS"])
}

#[test]
fn another_xdp_program() -> Result<()> {
    let bed = Testbed::new()?;
    let _memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
    let dev = &bed.links[0].server_dev;
    let other = bpf::attach_pass(&bed.server, dev)?;
    let said = Prestack::refusal(&bed.server, &["--interface", dev])?;
    says(&said, &["XDP", dev])?;
    let link = bed.server.ip(["-details", "link", "show", "dev", dev])?;
    assert!(link.contains("xdp"), "the other program is gone: {link}");
    drop(other);
    // A process that another test has just forked may hold on to it until it executes.
    pace::wait_for("the other program to go", Duration::from_secs(2), || {
        Ok(nothing_attached(&bed.server, dev).ok())
    })
}

#[test]
fn another_instance_on_the_interface() -> Result<()> {
    let bed = Testbed::new()?;
    let _memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
    let first = start_prestack(&bed, 0, &LASTING)?;
    let dev = &bed.links[0].server_dev;
    says(
        &Prestack::refusal(&bed.server, &["--interface", dev])?,
        &["instance", first.instance().name(), dev],
    )?;
    // The first one goes on.
    let server = (bed.links[0].server4, PORT).into();
    let mut udp = prestack_testbed::UdpClient::connect(&bed.client, server)?;
    udp.request(b"set key 0 0 5\r\nvalue\r\n")?;
    until_hit(&first, &mut udp, b"key", b"value")
}

/// Neither sees the other when it looks, and the second to attach is refused by the kernel.
#[test]
fn of_two_that_start_at_once_one_is_refused() -> Result<()> {
    let bed = Testbed::new()?;
    let _memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
    let names = ["a", "b"].map(|name| format!("{name}-{}", std::process::id()));
    let start = |name: &String| {
        let mut command = bed.server.command(binary()?);
        command.args(["run", "--instance", name]);
        command.args(["--interface", &bed.links[0].server_dev]);
        Process::spawn(command)
    };
    let (mut one, mut other) = (start(&names[0])?, start(&names[1])?);
    let limit = Duration::from_secs(45);
    let is_serving = |line: &str| line.starts_with("serving ");
    let (winner, name, said) = match one.wait_for_line(limit, is_serving) {
        Ok(_) => (one, &names[0], other.wait(limit)?.1),
        Err(refused) => {
            other.wait_for_line(limit, is_serving)?;
            (other, &names[1], refused.to_string())
        }
    };
    says(&said, &["already served by the prestack instance", name])?;
    ensure!(said.contains("loading"), "it did not come so far: {said}");
    end(winner)
}

/// Ends a `prestack run` that serves.
fn end(mut prestack: Process) -> Result<()> {
    prestack.signal(Signal::SIGTERM)?;
    let (status, said) = prestack.wait(Duration::from_secs(15))?;
    ensure!(status.success(), "{said}");
    Ok(())
}

#[test]
fn a_full_standard_output() -> Result<()> {
    let bed = Testbed::new()?;
    let _memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
    let dev = &bed.links[0].server_dev;
    let name = format!("full-{}", std::process::id());
    let mut command = bed.server.command("sh");
    command
        .args(["-c", r#"exec "$0" "$@" > /dev/full"#])
        .arg(binary()?)
        // What is pinned does not go by itself.
        .args(["run", "--pin", "--instance", &name, "--interface", dev]);
    let (status, said) = Process::spawn(command)?.wait(Duration::from_secs(45))?;
    ensure!(!status.success());
    says(&said, &["standard output"])?;
    nothing_attached(&bed.server, dev)?;
    let (status, _) = ask(&bed, &["detach", "--instance", &name])?;
    ensure!(status == NOT_RUNNING, "something was left");
    Ok(())
}

/// It fails as it would otherwise, not by a panic.
#[test]
fn a_full_standard_error() -> Result<()> {
    let bed = Testbed::new()?;
    let mut command = bed.server.command("sh");
    command
        .args(["-c", r#"exec "$0" "$@" 2> /dev/full"#])
        .arg(binary()?)
        .args(["run", "--interface", "nosuch0"]);
    let (status, _) = Process::spawn(command)?.wait(Duration::from_secs(15))?;
    ensure!(status.code() == Some(1), "it ended with {status}");
    Ok(())
}

/// Before anything takes long.
#[test]
fn a_run_folder_without_room() -> Result<()> {
    let bed = Testbed::new()?;
    let _memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
    let dev = &bed.links[0].server_dev;
    for (options, words) in [
        ("size=4k", ["/run/prestack", "make room"]),
        ("ro", ["/run/prestack", "can be written to"]),
    ] {
        let mut command = bed.server.command("unshare");
        let script = r#"mkdir -p /run/prestack; mount -t tmpfs -o "$1" tmpfs /run/prestack; exec "$0" run -i "$2""#;
        command
            .args(["--mount", "sh", "-c", script])
            .arg(binary()?)
            .args([options, dev]);
        let (status, said) = Process::spawn(command)?.wait(Duration::from_secs(15))?;
        ensure!(status.code() == Some(1), "it ended with {status}");
        says(&said, &words)?;
        ensure!(!said.contains("loading"), "{said}");
        nothing_attached(&bed.server, dev)?;
    }
    Ok(())
}

/// Exit status when there is no such instance.
const NOT_RUNNING: Option<i32> = Some(3);

/// Runs one of prestack's commands; returns its exit status, and what it says on standard error.
fn ask(bed: &Testbed, args: &[&str]) -> Result<(Option<i32>, String)> {
    let mut command = bed.server.command(binary()?);
    command.args(args);
    let (status, said) = Process::spawn(command)?.wait(Duration::from_secs(15))?;
    Ok((status.code(), said))
}

#[test]
fn no_such_instance() -> Result<()> {
    let bed = Testbed::new()?;
    let _memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
    let other = start_prestack(&bed, 0, &LASTING)?;
    let other = other.instance().name();
    for command in ["status", "stats", "inspect=key", "flush", "detach"] {
        let mut args: Vec<_> = command.split('=').collect();
        args.extend(["--instance", "nosuch"]);
        let (status, said) = ask(&bed, &args)?;
        ensure!(status == NOT_RUNNING, "{command} ended with {status:?}");
        says(&said, &["nosuch", other])?;
    }
    let (status, said) = ask(&bed, &["inspect", "a key", "--instance", other])?;
    ensure!(status == Some(1));
    says(&said, &["space", "byte 2"])
}

#[test]
fn values_out_of_range() -> Result<()> {
    let bed = Testbed::new()?;
    let _memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
    refused(&bed, &["--memory", "1KiB"], &["--memory"])?;
    refused(&bed, &["--memory", "1TiB"], &["--memory"])?;
    refused(&bed, &["--memory", "much"], &["--memory", "256MiB"])?;
    refused(&bed, &["--max-age", "1ms"], &["max-age"])?;
    refused(&bed, &["--max-age", "soon"], &["max-age", "500ms"])?;
    refused(&bed, &["--port", "0"], &["port"])?;
    refused(
        &bed,
        &["--allow", "10.0.0.0/33"],
        &["--allow", "10.0.0.0/8"],
    )?;
    refused(&bed, &["--address", "192.0.2.1"], &["192.0.2.1"])?;
    refused(
        &bed,
        &["--address", "127.0.0.1"],
        &["127.0.0.1", "--address"],
    )?;
    refused(&bed, &["--config", "/nosuch.toml"], &["/nosuch.toml"])?;
    for (line, words) in [
        ("interfaces = ['vs']", ["interfaces", "line 1"]),
        ("memory = 'much'", ["memory", "256MiB"]),
        ("max-age = 'soon'", ["max-age", "500ms"]),
        ("allow = '10.0.0.0/33'", ["allow", "10.0.0.0/8"]),
        ("port = 70000", ["port", "70000"]),
        ("instance = 'a/b'", ["instance", "letters"]),
    ] {
        let mut file = tempfile::NamedTempFile::new()?;
        file.write_all(line.as_bytes())?;
        let path = file.path().display().to_string();
        let words = [&words[..], &[path.as_str()]].concat();
        refused(&bed, &["--config", &path], &words)?;
    }
    Ok(())
}

#[test]
fn without_root() -> Result<()> {
    let bed = Testbed::new()?;
    let _memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
    let dev = &bed.links[0].server_dev;
    // Opened now: it may lie where only root gets.
    let prestack = File::open(binary()?).context("opening the binary")?;
    let mut command = bed
        .server
        .command(format!("/proc/self/fd/{}", prestack.as_raw_fd()));
    command.args(["run", "--interface", dev]);
    // SAFETY: between fork and exec the closure only makes a system call.
    unsafe { command.pre_exec(|| Ok(nix::unistd::setuid(Uid::from_raw(65_534))?)) };
    let (status, said) = Process::spawn(command)?.wait(Duration::from_secs(15))?;
    ensure!(!status.success());
    says(&said, &["root"])?;
    nothing_attached(&bed.server, dev)
}
