//! One of several interfaces goes, and comes back as another.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use prestack_testbed::bpf::attach_pass;
use prestack_testbed::{
    Instance, Memcached, MemcachedOptions, Prestack, Signal, TcpClient, Testbed, UdpClient,
    pace::wait_for,
};
use prestack_tests::attached::nothing_attached;
use prestack_tests::pinned::{Pinned, carry, nothing_left};
use prestack_tests::stage::{LASTING, PORT, behind, store, until_hit};

/// The pair that goes.
const GOES: usize = 1;

fn devs(bed: &Testbed) -> String {
    let devs: Vec<_> = bed.links.iter().map(|l| l.server_dev.as_str()).collect();
    devs.join(",")
}

fn state_file(instance: &Instance) -> Result<PathBuf> {
    let files = instance.files()?.into_iter();
    let mut states = files.filter(|path| path.extension().is_some_and(|e| e == "json"));
    states.next().context("no state file")
}

fn all_args<'a>(devs: &'a str, args: &[&'a str]) -> Vec<&'a str> {
    let usual = ["--interface", devs, "--no-watch-lo"];
    [&usual, &LASTING[..], args].concat()
}

/// prestack on both of two interfaces.
struct Two {
    prestack: Prestack,
    memcached: Memcached,
    bed: Testbed,
}

impl Two {
    fn with(args: &[&str]) -> Result<Self> {
        let bed = Testbed::with_links(2)?;
        let memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
        let devs = devs(&bed);
        let prestack = Prestack::start(&bed.server, &all_args(&devs, args))?;
        Ok(Self {
            prestack,
            memcached,
            bed,
        })
    }

    /// Starts the instance again, whose daemon has ended.
    fn restart(&mut self, args: &[&str]) -> Result<()> {
        let devs = devs(&self.bed);
        self.prestack.restart(&all_args(&devs, args))
    }

    fn udp(&self, link: usize) -> Result<UdpClient> {
        let server = (self.bed.links[link].server4, PORT).into();
        UdpClient::connect(&self.bed.client, server)
    }

    fn tcp(&self, link: usize) -> Result<TcpClient> {
        let server = (self.bed.links[link].server4, PORT).into();
        TcpClient::connect(&self.bed.client, server)
    }

    /// Reaches an address of the server's that is at neither interface, over the one that stays.
    fn elsewhere(&self) -> Result<TcpClient> {
        let (address, bed) = (Ipv4Addr::new(10, 99, 0, 1), &self.bed);
        let net = format!("{address}/32");
        bed.server.ip(["addr", "add", &net, "dev", "lo"])?;
        let by = bed.links[0].server4.to_string();
        bed.client.ip(["route", "add", &net, "via", &by])?;
        TcpClient::connect(&bed.client, (address, PORT).into())
    }

    fn dev(&self, link: usize) -> &str {
        &self.bed.links[link].server_dev
    }

    /// The index of the device that goes.
    fn index(&self) -> Result<u32> {
        let said = self.bed.server.ip(["-o", "link", "show", self.dev(GOES)])?;
        let index = said.split(':').next().context("no device")?;
        Ok(index.trim().parse()?)
    }

    fn status(&self) -> Result<String> {
        self.prestack.instance().command(&["status"])
    }

    /// Waits until `status` says that the interface is gone, and lists it no more.
    fn until_told(&self) -> Result<()> {
        let dev = self.dev(GOES);
        wait_for("the loss to be told", Duration::from_secs(10), || {
            let status = self.status()?;
            let is_listed = status.contains(&format!("{dev} (native"));
            Ok((status.contains(&format!("{dev} is gone")) && !is_listed).then_some(()))
        })
    }

    /// What is written over the one interface shows over the other at once.
    fn sees_writes(&self, round: u32) -> Result<()> {
        let (mut here, mut there) = (self.udp(0)?, self.udp(GOES)?);
        let mut writer = self.tcp(GOES)?;
        let key = format!("key{round}").into_bytes();
        store(&mut writer, &key, b"old")?;
        // Over it requests are answered.
        until_hit(&self.prestack, &mut there, &key, b"old")?;
        until_hit(&self.prestack, &mut here, &key, b"old")?;
        store(&mut writer, &key, b"new")?;
        for _ in 0..10 {
            ensure!(here.get(&key)?.as_deref() == Some(&b"new"[..]), "stale");
        }
        let status = self.status()?;
        let listed = format!("{} (native", self.dev(GOES));
        ensure!(status.contains(&listed), "{status}");
        ensure!(!status.contains("is gone"), "{status}");
        Ok(())
    }
}

/// It is served again, and what is written there is seen.
#[test]
fn one_that_comes_back_is_attached_to_anew() -> Result<()> {
    let mut two = Two::with(&[])?;
    two.sees_writes(0)?;
    let index = two.index()?;
    // At once, and as one that cannot be told from the one before by name and number.
    for (round, same) in [(1, None), (2, Some(index))] {
        two.bed.unplug(GOES)?;
        two.bed.plug(GOES, same)?;
        two.sees_writes(round)?;
    }
    // And after a while, in which the other one is served.
    two.bed.unplug(GOES)?;
    two.until_told()?;
    store(&mut two.tcp(0)?, b"key", b"value")?;
    until_hit(&two.prestack, &mut two.udp(0)?, b"key", b"value")?;
    two.bed.plug(GOES, None)?;
    two.sees_writes(3)?;

    two.prestack.stop()?;
    for link in 0..2 {
        nothing_attached(&two.bed.server, two.dev(link))?;
    }
    nothing_left(two.prestack.instance())
}

/// Why one that is back is not attached to is told; later it is.
#[test]
fn one_that_comes_back_with_a_program_has_to_wait() -> Result<()> {
    let two = Two::with(&[])?;
    let dev = two.dev(GOES);
    two.bed.unplug(GOES)?;
    two.until_told()?;
    let server = &two.bed.server;
    server.ip(["link", "add", "other", "type", "veth"])?;
    let program = attach_pass(server, "other")?;
    server.ip(["link", "set", "other", "name", dev])?;
    let until = |told: &str| {
        wait_for(told, Duration::from_secs(10), || {
            Ok(two.status()?.contains(told).then_some(()))
        })
    };
    until(&format!("interface {dev} is back, and not served"))?;
    drop(program);
    until(&format!("{dev} (native"))
}

/// What goes through it would be taken twice.
#[test]
fn one_that_comes_back_on_top_of_the_other_is_not_served() -> Result<()> {
    let two = Two::with(&[])?;
    let (dev, other, server) = (two.dev(GOES), two.dev(0), &two.bed.server);
    two.bed.unplug(GOES)?;
    two.until_told()?;
    server.ip(["link", "add", "link", other, "name", dev, "type", "macvlan"])?;
    let why = format!("interface {dev} is back, and not served: interface {dev} is on top of");
    wait_for("the reason", Duration::from_secs(10), || {
        Ok(two.status()?.contains(&why).then_some(()))
    })?;
    nothing_attached(server, dev)?;
    ensure!(two.status()?.contains(&format!("{other} (native")));
    Ok(())
}

/// When the last one is gone there is nothing to do.
#[test]
fn when_all_are_gone_it_ends() -> Result<()> {
    for args in [&[][..], &["--tcp-hits"]] {
        let mut two = Two::with(args)?;
        let mut client = two.tcp(0)?;
        store(&mut client, b"key", b"value")?;
        if two.prestack.carries_connections() {
            carry(&two.prestack, &mut client)?;
        }
        two.bed.unplug(GOES)?;
        two.until_told()?;
        two.bed.unplug(0)?;
        // Long before it would be over with connections whose sockets are left.
        let (status, said) = two.prestack.ended()?;
        ensure!(!status.success(), "{said}");
        ensure!(said.contains("every interface"), "{said}");
        nothing_left(two.prestack.instance())?;
        two.bed.plug(0, None)?;
        if two.prestack.carries_connections() {
            client.send(b"get key\r\n")?;
            ensure!(client.is_reset()?, "it goes on");
        }
    }
    Ok(())
}

/// What is carried to an address that has gone is reset, and when the interface is back so is all that is carried:
/// segments may have passed as they were.
#[test]
fn what_was_carried_over_it_is_reset() -> Result<()> {
    let mut two = Two::with(&["--tcp-hits"])?;
    let mut behind = behind(&two.bed, [127, 0, 0, 1].into(), PORT)?;
    store(&mut behind, b"key", b"value")?;
    let (mut here, mut there) = (two.tcp(0)?, two.tcp(GOES)?);
    carry(&two.prestack, &mut here)?;
    carry(&two.prestack, &mut there)?;
    let mut elsewhere = two.elsewhere()?;
    carry(&two.prestack, &mut elsewhere)?;
    ensure!(two.status()?.contains("on: 3 connections translated"));

    two.bed.unplug(GOES)?;
    wait_for("a reset", Duration::from_secs(10), || {
        Ok(two
            .status()?
            .contains("on: 2 connections translated")
            .then_some(()))
    })?;
    for client in [&mut here, &mut elsewhere] {
        ensure!(client.get(b"key")?.as_deref() == Some(&b"value"[..]));
    }
    two.bed.plug(GOES, None)?;
    ensure!(here.is_reset()?, "it is carried on");
    there.send(b"get key\r\n")?;
    ensure!(there.is_reset()?, "it is carried on");

    let mut there = two.tcp(GOES)?;
    carry(&two.prestack, &mut there)?;
    let names = Pinned::by(two.prestack.instance())?.links;
    let rx = names.keys().filter(|name| name.starts_with("rx-")).count();
    ensure!(rx == 2, "{names:?}");
    drop(there);
    two.prestack.stop()?;
    ensure!(two.memcached.pid() > 0);
    nothing_left(two.prestack.instance())
}

/// So it is by the next run if that happens while there is no daemon.
#[test]
fn what_was_carried_while_one_went_unseen_is_reset() -> Result<()> {
    let args = ["--tcp-hits"];
    let mut two = Two::with(&args)?;
    let (mut here, mut there) = (two.tcp(0)?, two.tcp(GOES)?);
    store(&mut here, b"key", b"value")?;
    carry(&two.prestack, &mut here)?;
    carry(&two.prestack, &mut there)?;
    // With the interfaces that there were nothing is.
    two.prestack.kill()?;
    two.restart(&args)?;
    for client in [&mut here, &mut there] {
        ensure!(client.get(b"key")?.as_deref() == Some(&b"value"[..]));
    }
    two.prestack.kill()?;
    two.bed.unplug(GOES)?;
    two.bed.plug(GOES, None)?;
    two.restart(&args)?;
    for mut client in [here, there] {
        ensure!(client.is_reset()?, "it is carried on");
    }

    let mut here = two.tcp(0)?;
    carry(&two.prestack, &mut here)?;
    two.prestack.kill()?;
    two.bed.unplug(GOES)?;
    let dev = two.dev(0).to_owned();
    two.prestack.restart(&all_args(&dev, &args))?;
    ensure!(here.is_reset()?, "it is carried on");
    two.prestack.stop()?;
    nothing_left(two.prestack.instance())
}

/// So it is if the one that is back had gone before, while there was a daemon.
#[test]
fn what_was_carried_while_one_came_back_unseen_is_reset() -> Result<()> {
    let args = ["--tcp-hits"];
    let mut two = Two::with(&args)?;
    let mut here = two.tcp(0)?;
    store(&mut here, b"key", b"value")?;
    carry(&two.prestack, &mut here)?;
    two.bed.unplug(GOES)?;
    two.until_told()?;
    ensure!(here.get(b"key")?.as_deref() == Some(&b"value"[..]));
    two.prestack.kill()?;
    two.bed.plug(GOES, None)?;
    two.restart(&args)?;
    ensure!(here.is_reset()?, "it is carried on");
    two.prestack.stop()?;
    nothing_left(two.prestack.instance())
}

/// A device that has the number of the one before has none of its programs.
#[test]
fn what_was_carried_while_one_was_made_anew_with_its_number_is_reset() -> Result<()> {
    let args = ["--tcp-hits"];
    let mut two = Two::with(&args)?;
    let mut here = two.tcp(0)?;
    store(&mut here, b"key", b"value")?;
    carry(&two.prestack, &mut here)?;
    let index = two.index()?;
    two.prestack.kill()?;
    two.bed.unplug(GOES)?;
    two.bed.plug(GOES, Some(index))?;
    two.restart(&args)?;
    ensure!(here.is_reset()?, "it is carried on");
    two.sees_writes(0)?;
    two.prestack.stop()?;
    nothing_left(two.prestack.instance())
}

/// A run may end after it has attached to one that is back, and before it has written that down.
#[test]
fn what_a_crash_leaves_at_one_that_is_back_is_known_unwritten() -> Result<()> {
    let args = ["--tcp-hits"];
    let mut two = Two::with(&args)?;
    two.bed.unplug(GOES)?;
    two.until_told()?;
    let path = state_file(two.prestack.instance())?;
    let state = fs::read(&path)?;
    two.bed.plug(GOES, None)?;
    two.sees_writes(0)?;
    let mut here = two.tcp(0)?;
    store(&mut here, b"key", b"value")?;
    carry(&two.prestack, &mut here)?;
    two.prestack.kill()?;
    fs::write(path, state)?;
    two.restart(&args)?;
    ensure!(here.is_reset()?, "it is carried on");
    two.sees_writes(1)?;
    two.prestack.stop()?;
    for link in 0..2 {
        nothing_attached(&two.bed.server, two.dev(link))?;
    }
    nothing_left(two.prestack.instance())
}

/// No segment of what is carried can have gone over it before.
#[test]
fn one_more_interface_resets_nothing() -> Result<()> {
    let args = ["--tcp-hits"];
    let mut two = Two::with(&args)?;
    let dev = two.dev(0).to_owned();
    two.prestack.stop()?;
    two.prestack.restart(&all_args(&dev, &args))?;
    let mut here = two.tcp(0)?;
    store(&mut here, b"key", b"value")?;
    carry(&two.prestack, &mut here)?;
    two.prestack.kill()?;
    two.restart(&args)?;
    ensure!(here.get(b"key")?.as_deref() == Some(&b"value"[..]));
    two.sees_writes(0)?;
    drop(here);
    two.prestack.stop()?;
    nothing_left(two.prestack.instance())
}

/// Whichever of its names is given.
#[test]
fn one_with_an_alternative_name_is_gone_on_with() -> Result<()> {
    let args = ["--tcp-hits"];
    let mut two = Two::with(&args)?;
    let dev = two.dev(GOES);
    let add = ["link", "property", "add", "dev", dev, "altname", "uplink"];
    two.bed.server.ip(add)?;
    let mut there = two.tcp(GOES)?;
    store(&mut there, b"key", b"value")?;
    carry(&two.prestack, &mut there)?;
    two.prestack.kill()?;
    let twice = format!("{},uplink", devs(&two.bed));
    let said = two.prestack.restart_refused(&all_args(&twice, &args))?;
    ensure!(said.contains("is given twice"), "{said}");
    let other = format!("uplink,{}", two.dev(0));
    two.prestack.restart(&all_args(&other, &args))?;
    ensure!(there.get(b"key")?.as_deref() == Some(&b"value"[..]));
    two.sees_writes(0)?;
    drop(there);
    two.prestack.stop()?;
    nothing_left(two.prestack.instance())
}

/// A run that fails as it takes over has been told to attach to one interface more.
/// An interface is known by its number while prestack runs: under another name it is served on, and connections carried.
/// The next run knows it by that name.
#[test]
fn one_that_gets_another_name_is_gone_on_with() -> Result<()> {
    const RENAMED: &str = "renamed0";
    const PINNED: [&str; 2] = ["--tcp-hits", "--pin"];
    let mut two = Two::with(&PINNED)?;
    let mut tcp = two.tcp(GOES)?;
    store(&mut tcp, b"key", b"value")?;
    carry(&two.prestack, &mut tcp)?;
    let former = two.dev(GOES).to_owned();
    let server = &two.bed.server;
    if server
        .ip(["link", "set", &former, "name", RENAMED])
        .is_err()
    {
        // Before Linux 6.2 it must not be in use for it.
        server.ip(["link", "set", &former, "down"])?;
        server.ip(["link", "set", &former, "name", RENAMED, "up"])?;
    }
    // Somebody else has its name.
    server.ip([
        "link", "add", &former, "type", "veth", "peer", "name", "other0",
    ])?;
    two.bed.links[GOES].server_dev = RENAMED.into();
    let served = format!("{RENAMED} (native");
    wait_for("the name to be told", Duration::from_secs(10), || {
        Ok(two.status()?.contains(&served).then_some(()))
    })?;
    two.sees_writes(0)?;
    ensure!(tcp.get(b"key")?.as_deref() == Some(&b"value"[..]));
    two.prestack.signal(Signal::SIGTERM)?;
    let said = two.prestack.wait()?;
    let words = format!("interface {former} is called {RENAMED} now");
    ensure!(said.contains(&words) && !said.contains("is gone"), "{said}");
    two.restart(&PINNED)?;
    ensure!(tcp.get(b"key")?.as_deref() == Some(&b"value"[..]));
    two.sees_writes(1)?;
    drop(tcp);
    two.prestack.instance().command(&["detach"])?;
    nothing_left(two.prestack.instance())
}

fn fails_at_one_more(two: &mut Two, args: &[&str]) -> Result<()> {
    // A bridge has no native mode.
    two.bed
        .server
        .ip(["link", "add", "more", "type", "bridge"])?;
    let devs = format!("{},more", devs(&two.bed));
    let args = [&["--mode", "native"], args].concat();
    let said = two.prestack.restart_refused(&all_args(&devs, &args))?;
    ensure!(said.contains("more in native mode"), "{said}");
    Ok(())
}

/// It has changed nothing for the next one, which is told what the one before was.
#[test]
fn a_run_that_fails_as_it_takes_over_leaves_what_it_found() -> Result<()> {
    let args = ["--tcp-hits", "--egress", "clsact"];
    let generic = [&args[..], &["--mode", "generic"]].concat();
    let mut two = Two::with(&generic)?;
    let (mut here, mut there) = (two.tcp(0)?, two.tcp(GOES)?);
    store(&mut here, b"key", b"value")?;
    carry(&two.prestack, &mut here)?;
    carry(&two.prestack, &mut there)?;
    two.prestack.kill()?;
    fails_at_one_more(&mut two, &args)?;
    two.restart(&generic)?;
    for client in [&mut here, &mut there] {
        ensure!(client.get(b"key")?.as_deref() == Some(&b"value"[..]));
    }
    let status = two.status()?;
    ensure!(status.contains("(generic, clsact)"), "{status}");
    drop((here, there));
    two.prestack.stop()?;
    for link in 0..2 {
        let mut tc = two.bed.server.command("tc");
        let qdiscs = tc.args(["qdisc", "show", "dev", two.dev(link)]).output()?;
        let qdiscs = String::from_utf8_lossy(&qdiscs.stdout).into_owned();
        ensure!(!qdiscs.contains("clsact"), "{qdiscs}");
    }
    nothing_left(two.prestack.instance())
}

/// Nor does the next one forget what it has to reset.
#[test]
fn a_run_that_fails_as_it_takes_over_leaves_the_reset_to_the_next() -> Result<()> {
    let args = ["--tcp-hits"];
    let mut two = Two::with(&args)?;
    let mut here = two.tcp(0)?;
    store(&mut here, b"key", b"value")?;
    carry(&two.prestack, &mut here)?;
    two.prestack.kill()?;
    two.bed.unplug(GOES)?;
    two.bed.plug(GOES, None)?;
    fails_at_one_more(&mut two, &args)?;
    two.restart(&args)?;
    ensure!(here.is_reset()?, "it is carried on");
    two.prestack.stop()?;
    nothing_left(two.prestack.instance())
}

/// A filter stays at an interface whatever its name.
#[test]
fn what_is_left_at_one_with_another_name_by_now_is_removed() -> Result<()> {
    let egress = ["--egress", "clsact"];
    for args in [&["--pin"][..], &["--tcp-hits"]] {
        let mut two = Two::with(&[&egress[..], args].concat())?;
        let mut here = two.tcp(0)?;
        store(&mut here, b"key", b"value")?;
        if two.prestack.carries_connections() {
            carry(&two.prestack, &mut here)?;
        }
        two.prestack.kill()?;
        let (host, dev) = (&two.bed.server, two.dev(GOES));
        for change in [&["down"][..], &["name", "renamed"], &["up"]] {
            let dev = if change == ["up"] { "renamed" } else { dev };
            host.ip(["link", "set", dev].iter().chain(change))?;
        }
        ensure!(nothing_attached(host, "renamed").is_err());
        if two.prestack.carries_connections() {
            // This goes on with what is at the other one.
            let dev = two.dev(0).to_owned();
            let args = [&egress[..], args].concat();
            two.prestack.restart(&all_args(&dev, &args))?;
        } else {
            two.prestack.instance().command(&["detach"])?;
        }
        nothing_attached(&two.bed.server, "renamed")?;
    }
    Ok(())
}
