//! twemproxy before three memcacheds, each with a prestack: one TCP connection to each carries what many
//! clients say.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use prestack_testbed::{Memcached, MemcachedOptions, Prestack, Process, Testbed, pace};
use prestack_tests::environment::{say, seed, setting};
use prestack_tests::stage::{LASTING, PORT, start_prestack};
use tempfile::TempDir;

use crate::clients::are_installed;
use crate::mixed::{Dialect, HITS, Habit, Load, STALL};

/// Where the proxy listens, in the clients' namespace.
const PROXY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 22_121);
/// memcacheds behind it.
const SERVERS: u8 = 3;

/// Three memcacheds behind a proxy.
struct Fleet {
    /// The first to go: while its connections are open each prestack would wait for them before it ends.
    _proxy: Process,
    prestacks: Vec<Prestack>,
    _memcacheds: Vec<Memcached>,
    _directory: TempDir,
    bed: Testbed,
}

impl Fleet {
    /// Starts everything, and prestack with `args` before each memcached, if there are any.
    fn new(args: Option<&[&str]>) -> Result<Self> {
        let bed = Testbed::with_links(SERVERS)?;
        let memcacheds = bed.links.iter().map(|link| {
            let options = MemcachedOptions {
                addresses: vec![link.server4],
                ..MemcachedOptions::default()
            };
            Memcached::start(&bed.server, options)
        });
        let memcacheds = memcacheds.collect::<Result<_>>()?;
        let prestacks = args.map_or(Ok(Vec::new()), |args| {
            let links = 0..usize::from(SERVERS);
            links.map(|link| start_prestack(&bed, link, args)).collect()
        });
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("proxy.yml");
        let servers = bed
            .links
            .iter()
            .map(|link| format!("   - {}:{PORT}:1\n", link.server4));
        let servers: String = servers.collect();
        fs::write(
            &file,
            format!(
                "pool:\n  listen: {PROXY}\n  hash: fnv1a_64\n  distribution: ketama\n  timeout: 20000\n  \
                 servers:\n{servers}"
            ),
        )?;
        let mut command = bed.client.command("nutcracker");
        command.arg("-c").arg(&file);
        // Its statistics would be on a port of all addresses.
        command.args(["-a", "127.0.0.1"]);
        let proxy = Process::spawn(command).context("twemproxy is missing")?;
        pace::wait_for("twemproxy to listen", Duration::from_secs(5), || {
            Ok(bed.client.run(|| std::net::TcpStream::connect(PROXY)).ok())
        })?;
        Ok(Self {
            _proxy: proxy,
            prestacks: prestacks?,
            _memcacheds: memcacheds,
            _directory: directory,
            bed,
        })
    }

    /// Has clients say much, and check all answers.
    fn load(&self) -> Result<()> {
        let seed = seed()?;
        for (habit, seed) in [Habit::Mixed, Habit::Reading].into_iter().zip(seed..) {
            let load = Load {
                server: PROXY,
                habit,
                connections: 8,
                commands: setting("PRESTACK_OPERATIONS", 5_000)?,
                dialect: Dialect::Proxy,
                largest: 100_000,
                seed,
                stall: STALL,
            };
            let tally = load.run(&self.bed.client, || {});
            say(&format!("behind twemproxy: {:?}", tally.as_ref().ok()));
            tally.with_context(|| format!("{habit:?}, PRESTACK_SEED={seed}"))?;
        }
        for prestack in &self.prestacks {
            prestack.check_tcp_hits()?;
        }
        Ok(())
    }
}

#[test]
fn clients_of_a_proxy_read_what_was_written() -> Result<()> {
    if !are_installed() {
        return Ok(());
    }
    Fleet::new(None)?.load()?;
    Fleet::new(Some(&[&LASTING[..], HITS].concat()))?.load()
}
