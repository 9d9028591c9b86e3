//! The program that makes requests and hands each to a program under test.

use std::ops::Range;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::maps::ProgramArray;
use aya::programs::xdp::XdpMode;
use aya::programs::{TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use prestack_testbed::Namespace;

use super::form::Form;
use super::packet::Layers;
use super::programs::{LONGEST, Ran, map_mut, program, program_mut, refused, run_once};
use super::sequence::Keys;
use crate::dataset::Dataset;

/// The compiled programs (`cargo xtask build` makes them).
pub(crate) static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("PRESTACK_BENCH_BPF_OBJECT"));

/// Programs and the map of the object by which requests get to the program under test.
#[derive(Clone, Copy, Debug)]
struct Way {
    request: &'static str,
    echo: &'static str,
    target: &'static str,
}

/// To programs that take packets in pieces, and to those that do not.
const WAYS: [Way; 2] = [
    Way {
        request: "request",
        echo: "echo",
        target: "TARGET",
    },
    Way {
        request: "plain_request",
        echo: "plain_echo",
        target: "PLAIN_TARGET",
    },
];

/// Most words and keys of a request.
const MAX_WORDS: usize = 24;
const MAX_KEYS: usize = 8;
/// Bytes of a key.
pub(super) const KEY_SIZE: usize = 16;

/// Where a packet has room to grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// Behind its end.
    Tail,
    /// Before its start alone.
    Head,
}

/// What requests are made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Requests {
    pub(super) form: Form,
    pub(super) layers: Layers,
    /// The port of the server's that they go to.
    pub(super) port: u16,
    /// The keys that are asked for.
    pub(super) keys: Keys,
    pub(super) room: Room,
}

impl Requests {
    /// Plain GETs of these items, one at a time.
    pub(super) fn gets(port: u16, items: Range<u32>) -> Self {
        let keys = Keys {
            first: items.start,
            count: items.end - items.start,
        };
        Self {
            form: Form::Get(1),
            layers: Layers::V4,
            port,
            keys,
            room: Room::Tail,
        }
    }

    /// The request with this id for these items.
    pub(super) fn packet(&self, dataset: &Dataset, items: &[u32], id: u16) -> Vec<u8> {
        let payload = self.form.request(dataset, items);
        self.layers.to_server(self.port, id, &payload)
    }
}

/// The loaded program.
pub(super) struct Source {
    ebpf: Ebpf,
    requests: Requests,
    way: Way,
    /// Bytes of a request.
    len: usize,
    /// Requests made so far.
    made: u64,
}

impl Source {
    /// A source of requests for items of the dataset.
    pub(super) fn load(dataset: &Dataset, requests: Requests) -> Result<Self> {
        let mut source = Self::load_for(dataset, requests, 0)?;
        for name in WAYS.into_iter().flat_map(|way| [way.request, way.echo]) {
            program_mut::<Xdp>(&mut source.ebpf, name)?
                .load()
                .map_err(|error| refused(name, error))?;
        }
        Ok(source)
    }

