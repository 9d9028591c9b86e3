//! `--tcp-hits`: what carries connections stays when the daemon goes, and the next one goes on with it.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::maps::MapInfo;
use aya::programs::loaded_programs;
use prestack_abi::names;
use prestack_testbed::{Memcached, MemcachedOptions, Prestack, Process, Testbed, binary, pace};
use prestack_tests::attached::nothing_attached;
use prestack_tests::kernel;
use prestack_tests::pinned::{Pinned, carry, hide_pins, nothing_left};
use prestack_tests::stage::{PORT, Stage, set, store, until_hit};

/// Settings of all runs here but for the interface.
const SETTINGS: [&str; 10] = [
    "--memory",
    "32MiB",
    "--max-age",
    "60s",
    "--settle",
    "100ms",
    "--tcp-hits",
    "--no-watch-lo",
    "--drain-timeout",
    "2s",
];

fn stage(more: &[&str]) -> Result<Stage> {
    Stage::watching(MemcachedOptions::default(), &[&SETTINGS[..], more].concat())
}

/// Starts the instance again with the same settings, and `more`.
fn restart(stage: &mut Stage, more: &[&str]) -> Result<()> {
    let interface = ["--interface", &stage.bed.links[0].server_dev];
    stage
        .prestack
        .restart(&[&interface[..], &SETTINGS, more].concat())
}

/// A restart with `args` must be refused with all of these words, and change nothing.
fn refused(stage: &mut Stage, args: &[&str], words: &[&str]) -> Result<()> {
    let before = Pinned::by(stage.prestack.instance())?;
    let said = stage.prestack.restart_refused(args)?;
    for word in words.iter().chain(&["prestack detach --instance"]) {
        ensure!(
            said.contains(word),
            "the message does not name {word:?}: {said}"
        );
    }
    ensure!(
        Pinned::by(stage.prestack.instance())? == before,
        "something has changed"
    );
    Ok(())
}

fn disjoint(one: &[u32], other: &[u32]) -> bool {
    !one.iter().any(|number| other.contains(number))
}

#[test]
fn a_crash_changes_nothing_and_the_next_run_goes_on() -> Result<()> {
    let mut stage = stage(&[])?;
    let (mut udp, mut tcp, mut idle) = (stage.udp()?, stage.tcp()?, stage.tcp()?);
    store(&mut tcp, b"key", b"1")?;
    store(&mut idle, b"other", b"1")?;
    until_hit(&stage.prestack, &mut udp, b"key", b"1")?;
    carry(&stage.prestack, &mut tcp)?;
    let status = stage.prestack.instance().command(&["status"])?;
    ensure!(status.contains("on: 1 connection translated"), "{status}");
    let before = Pinned::by(stage.prestack.instance())?;
    // Older kernels have filters at egress, which stay by themselves.
    let links = if kernel::version() >= (6, 6) { 3 } else { 2 };
    ensure!(before.links.len() == links, "{before:?}");
    let counted = stage.prestack.stats()?;

    stage.prestack.kill()?;
    for n in 0..50 {
        let value = format!("dead{n}").into_bytes();
        store(&mut tcp, b"key", &value)?;
        assert_eq!(tcp.get(b"key")?.as_ref(), Some(&value));
        assert_eq!(udp.get(b"key")?.as_ref(), Some(&value));
    }
    assert_eq!(Pinned::by(stage.prestack.instance())?, before);
    let status = stage.prestack.instance().command(&["status"])?;
    ensure!(
        status.contains("daemon: 1 connection translated"),
        "{status}"
    );

    restart(&mut stage, &[])?;
    let after = Pinned::by(stage.prestack.instance())?;
    assert_eq!(after.link_ids(), before.link_ids());
    assert_eq!(after.maps, before.maps);
    ensure!(disjoint(&after.programs(), &before.programs()), "{after:?}");
    ensure!(after.own.len() == 3, "{after:?}");
    ensure!(
        after.own.keys().all(|name| !before.own.contains_key(name)),
        "{after:?}"
    );
    for name in ["udp.hits", "invalidations", "fills"] {
        ensure!(
            stage.prestack.stats()?.get(name)? >= counted.get(name)?,
            "{name}"
        );
    }
    assert_eq!(udp.get(b"key")?.as_deref(), Some(&b"dead49"[..]));
    until_hit(&stage.prestack, &mut udp, b"key", b"dead49")?;
    // Connections that were followed still are.
    store(&mut tcp, b"key", b"alive")?;
    assert_eq!(udp.get(b"key")?.as_deref(), Some(&b"alive"[..]));
    store(&mut idle, b"key", b"again")?;
    until_hit(&stage.prestack, &mut udp, b"key", b"again")?;
    assert_eq!(stage.prestack.stats()?.get("doubted_requests")?, 0);

    drop((tcp, idle));
    stage.prestack.stop()?;
    nothing_attached(&stage.bed.server, &stage.bed.links[0].server_dev)?;
    nothing_left(stage.prestack.instance())
}

