//! The programs and the kernel's verifier.

use aya::programs::{CgroupSock, ProgramError, ProgramInfo, SchedClassifier, Xdp};
use prestack::socket_fields::Fields;
use prestack_abi::names;

use crate::kernel::{open, open_knowing, program, refused};

/// What the verifier gives up after (`BPF_COMPLEXITY_LIMIT_INSNS`).
const LIMIT: u32 = 1_000_000;

/// The counts are printed for whoever works on the programs, and for the report of a machine that
/// has another kernel.
#[test]
fn every_program_loads() {
    let mut ebpf = open();
    for name in [names::RX, names::RX_TCP, names::RX_HITS, names::PASS] {
        let xdp: &mut Xdp = program(&mut ebpf, name);
        xdp.load().unwrap_or_else(|error| refused(name, error));
        report(name, xdp.info());
    }
    for name in [
        names::TX,
        names::TX_TCP,
        names::TX_HITS,
        names::LO,
        names::LO_TCP,
        names::SWEEP,
    ] {
        let classifier: &mut SchedClassifier = program(&mut ebpf, name);
        classifier
            .load()
            .unwrap_or_else(|error| refused(name, error));
        report(name, classifier.info());
    }
    let released: &mut CgroupSock = program(&mut ebpf, names::RELEASED);
    released
        .load()
        .unwrap_or_else(|error| refused(names::RELEASED, error));
    report(names::RELEASED, released.info());
}

/// Some kernels do not say where they keep what is asked about sockets. It is not asked there.
#[test]
fn no_type_information_is_needed() {
    let mut ebpf = open_knowing(&Fields::UNKNOWN);
    let rx_tcp: &mut Xdp = program(&mut ebpf, names::RX_TCP);
    rx_tcp
        .load()
        .unwrap_or_else(|error| refused(names::RX_TCP, error));
    let lo_tcp: &mut SchedClassifier = program(&mut ebpf, names::LO_TCP);
    lo_tcp
        .load()
        .unwrap_or_else(|error| refused(names::LO_TCP, error));
}

fn report(name: &str, info: Result<ProgramInfo, ProgramError>) {
    let info = info.expect("what the program is");
    let count = info.verified_instruction_count();
    let count = count.expect("a kernel of 5.16 or later, which counts");
    println!("{name}: {count} instructions verified");
    assert!(count < LIMIT);
}
