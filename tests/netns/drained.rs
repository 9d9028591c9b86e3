//! `--tcp-hits`: what carries connections ends after them.

use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use prestack::destroy::Destroyer;
use prestack::discovery::procnet::{connections, standings};
use prestack::drain::LINGER;
use prestack::lock::Lock;
use prestack::maps::Controls;
use prestack::state::Instance;
use prestack_testbed::{MemcachedOptions, Process, TcpClient, pace};
use prestack_tests::attached::nothing_attached;
use prestack_tests::pinned::{Pinned, carry, nothing_left};
use prestack_tests::stage::{LASTING, PORT, Stage, store};

/// A stage that waits for so long, and a client whose connection it carries.
fn stage(timeout: &str) -> Result<(Stage, TcpClient)> {
    let hits = ["--tcp-hits", "--drain-timeout", timeout];
    let stage = Stage::with(MemcachedOptions::default(), &[&LASTING[..], &hits].concat())?;
    let mut tcp = stage.tcp()?;
    store(&mut tcp, b"key", b"value")?;
    carry(&stage.prestack, &mut tcp)?;
    Ok((stage, tcp))
}

/// Nothing is attached, pinned or written down any more.
fn is_over(stage: &Stage) -> Result<()> {
    nothing_attached(&stage.bed.server, &stage.bed.links[0].server_dev)?;
    nothing_left(stage.prestack.instance())
}

/// The instance ends by itself, having reset nothing.
fn ends_without_a_reset(mut stage: Stage) -> Result<()> {
    let said = stage.prestack.wait()?;
    ensure!(
        said.contains("detached") && !said.contains("reset"),
        "{said}"
    );
    is_over(&stage)
}

fn until_draining(stage: &Stage) -> Result<()> {
    pace::wait_for("draining", Duration::from_secs(5), || {
        let status = stage.prestack.instance().command(&["status"])?;
        let is_draining = status.contains("draining: 1 connection left");
        let is_told = status.contains("is not served: prestack is ending");
        Ok((is_draining && is_told).then_some(()))
    })
}

#[test]
fn connections_are_waited_for() -> Result<()> {
    let (mut stage, mut tcp) = stage("1m")?;
    stage.prestack.signal(Signal::SIGTERM)?;
    until_draining(&stage)?;
    let refusal = stage.prestack.restart_refused(&["--interface", "lo"])?;
    let words = "is ending, and waits for 1 connection that it carries";
    ensure!(refusal.contains(words), "{refusal}");
    for n in 0..20 {
        let value = format!("value{n}").into_bytes();
        store(&mut tcp, b"key", &value)?;
        assert_eq!(tcp.get(b"key")?.as_ref(), Some(&value));
    }
    let hits = stage.hits()?;
    let mut udp = stage.udp()?;
    for _ in 0..5 {
        assert_eq!(udp.get(b"key")?.as_deref(), Some(&b"value19"[..]));
    }
    assert_eq!(stage.hits()?, hits, "it still serves");
    drop(tcp);
    ends_without_a_reset(stage)
}

#[test]
fn connections_that_stay_are_reset_in_the_end() -> Result<()> {
    let (mut stage, mut tcp) = stage("1s")?;
    let mut other = stage.tcp()?;
    store(&mut other, b"key", b"other")?;
    let start = Instant::now();
    stage.prestack.signal(Signal::SIGTERM)?;
    let said = stage.prestack.wait()?;
    ensure!(start.elapsed() >= Duration::from_secs(1), "it did not wait");
    ensure!(said.contains("1 translated connection reset"), "{said}");
    ensure!(tcp.is_reset()?, "the connection was closed");
    // Whoever is not carried notices nothing.
    assert_eq!(other.get(b"key")?.as_deref(), Some(&b"other"[..]));
    is_over(&stage)
}

