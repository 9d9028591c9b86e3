//! Loaded programs, and runs of them.

use anyhow::{Context, Result, anyhow};
use aya::maps::Map;
use aya::programs::{Program, ProgramError, TestRun, TestRunOptions, TestRunResult};
use aya::{Ebpf, Pod};

/// Most bytes of a packet in a test run: a page, less what the kernel reserves before
/// (`XDP_PACKET_HEADROOM`) and behind it (`struct skb_shared_info`).
pub(super) const LONGEST: usize = 4096 - 256 - 320;

/// An element of a map of prestack's.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Element<T: Copy>(pub(super) T);

// SAFETY: used with types of `prestack_abi` alone, which are made of integers.
unsafe impl<T: Copy + 'static> Pod for Element<T> {}

/// What a program made of a packet.
pub(super) struct Ran {
    pub(super) action: u32,
    pub(super) packet: Vec<u8>,
}

/// A program of an object, by name.
pub(super) fn program<'a, P>(ebpf: &'a Ebpf, name: &str) -> Result<&'a P>
where
    &'a P: TryFrom<&'a Program>,
{
    let program = ebpf.program(name);
    program
        .and_then(|program| program.try_into().ok())
        .with_context(|| format!("the BPF object has no program {name} of the right kind"))
}

/// A program of an object, by name, to be loaded.
pub(super) fn program_mut<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P>
where
    &'a mut P: TryFrom<&'a mut Program>,
{
    let program = ebpf.program_mut(name);
    program
        .and_then(|program| program.try_into().ok())
        .with_context(|| format!("the BPF object has no program {name} of the right kind"))
}

/// A map of an object, by name, as `M`.
pub(super) fn map_mut<'a, M>(ebpf: &'a mut Ebpf, name: &str) -> Result<M>
where
    M: TryFrom<&'a mut Map>,
    M::Error: std::error::Error + Send + Sync + 'static,
{
    let map = ebpf.map_mut(name);
    let map = map.with_context(|| format!("the BPF object has no map {name}"))?;
    M::try_from(map).with_context(|| format!("map {name}"))
}

/// The kernel's refusal of a program, with the end of the verifier's log.
pub(super) fn refused(name: &str, error: ProgramError) -> anyhow::Error {
    let ProgramError::LoadError {
        io_error,
        verifier_log,
    } = error
    else {
        return anyhow!("the kernel refused {name}: {error}");
    };
    let log = verifier_log.to_string();
    let lines: Vec<_> = log.lines().collect();
    let end = lines[lines.len().saturating_sub(10)..].join("\n");
    anyhow!("the kernel refused {name}: {io_error}\n{end}")
}

/// Runs a program once.
pub(super) fn run_once<P>(program: &P, packet: &[u8]) -> Result<Ran>
where
    P: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = TestRunResult>,
{
    let mut out = vec![0; LONGEST];
    let ran = program.test_run(TestRunOptions {
        data_in: Some(packet),
        data_out: Some(&mut out),
        ..TestRunOptions::default()
    });
    let ran = ran.with_context(|| format!("a test run on {} bytes", packet.len()))?;
    out.truncate(ran.data_size_out as usize);
    Ok(Ran {
        action: ran.return_value,
        packet: out,
    })
}
