//! The daemon's life: what is attached, and what happens to the cache when it goes.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use prestack_testbed::{
    Memcached, MemcachedOptions, Prestack, Process, Signal, Testbed, UdpClient, binary,
    pace::wait_for,
};
use prestack_tests::attached::{nothing_attached, nothing_linked};
use prestack_tests::stage::{
    LASTING, PORT, Stage, behind, set, start_prestack, start_watching_prestack, store, until_hit,
};
use tempfile::{NamedTempFile, TempPath};

/// What an instance that has ended has left.
const NO_FILES: [PathBuf; 0] = [];

#[test]
fn it_says_what_it_serves() -> Result<()> {
    let stage = Stage::new()?;
    let dev = &stage.bed.links[0].server_dev;
    assert_eq!(
        stage.prestack.serving(),
        format!("serving 11211 on {dev} (native)")
    );
    Ok(())
}

#[test]
fn sigterm_detaches() -> Result<()> {
    let mut stage = Stage::new()?;
    let dev = &stage.bed.links[0].server_dev;
    let (mut udp, mut tcp) = (stage.udp()?, stage.tcp()?);
    store(&mut stage.behind()?, b"key", b"old")?;
    until_hit(&stage.prestack, &mut udp, b"key", b"old")?;
    assert!(nothing_attached(&stage.bed.server, dev).is_err());

    stage.prestack.stop()?;
    nothing_attached(&stage.bed.server, dev)?;
    assert_eq!(stage.prestack.instance().files()?, NO_FILES);
    assert_eq!(udp.get(b"key")?.as_deref(), Some(&b"old"[..]));
    store(&mut tcp, b"key", b"new")?;
    assert_eq!(udp.get(b"key")?.as_deref(), Some(&b"new"[..]));

    // And again, on the same device.
    let mut prestack = start_prestack(&stage.bed, 0, &LASTING)?;
    until_hit(&prestack, &mut udp, b"key", b"new")?;
    prestack.stop()?;
    nothing_attached(&stage.bed.server, dev)
}

#[test]
fn a_killed_daemon_leaves_values_and_connections_intact() -> Result<()> {
    let mut stage = Stage::new()?;
    let dev = &stage.bed.links[0].server_dev;
    let (mut udp, mut writer, mut tcp) = (stage.udp()?, stage.udp()?, stage.tcp()?);
    store(&mut tcp, b"key", b"0")?;
    until_hit(&stage.prestack, &mut udp, b"key", b"0")?;

    for n in 1..200_u32 {
        if n == 50 {
            // In the middle of everything.
            stage.prestack.kill()?;
        }
        let value = n.to_string().into_bytes();
        if n % 2 == 0 {
            store(&mut tcp, b"key", &value)?;
        } else {
            assert_eq!(writer.request(&set(b"key", &value))?, b"STORED\r\n");
        }
        assert_eq!(udp.get(b"key")?.as_ref(), Some(&value));
        assert_eq!(tcp.get(b"key")?.as_ref(), Some(&value));
    }
    nothing_linked(&stage.bed.server, dev)?;

    // The next one starts as if nothing had been.
    let prestack = start_prestack(&stage.bed, 0, &LASTING)?;
    until_hit(&prestack, &mut udp, b"key", b"199")?;
    // What the first one has written down goes when it is asked for.
    let killed = stage.prestack.instance();
    killed.command(&["detach"])?;
    assert_eq!(killed.files()?, NO_FILES);
    until_hit(&prestack, &mut udp, b"key", b"199")
}

/// A folder that goes with this.
struct Folder(PathBuf);

