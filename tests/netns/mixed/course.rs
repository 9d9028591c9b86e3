//! Where a mixed workload runs: the network, the server, and how many clients do how much.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use prestack_testbed::{
    Disturbance, Memcached, MemcachedOptions, Middle, Namespace, Offload, Prestack, Relay, Relayed,
    Testbed, pace,
};
use prestack_tests::environment::{say, seed, setting};
use prestack_tests::stage::{PORT, behind};

use super::SETTLING;
use super::client::{Client, Habit, Tally};
use super::shared::Shared;
use super::source::{Dialect, Source};

/// Keys that all clients read.
const SHARED: usize = 8;
/// The arguments of a prestack, if there is to be one.
pub type Arguments = Option<&'static [&'static str]>;

/// A workload and where it runs.
#[derive(Clone, Copy, Debug)]
pub struct Course {
    pub name: &'static str,
    /// memcached's.
    pub threads: u32,
    pub habit: Habit,
    pub connections: usize,
    /// Of each device, for each direction; one where there is a relay.
    pub queues: u8,
    /// Commands of all clients together, unless the environment says otherwise.
    pub commands: u64,
    /// Bytes of the largest values.
    pub largest: usize,
    pub is_v6: bool,
    /// The client's `net.ipv4.tcp_timestamps` and `net.ipv4.tcp_sack`.
    pub has_timestamps: bool,
    pub has_sack: bool,
    /// Whether both ends send the last segment again when nothing comes back for some milliseconds
    /// (`net.ipv4.tcp_early_retrans`), as happens on a busy machine.
    pub has_probes: bool,
    /// Whether both ends ask for congestion marks (`net.ipv4.tcp_ecn`), and so say that routers may set them.
    pub has_ecn: bool,
    /// Whether both ends have little room for what they receive.
    pub has_small_windows: bool,
    pub offloads: Offloads,
    /// Least share of the commands that are hits, if prestack answers over TCP.
    pub hits: f64,
    /// What a relay in the middle does, to each direction; none if there is no relay.
    pub relay: Option<Disturbance>,
}

/// What the ends leave to their devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offloads {
    /// Checksums, and joining what they receive: segments are cut by the kernel, as XDP wants it.
    Some,
    /// Cutting segments as well: prestack runs in generic mode.
    All,
    /// Nothing.
    None,
}

/// The usual.
pub const PLAIN: Course = Course {
    name: "plain",
    threads: 4,
    habit: Habit::Mixed,
    connections: 8,
    queues: 1,
    commands: 20_000,
    largest: 2 << 20,
    is_v6: false,
    has_timestamps: true,
    has_sack: true,
    has_probes: true,
    has_ecn: false,
    has_small_windows: false,
    offloads: Offloads::Some,
    hits: 0.0,
    relay: None,
};

/// How long nothing may move where nothing is lost.
pub const STALL: Duration = Duration::from_secs(10);

impl Course {
    /// How long nothing may move. TCP waits twice as long each time that the same segment is lost; and where a receiver
    /// has room for two, one that comes is often dropped: with any XDP program at a veth device it takes up more of
    /// that room (of 100,000 commands one waited for 1 s and more, and once for 10 s).
    fn stall(&self) -> Duration {
        let loses = self.has_small_windows || self.relay.is_some_and(|relay| relay.lose > 0.0);
        if loses { 3 * STALL } else { STALL }
    }
}

/// A network, memcached, and prestack or none.
pub struct Ground {
    prestack: Option<Prestack>,
    /// How long after its start prestack caches nothing, and more.
    quiet: Duration,
    relay: Option<Relay>,
    _middle: Option<Middle>,
    _memcached: Memcached,
    pub bed: Testbed,
    server: SocketAddr,
}

