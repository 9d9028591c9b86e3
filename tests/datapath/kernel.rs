//! The real programs, loaded into the kernel and run on single packets (BPF_PROG_TEST_RUN).
//!
//! Loading takes the verifier a moment, so that loaded programs are used for one test after the
//! other, with empty maps each time.

use std::sync::{Mutex, OnceLock};

use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray, PerCpuValues};
use aya::programs::{ProgramError, SchedClassifier, TestRun, TestRunOptions, Xdp};
use aya::util::nr_cpus;
use aya::{Ebpf, EbpfLoader, Pod};
use prestack::mapping::Mapping;
use prestack::maps::{CacheMaps, Controls, MapIds};
use prestack::programs::{StepsError, end_flow, load_hits, load_steps};
use prestack::socket_fields::{self, Fields};
use prestack_abi::backend::{Backend, Flush, Flushes, MAX_BACKENDS};
use prestack_abi::cache::Index;
use prestack_abi::control::Control;
use prestack_abi::flow::{FLOW_SETS, FLOW_WAYS, Finding, Flow, FlowSet, MAX_FLOWS};
use prestack_abi::names;
use prestack_abi::requests::{
    KeyTicket, KeyTickets, MULTI_KEYS, REQUEST_SETS, RequestSet, SET_WAYS,
};
use prestack_abi::stats::Stats;
use prestack_abi::translated::Translated;

/// Buckets of the cache that is loaded; a test may use fewer.
pub const BUCKETS: u32 = 1024;

/// Bytes of metadata before a packet, as many as any kernel takes.
const METADATA: usize = 32;

/// What a packet grows by at most, and more.
const GROWTH: usize = 4096;

/// A type of a map's elements.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Element<T: Copy>(pub T);

// SAFETY: used with the types of `prestack_abi` alone, which are made of integers.
unsafe impl<T: Copy + 'static> Pod for Element<T> {}

/// Loaded programs, which any thread may run.
pub struct Programs {
    ebpf: Ebpf,
    pub ids: MapIds,
}

/// Loaded programs and their maps.
pub struct Kernel {
    pub programs: Programs,
    pub controls: Controls,
    pub cache: CacheMaps,
}

/// What a program made of a packet.
pub struct Ran {
    pub action: u32,
    pub packet: Vec<u8>,
}

static IDLE: Mutex<Vec<Programs>> = Mutex::new(Vec::new());
/// Why the kernel did not take a program: it would not the next time either.
static REFUSAL: OnceLock<String> = OnceLock::new();

