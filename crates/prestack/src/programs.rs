//! The programs that other programs go on with.

use std::time::Instant;

use aya::{
    Ebpf,
    maps::{MapError, ProgramArray},
    programs::{ProgramError, ProgramFd, SchedClassifier, TestRun as _, TestRunOptions, Xdp},
};
use prestack_abi::{flow::Finding, names};
use prestack_proto::net::ETHERNET_LEN;
use tracing::debug;

/// A program could not be made ready.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum StepsError {
    #[error("the BPF object has no {0}")]
    Missing(&'static str),
    #[error("the kernel refused {name}: {source}")]
    Refused {
        name: &'static str,
        source: Box<ProgramError>,
    },
    #[error("no longer wanted")]
    Interrupted,
    #[error("map {name}: {source}")]
    Map {
        name: &'static str,
        source: Box<MapError>,
    },
}

/// Whether programs are still wanted: asked before each, since the kernel may take seconds for one.
pub type StillWanted<'a> = &'a dyn Fn() -> bool;

/// Loads the programs to which `rx`, `tx` and `lo` hand over, and puts them where these find them. The
/// maps that hold them have to be kept, open or pinned: the kernel empties them when user space lets go.
///
/// # Errors
/// The kernel refused, or they are not wanted any more.
pub fn load_steps(ebpf: &mut Ebpf, wanted: StillWanted<'_>) -> Result<(), StepsError> {
    load_xdp(ebpf, names::RX_TCP, names::RX_STEPS, TCP, wanted)?;
    load_classifier(ebpf, names::TX_TCP, names::TX_STEPS, TCP, wanted)?;
    load_classifier(ebpf, names::LO_TCP, names::LO_STEPS, TCP, wanted)
}

/// The same for those that answer requests over TCP.
///
/// # Errors
/// The kernel refused, or they are not wanted any more.
pub fn load_hits(ebpf: &mut Ebpf, wanted: StillWanted<'_>) -> Result<(), StepsError> {
    load_xdp(ebpf, names::RX_HITS, names::RX_STEPS, HITS, wanted)?;
    load_classifier(ebpf, names::TX_HITS, names::TX_STEPS, HITS, wanted)
}

/// Elements of the maps in which programs are found.
const TCP: u32 = 0;
const HITS: u32 = 1;

fn load_xdp(
    ebpf: &mut Ebpf,
    name: &'static str,
    steps: &'static str,
    at: u32,
    wanted: StillWanted<'_>,
) -> Result<(), StepsError> {
    let step: &mut Xdp = program(ebpf, name)?;
    load(name, wanted, || step.load())?;
    let step = step.fd().and_then(try_clone);
    let step = step.map_err(|source| refused(name, source))?;
    set(ebpf, steps, at, &step)
}

fn load_classifier(
    ebpf: &mut Ebpf,
    name: &'static str,
    steps: &'static str,
    at: u32,
    wanted: StillWanted<'_>,
) -> Result<(), StepsError> {
    let step: &mut SchedClassifier = program(ebpf, name)?;
    load(name, wanted, || step.load())?;
    let step = step.fd().and_then(try_clone);
    let step = step.map_err(|source| refused(name, source))?;
    set(ebpf, steps, at, &step)
}

/// Loads a program if it is still wanted, and tells how long that took: it is nearly all of a start.
pub(crate) fn load(
    name: &'static str,
    wanted: StillWanted<'_>,
    load: impl FnOnce() -> Result<(), ProgramError>,
) -> Result<(), StepsError> {
    if !wanted() {
        return Err(StepsError::Interrupted);
    }
    let start = Instant::now();
    load().map_err(|source| refused(name, source))?;
    debug!(
        "loaded the program {name} in {} ms",
        start.elapsed().as_millis()
    );
    Ok(())
}

fn refused(name: &'static str, source: ProgramError) -> StepsError {
    StepsError::Refused {
        name,
        source: Box::new(source),
    }
}

fn try_clone(fd: &ProgramFd) -> Result<ProgramFd, ProgramError> {
    fd.try_clone().map_err(ProgramError::IOError)
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, StepsError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program>,
{
    let program = ebpf.program_mut(name).ok_or(StepsError::Missing(name))?;
    program.try_into().map_err(|_| StepsError::Missing(name))
}

fn set(
    ebpf: &mut Ebpf,
    name: &'static str,
    at: u32,
    program: &ProgramFd,
) -> Result<(), StepsError> {
    let failed = |source| StepsError::Map {
        name,
        source: Box::new(source),
    };
    let map = ebpf.map_mut(name).ok_or(StepsError::Missing(name))?;
    let mut steps = ProgramArray::try_from(map).map_err(failed)?;
    steps.set(at, program, 0).map_err(failed)
}

/// Has the datapath close a TCP flow that has no socket any more, or not wait for one that is idle; false if it is
/// another by now.
///
/// # Errors
/// The kernel refused.
pub fn end_flow(sweep: &SchedClassifier, found: &Finding) -> Result<bool, ProgramError> {
    let mut packet = vec![0; ETHERNET_LEN];
    packet.extend(found.name.to_ne_bytes());
    packet.extend(found.asked.to_ne_bytes());
    packet.extend(found.heard_at.to_ne_bytes());
    let words = [found.place, found.next, found.acked, found.sent];
    for word in words.into_iter().chain([found.what, found.reserved]) {
        packet.extend(word.to_ne_bytes());
    }
    let options = TestRunOptions {
        data_in: Some(&packet),
        ..TestRunOptions::default()
    };
    Ok(sweep.test_run(options)?.return_value != 0)
}
