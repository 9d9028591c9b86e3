//! Clients that offer a load, every answer checked byte for byte.

use std::collections::HashMap;
use std::fmt;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use prestack_testbed::{Namespace, cpu};

use crate::client::Asker;
use crate::dataset::Dataset;
use crate::operations::{Operation, Operations, Sequence};
use crate::outcome::{Outcome, Outcomes};
use crate::pace::Pace;
use crate::popularity::Popularity;
use crate::protocol::Protocol;
use crate::tally::Tally;
use crate::tcp::Connections;
use crate::trace::Trace;
use crate::udp::{MAX_WINDOW, Window};
use crate::versions::Versions;

/// How long memcached may take to accept a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Most bytes of key and value that are written over UDP.
pub(crate) const MAX_UDP_ITEM: usize = 1_350;

/// What carries the requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Transport {
    /// A socket for each thread
    Udp,
    /// Connections
    Tcp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Udp => "UDP",
            Self::Tcp => "TCP",
        })
    }
}

/// Clients of one kind.
#[derive(Clone, Debug)]
pub struct Group {
    /// What carries the requests.
    pub transport: Transport,
    /// In which protocol they are written.
    pub protocol: Protocol,
    /// Share of the requests that are writes.
    pub write_ratio: f64,
    /// Keys that are written are not read.
    pub writes_apart: bool,
    /// Writes ask for no answer (TCP).
    pub is_quiet: bool,
    /// Sockets in all.
    pub sockets: usize,
    /// Requests that are kept outstanding on each, a power of two over UDP.
    pub depth: u16,
    /// Threads, at most as many as sockets over TCP, exactly as many over UDP.
    pub threads: usize,
    /// Requests a second in all that are sent whether answers come or not; without it, as many as are
    /// answered.
    pub rate: Option<f64>,
}

impl Group {
    /// A closed loop of text GETs over UDP that suits so many CPUs.
    #[must_use]
    pub fn udp_gets(cpus: usize) -> Self {
        // Together no more than half of the 256 packets that a veth ring holds.
        let sockets = (2 * cpus).min(4);
        Self {
            transport: Transport::Udp,
            protocol: Protocol::Text,
            write_ratio: 0.0,
            writes_apart: false,
            is_quiet: false,
            sockets,
            depth: 32,
            threads: sockets,
            rate: None,
        }
    }

    /// A closed loop of text GETs, and a share of SETs, on connections, with one request outstanding on
    /// each.
    #[must_use]
    pub fn tcp(connections: usize, write_ratio: f64, cpus: usize) -> Self {
        Self {
            transport: Transport::Tcp,
            protocol: Protocol::Text,
            write_ratio,
            writes_apart: false,
            is_quiet: false,
            sockets: connections,
            depth: 1,
            threads: cpus.min(connections).max(1),
            rate: None,
        }
    }
}

/// What load to offer.
#[derive(Clone, Debug)]
pub struct Load {
    /// The items asked for; they must be stored already.
    pub dataset: Arc<Dataset>,
    /// The order in which they are asked for ([`Popularity::sequence`]).
    pub keys: Arc<[u32]>,
    /// memcached.
    pub server: SocketAddr,
    /// The clients.
    pub groups: Vec<Group>,
    /// Requests of a thread at most.
    pub limit: u64,
    /// CPUs for the clients.
    pub cpus: Vec<usize>,
    /// Which versions of the values may be read, if there are writes. A value that an earlier load has
    /// written is known by this.
    versions: Option<Arc<Versions>>,
    /// What is done, in place of `keys` and the groups' shares of writes.
    trace: Option<Arc<[(Operation, u32)]>>,
    /// Where each thread of each group is in its sequence: it goes on there when the load is offered again.
    places: Arc<Mutex<HashMap<(usize, usize), usize>>>,
    /// Requests that were answered so far.
    answered: Arc<AtomicU64>,
}

impl Load {
    /// A load of these groups of clients.
    #[must_use]
    pub fn new(
        dataset: Dataset,
        popularity: Popularity,
        server: SocketAddr,
        groups: Vec<Group>,
        cpus: &[usize],
    ) -> Self {
        let keys = popularity.sequence(dataset.keys());
        let has_writes = groups.iter().any(|group| group.write_ratio > 0.0);
        let versions = has_writes.then(|| Arc::new(Versions::new(dataset.keys())));
        Self {
            dataset: Arc::new(dataset),
            keys,
            server,
            groups,
            limit: u64::MAX,
            cpus: cpus.to_vec(),
            versions,
            trace: None,
            places: Arc::default(),
            answered: Arc::default(),
        }
    }

    /// A load of these groups of clients that do what a trace says.
    pub(crate) fn of_trace(
        trace: Trace,
        server: SocketAddr,
        groups: Vec<Group>,
        cpus: &[usize],
    ) -> Self {
        let Trace {
            dataset,
            operations,
            ..
        } = trace;
        let versions = Versions::new(dataset.keys());
        Self {
            dataset: Arc::new(dataset),
            keys: Arc::new([]),
            server,
            groups,
            limit: u64::MAX,
            cpus: cpus.to_vec(),
            versions: Some(Arc::new(versions)),
            trace: Some(operations.into()),
            places: Arc::default(),
            answered: Arc::default(),
        }
    }