impl Programs {
    fn load() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "these tests load BPF programs into the kernel: run them as root"
        );
        if let Some(refusal) = REFUSAL.get() {
            panic!("{refusal}");
        }
        let mut ebpf = open();
        let ids = MapIds {
            config: map_id(&ebpf, names::CONFIG),
            backends: map_id(&ebpf, names::BACKENDS),
            index: map_id(&ebpf, names::INDEX),
            blocks: map_id(&ebpf, names::BLOCKS),
            control: map_id(&ebpf, names::CONTROL),
            flows: map_id(&ebpf, names::FLOWS),
            stats: map_id(&ebpf, names::STATS),
            sockets: map_id(&ebpf, names::SOCKETS),
            flow_sets: map_id(&ebpf, names::FLOW_SETS),
            translations: map_id(&ebpf, names::TRANSLATIONS),
        };
        let rx: &mut Xdp = program(&mut ebpf, names::RX);
        rx.load().unwrap_or_else(|error| refused(names::RX, error));
        for name in [names::TX, names::LO, names::SWEEP] {
            let classifier: &mut SchedClassifier = program(&mut ebpf, name);
            classifier
                .load()
                .unwrap_or_else(|error| refused(name, error));
        }
        load_steps(&mut ebpf, &|| true)
            .and_then(|()| load_hits(&mut ebpf, &|| true))
            .unwrap_or_else(|error| match error {
                StepsError::Refused { name, source } => refused(name, *source),
                error => panic!("{error}"),
            });
        Self { ebpf, ids }
    }

    /// Runs `rx` on a packet.
    pub fn rx(&self, packet: &[u8]) -> Ran {
        let rx: &Xdp = self.program(names::RX);
        run(rx, packet, None)
    }

    /// Runs `rx` on a packet of which it finds only the first `linear` bytes in one piece, from Linux
    /// 6.18 on.
    pub fn rx_in_pieces(&self, packet: &[u8], linear: usize) -> Ran {
        let rx: &Xdp = self.program(names::RX);
        run(rx, packet, Some(&context(0, linear)))
    }

    /// The same without room for 200 bytes at the head, which metadata takes.
    pub fn rx_in_pieces_without_head(&self, packet: &[u8], linear: usize) -> Ran {
        let rx: &Xdp = self.program(names::RX);
        let with_metadata = [&[0; METADATA][..], packet].concat();
        let context = context(METADATA, METADATA + linear);
        let mut ran = run(rx, &with_metadata, Some(&context));
        ran.packet.drain(..METADATA);
        ran
    }

    /// Runs `lo` on a packet.
    pub fn lo(&self, packet: &[u8]) -> Ran {
        let lo: &SchedClassifier = self.program(names::LO);
        run(lo, packet, None)
    }

    /// Runs `lo` on a packet that is to be taken apart into segments of this size.
    pub fn lo_segments(&self, packet: &[u8], size: u32) -> Ran {
        let lo: &SchedClassifier = self.program(names::LO);
        run(lo, packet, Some(&segmented(size)))
    }

    /// Runs `tx` on a packet.
    pub fn tx(&self, packet: &[u8]) -> Ran {
        let tx: &SchedClassifier = self.program(names::TX);
        run(tx, packet, None)
    }

    /// Closes a flow that has no socket; false if it is another by now.
    pub fn end_flow(&self, dead: &Finding) -> bool {
        end_flow(self.program(names::SWEEP), dead).expect("a test run")
    }

    fn program<'a, P>(&'a self, name: &str) -> &'a P
    where
        &'a P: TryFrom<&'a aya::programs::Program>,
    {
        let program = self.ebpf.program(name);
        program
            .and_then(|program| program.try_into().ok())
            .unwrap_or_else(|| panic!("the object has no program {name} of the right kind"))
    }
}

impl Kernel {
    /// Loaded programs with empty maps: ones that another test has finished with, or new ones.
    pub fn take() -> Self {
        let idle = IDLE.lock().expect("the lock of the idle programs").pop();
        let programs = idle.unwrap_or_else(Programs::load);
        Self {
            controls: Controls::open(&programs.ids).expect("the maps can be opened"),
            cache: CacheMaps::open(&programs.ids, BUCKETS).expect("the maps can be opened"),
            programs,
        }
    }

    /// The backends' states.
    pub fn backends(&self) -> Mapping<Backend> {
        let data = MapData::from_id(self.programs.ids.backends).expect("the map is there");
        Mapping::new(data.fd(), MAX_BACKENDS).expect("the map can be mapped")
    }

    /// Leaves the programs to another test.
    pub fn give_back(mut self) {
        self.clear();
        IDLE.lock()
            .expect("the lock of the idle programs")
            .push(self.programs);
    }

    fn map_mut(&mut self, name: &str) -> &mut Map {
        self.programs
            .ebpf
            .map_mut(name)
            .unwrap_or_else(|| panic!("the object has no map {name}"))
    }

    /// Empties every map whose contents matter. What no index points at stays: a test must not
    /// depend on it.
    fn clear(&mut self) {
        for bucket in 0..BUCKETS {
            self.cache.index.write(bucket, Index::default());
        }
        self.fill_array::<Control>(names::CONTROL, BUCKETS, Control::default());
        // SAFETY: made of integers, so that zeros are a value.
        let no_requests: RequestSet = unsafe { std::mem::zeroed() };
        self.fill_array(names::REQUESTS, REQUEST_SETS as u32, no_requests);
        // SAFETY: as above.
        let no_flushes: Flushes = unsafe { std::mem::zeroed() };
        let no_tickets = KeyTickets {
            keys: [KeyTicket::default(); MULTI_KEYS],
        };
        let requests = (REQUEST_SETS * SET_WAYS) as u32;
        self.fill_array(names::KEY_TICKETS, requests, no_tickets);
        self.fill_array(names::BACKENDS, MAX_BACKENDS, Backend::default());
        self.fill_array(names::FLUSHES, MAX_BACKENDS, no_flushes);

        // SAFETY: as above.
        let (no_set, no_flow): (FlowSet, Flow) = unsafe { std::mem::zeroed() };
        self.used_flows(|flow| *flow = no_flow);
        // SAFETY: as above.
        let no_translation: Translated = unsafe { std::mem::zeroed() };
        self.used_translations(|translated| *translated = no_translation);
        self.fill_array(names::FLOW_SETS, FLOW_SETS as u32, no_set);
        let rates = HashMap::<_, [u32; 4], u64>::try_from(self.map_mut(names::RATES));
        let mut rates = rates.expect("a hash map");
        let keys: Vec<_> = rates.keys().collect::<Result<_, _>>().expect("the rates");
        for key in keys {
            rates.remove(&key).expect("a rate that is there");
        }

        let cpus = nr_cpus().expect("the number of CPUs");
        let zeros = PerCpuValues::try_from(vec![Element(Stats::default()); cpus]);
        let stats = PerCpuArray::<_, Element<Stats>>::try_from(self.map_mut(names::STATS));
        stats
            .expect("an array per CPU")
            .set(0, zeros.expect("a value for each CPU"), 0)
            .expect("counters can be set");
    }