impl Folder {
    fn new(path: PathBuf) -> Result<Self> {
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn what_cannot_be_written_down_is_later() -> Result<()> {
    let mut stage = Stage::new()?;
    let files = stage.prestack.instance().files()?;
    let state = files
        .iter()
        .find(|file| file.extension().is_some_and(|e| e == "json"));
    let state = state.context("no state")?.clone();
    let obstacle = Folder::new(state.with_extension("json.new"))?;
    let address = [10, 100, 0, 1].into();
    stage.bed.add_server_address(0, address)?;
    stage.bed.add_client_address(0, [10, 100, 0, 2].into())?;
    let mut udp = UdpClient::connect(&stage.bed.client, (address, PORT).into())?;
    store(&mut stage.behind()?, b"key", b"value")?;
    // It goes on, and serves there, which its state does not say.
    until_hit(&stage.prestack, &mut udp, b"key", b"value")?;
    std::thread::sleep(Duration::from_millis(300));
    let is_told = || -> Result<bool> {
        let status = stage.prestack.instance().command(&["status"])?;
        Ok(status.contains("10.100.0.0/24"))
    };
    ensure!(!is_told()?, "it was written all the same");
    until_hit(&stage.prestack, &mut udp, b"key", b"value")?;
    drop(obstacle);
    wait_for("the state to be written", Duration::from_secs(10), || {
        Ok(is_told()?.then_some(()))
    })?;
    // What others remove or cut off is written again.
    for left in [None, Some("{")] {
        match left {
            None => std::fs::remove_file(&state)?,
            Some(text) => std::fs::write(&state, text)?,
        }
        wait_for("the state to be written", Duration::from_secs(10), || {
            Ok(is_told().is_ok_and(|is_told| is_told).then_some(()))
        })?;
    }
    stage.prestack.signal(Signal::SIGTERM)?;
    let said = stage.prestack.wait()?;
    ensure!(said.matches("what was so before").count() == 1, "{said}");
    assert_eq!(stage.prestack.instance().files()?, NO_FILES);
    Ok(())
}

/// A stage whose prestack is run by this line of a script, which has to be kept for as long.
fn stage_by(line: &str) -> Result<(TempPath, Stage)> {
    let script = NamedTempFile::new()?.into_temp_path();
    let prestack = binary()?;
    let text = format!("#!/bin/sh\nprestack='{}'\n{line}\n", prestack.display());
    std::fs::write(&script, text)?;
    std::fs::set_permissions(&script, Permissions::from_mode(0o755))?;
    let bed = Testbed::new()?;
    let memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
    let interface = ["--interface", &bed.links[0].server_dev, "--no-watch-lo"];
    let args = [&interface[..], &LASTING].concat();
    let prestack = Prestack::start_binary(script.to_path_buf(), &bed.server, &args)?;
    let stage = Stage {
        prestack,
        memcached,
        bed,
    };
    Ok((script, stage))
}

#[test]
fn where_nothing_can_be_logged_it_serves_all_the_same() -> Result<()> {
    let (_script, mut stage) = stage_by(r#"exec "$prestack" "$@" 2> /dev/full"#)?;
    let mut udp = stage.udp()?;
    store(&mut stage.behind()?, b"key", b"old")?;
    until_hit(&stage.prestack, &mut udp, b"key", b"old")?;
    // There is much to tell about that.
    stage.memcached.kill()?;
    stage.memcached = Memcached::start(&stage.bed.server, MemcachedOptions::default())?;
    store(&mut stage.behind()?, b"key", b"new")?;
    until_hit(&stage.prestack, &mut udp, b"key", b"new")?;
    stage.prestack.stop()?;
    nothing_attached(&stage.bed.server, &stage.bed.links[0].server_dev)?;
    assert_eq!(stage.prestack.instance().files()?, NO_FILES);
    Ok(())
}

/// As by `nohup`, or in the background of a script.
#[test]
fn signals_that_it_was_started_to_ignore_do_not_end_it() -> Result<()> {
    let line = r#"trap "" HUP INT TERM; exec "$prestack" "$@""#;
    let (_script, mut stage) = stage_by(line)?;
    for signal in [Signal::SIGHUP, Signal::SIGINT] {
        stage.prestack.signal(signal)?;
    }
    // Some heartbeats later.
    std::thread::sleep(Duration::from_millis(500));
    store(&mut stage.behind()?, b"key", b"value")?;
    until_hit(&stage.prestack, &mut stage.udp()?, b"key", b"value")?;
    // There has to be one that does.
    stage.prestack.stop()?;
    nothing_attached(&stage.bed.server, &stage.bed.links[0].server_dev)
}

#[test]
fn otherwise_they_end_it() -> Result<()> {
    for signal in [Signal::SIGHUP, Signal::SIGINT] {
        let mut stage = Stage::new()?;
        stage.prestack.signal(signal)?;
        stage.prestack.wait()?;
        nothing_attached(&stage.bed.server, &stage.bed.links[0].server_dev)?;
    }
    Ok(())
}

/// As systemd is (`Type=notify`).
#[test]
fn a_service_manager_is_told_that_it_serves_and_that_it_ends() -> Result<()> {
    let bed = Testbed::new()?;
    let mut memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path)?;
    manager.set_read_timeout(Some(Duration::from_secs(45)))?;
    let told = || -> Result<String> {
        let mut text = [0; 1024];
        let len = manager.recv(&mut text)?;
        Ok(String::from_utf8_lossy(&text[..len]).into_owned())
    };
    let dev = &bed.links[0].server_dev;
    let name = format!("notify-{}", std::process::id());
    let mut command = bed.server.command(binary()?);
    command.env("NOTIFY_SOCKET", &path);
    command.args(["run", "--instance", &name, "--interface", dev]);
    let mut prestack = Process::spawn(command)?;
    let status = format!("READY=1\nSTATUS=serving 11211 on {dev} (native)");
    assert_eq!(told()?, status);
    // And what has become of it.
    memcached.kill()?;
    let said = told()?;
    let gone = format!(
        "STATUS=serving nothing: memcached {} is gone",
        memcached.pid()
    );
    ensure!(said.starts_with(&gone), "{said}");
    memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
    // That nobody listens may be told first.
    let serves = format!("STATUS=serving 11211 on {dev} (native)");
    wait_for("the status", Duration::from_secs(20), || {
        Ok((told()? == serves).then_some(()))
    })?;
    drop(memcached);
    let said = told()?;
    ensure!(said.starts_with("STATUS=serving nothing"), "{said}");
    prestack.signal(Signal::SIGTERM)?;
    wait_for("the end", Duration::from_secs(20), || {
        Ok(told()?.starts_with("STOPPING=1").then_some(()))
    })?;
    ensure!(prestack.wait(Duration::from_secs(20))?.0.success());
    Ok(())
}

/// The kernel takes seconds to check the programs: nobody has to wait for all of them.
#[test]
fn a_signal_during_the_start_ends_it() -> Result<()> {
    let bed = Testbed::new()?;
    let _memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
    let dev = &bed.links[0].server_dev;
    let name = format!("early-{}", std::process::id());
    for pin in [&[][..], &["--tcp-hits"]] {
        let mut command = bed.server.command(binary()?);
        command.args(["run", "--instance", &name, "--interface", dev]);
        command.args(pin);
        let mut prestack = Process::spawn(command)?;
        let lock = PathBuf::from(format!("/run/prestack/{name}.lock"));
        wait_for("the lock", Duration::from_secs(5), || {
            Ok(lock.exists().then_some(()))
        })?;
        prestack.signal(Signal::SIGTERM)?;
        let (status, said) = prestack.wait(Duration::from_secs(20))?;
        ensure!(status.success(), "it ended with {status}: {said}");
        ensure!(said.contains("before anything was attached"), "{said}");
        nothing_attached(&bed.server, dev)?;
        for left in [
            format!("/run/prestack/{name}.lock"),
            format!("/run/prestack/{name}.json"),
            format!("/sys/fs/bpf/prestack/{name}"),
        ] {
            ensure!(!PathBuf::from(&left).exists(), "{left} was left");
        }
    }
    Ok(())
}

#[test]
fn two_instances_do_not_disturb_each_other() -> Result<()> {
    let bed = Testbed::with_links(2)?;
    let _memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
    let clients: Vec<_> = (0..2)
        .map(|link| UdpClient::connect(&bed.client, (bed.links[link].server4, PORT).into()))
        .collect::<Result<_>>()?;
    let [mut first, mut second] = <[UdpClient; 2]>::try_from(clients).ok().expect("two links");
    store(
        &mut behind(&bed, [127, 0, 0, 1].into(), PORT)?,
        b"key",
        b"value",
    )?;

    let mut one = start_prestack(&bed, 0, &LASTING)?;
    let mut two = start_prestack(&bed, 1, &LASTING)?;
    until_hit(&one, &mut first, b"key", b"value")?;
    until_hit(&two, &mut second, b"key", b"value")?;
    let before = two.stats()?.get("udp.hits")?;
    for _ in 0..5 {
        first.get(b"key")?;
    }
    assert_eq!(two.stats()?.get("udp.hits")?, before);

    one.stop()?;
    nothing_attached(&bed.server, &bed.links[0].server_dev)?;
    until_hit(&two, &mut second, b"key", b"value")?;
    let one = start_prestack(&bed, 0, &LASTING)?;
    until_hit(&one, &mut first, b"key", b"value")?;
    two.kill()?;
    nothing_linked(&bed.server, &bed.links[1].server_dev)?;
    until_hit(&one, &mut first, b"key", b"value")
}

#[test]
fn generic_mode_serves_as_well() -> Result<()> {
    let args = [&LASTING[..], &["--mode", "generic"]].concat();
    let stage = Stage::with(MemcachedOptions::default(), &args)?;
    let dev = &stage.bed.links[0].server_dev;
    assert_eq!(
        stage.prestack.serving(),
        format!("serving 11211 on {dev} (generic)")
    );
    let mut udp = stage.udp()?;
    store(&mut stage.behind()?, b"key", b"old")?;
    until_hit(&stage.prestack, &mut udp, b"key", b"old")?;
    store(&mut stage.tcp()?, b"key", b"new")?;
    until_hit(&stage.prestack, &mut udp, b"key", b"new")
}

/// What is pinned keeps its mode, whatever the next run is asked for: it says so.
#[test]
fn a_mode_that_cannot_be_taken_is_told() -> Result<()> {
    let hits = [&LASTING[..], &["--tcp-hits"]].concat();
    let generic = [&hits[..], &["--mode", "generic"]].concat();
    let mut stage = Stage::with(MemcachedOptions::default(), &generic)?;
    stage.prestack.kill()?;
    let dev = &stage.bed.links[0].server_dev;
    let native = [&hits[..], &["--interface", dev, "--mode", "native"]].concat();
    stage.prestack.restart(&native)?;
    let mut command = stage.bed.server.command(binary()?);
    let name = stage.prestack.instance().name();
    command.args(["detach", "--instance", name]);
    let (status, said) = Process::spawn(command)?.wait(Duration::from_secs(15))?;
    // It carries no connection.
    ensure!(status.success() && !said.contains("waits for"), "{said}");
    let said = stage.prestack.wait()?;
    ensure!(
        said.contains(&format!("XDP stays generic at {dev}")),
        "{said}"
    );
    ensure!(said.contains("prestack detach"), "{said}");
    nothing_attached(&stage.bed.server, dev)
}

#[test]
fn clsact_serves_as_well() -> Result<()> {
    let args = [&LASTING[..], &["--egress", "clsact"]].concat();
    let mut stage = Stage::with(MemcachedOptions::default(), &args)?;
    store(&mut stage.behind()?, b"key", b"old")?;
    until_hit(&stage.prestack, &mut stage.udp()?, b"key", b"old")?;
    stage.prestack.stop()?;
    nothing_attached(&stage.bed.server, &stage.bed.links[0].server_dev)
}

/// A filter of the clsact qdisc stays when the daemon is killed, and may outlive what is written down about it. The next
/// run removes it, or `detach`, and not what another instance has at the same interface.
#[test]
fn filters_that_nothing_tells_of_are_removed() -> Result<()> {
    let bed = Testbed::with_links(2)?;
    let _memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
    let clsact = [&LASTING[..], &["--egress", "clsact"]].concat();
    let devs: Vec<_> = bed.links.iter().map(|link| &*link.server_dev).collect();
    let forget = |prestack: &mut Prestack| -> Result<()> {
        prestack.kill()?;
        let files = prestack.instance().files()?;
        files.iter().try_for_each(std::fs::remove_file)?;
        Ok(())
    };
    let mut first = start_watching_prestack(&bed, 0, &clsact)?;
    forget(&mut first)?;
    assert!(nothing_attached(&bed.server, devs[0]).is_err());
    let mut second = start_watching_prestack(&bed, 1, &clsact)?;
    nothing_attached(&bed.server, devs[0])?;
    first.restart(&[&clsact[..], &["--interface", devs[0]]].concat())?;
    forget(&mut first)?;
    let done = first.instance().command(&["detach"])?;
    ensure!(
        done.contains(&format!("TC filter of {}", devs[0])),
        "{done}"
    );
    ensure!(done.contains("TC filter of lo "), "{done}");
    nothing_attached(&bed.server, devs[0])?;
    // That of the other instance is there, and its daemon misses nothing.
    assert!(nothing_attached(&bed.server, devs[1]).is_err());
    assert!(nothing_attached(&bed.server, "lo").is_err());
    let status = second.instance().command(&["status"])?;
    ensure!(!status.contains("problem"), "{status}");
    second.stop()?;
    nothing_attached(&bed.server, devs[1])?;
    nothing_attached(&bed.server, "lo")
}

#[test]
fn pinned_programs_serve_nothing_without_a_daemon() -> Result<()> {
    let args = [&LASTING[..], &["--pin"]].concat();
    let mut stage = Stage::with(MemcachedOptions::default(), &args)?;
    let dev = &stage.bed.links[0].server_dev;
    let (mut udp, mut behind) = (stage.udp()?, stage.behind()?);
    store(&mut behind, b"key", b"old")?;
    until_hit(&stage.prestack, &mut udp, b"key", b"old")?;
    stage.prestack.stop()?;
    assert!(nothing_attached(&stage.bed.server, dev).is_err());
    store(&mut behind, b"key", b"new")?;
    for _ in 0..10 {
        assert_eq!(udp.get(b"key")?.as_deref(), Some(&b"new"[..]));
    }
    stage.prestack.instance().command(&["detach"])?;
    nothing_attached(&stage.bed.server, dev)?;
    assert_eq!(stage.prestack.instance().files()?, NO_FILES);
    Ok(())
}
