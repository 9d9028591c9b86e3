//! The programs and the kernel's verifier.

use aya::programs::{CgroupSock, ProgramError, ProgramInfo, SchedClassifier, Xdp};
use prestack_abi::names;

use crate::kernel::{open, program, refused};

/// What the verifier gives up after (`BPF_COMPLEXITY_LIMIT_INSNS`).
const LIMIT: u32 = 1_000_000;

/// The counts are printed for whoever works on the programs, and for the report of a machine that
/// has another kernel.
#[test]
fn every_program_loads() {
    let mut ebpf = open();
    let rx: &mut Xdp = program(&mut ebpf, names::RX);
    rx.load().unwrap_or_else(|error| refused(names::RX, error));
    report(names::RX, rx.info());
    let rx_tcp: &mut Xdp = program(&mut ebpf, names::RX_TCP);
    rx_tcp
        .load()
        .unwrap_or_else(|error| refused(names::RX_TCP, error));
    report(names::RX_TCP, rx_tcp.info());
    let tx_tcp: &mut SchedClassifier = program(&mut ebpf, names::TX_TCP);
    tx_tcp
        .load()
        .unwrap_or_else(|error| refused(names::TX_TCP, error));
    report(names::TX_TCP, tx_tcp.info());
    let pass: &mut Xdp = program(&mut ebpf, names::PASS);
    pass.load()
        .unwrap_or_else(|error| refused(names::PASS, error));
    report(names::PASS, pass.info());
    let tx: &mut SchedClassifier = program(&mut ebpf, names::TX);
    tx.load().unwrap_or_else(|error| refused(names::TX, error));
    report(names::TX, tx.info());
    let released: &mut CgroupSock = program(&mut ebpf, names::RELEASED);
    released
        .load()
        .unwrap_or_else(|error| refused(names::RELEASED, error));
    report(names::RELEASED, released.info());
    let sweep: &mut SchedClassifier = program(&mut ebpf, names::SWEEP);
    sweep
        .load()
        .unwrap_or_else(|error| refused(names::SWEEP, error));
    report(names::SWEEP, sweep.info());
}

fn report(name: &str, info: Result<ProgramInfo, ProgramError>) {
    let info = info.expect("what the program is");
    let count = info.verified_instruction_count();
    let count = count.expect("a kernel of 5.16 or later, which counts");
    println!("{name}: {count} instructions verified");
    assert!(count < LIMIT);
}