#[test]
fn a_second_signal_leaves_them_to_what_is_pinned() -> Result<()> {
    let (mut stage, mut tcp) = stage("1m")?;
    let before = Pinned::by(stage.prestack.instance())?;
    stage.prestack.signal(Signal::SIGINT)?;
    until_draining(&stage)?;
    stage.prestack.signal(Signal::SIGINT)?;
    let said = stage.prestack.wait()?;
    ensure!(said.contains("1 connection left"), "{said}");
    assert_eq!(Pinned::by(stage.prestack.instance())?, before);
    store(&mut tcp, b"key", b"again")?;

    // Without a daemon `detach` waits, and ends what is left.
    let done = stage
        .prestack
        .instance()
        .command(&["detach", "--drain-timeout", "300ms"])?;
    ensure!(done.contains("reset 1 connection"), "{done}");
    ensure!(tcp.is_reset()?, "the connection was closed");
    is_over(&stage)
}

#[test]
fn detach_says_how_long_to_wait() -> Result<()> {
    let (stage, mut tcp) = stage("1m")?;
    let start = Instant::now();
    let detach = ["detach", "--drain-timeout", "0s"];
    let done = stage.prestack.instance().command(&detach)?;
    ensure!(
        start.elapsed() < pace::patience(Duration::from_secs(10)),
        "it waited"
    );
    ensure!(done.contains("reset 1 connection"), "{done}");
    ensure!(tcp.is_reset()?, "the connection was closed");
    is_over(&stage)
}

/// The kernel makes one of two signals while the daemon has not taken the first. It is to see both, also if it
/// answers nothing over TCP any more already.
#[test]
fn detach_is_heeded_by_a_daemon_that_is_slow_to_notice() -> Result<()> {
    let (stage, mut tcp) = stage("1m")?;
    let instance = stage.prestack.instance();
    let name = instance.name().parse().map_err(anyhow::Error::msg)?;
    let state = Instance::new(name).state()?.context("no state")?;
    Controls::open(&state.maps)?.stop_tcp_hits();
    stage.prestack.signal(Signal::SIGSTOP)?;
    let done = std::thread::scope(|scope| {
        let detach = scope.spawn(|| instance.command(&["detach", "--drain-timeout", "0s"]));
        // The first signal is sent meanwhile, and were it not for this the second.
        std::thread::sleep(Duration::from_millis(500));
        stage.prestack.signal(Signal::SIGCONT)?;
        detach.join().expect("no panic")
    })?;
    ensure!(done.contains("reset 1 connection"), "{done}");
    ensure!(tcp.is_reset()?, "the connection was closed");
    is_over(&stage)
}

#[test]
fn detach_waits_for_the_daemon() -> Result<()> {
    let (stage, tcp) = stage("1m")?;
    let daemon = Pid::from_raw(stage.prestack.pid());
    let done = std::thread::scope(|scope| {
        let instance = stage.prestack.instance();
        let detach = scope.spawn(|| instance.command(&["detach"]));
        until_draining(&stage)?;
        drop(tcp);
        detach.join().expect("no panic")
    })?;
    ensure!(
        done.contains("stopped the daemon") && !done.contains("reset"),
        "{done}"
    );
    // It is a zombie of this process.
    kill(daemon, None)?;
    is_over(&stage)
}