    /// Closes a flow that has no socket; false if it is another by now.
    pub fn end_flow(&self, dead: &Finding) -> bool {
        self.programs.end_flow(dead)
    }

    /// What is counted of the first backend.
    pub fn backend(&self) -> Backend {
        let map = self.programs.ebpf.map(names::BACKENDS).expect("the map");
        let map = Array::<_, Element<Backend>>::try_from(map).expect("an array");
        map.get(&0, 0).expect("an element").0
    }

    /// The delayed flushes of the first backend.
    pub fn flushes(&self) -> Vec<Flush> {
        let map = self.programs.ebpf.map(names::FLUSHES).expect("the map");
        let map = Array::<_, Element<Flushes>>::try_from(map).expect("an array");
        let all = map.get(&0, 0).expect("an element").0.pending;
        all.into_iter().filter(|flush| flush.until != 0).collect()
    }

    /// Lets so much time pass for the delayed flushes of the first backend.
    pub fn age_flushes(&mut self, by: u64) {
        let map = Array::<_, Element<Flushes>>::try_from(self.map_mut(names::FLUSHES));
        let mut map = map.expect("an array");
        let mut flushes = map.get(&0, 0).expect("an element").0;
        for flush in &mut flushes.pending {
            flush.from = flush.from.saturating_sub(by);
            flush.until = flush.until.saturating_sub(by);
        }
        map.set(0, Element(flushes), 0).expect("an element");
        let map = Array::<_, Element<Backend>>::try_from(self.map_mut(names::BACKENDS));
        let mut map = map.expect("an array");
        let mut backend = map.get(&0, 0).expect("an element").0;
        backend.flush_from = backend.flush_from.saturating_sub(by);
        map.set(0, Element(backend), 0).expect("an element");
    }

    /// Alters the flows that have a place.
    pub fn used_flows(&mut self, mut alter: impl FnMut(&mut Flow)) {
        for at in self.used_places() {
            self.alter_element(names::FLOWS, at, &mut alter);
        }
    }

    /// Alters what belongs to the flows that have a place beside them.
    pub fn used_translations(&mut self, mut alter: impl FnMut(&mut Translated)) {
        for at in self.used_places() {
            self.alter_element(names::TRANSLATIONS, at, &mut alter);
        }
    }

