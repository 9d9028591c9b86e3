//! Veth pairs whose other end takes nothing that XDP sends: every GET is answered all the same.

use std::time::Duration;

use anyhow::{Result, ensure};
use prestack_testbed::{
    Memcached, MemcachedOptions, Offload, Signal, Testbed, UdpClient, bpf, pace,
};
use prestack_tests::stage::{LASTING, Stage, start_prestack, store, until_hit};

/// The other end has no XDP program, and receives without NAPI, as veth devices are when they are new.
fn stage(args: &[&str]) -> Result<Stage> {
    let mut bed = Testbed::new()?;
    bed.links[0].free_client_dev();
    Offload::Gro.set(&bed.client, &bed.links[0].client_dev, false)?;
    let memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
    let prestack = start_prestack(&bed, 0, &[&LASTING[..], args].concat())?;
    Ok(Stage {
        prestack,
        memcached,
        bed,
    })
}

/// GETs get the value, all of memcached.
fn none_is_answered(stage: &Stage, client: &mut UdpClient) -> Result<()> {
    let before = stage.hits()?;
    for _ in 0..100 {
        ensure!(client.get(b"key")?.as_deref() == Some(&b"value"[..]));
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(stage.hits()?, before);
    Ok(())
}

fn status(stage: &Stage) -> Result<String> {
    stage.prestack.instance().command(&["status"])
}

/// What the daemon has said on standard error.
fn said(mut stage: Stage) -> Result<String> {
    stage.prestack.signal(Signal::SIGTERM)?;
    stage.prestack.wait()
}

#[test]
fn generic_mode_is_chosen_where_native_loses_answers() -> Result<()> {
    let stage = stage(&[])?;
    ensure!(stage.prestack.serving().contains("(generic)"));
    store(&mut stage.behind()?, b"key", b"value")?;
    until_hit(&stage.prestack, &mut stage.udp()?, b"key", b"value")?;
    let (dev, said) = (stage.bed.links[0].client_dev.clone(), said(stage)?);
    let reason = format!("{dev}, in another network namespace, has no XDP program in native mode");
    ensure!(said.contains(&reason), "{said}");
    Ok(())
}

#[test]
fn native_mode_waits_for_a_program_at_the_other_end() -> Result<()> {
    let stage = stage(&["--mode", "native"])?;
    store(&mut stage.behind()?, b"key", b"value")?;
    let mut client = stage.udp()?;
    none_is_answered(&stage, &mut client)?;
    let is_told = |stage: &Stage| -> Result<bool> {
        let status = status(stage)?;
        let words = ["problem ", "not answered, see problem", "is not served"];
        Ok(words.iter().all(|word| status.contains(word)))
    };
    ensure!(is_told(&stage)?, "{}", status(&stage)?);

    let dev = &stage.bed.links[0].client_dev;
    let program = bpf::attach_pass(&stage.bed.client, dev)?;
    until_hit(&stage.prestack, &mut client, b"key", b"value")?;
    ensure!(!status(&stage)?.contains("problem"), "{}", status(&stage)?);

    drop(program);
    pace::wait_for("the end of answers", Duration::from_secs(5), || {
        Ok(is_told(&stage)?.then_some(()))
    })?;
    none_is_answered(&stage, &mut client)?;
    let said = said(stage)?;
    let count = |level| {
        let lines = said.lines().filter(|line| line.contains(level));
        lines.filter(|line| line.contains("--mode generic")).count()
    };
    assert_eq!((count(" WARN "), count("ERROR ")), (1, 1), "{said}");
    Ok(())
}
