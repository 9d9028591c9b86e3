//! The programs that other programs go on with.

use aya::{
    Ebpf,
    maps::{MapError, ProgramArray},
    programs::{ProgramError, ProgramFd, SchedClassifier, TestRun as _, TestRunOptions, Xdp},
};
use prestack_abi::{flow::Finding, names};
use prestack_proto::net::ETHERNET_LEN;

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
    #[error("map {name}: {source}")]
    Map {
        name: &'static str,
        source: Box<MapError>,
    },
}

/// Loads the programs to which `rx`, `tx` and `lo` hand over, and puts them where these find them. The
/// maps that hold them have to be kept, open or pinned: the kernel empties them when user space lets go.
///
/// # Errors
/// The kernel refused.
pub fn load_steps(ebpf: &mut Ebpf) -> Result<(), StepsError> {
    load_xdp(ebpf, names::RX_TCP, names::RX_STEPS, TCP)?;
    load_classifier(ebpf, names::TX_TCP, names::TX_STEPS, TCP)?;
    load_classifier(ebpf, names::LO_TCP, names::LO_STEPS, TCP)
}

/// The same for those that answer requests over TCP.
///
/// # Errors
/// The kernel refused.
pub fn load_hits(ebpf: &mut Ebpf) -> Result<(), StepsError> {
    load_xdp(ebpf, names::RX_HITS, names::RX_STEPS, HITS)?;
    load_classifier(ebpf, names::TX_HITS, names::TX_STEPS, HITS)
}

/// Elements of the maps in which programs are found.
const TCP: u32 = 0;
const HITS: u32 = 1;

fn load_xdp(
    ebpf: &mut Ebpf,
    name: &'static str,
    steps: &'static str,
    at: u32,
) -> Result<(), StepsError> {
    let step: &mut Xdp = program(ebpf, name)?;
    let step = loaded(name, step.load().and_then(|()| step.fd()))?;
    set(ebpf, steps, at, &step)
}

fn load_classifier(
    ebpf: &mut Ebpf,
    name: &'static str,
    steps: &'static str,
    at: u32,
) -> Result<(), StepsError> {
    let step: &mut SchedClassifier = program(ebpf, name)?;
    let step = loaded(name, step.load().and_then(|()| step.fd()))?;
    set(ebpf, steps, at, &step)
}

fn loaded(
    name: &'static str,
    fd: Result<&ProgramFd, ProgramError>,
) -> Result<ProgramFd, StepsError> {
    fd.and_then(|fd| fd.try_clone().map_err(ProgramError::IOError))
        .map_err(|source| StepsError::Refused {
            name,
            source: Box::new(source),
        })
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
