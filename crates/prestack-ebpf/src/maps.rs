//! The maps. User space sets the number of elements of `INDEX` and `BLOCKS`, and may set that of `FLOW_SETS` and
//! `FLOWS`.

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, ProgramArray};
use aya_ebpf::macros::btf_map;
use prestack_abi::backend::{Backend, Flushes, MAX_BACKENDS, MAX_SOCKETS};
use prestack_abi::cache::{Block, Index};
use prestack_abi::config::Config;
use prestack_abi::control::{
    CONTROLS, Control, LOCKS as LOCKS_COUNT, Lock, bpf_spin_lock, control_of, lock_of,
};
use prestack_abi::flow::{FLOW_SETS as SETS, Flow, FlowSet, HOLES as HOLES_COUNT, Hole, MAX_FLOWS};
use prestack_abi::requests::{KeyTickets, REQUEST_SETS, RequestKey, RequestSet, SET_WAYS};
use prestack_abi::stats::Stats;
use prestack_abi::translated::{AnswerRest, Translated};

use crate::scratch::Scratch;

/// User space can map it to memory; the values then also start on a page, and so on a cache line.
const SHARED: usize = BPF_F_MMAPABLE as usize;

/// What `rx` goes on with: a program for TCP alone, which the verifier checks on its own, and one for
/// connections on which requests are answered.
#[btf_map]
pub static RX_STEPS: ProgramArray<2> = ProgramArray::new();

/// What `lo` goes on with.
#[btf_map]
pub static LO_STEPS: ProgramArray<1> = ProgramArray::new();

/// What `tx` goes on with.
#[btf_map]
pub static TX_STEPS: ProgramArray<2> = ProgramArray::new();

#[btf_map]
pub static CONFIG: Array<Config, 1, SHARED> = Array::new();

#[btf_map]
pub static BACKENDS: Array<Backend, { MAX_BACKENDS as usize }, SHARED> = Array::new();

#[btf_map]
pub static FLUSHES: Array<Flushes, { MAX_BACKENDS as usize }> = Array::new();

#[btf_map]
pub static INDEX: Array<Index, 1, SHARED> = Array::new();

#[btf_map]
pub static BLOCKS: Array<Block, 1, SHARED> = Array::new();

#[btf_map]
pub static CONTROL: Array<Control, CONTROLS, SHARED> = Array::new();

/// The control of the key with this hash.
#[inline(always)]
pub fn control(config: &Config, hash: u64) -> Option<*mut Control> {
    CONTROL.get_ptr_mut(control_of(hash, config.controls))
}

#[btf_map]
pub static LOCKS: Array<Lock, LOCKS_COUNT> = Array::new();

/// The lock of a bucket.
#[inline(always)]
pub fn lock(bucket: u32) -> Option<*mut bpf_spin_lock> {
    let element: *mut Lock = LOCKS.get_ptr_mut(lock_of(bucket))?;
    // SAFETY: a map element.
    Some(unsafe { &raw mut (*element).lock })
}

#[btf_map]
pub static REQUESTS: Array<RequestSet, REQUEST_SETS, SHARED> = Array::new();

#[btf_map]
pub static KEY_TICKETS: Array<KeyTickets, { REQUEST_SETS * SET_WAYS }> = Array::new();

#[btf_map]
pub static REQUEST_KEYS: Array<RequestKey, { REQUEST_SETS * SET_WAYS }> = Array::new();

#[btf_map]
pub static FLOW_SETS: Array<FlowSet, SETS> = Array::new();

#[btf_map]
pub static FLOWS: Array<Flow, MAX_FLOWS> = Array::new();

/// User space gives it as many elements as `FLOWS` has if requests are answered over TCP.
#[btf_map]
pub static TRANSLATIONS: Array<Translated, 1, SHARED> = Array::new();

/// The same if long answers are given.
#[btf_map]
pub static ANSWER_RESTS: Array<AnswerRest, 1, SHARED> = Array::new();

#[btf_map]
pub static HOLES: Array<Hole, { HOLES_COUNT }> = Array::new();

#[btf_map]
pub static SOCKETS: HashMap<u64, u64, MAX_SOCKETS> = HashMap::new();

/// User space gives it more elements if there is a rate limit.
#[btf_map]
pub static RATES: LruHashMap<[u32; 4], u64, 1> = LruHashMap::new();

#[btf_map]
pub static STATS: PerCpuArray<Stats, 1> = PerCpuArray::new();

#[btf_map]
pub static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// Adds one, or more, to a counter of this CPU.
macro_rules! count {
    ($counter:ident) => {
        $crate::maps::count!($counter, 1)
    };
    ($counter:ident, $n:expr) => {
        $crate::maps::with_stats(|stats| stats.$counter += $n)
    };
}
pub(crate) use count;

/// Changes this CPU's counters.
#[inline(always)]
pub fn with_stats(change: impl FnOnce(&mut Stats)) {
    if let Some(stats) = STATS.get_ptr_mut(0) {
        // SAFETY: this CPU's element; programs do not interrupt one another.
        change(unsafe { &mut *stats });
    }
}