#[test]
fn filters_are_replaced_in_their_place() -> Result<()> {
    let egress = ["--egress", "clsact"];
    let mut stage = stage(&egress)?;
    let dev = stage.bed.links[0].server_dev.clone();
    let filters = |stage: &Stage| -> Result<(String, String)> {
        let mut tc = stage.bed.server.command("tc");
        let output = tc
            .args(["filter", "show", "dev", &dev, "egress"])
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let place = text.split(" tx ").next().context("a filter")?.to_owned();
        let id = text.split(" id ").nth(1).context("a program")?;
        Ok((
            place,
            id.split_whitespace().next().unwrap_or_default().to_owned(),
        ))
    };
    let mut tcp = stage.tcp()?;
    store(&mut tcp, b"key", b"1")?;
    carry(&stage.prestack, &mut tcp)?;
    let before = filters(&stage)?;
    stage.prestack.kill()?;
    assert_eq!(filters(&stage)?, before);
    restart(&mut stage, &egress)?;
    let after = filters(&stage)?;
    assert_eq!(after.0, before.0);
    assert_ne!(after.1, before.1);
    // They are known for its own: the next crash and the end are as well.
    stage.prestack.kill()?;
    restart(&mut stage, &egress)?;
    store(&mut tcp, b"key", b"2")?;
    until_hit(&stage.prestack, &mut stage.udp()?, b"key", b"2")?;
    drop(tcp);
    stage.prestack.stop()?;
    nothing_attached(&stage.bed.server, &dev)?;
    nothing_left(stage.prestack.instance())
}

#[test]
fn a_filter_goes_where_the_next_run_does_not_watch() -> Result<()> {
    let egress = ["--egress", "clsact"];
    let mut watching = SETTINGS.to_vec();
    watching.retain(|arg| *arg != "--no-watch-lo");
    let args = [&watching[..], &egress].concat();
    let mut stage = Stage::watching(MemcachedOptions::default(), &args)?;
    let mut tcp = stage.tcp()?;
    store(&mut tcp, b"key", b"1")?;
    carry(&stage.prestack, &mut tcp)?;
    ensure!(nothing_attached(&stage.bed.server, "lo").is_err());
    stage.prestack.kill()?;
    restart(&mut stage, &egress)?;
    nothing_attached(&stage.bed.server, "lo")?;
    let mut tc = stage.bed.server.command("tc");
    let qdiscs = tc.args(["qdisc", "show", "dev", "lo"]).output()?;
    let qdiscs = String::from_utf8_lossy(&qdiscs.stdout).into_owned();
    ensure!(!qdiscs.contains("clsact"), "{qdiscs}");
    assert_eq!(tcp.get(b"key")?.as_deref(), Some(&b"1"[..]));
    drop(tcp);
    stage.prestack.stop()?;
    nothing_attached(&stage.bed.server, &stage.bed.links[0].server_dev)?;
    nothing_left(stage.prestack.instance())
}