    /// The same for the device with this number, no program of it in the kernel yet.
    pub(super) fn load_for(dataset: &Dataset, requests: Requests, device: u32) -> Result<Self> {
        let Requests {
            form,
            layers,
            keys,
            room,
            ..
        } = requests;
        let mut request = requests.packet(dataset, &vec![0; form.keys()], 0);
        let mut places = [0; MAX_KEYS];
        let digits_at = form.digits_at(dataset);
        ensure!(
            digits_at.len() == form.keys() && form.keys() <= MAX_KEYS,
            "{} keys in a request: {form}",
            digits_at.len()
        );
        for (place, at) in places.iter_mut().zip(digits_at) {
            let at = layers.payload_at() + at;
            // The program fills in the number, here of zeros as a number, not as digits.
            request[at..at + 8].fill(0);
            *place = at as u64;
        }
        let (request, sum) = layers.without_checksum(request);
        let len = request.len();
        ensure!(
            (8..=8 * MAX_WORDS).contains(&len),
            "a request has {len} bytes: {form}"
        );
        let mut words = [0; MAX_WORDS];
        for (word, bytes) in words.iter_mut().zip(request.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into()?);
        }
        let last = u64::from_le_bytes(request[len - 8..].try_into()?);
        let ebpf = EbpfLoader::new()
            .override_global("REQUEST", &words[..], true)
            .override_global("LAST", &last, true)
            .override_global("LEN", &(len as u64), true)
            .override_global("SUM", &sum, true)
            .override_global("CHECKSUM_AT", &(layers.checksum_at() as u64), true)
            .override_global("KEYS", &(form.keys() as u64), true)
            .override_global("DIGITS_AT", &places[..], true)
            .override_global("FIRST_NUMBER", &u64::from(keys.first), true)
            .override_global("NUMBERS", &u64::from(keys.count), true)
            .override_global("OUT", &u64::from(device), true)
            .override_global("CUT_HEAD", &u64::from(room == Room::Head), true)
            .load(OBJECT)
            .context("loading the source of requests into the kernel")?;
        Ok(Self {
            ebpf,
            requests,
            way: WAYS[0],
            len,
            made: 0,
        })
    }

    /// Finds the way to programs such as `target`.
    pub(super) fn suit(&mut self, target: &Xdp) -> Result<()> {
        self.way = WAYS[0];
        if self.aim(Some(target)).is_ok() {
            return Ok(());
        }
        self.way = WAYS[1];
        let aimed = self.aim(Some(target));
        aimed.context("the kernel does not let programs for XDP tail-call it")
    }

    /// Attaches it to a device that receives nothing, in a namespace of its own, for as long as that is kept. The kernel
    /// otherwise makes the program known to its dispatcher of XDP programs for each run, and waits for all CPUs before
    /// and after: one that runs such a program is waited for until it is done.
    pub(super) fn attach(&mut self) -> Result<Namespace> {
        let namespace = Namespace::new()?;
        let program = program_mut::<Xdp>(&mut self.ebpf, self.way.request)?;
        let attached = namespace.run(|| program.attach("lo", XdpMode::Skb));
        attached.context("attaching the source of requests to a loopback interface")?;
        Ok(namespace)
    }

    /// Hands the requests to `target` from now on, or to the program that does nothing.
    pub(super) fn aim(&mut self, target: Option<&Xdp>) -> Result<()> {
        let fd = match target {
            Some(target) => target.fd()?,
            None => program::<Xdp>(&self.ebpf, self.way.echo)?.fd()?,
        };
        let fd = fd.try_clone()?;
        let mut map: ProgramArray<_> = map_mut(&mut self.ebpf, self.way.target)?;
        Ok(map.set(0, &fd, 0)?)
    }

    /// Key numbers and ids of the next requests.
    pub(super) fn upcoming(&self, requests: u32) -> impl Iterator<Item = (Vec<u32>, u16)> + use<> {
        let Requests { keys, form, .. } = self.requests;
        (self.made..self.made + u64::from(requests)).map(move |n| keys.request(n, form.keys()))
    }

    /// Makes one request; returns what became of it.
    pub(super) fn run_once(&mut self) -> Result<Ran> {
        self.made += 1;
        run_once(self.program()?, &self.buffer())
    }

    /// Makes `requests` requests one after the other; returns the mean time of one, which the kernel
    /// counts in whole nanoseconds, and without what takes the CPU away from it.
    pub(super) fn run(&mut self, requests: u32) -> Result<Duration> {
        self.made += u64::from(requests);
        let (program, buffer) = (self.program()?, self.buffer());
        let mut out = [0; LONGEST];
        let ran = program.test_run(TestRunOptions {
            data_in: Some(&buffer),
            data_out: Some(&mut out),
            repeat: requests,
            ..TestRunOptions::default()
        });
        Ok(ran.context("running the source of requests")?.duration)
    }

    /// The object that its programs are of.
    pub(super) fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    fn program(&self) -> Result<&Xdp> {
        program(&self.ebpf, self.way.request)
    }

    /// The packet before the program has made a request of it: as long as it may be to leave no
    /// room behind its end, or short.
    pub(super) fn buffer(&self) -> Vec<u8> {
        match self.requests.room {
            Room::Tail => vec![0; self.len],
            Room::Head => vec![0; LONGEST],
        }
    }
}
