//! A closed loop of UDP GETs, every answer checked byte for byte.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use prestack_testbed::{Namespace, cpu};
use serde::Serialize;

use crate::dataset::Dataset;
use crate::popularity::Popularity;
use crate::worker::{Tally, Worker};

/// What load to offer.
#[derive(Clone, Debug)]
pub struct Load {
    /// The items asked for; they must be stored already.
    pub dataset: Arc<Dataset>,
    /// The order in which they are asked for ([`Popularity::sequence`]).
    pub keys: Arc<[u32]>,
    /// memcached.
    pub server: SocketAddr,
    /// Clients, each with a socket and a thread.
    pub clients: usize,
    /// Requests that each client sends at most.
    pub limit: u64,
    /// Requests that each client keeps outstanding, a power of two.
    pub window: u16,
    /// CPUs for the clients.
    pub cpus: Vec<usize>,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Requests answered right, per second.
    pub rate: f64,
    /// Requests answered right.
    pub answered: u64,
    /// Median latency in microseconds.
    pub p50_us: f64,
    /// 99th percentile of the latency in microseconds.
    pub p99_us: f64,
    /// 99.9th percentile of the latency in microseconds.
    pub p999_us: f64,
    /// Requests without an answer.
    pub timeouts: u64,
    /// Answers that were not, byte for byte, memcached's.
    pub wrong: u64,
    /// Answers to no outstanding request.
    pub strays: u64,
    /// CPU time in nanoseconds that the server spent on each request (see
    /// [`ServerCpu`](crate::server_cpu::ServerCpu)).
    pub server_cpu_ns: f64,
}

impl Load {
    /// A load with the keys' order and the number of clients that suit this machine.
    #[must_use]
    pub fn new(
        dataset: Dataset,
        popularity: Popularity,
        server: SocketAddr,
        cpus: &[usize],
    ) -> Self {
        let keys = popularity.sequence(dataset.keys());
        // Together no more than half of the 256 packets that a veth ring holds.
        let clients = (2 * cpus.len()).min(4);
        Self {
            dataset: Arc::new(dataset),
            keys,
            server,
            clients,
            limit: u64::MAX,
            window: 32,
            cpus: cpus.to_vec(),
        }
    }

    /// The same load, but every key asked for once, in order.
    #[must_use]
    pub fn sweep(&self) -> Self {
        let keys: Arc<[u32]> = (0..self.dataset.keys()).collect();
        let limit = keys.len().div_ceil(self.clients) as u64;
        Self {
            keys,
            limit,
            ..self.clone()
        }
    }

    /// Offers the load from `namespace` for `duration`, or until `stop` is set. `server_cpu` tells
    /// how much CPU time the server has used so far.
    ///
    /// # Errors
    /// When a socket fails, or `server_cpu` does. Unanswered requests are no error here.
    pub fn run(
        &self,
        namespace: &Namespace,
        duration: Duration,
        stop: &AtomicBool,
        server_cpu: impl Fn() -> Result<Duration>,
    ) -> Result<Outcome> {
        ensure!(
            self.window.is_power_of_two(),
            "the window must be a power of two"
        );
        let workers = (0..self.clients)
            .map(|n| {
                let first = n * self.keys.len() / self.clients;
                let keys = Arc::clone(&self.keys);
                let socket = self.socket(namespace)?;
                Worker::new(
                    Arc::clone(&self.dataset),
                    keys,
                    first,
                    self.limit,
                    socket,
                    self.window,
                )
            })
            .collect::<Result<Vec<_>>>()?;

        let cpu_before = server_cpu()?;
        let start = Instant::now();
        let tally = thread::scope(|scope| {
            let run = |worker: Worker| {
                scope.spawn(move || {
                    cpu::pin_thread(&self.cpus)?;
                    worker.run(start + duration, stop)
                })
            };
            let threads: Vec<_> = workers.into_iter().map(run).collect();
            let mut total = Tally::new();
            for thread in threads {
                total.add(&thread.join().expect("a client does not panic")?);
            }
            anyhow::Ok(total)
        })?;
        let elapsed = start.elapsed().min(duration);
        Ok(Outcome::new(&tally, elapsed, server_cpu()? - cpu_before))
    }

    fn socket(&self, namespace: &Namespace) -> Result<UdpSocket> {
        let any: SocketAddr = match self.server {
            SocketAddr::V4(_) => ([0; 4], 0).into(),
            SocketAddr::V6(_) => ([0u16; 8], 0).into(),
        };
        namespace
            .run(|| {
                let socket = UdpSocket::bind(any)?;
                socket.connect(self.server)?;
                std::io::Result::Ok(socket)
            })
            .with_context(|| format!("a UDP socket for {}", self.server))
    }
}

impl Outcome {
    fn new(tally: &Tally, elapsed: Duration, server_cpu: Duration) -> Self {
        let answered = tally.latencies.len();
        let quantile = |q| tally.latencies.value_at_quantile(q) as f64 / 1e3;
        Self {
            rate: answered as f64 / elapsed.as_secs_f64(),
            answered,
            p50_us: quantile(0.5),
            p99_us: quantile(0.99),
            p999_us: quantile(0.999),
            timeouts: tally.timeouts,
            wrong: tally.wrong,
            strays: tally.strays,
            server_cpu_ns: server_cpu.as_nanos() as f64 / answered.max(1) as f64,
        }
    }
}