#[test]
fn programs_are_replaced_under_traffic() -> Result<()> {
    let mut stage = stage(&["--pin"])?;
    let mut clients = (0..4).map(|_| stage.tcp()).collect::<Result<Vec<_>>>()?;
    let (is_over, rounds) = (AtomicBool::new(false), AtomicU32::new(0));
    thread::scope(|scope| {
        let threads: Vec<_> = (clients.iter_mut().enumerate())
            .map(|(number, client)| {
                let (is_over, rounds) = (&is_over, &rounds);
                scope.spawn(move || -> Result<()> {
                    let key = format!("key{number}").into_bytes();
                    let mut n = 0_u32;
                    while !is_over.load(Ordering::SeqCst) {
                        n += 1;
                        let value = n.to_string().into_bytes();
                        client.send(&set(&key, &value))?;
                        ensure!(client.line()? == b"STORED\r\n");
                        ensure!(client.get(&key)?.as_ref() == Some(&value));
                        rounds.fetch_add(1, Ordering::SeqCst);
                        // The programs are loaded meanwhile, which takes a CPU.
                        thread::sleep(Duration::from_millis(1));
                    }
                    Ok(())
                })
            })
            .collect();
        let mut upgrades = || -> Result<()> {
            for round in 0..6 {
                let before = rounds.load(Ordering::SeqCst);
                pace::wait_for("traffic", Duration::from_secs(10), || {
                    Ok((rounds.load(Ordering::SeqCst) > before + 100).then_some(()))
                })?;
                // Killed, or told to end and to leave what is pinned.
                match round % 2 {
                    0 => stage.prestack.kill()?,
                    _ => stage.prestack.stop()?,
                }
                restart(&mut stage, &["--pin"])?;
            }
            Ok(())
        };
        let upgraded = upgrades();
        is_over.store(true, Ordering::SeqCst);
        for thread in threads {
            thread.join().expect("no panic").context("a client")?;
        }
        upgraded
    })?;
    // Nothing was lost of what flows are about, or sent again.
    let stats = stage.prestack.stats()?;
    assert_eq!(stats.get("doubted_requests")?, 0);
    assert_eq!(stats.get("doubted_replies")?, 0);
    if !pace::is_slow() {
        // A few segments may be sent again where a busy machine delays acknowledgements.
        ensure!(stats.get("reparsed")? < 10, "{stats:?}");
    }
    let mut udp = stage.udp()?;
    store(&mut clients[0], b"key", b"1")?;
    until_hit(&stage.prestack, &mut udp, b"key", b"1")?;
    stage.prestack.instance().command(&["detach"])?;
    nothing_left(stage.prestack.instance())
}

#[test]
fn other_settings_are_refused_while_connections_are_carried() -> Result<()> {
    let mut stage = stage(&[])?;
    let dev = stage.bed.links[0].server_dev.clone();
    let interface = ["--interface", &dev];
    let mut tcp = stage.tcp()?;
    store(&mut tcp, b"key", b"1")?;
    carry(&stage.prestack, &mut tcp)?;
    stage.prestack.kill()?;

    let with = |args: &[&'static str]| -> Vec<&str> {
        let settings = SETTINGS.iter().copied();
        interface
            .iter()
            .copied()
            .chain(settings)
            .chain(args.iter().copied())
            .collect()
    };
    let without_hits: Vec<_> = with(&[])
        .into_iter()
        .filter(|arg| *arg != "--tcp-hits")
        .collect();
    refused(&mut stage, &without_hits, &["--tcp-hits is not given"])?;
    let flows = ["TRANSLATIONS", "8192 elements", "--max-flows"];
    refused(&mut stage, &with(&["--max-flows", "16384"]), &flows[1..])?;
    let mut memory = with(&[]);
    memory[3] = "64MiB";
    refused(&mut stage, &memory, &["elements", "--memory"])?;
    refused(
        &mut stage,
        &with(&["--rate-limit", "1000"]),
        &["RATES", "--rate-limit"],
    )?;
    let mut lo = with(&[]);
    lo[1] = "lo";
    refused(&mut stage, &lo, &["interface", &dev])?;

    // Another layout: what is carried cannot be told.
    let path = &stage.prestack.instance().files()?;
    let path = path
        .iter()
        .find(|path| path.extension().is_some_and(|e| e == "json"));
    let path = path.context("a state file")?;
    let state = std::fs::read_to_string(path)?;
    let layout = format!("\"layout\": {}", prestack_abi::LAYOUT);
    std::fs::write(path, state.replace(&layout, "\"layout\": 1"))?;
    refused(&mut stage, &with(&[]), &["maps", "that version"])?;
    std::fs::write(path, state)?;

    store(&mut tcp, b"key", b"2")?;
    restart(&mut stage, &[])?;
    assert_eq!(tcp.get(b"key")?.as_deref(), Some(&b"2"[..]));
    drop(tcp);
    stage.prestack.stop()?;
    nothing_left(stage.prestack.instance())
}

#[test]
fn without_carried_connections_it_starts_anew() -> Result<()> {
    let mut stage = stage(&[])?;
    let mut tcp = stage.tcp()?;
    store(&mut tcp, b"key", b"1")?;
    let before = Pinned::by(stage.prestack.instance())?;
    stage.prestack.kill()?;
    restart(&mut stage, &["--max-flows", "64"])?;
    let after = Pinned::by(stage.prestack.instance())?;
    ensure!(disjoint(&after.link_ids(), &before.link_ids()), "{after:?}");
    let flows = MapInfo::from_pin(stage.prestack.instance().pins().join(names::FLOWS))?;
    assert_eq!(flows.max_entries(), 64);

    stage.prestack.kill()?;
    let interface = ["--interface", &stage.bed.links[0].server_dev];
    let usual = ["--memory", "32MiB", "--no-watch-lo"];
    stage.prestack.restart(&[&interface[..], &usual].concat())?;
    assert_eq!(Pinned::by(stage.prestack.instance())?, Pinned::default());
    assert_eq!(tcp.get(b"key")?.as_deref(), Some(&b"1"[..]));
    stage.prestack.stop()?;
    nothing_left(stage.prestack.instance())
}