impl Ground {
    /// Prepares everything for a course.
    pub fn new(course: &Course, prestack: Arguments, seed: u64) -> Result<Self> {
        let (mut bed, middle) = if course.relay.is_some() {
            let (bed, middle) = Testbed::with_middle()?;
            (bed, Some(middle))
        } else if course.queues > 1 {
            (Testbed::with_queues(course.queues)?, None)
        } else {
            (Testbed::new()?, None)
        };
        let (client, server) = (&bed.client, &bed.server);
        set(client, "tcp_timestamps", course.has_timestamps)?;
        set(client, "tcp_sack", course.has_sack)?;
        for namespace in [client, server] {
            if !course.has_probes {
                set(namespace, "tcp_early_retrans", false)?;
            }
            if course.has_ecn {
                set(namespace, "tcp_ecn", true)?;
            }
            if course.has_small_windows {
                write(namespace, "tcp_rmem", "4096 4096 4096")?;
            }
        }
        let link = &bed.links[0];
        let address = if course.is_v6 {
            link.server6
        } else {
            link.server4
        };
        let relay = match (&middle, course.relay) {
            (Some(middle), Some(disturbance)) => {
                Some(Relay::start(middle, disturbance, disturbance, seed)?)
            }
            _ => None,
        };
        // Segments are cut by the kernel already.
        let (offloads, on): (&[Offload], bool) = match course.offloads {
            Offloads::Some => (&[], true),
            Offloads::All => (&[Offload::Checksum, Offload::Gro, Offload::Tso], true),
            Offloads::None => (&[Offload::Checksum, Offload::Gro], false),
        };
        if course.offloads == Offloads::All {
            bed.links[0].free_client_dev();
        }
        let link = &bed.links[0];
        for offload in offloads {
            offload.set(&bed.server, &link.server_dev, on)?;
            offload.set(&bed.client, &link.client_dev, on)?;
        }
        let options = MemcachedOptions {
            threads: course.threads,
            // No item has to go, nor is one deleted that a slow client holds while its page is to be moved.
            memory_mib: 2_048,
            args: ["-I", "8m", "-c", "4096", "-o", "slab_automove=0"]
                .map(Into::into)
                .into(),
            ..MemcachedOptions::default()
        };
        let memcached = Memcached::start(&bed.server, options)?;
        let quiet = match prestack {
            None => Duration::ZERO,
            Some(SETTLING) => Duration::from_millis(500),
            // The default of `--settle` is 1 s.
            Some(_) => Duration::from_millis(1_500),
        };
        let prestack = prestack.map(|args| {
            let mode = if course.offloads == Offloads::All {
                "generic"
            } else {
                "native"
            };
            let ours = [
                "--interface",
                &bed.links[0].server_dev,
                "--mode",
                mode,
                "--no-watch-lo",
                "--always-on",
                "--memory",
                "32MiB",
            ];
            Prestack::start(&bed.server, &[&ours[..], args].concat())
        });
        Ok(Self {
            prestack: prestack.transpose()?,
            quiet,
            relay,
            _middle: middle,
            _memcached: memcached,
            server: SocketAddr::new(address, PORT),
            bed,
        })
    }

    /// Whether as many of the commands were answered over TCP as the course asks for.
    pub fn has_hits(&self, course: &Course, tally: &Tally) -> Result<bool> {
        let Some(prestack) = self.prestack.as_ref().filter(|p| p.carries_connections()) else {
            return Ok(true);
        };
        let hits = prestack.stats()?.get("tcp.hits")?;
        let share = hits as f64 / tally.commands as f64;
        // On a slow machine the few commands of all kinds may be said while the cache is empty. Small windows have no room
        // for an answer but memcached's.
        let is_poor = pace::is_slow() && course.habit == Habit::Mixed;
        let may_be_none = course.has_small_windows || pace::is_slow();
        Ok((is_poor || share >= course.hits) && (may_be_none || hits > 0))
    }

    /// What the relay has done.
    pub fn relayed(&self) -> Relayed {
        self.relay.as_ref().map(Relay::counts).unwrap_or_default()
    }

    /// How often prestack has sent an answer, or a part of one, again.
    pub fn resent(&self) -> Result<u64> {
        let prestack = self.prestack.as_ref();
        prestack.map_or(Ok(0), |prestack| prestack.stats()?.get("tcp.resent"))
    }

    /// Says whether memcached had no room for items: then they are gone, whatever is before it.
    fn say_what_memcached_lacked(&self) {
        let stats = behind(&self.bed, Ipv4Addr::LOCALHOST.into(), PORT).and_then(|mut client| {
            client.send(b"stats\r\n")?;
            let mut stats = Vec::new();
            loop {
                let line = String::from_utf8(client.line()?)?;
                if line == "END\r\n" {
                    return anyhow::Ok(stats);
                }
                if ["evictions", "store_", "busy", "outofmemory"]
                    .iter()
                    .any(|word| line.contains(word))
                {
                    stats.push(line.trim_end().to_owned());
                }
            }
        });
        say(&format!("memcached: {stats:?}"));
    }

    /// Runs a course to its end.
    pub fn run(&self, course: &Course, seed: u64) -> Result<Tally> {
        let commands = setting("PRESTACK_OPERATIONS", course.commands)?;
        let commands = pace::volume(commands as usize) as u64;
        let load = Load {
            server: self.server,
            habit: course.habit,
            connections: course.connections,
            commands,
            dialect: Dialect::Memcached,
            largest: course.largest,
            seed,
            stall: Duration::from_millis(setting(
                "PRESTACK_STALL",
                course.stall().as_millis() as u64,
            )?),
        };
        // Nothing is cached until what was under way before has settled.
        thread::sleep(self.quiet);
        let start = Instant::now();
        let bed = &self.bed;
        let tally = load.run(&bed.client, || say_what_connections_are_at(bed));
        let relayed = self.relayed();
        say(&format!(
            "{}: {:?} in {:?}, {relayed:?}",
            course.name,
            tally.as_ref().ok(),
            start.elapsed()
        ));
        if tally.is_err() {
            self.say_what_memcached_lacked();
            if let Some(prestack) = &self.prestack {
                println!("{}", prestack.instance().command(&["stats"])?);
            }
        }
        let tally = tally.with_context(|| format!("{course:?}, PRESTACK_SEED={seed}"))?;
        if let Some(prestack) = &self.prestack {
            println!("{}", prestack.instance().command(&["stats"])?);
            let hits = prestack.stats()?.get("tcp.hits")?;
            let share = hits as f64 / tally.commands as f64;
            say(&format!("{}: {hits} hits, {share:.4} of all", course.name));
        }
        if course.has_ecn {
            let count = may_be_marked(&bed.server)?;
            ensure!(count > 0, "nothing came that may be marked");
        }
        if let Some(wanted) = course.relay {
            let has_part = |share: f64, count| share == 0.0 || count > 0;
            ensure!(
                has_part(wanted.lose, relayed.lost)
                    && has_part(wanted.reorder, relayed.held)
                    && has_part(wanted.duplicate, relayed.copied),
                "the relay did not do its part: {relayed:?}"
            );
        }
        Ok(tally)
    }
}