    /// The same items, but every key asked for once over UDP, in order.
    #[must_use]
    pub fn sweep(&self) -> Self {
        let keys: Arc<[u32]> = (0..self.dataset.keys()).collect();
        let group = Group::udp_gets(self.cpus.len());
        Self {
            limit: keys.len().div_ceil(group.threads) as u64,
            keys,
            groups: vec![group],
            trace: None,
            places: Arc::default(),
            ..self.clone()
        }
    }

    /// Whether it can be offered.
    ///
    /// # Errors
    /// When it cannot over UDP.
    pub fn check(&self) -> Result<()> {
        let writes_udp = |group: &Group| {
            let has_writes = group.write_ratio > 0.0 || self.trace.is_some();
            group.transport == Transport::Udp && has_writes
        };
        ensure!(
            self.dataset.largest() <= MAX_UDP_ITEM || !self.groups.iter().any(writes_udp),
            "over UDP a write must fit one datagram: key and value have at most {MAX_UDP_ITEM} bytes; \
             larger ones can be written with --transport tcp"
        );
        for group in self
            .groups
            .iter()
            .filter(|group| group.transport == Transport::Udp)
        {
            ensure!(
                group.depth.is_power_of_two() && group.depth <= MAX_WINDOW,
                "over UDP the requests outstanding on a socket must be a power of two and at most {MAX_WINDOW}, not {}: \
                 their ids have 16 bits, and more can be had with more sockets",
                group.depth
            );
            ensure!(
                !group.is_quiet,
                "over UDP every write is answered: there is no noreply"
            );
        }
        Ok(())
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
        let outcomes = self.run_groups(Some(namespace), duration, stop, server_cpu)?;
        Ok(outcomes.total)
    }

    /// [`run`](Self::run) from `namespace`, or from where the caller is, with what came of each group.
    ///
    /// # Errors
    /// As of `run`.
    pub fn run_groups(
        &self,
        namespace: Option<&Namespace>,
        duration: Duration,
        stop: &AtomicBool,
        server_cpu: impl Fn() -> Result<Duration>,
    ) -> Result<Outcomes> {
        self.check()?;
        let mut clients = Vec::new();
        for (g, group) in self.groups.iter().enumerate() {
            for n in 0..group.threads {
                clients.push(((g, n), self.client(namespace, g, n)?));
            }
        }
        let cpu_before = server_cpu()?;
        let start = Instant::now();
        let (tallies, closed) = thread::scope(|scope| {
            let run = |(id, client): ((usize, usize), Client)| {
                let client = scope.spawn(move || {
                    cpu::pin_thread(&self.cpus)?;
                    client.run(start, start + duration, stop)
                });
                (id, client)
            };
            let threads: Vec<_> = clients.into_iter().map(run).collect();
            let mut tallies: Vec<_> = self.groups.iter().map(|_| Tally::new()).collect();
            let mut closed = None;
            for (id, thread) in threads {
                let asker = thread.join().expect("a client does not panic")?;
                tallies[id.0].add(&asker.tally);
                closed = closed.max(asker.closed);
                self.places().insert(id, asker.operations.place());
            }
            anyhow::Ok((tallies, closed))
        })?;
        // After a stop, requests that are under way may be waited for.
        let stopped = closed.filter(|_| stop.load(Ordering::Relaxed));
        let elapsed = stopped.map_or_else(|| start.elapsed(), |at| at - start);
        let elapsed = elapsed.min(duration);
        let server_cpu = server_cpu()? - cpu_before;
        let mut total = Tally::new();
        tallies.iter().for_each(|tally| total.add(tally));
        self.answered.fetch_add(total.answered(), Ordering::Relaxed);
        let of = |tally: &Tally| Outcome::new(tally, elapsed, server_cpu);
        Ok(Outcomes {
            total: of(&total),
            groups: tallies.iter().map(of).collect(),
            elapsed,
        })
    }

    /// The `n`-th thread of the `g`-th group.
    fn client(&self, namespace: Option<&Namespace>, g: usize, n: usize) -> Result<Client> {
        let group = &self.groups[g];
        let sequence = match &self.trace {
            Some(trace) => Sequence::Trace(Arc::clone(trace)),
            None if group.writes_apart => {
                Sequence::apart(Arc::clone(&self.keys), group.write_ratio)
            }
            None => Sequence::mix(Arc::clone(&self.keys), group.write_ratio),
        };
        let seed = (g << 16 | n) as u64;
        let mut operations = Operations::new(sequence, n, group.threads, seed);
        if let Some(&place) = self.places().get(&(g, n)) {
            operations = operations.starting_at(place);
        }
        let asker = Asker {
            dataset: Arc::clone(&self.dataset),
            versions: self.versions.clone(),
            protocol: group.protocol,
            is_quiet: group.is_quiet,
            operations,
            pace: Pace::Closed,
            end: None,
            closed: None,
            left: self.limit,
            answered_before: self.answered.load(Ordering::Relaxed),
            tally: Tally::new(),
        };
        let kind = match group.transport {
            Transport::Udp => {
                let socket = self.socket(namespace)?;
                Kind::Udp(Window::new(asker, socket, group.depth)?)
            }
            Transport::Tcp => {
                let streams = (n..group.sockets)
                    .step_by(group.threads)
                    .map(|_| self.stream(namespace))
                    .collect::<Result<_>>()?;
                Kind::Tcp(Connections::new(asker, streams, group.depth.into())?)
            }
        };
        Ok(Client {
            kind,
            rate: group.rate.map(|rate| rate / group.threads as f64),
            seed,
        })
    }