/// Links are pinned last: until then nothing is served, and nothing is there to go on with.
#[test]
fn after_a_crash_while_it_pins_maps_it_starts_anew() -> Result<()> {
    let mut stage = stage(&[])?;
    let pins = stage.prestack.instance().pins();
    let crash = |stage: &mut Stage| -> Result<()> {
        stage.prestack.kill()?;
        // Maps are pinned in no particular order.
        for pin in std::fs::read_dir(&pins)? {
            let pin = pin?;
            if pin.file_name() != names::FLOWS {
                std::fs::remove_file(pin.path())?;
            }
        }
        Ok(())
    };
    crash(&mut stage)?;
    restart(&mut stage, &[])?;
    let (mut udp, mut tcp) = (stage.udp()?, stage.tcp()?);
    store(&mut tcp, b"key", b"1")?;
    until_hit(&stage.prestack, &mut udp, b"key", b"1")?;

    // With other settings as well.
    crash(&mut stage)?;
    restart(&mut stage, &["--max-flows", "64"])?;
    until_hit(&stage.prestack, &mut udp, b"key", b"1")?;

    crash(&mut stage)?;
    stage.prestack.instance().command(&["detach"])?;
    nothing_attached(&stage.bed.server, &stage.bed.links[0].server_dev)?;
    nothing_left(stage.prestack.instance())
}

/// Names of the programs that a daemon has loaded.
fn programs_of(daemon: i32) -> Result<Vec<String>> {
    let mut ids = Vec::new();
    for file in std::fs::read_dir(format!("/proc/{daemon}/fdinfo"))? {
        // Some, of what the daemon looks at from time to time, are closed before they are read.
        let Ok(text) = std::fs::read_to_string(file?.path()) else {
            continue;
        };
        let id = text.lines().find_map(|line| line.strip_prefix("prog_id:"));
        ids.extend(id.and_then(|id| id.trim().parse::<u32>().ok()));
    }
    // Programs of others come and go.
    let programs = loaded_programs().filter_map(Result::ok);
    let own = programs.filter(|program| ids.contains(&program.id()));
    Ok(own
        .filter_map(|program| program.name_as_str().map(str::to_owned))
        .collect())
}

#[test]
fn programs_for_hits_are_loaded_only_where_there_are_some() -> Result<()> {
    for (stage, are_there) in [(stage(&[])?, true), (Stage::new()?, false)] {
        let programs = programs_of(stage.prestack.pid())?;
        let has = |name: &str| programs.iter().any(|program| program == name);
        ensure!(has(names::RX) && has(names::TX_TCP), "{programs:?}");
        for name in [names::RX_HITS, names::TX_HITS] {
            ensure!(has(name) == are_there, "{name}: {programs:?}");
        }
    }
    Ok(())
}

#[test]
fn a_small_table_is_a_limit() -> Result<()> {
    let stage = stage(&["--max-flows", "16"])?;
    let pins = stage.prestack.instance().pins();
    for (map, elements) in [
        (names::FLOW_SETS, 1),
        (names::FLOWS, 16),
        (names::TRANSLATIONS, 16),
        (names::ANSWER_RESTS, 16),
    ] {
        assert_eq!(
            MapInfo::from_pin(pins.join(map))?.max_entries(),
            elements,
            "{map}"
        );
    }
    let mut clients = (0..20).map(|_| stage.tcp()).collect::<Result<Vec<_>>>()?;
    for (n, client) in clients.iter_mut().enumerate() {
        store(client, format!("key{n}").as_bytes(), b"1")?;
    }
    ensure!(stage.prestack.stats()?.get("flows_refused")? >= 4);
    let mut udp = stage.udp()?;
    for n in 0..5_u32 {
        // Whether its place is in the table or not, what a client writes shows.
        for client in &mut clients {
            let value = n.to_string().into_bytes();
            store(client, b"key", &value)?;
            assert_eq!(udp.get(b"key")?.as_ref(), Some(&value));
        }
    }
    Ok(())
}