/// The daemon was killed, another process has its pid by now, and a third holds the lock, as a `run` or a
/// `detach` at work does.
#[test]
fn a_stranger_with_the_pid_of_the_daemon_is_not_ended() -> Result<()> {
    let (mut stage, _tcp) = stage("0s")?;
    let pid = stage.prestack.pid();
    stage.prestack.kill()?;
    let mut stranger = Command::new("sleep");
    stranger.arg("600");
    let mut stranger = Process::spawn(stranger)?;
    let files = stage.prestack.instance().files()?;
    let named = |end: &str| {
        let is_it = |path: &&PathBuf| path.extension().is_some_and(|it| it == end);
        files.iter().find(is_it).context("the instance's file")
    };
    let state = named("json")?;
    let text = std::fs::read_to_string(state)?;
    let pids = [pid, stranger.pid()].map(|pid| format!("\"pid\": {pid},"));
    ensure!(text.contains(&pids[0]), "{text}");
    std::fs::write(state, text.replace(&pids[0], &pids[1]))?;

    let lock = Lock::take(named("lock")?)?.context("nobody has the lock")?;
    let refusal = stage.prestack.instance().command(&["detach"]);
    let refusal = refusal.expect_err("it is busy").to_string();
    ensure!(refusal.contains("another process"), "{refusal}");
    // Nor is a `run` told that a daemon runs.
    let run = ["run", "--interface", &stage.bed.links[0].server_dev];
    let refusal = stage.prestack.instance().command(&run);
    let refusal = refusal.expect_err("it is busy").to_string();
    ensure!(refusal.contains("starting or ending"), "{refusal}");
    ensure!(!refusal.contains("already running"), "{refusal}");
    drop(lock);
    let done = stage.prestack.instance().command(&["detach"])?;
    ensure!(done.contains("reset 1 connection"), "{done}");
    ensure!(!stranger.has_ended()?, "it was ended");
    is_over(&stage)
}

/// memcached has closed the connection, and the client has not got all of it: it is sent again, by nobody but the
/// kernel.
#[test]
fn what_is_lost_at_the_end_is_waited_for() -> Result<()> {
    let (stage, mut tcp) = stage("1m")?;
    // More than is answered from the cache.
    let value: Vec<_> = (0..20_000_u32).map(|at| b'a' + (at % 23) as u8).collect();
    store(&mut tcp, b"large", &value)?;
    let link = &stage.bed.links[0];
    let client = [&link.client4.to_string(), "dev", &link.server_dev];
    let nobody = ["lladdr", "02:00:00:00:00:99", "nud", "permanent"];
    let to_nobody = ["neigh", "replace"].iter().chain(&client).chain(&nobody);
    stage.bed.server.ip(to_nobody)?;
    tcp.send(b"get large\r\nquit\r\n")?;
    pace::wait_for("the end", Duration::from_secs(5), || {
        let standings = stage.bed.server.run(|| standings(&[PORT]))?;
        Ok(standings.values().any(|it| it.is_ending).then_some(()))
    })?;
    stage.prestack.signal(Signal::SIGTERM)?;
    // So long that all would be over if nothing but what was acknowledged were waited for.
    thread::sleep(2 * LINGER);
    stage
        .bed
        .server
        .ip(["neigh", "del"].iter().chain(&client))?;
    assert_eq!(tcp.line()?, b"VALUE large 0 20000\r\n");
    ensure!(tcp.bytes(value.len())? == value, "other bytes than stored");
    assert_eq!(tcp.line()?, b"\r\n");
    assert_eq!(tcp.line()?, b"END\r\n");
    drop(tcp);
    ends_without_a_reset(stage)
}

#[test]
fn what_has_no_socket_is_not_waited_for() -> Result<()> {
    let (mut stage, tcp) = stage("1m")?;
    let dev = stage.bed.links[0].client_dev.clone();
    // The client vanishes: nothing of its end arrives.
    stage.bed.client.ip(["link", "set", &dev, "down"])?;
    stage.memcached.kill()?;
    drop(tcp);
    // The host's end goes when it gives up on its FIN.
    let gone = stage.bed.server.run(|| -> std::io::Result<usize> {
        let destroyer = Destroyer::new()?;
        let left = destroyer.find(&connections(&[PORT])?)?;
        let gone = left.iter().map(|connection| destroyer.destroy(connection));
        Ok(gone.collect::<std::io::Result<Vec<_>>>()?.len())
    })?;
    assert_eq!(gone, 1);
    stage.prestack.signal(Signal::SIGTERM)?;
    stage.prestack.wait()?;
    nothing_left(stage.prestack.instance())
}