/// What clients do, anywhere.
pub struct Load {
    pub server: SocketAddr,
    pub habit: Habit,
    pub connections: usize,
    /// Of all clients together.
    pub commands: u64,
    pub dialect: Dialect,
    /// Bytes of the largest values.
    pub largest: usize,
    pub seed: u64,
    /// How long nothing may move on a connection that is owed something.
    pub stall: Duration,
}

impl Load {
    /// Has the clients, in `namespace`, do their commands. `look` is called when one fails, and has its connection yet.
    pub fn run(&self, namespace: &Namespace, look: impl Fn() + Sync) -> Result<Tally> {
        let shared: Arc<Vec<Shared>> = Arc::new((0..SHARED).map(|_| Shared::default()).collect());
        let clients = (0..self.connections).map(|number| {
            let stream = namespace.run(|| TcpStream::connect(self.server))?;
            let place = [number, self.connections];
            let source = Source::new(
                self.seed,
                place,
                self.dialect,
                self.largest,
                Arc::clone(&shared),
            );
            let mut client = Client::new(stream, source, Arc::clone(&shared), self.stall)?;
            client.prepare()?;
            Ok(client)
        });
        let clients: Vec<Client> = clients.collect::<Result<_>>()?;
        let commands = self.commands.div_ceil(self.connections as u64);
        let start = Barrier::new(self.connections);
        thread::scope(|scope| {
            let threads: Vec<_> = clients
                .into_iter()
                .map(|mut client| {
                    let (start, look) = (&start, &look);
                    scope.spawn(move || {
                        start.wait();
                        client.run(self.habit, commands).inspect_err(|_| look())
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("a client does not panic"))
                .try_fold(Tally::default(), |all, one| anyhow::Ok(all.and(one?)))
        })
    }
}

/// Says what the kernel knows of the connections at both ends.
fn say_what_connections_are_at(bed: &Testbed) {
    for (end, namespace) in [("client", &bed.client), ("server", &bed.server)] {
        let sockets = namespace.command("ss").arg("-tinmoOH").output();
        let said = sockets.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        say(&format!(
            "connections at the {end}:\n{}",
            said.unwrap_or_default()
        ));
    }
}

/// How often a course is run in which too little is answered over TCP: a connection that comes to be in doubt, over a bad
/// network or on a busy machine, and never pauses keeps the cache empty.
const TRIES: usize = 3;

/// Runs a course in a place of its own.
pub fn run(course: &Course, prestack: Arguments) -> Result<Tally> {
    for _ in 0..TRIES {
        let seed = seed()?;
        let ground = Ground::new(course, prestack, seed)?;
        let tally = ground.run(course, seed)?;
        if ground.has_hits(course, &tally)? {
            return Ok(tally);
        }
    }
    bail!("{}: too few hits in {TRIES} runs", course.name)
}

/// IP packets that the namespace has got and that may be marked (`InECT0Pkts` in /proc/net/netstat).
fn may_be_marked(namespace: &Namespace) -> Result<u64> {
    let counters = namespace.run(|| std::fs::read_to_string("/proc/thread-self/net/netstat"))?;
    let mut lines = counters.lines().filter(|line| line.starts_with("IpExt:"));
    let (names, values) = (lines.next(), lines.next());
    let (names, values) = names.zip(values).context("two lines for IP")?;
    let mut columns = names.split(' ').zip(values.split(' '));
    let column = columns.find(|(name, _)| *name == "InECT0Pkts");
    Ok(column.context("a count of them")?.1.parse()?)
}

/// Switches one of the namespace's `net.ipv4` settings.
fn set(namespace: &Namespace, name: &str, on: bool) -> Result<()> {
    write(namespace, name, if on { "1" } else { "0" })
}

fn write(namespace: &Namespace, name: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/net/ipv4/{name}");
    namespace
        .run(|| std::fs::write(&path, value))
        .with_context(|| format!("writing {value:?} to {path}"))
}