    fn alter_element<T: Copy + 'static>(
        &mut self,
        map: &str,
        at: u32,
        alter: &mut impl FnMut(&mut T),
    ) {
        let array = Array::<_, Element<T>>::try_from(self.map_mut(map));
        let mut array = array.expect("an array");
        let mut element = array.get(&at, 0).expect("an element").0;
        alter(&mut element);
        array.set(at, Element(element), 0).expect("an element");
    }

    /// The places of flows.
    fn used_places(&mut self) -> Vec<u32> {
        let sets = Array::<_, Element<FlowSet>>::try_from(self.map_mut(names::FLOW_SETS));
        let sets = sets.expect("an array");
        let named = |set: &FlowSet, way: usize| set.names[way] != 0;
        (0..FLOW_SETS as u32)
            .flat_map(|at| {
                let set = sets.get(&at, 0).expect("an element").0;
                (0..FLOW_WAYS)
                    .filter(move |way| named(&set, *way))
                    .map(move |way| at * FLOW_WAYS as u32 + way as u32)
            })
            .collect()
    }

    /// Alters the memory of requests.
    pub fn alter_requests(&mut self, alter: impl Fn(&mut RequestSet)) {
        let array = Array::<_, Element<RequestSet>>::try_from(self.map_mut(names::REQUESTS));
        let mut array = array.expect("an array");
        for at in 0..REQUEST_SETS as u32 {
            let mut set = array.get(&at, 0).expect("an element").0;
            alter(&mut set);
            array.set(at, Element(set), 0).expect("an element");
        }
    }

    fn fill_array<T: Copy + 'static>(&mut self, name: &str, elements: u32, value: T) {
        let array = Array::<_, Element<T>>::try_from(self.map_mut(name));
        let mut array = array.unwrap_or_else(|error| panic!("map {name}: {error}"));
        for at in 0..elements {
            array
                .set(at, Element(value), 0)
                .unwrap_or_else(|error| panic!("element {at} of {name}: {error}"));
        }
    }
}

/// The object, read but not yet in the kernel.
pub fn open() -> Ebpf {
    open_knowing(&socket_fields::of_this_kernel().of_test_runs())
}

/// The same with other offsets of what is asked about sockets.
pub fn open_knowing(fields: &Fields) -> Ebpf {
    EbpfLoader::new()
        .map_max_entries(names::INDEX, BUCKETS)
        .map_max_entries(names::BLOCKS, BUCKETS)
        .map_max_entries(names::TRANSLATIONS, MAX_FLOWS as u32)
        .map_max_entries(names::ANSWER_RESTS, MAX_FLOWS as u32)
        .override_global(names::SOCKET_FIELDS, fields, true)
        .load(prestack::object::OBJECT)
        .expect("the maps can be made")
}

/// One of the object's programs.
pub fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> &'a mut P
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program>,
{
    let program = ebpf.program_mut(name);
    program
        .and_then(|program| program.try_into().ok())
        .unwrap_or_else(|| panic!("the object has no program {name} of the right kind"))
}

/// Fails because the kernel did not take a program.
pub fn refused(name: &str, error: ProgramError) {
    let log = match &error {
        ProgramError::LoadError { verifier_log, .. } => verifier_log.to_string(),
        _ => String::new(),
    };
    let lines: Vec<_> = log.lines().collect();
    let end = &lines[lines.len().saturating_sub(30)..];
    let refusal = format!("the kernel refused {name}: {error}\n{}", end.join("\n"));
    panic!("{}", REFUSAL.get_or_init(|| refusal));
}

fn map_id(ebpf: &Ebpf, name: &str) -> u32 {
    match ebpf.map(name) {
        Some(Map::Array(data) | Map::PerCpuArray(data) | Map::HashMap(data)) => {
            MapData::info(data).expect("what the map is").id()
        }
        other => panic!("map {name} is {other:?}"),
    }
}

/// The context of a test run (`xdp_md` in include/uapi/linux/bpf.h): the packet's start and end, and
/// zeros for what the kernel chooses.
fn context(start: usize, end: usize) -> Vec<u8> {
    let [start, end] = [start, end].map(|at| u32::try_from(at).expect("a packet's length"));
    [start, end, 0, 0, 0, 0].map(u32::to_ne_bytes).concat()
}

/// The context of a test run (`__sk_buff` in include/uapi/linux/bpf.h) up to the size of its segments.
fn segmented(size: u32) -> Vec<u8> {
    const GSO_SIZE_AT: usize = 176;
    [&[0; GSO_SIZE_AT][..], &size.to_ne_bytes()].concat()
}

fn run<P>(program: &P, packet: &[u8], context: Option<&[u8]>) -> Ran
where
    P: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = aya::programs::TestRunResult>,
{
    let mut out = vec![0; GROWTH + packet.len()];
    let ran = program.test_run(TestRunOptions {
        data_in: Some(packet),
        data_out: Some(&mut out),
        ctx_in: context,
        ..TestRunOptions::default()
    });
    let ran = ran.unwrap_or_else(|error| {
        panic!("a test run on {} bytes: {error:?}", packet.len());
    });
    out.truncate(ran.data_size_out as usize);
    Ran {
        action: ran.return_value,
        packet: out,
    }
}