/// Who comes when the table is full passes: nobody that is carried gives way.
#[test]
fn a_full_table_keeps_who_is_carried() -> Result<()> {
    const PLACES: usize = 16;
    const MORE: usize = 20;
    let stage = stage(&["--max-flows", &PLACES.to_string()])?;
    let tcp_hits = || stage.prestack.stats()?.get("tcp.hits");
    let mut carried = Vec::new();
    for _ in 0..PLACES {
        let mut client = stage.tcp()?;
        store(&mut client, b"key", b"value")?;
        carry(&stage.prestack, &mut client)?;
        carried.push(client);
    }
    let mut more = (0..MORE).map(|_| stage.tcp()).collect::<Result<Vec<_>>>()?;
    for round in 0..2_u32 {
        let value = round.to_string().into_bytes();
        store(&mut carried[0], b"key", &value)?;
        for client in &mut more {
            assert_eq!(client.get(b"key")?.as_ref(), Some(&value));
        }
        // What those have said has emptied the cache.
        for client in &mut carried {
            let before = tcp_hits()?;
            pace::wait_for("a hit over TCP", Duration::from_secs(10), || {
                ensure!(client.get(b"key")?.as_ref() == Some(&value));
                Ok((tcp_hits()? > before).then_some(()))
            })?;
        }
        store(&mut more[0], b"key", b"other")?;
        for client in &mut carried {
            assert_eq!(client.get(b"key")?.as_deref(), Some(&b"other"[..]));
        }
    }
    let stats = stage.prestack.stats()?;
    ensure!(stats.get("flows_refused")? >= MORE as u64, "{stats:?}");
    assert_eq!(stats.get("flows_displaced")?, 0);
    let status = stage.prestack.instance().command(&["status"])?;
    let all = format!("{PLACES} connections translated");
    ensure!(status.contains(&all), "{status}");
    Ok(())
}

/// More than 4 GB leave on a carried connection, with hits between: sequence numbers come round.
#[test]
fn a_long_stream() -> Result<()> {
    const LARGE: usize = 8_000_000;
    let options = MemcachedOptions {
        memory_mib: 256,
        args: ["-I", "16m"].map(Into::into).into(),
        ..MemcachedOptions::default()
    };
    let stage = Stage::watching(options, &SETTINGS)?;
    let mut client = stage.tcp()?;
    store(&mut client, b"key", b"value")?;
    let value: Vec<u8> = (0..LARGE).map(|at| (at % 251) as u8).collect();
    store(&mut client, b"large", &value)?;
    carry(&stage.prestack, &mut client)?;
    let before = stage.prestack.stats()?.get("tcp.hits")?;
    let wanted = (pace::volume(u32::MAX as usize) / LARGE) as u64 + 1;
    for _ in 0..wanted {
        ensure!(client.get(b"key")?.as_deref() == Some(&b"value"[..]));
        client.send(b"get large\r\n")?;
        ensure!(client.line()? == format!("VALUE large 0 {LARGE}\r\n").as_bytes());
        ensure!(client.bytes(LARGE)? == value);
        ensure!(client.line()? == b"\r\n");
        ensure!(client.line()? == b"END\r\n");
    }
    let hits = stage.prestack.stats()?.get("tcp.hits")? - before;
    ensure!(
        hits > wanted / 2,
        "only {hits} hits among {wanted} long answers"
    );
    Ok(())
}

#[test]
fn without_a_bpf_file_system_it_refuses() -> Result<()> {
    let bed = Testbed::new()?;
    let _memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
    let dev = &bed.links[0].server_dev;
    let name = format!("nobpffs-{}", std::process::id());
    let mut command = bed.server.command(binary()?);
    command
        .args(["run", "--instance", &name, "--interface", dev])
        .args(SETTINGS);
    hide_pins(&mut command);
    let (status, said) = Process::spawn(command)?.wait(Duration::from_secs(15))?;
    ensure!(!status.success(), "{said}");
    for word in ["--tcp-hits", "BPF file system", "nsenter"] {
        ensure!(said.contains(word), "{said}");
    }
    nothing_attached(&bed.server, dev)
}

#[test]
fn nothing_stays_pinned_after_an_error() -> Result<()> {
    let bed = Testbed::new()?;
    let _memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
    // The kernel has no native mode there, which shows when all else is done.
    let args = [
        "--interface",
        "lo",
        "--mode",
        "native",
        "--port",
        &PORT.to_string(),
    ];
    let said = Prestack::refusal(&bed.server, &[&args[..], &SETTINGS].concat())?;
    ensure!(said.contains("native"), "{said}");
    nothing_attached(&bed.server, "lo")
}