    fn places(&self) -> MutexGuard<'_, HashMap<(usize, usize), usize>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn socket(&self, namespace: Option<&Namespace>) -> Result<UdpSocket> {
        let socket = within(namespace, || {
            let socket = UdpSocket::bind(any_address(self.server))?;
            socket.connect(self.server)?;
            std::io::Result::Ok(socket)
        });
        socket.with_context(|| format!("a UDP socket for {}", self.server))
    }

    fn stream(&self, namespace: Option<&Namespace>) -> Result<TcpStream> {
        let connect = || TcpStream::connect_timeout(&self.server, CONNECT_LIMIT);
        within(namespace, connect).with_context(|| format!("connecting to {}", self.server))
    }
}

/// What a socket that is to talk to `server` is bound to: any address of that kind, and any port.
pub(crate) fn any_address(server: SocketAddr) -> SocketAddr {
    match server {
        SocketAddr::V4(_) => ([0; 4], 0).into(),
        SocketAddr::V6(_) => ([0u16; 8], 0).into(),
    }
}

/// Runs `f` in the namespace, if there is one.
fn within<T: Send>(namespace: Option<&Namespace>, f: impl FnOnce() -> T + Send) -> T {
    match namespace {
        Some(namespace) => namespace.run(f),
        None => f(),
    }
}

/// A client, ready to start.
struct Client {
    kind: Kind,
    /// Requests a second.
    rate: Option<f64>,
    seed: u64,
}

enum Kind {
    Udp(Window),
    Tcp(Connections),
}

impl Client {
    fn run(self, start: Instant, end: Instant, stop: &AtomicBool) -> Result<Asker> {
        let pace = self
            .rate
            .map_or(Pace::Closed, |rate| Pace::open(rate, start, self.seed));
        match self.kind {
            Kind::Udp(window) => window.run(pace, end, stop),
            Kind::Tcp(connections) => connections.run(pace, end, stop),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A load goes on in its sequence where it stopped, and does not ask for the same again.
    #[test]
    fn a_load_goes_on_where_it_was() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        server
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let group = Group {
            sockets: 1,
            threads: 1,
            ..Group::udp_gets(1)
        };
        let dataset = Dataset::new(10, 8, 32).unwrap();
        let address = server.local_addr().unwrap();
        let load = Load {
            limit: 3,
            keys: (0..10).collect(),
            ..Load::new(dataset, Popularity::Uniform, address, vec![group], &[0])
        };
        let mut asked = Vec::new();
        for _ in 0..4 {
            thread::scope(|scope| {
                scope.spawn(|| {
                    for _ in 0..3 {
                        let mut request = [0; 64];
                        let (_, client) = server.recv_from(&mut request).unwrap();
                        asked.push(request[19]);
                        let answer = [&request[..8], b"END\r\n"].concat();
                        server.send_to(&answer, client).unwrap();
                    }
                });
                let stop = AtomicBool::new(false);
                let limit = Duration::from_secs(10);
                let none = || Ok(Duration::ZERO);
                let outcomes = load.run_groups(None, limit, &stop, none).unwrap();
                assert_eq!(outcomes.total.get_misses, 3);
            });
        }
        assert_eq!(asked, *b"012345678901");
    }

    #[test]
    fn what_udp_cannot_do_is_refused() {
        let load = |group| {
            let dataset = Dataset::new(1, 16, 2_000).unwrap();
            let server = ([127, 0, 0, 1], 1).into();
            Load::new(dataset, Popularity::Uniform, server, vec![group], &[0]).check()
        };
        let udp = || Group::udp_gets(1);
        load(udp()).expect("reads of large values");
        load(Group {
            depth: 3 * MAX_WINDOW,
            is_quiet: true,
            ..Group::tcp(1, 1.0, 1)
        })
        .expect("TCP can do all of it");
        for group in [
            Group { depth: 3, ..udp() },
            Group {
                depth: 2 * MAX_WINDOW,
                ..udp()
            },
            Group {
                is_quiet: true,
                ..udp()
            },
            Group {
                write_ratio: 0.5,
                ..udp()
            },
        ] {
            let refusal = load(group).unwrap_err().to_string();
            assert!(refusal.starts_with("over UDP "), "{refusal}");
        }
    }
}
