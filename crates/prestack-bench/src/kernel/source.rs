//! The program that makes requests and hands each to a program under test.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::maps::ProgramArray;
use aya::programs::{TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};

use super::packet::{self, HEADERS};
use super::programs::{LONGEST, Ran, map_mut, program, program_mut, refused, run_once};
use super::sequence::Keys;
use crate::dataset::Dataset;

/// The compiled programs (`cargo xtask build` makes them).
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("PRESTACK_BENCH_BPF_OBJECT"));

/// Programs of the object.
const REQUEST: &str = "request";
const ECHO: &str = "echo";

/// Words of a request.
const WORDS: usize = 9;
/// Bytes of a key; the requests of a dataset with such keys have the length that the program knows.
pub(super) const KEY_SIZE: usize = 16;

/// Where a packet has room to grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// Behind its end.
    Tail,
    /// Before its start alone.
    Head,
}

/// The loaded program.
pub(super) struct Source {
    ebpf: Ebpf,
    room: Room,
    keys: Keys,
    /// Requests made so far.
    made: u64,
}

impl Source {
    /// A source of requests to `port` of the server's for `keys` of the dataset.
    pub(super) fn load(dataset: &Dataset, keys: Keys, port: u16, room: Room) -> Result<Self> {
        let mut datagram = vec![0; dataset.request_len()];
        dataset.write_request(0, 0, &mut datagram);
        // The program fills in the number, here of zeros as a number, not as digits.
        let end = datagram.len() - 2;
        datagram[end - 8..end].fill(0);
        let (request, sum) = packet::without_checksum(packet::to_server(port, &datagram));
        ensure!(
            request.len() == 8 * WORDS,
            "a request has {} bytes",
            request.len()
        );
        let mut words = [0; WORDS];
        for (word, bytes) in words.iter_mut().zip(request.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into()?);
        }
        let mut ebpf = EbpfLoader::new()
            .override_global("REQUEST", &words[..], true)
            .override_global("SUM", &sum, true)
            .override_global("FIRST_KEY", &u64::from(keys.first), true)
            .override_global("KEYS", &u64::from(keys.count), true)
            .override_global("CUT_HEAD", &u64::from(room == Room::Head), true)
            .load(OBJECT)
            .context("loading the source of requests into the kernel")?;
        for name in [REQUEST, ECHO] {
            program_mut::<Xdp>(&mut ebpf, name)?
                .load()
                .map_err(|error| refused(name, error))?;
        }
        Ok(Self {
            ebpf,
            room,
            keys,
            made: 0,
        })
    }

    /// Hands the requests to `target` from now on, or to the program that does nothing.
    pub(super) fn aim(&mut self, target: Option<&Xdp>) -> Result<()> {
        let fd = match target {
            Some(target) => target.fd()?,
            None => program::<Xdp>(&self.ebpf, ECHO)?.fd()?,
        };
        let fd = fd.try_clone()?;
        let mut map: ProgramArray<_> = map_mut(&mut self.ebpf, "TARGET")?;
        Ok(map.set(0, &fd, 0)?)
    }

    /// Key numbers and ids of the next requests.
    pub(super) fn upcoming(&self, requests: u32) -> impl Iterator<Item = (u32, u16)> + use<> {
        let keys = self.keys;
        (self.made..self.made + u64::from(requests)).map(move |n| keys.request(n))
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

    fn program(&self) -> Result<&Xdp> {
        program(&self.ebpf, REQUEST)
    }

    /// The packet before the program has made a request of it: as long as it may be to leave no
    /// room behind its end, or short.
    fn buffer(&self) -> Vec<u8> {
        match self.room {
            Room::Tail => vec![0; 8 * WORDS],
            Room::Head => vec![0; LONGEST],
        }
    }
}

/// The payload of a packet.
pub(super) fn payload(packet: &[u8]) -> &[u8] {
    packet.get(HEADERS..).unwrap_or_default()
}
