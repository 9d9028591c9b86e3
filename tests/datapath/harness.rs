//! What the tests run packets through, and what they say about it.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;
use prestack::allow::AllowList;
use prestack::clock;
use prestack::doors::{DoorSpec, Transports};
use prestack::layout::Layout;
use prestack::links::LinkSpec;
use prestack::netlink::Tag;
use prestack_abi::config::{Attention, Config, Link};
use prestack_abi::stats::Stats;
use prestack_abi::time::SETTLE_SHIFT;
use prestack_translate::Policy;

use crate::bytes::{get, hit};
use crate::check;
use crate::kernel::{BUCKETS, Kernel, Ran};
use crate::packet::{ACK, PORT, PacketBuilder, SERVER_MAC, SERVER4, SERVER6, SYN};

/// `XDP_PASS` and `XDP_TX` (include/uapi/linux/bpf.h).
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
/// The interface at which packets of a test run arrive.
const LOOPBACK: u32 = 1;
/// `TC_ACT_UNSPEC` (include/uapi/linux/pkt_cls.h).
const TC_ACT_UNSPEC: u32 = u32::MAX;

/// Settings of a datapath.
#[derive(Clone, Debug)]
pub struct Setup {
    pub seed: u64,
    pub buckets: u32,
    /// How many times as many are in use.
    pub parts: u32,
    pub mtu: u32,
    /// From now; zero means not at all.
    pub serve_for: Duration,
    pub max_age: Duration,
    pub refresh_age: Duration,
    pub settle: Duration,
    pub remember: Duration,
    pub doors: Vec<DoorSpec>,
    pub allow: Vec<IpNet>,
    pub links: Vec<Link>,
    pub serve_reserved_ports: bool,
    /// Whether partial checksums are not answered over TCP.
    pub whole_sums: bool,
    /// Zero means no limit.
    pub rate_interval: Duration,
    pub rate_burst: Duration,
    pub wall_offset: Duration,
    pub attention: Attention,
    pub policy: Policy,
}

impl Default for Setup {
    /// Nothing that time brings about happens during a test.
    fn default() -> Self {
        Self {
            seed: 0x0123_4567_89ab_cdef,
            buckets: 64,
            parts: 1,
            mtu: 1500,
            serve_for: Duration::from_secs(3600),
            max_age: Duration::from_secs(3600),
            refresh_age: Duration::from_secs(3600),
            settle: Duration::from_secs(3600),
            remember: Duration::from_secs(130),
            doors: doors_of_wildcard(PORT, 0),
            allow: ["10.0.0.0/24", "fd00::/64"]
                .map(|net| net.parse().expect("a network"))
                .to_vec(),
            links: usual_links(),
            serve_reserved_ports: false,
            whole_sums: false,
            rate_interval: Duration::ZERO,
            rate_burst: Duration::ZERO,
            wall_offset: Duration::ZERO,
            attention: Attention::Learning,
            policy: Config::empty().policy,
        }
    }
}

/// The server's interface in test runs, and VLANs on top of it: the tags, the outermost first.
fn usual_links() -> Vec<Link> {
    let service = |id| Tag {
        is_service: true,
        id,
    };
    let customer = |id| Tag {
        is_service: false,
        id,
    };
    let tags = [
        vec![],
        vec![customer(5)],
        vec![service(0x123)],
        vec![service(7), customer(0xfff)],
        vec![customer(7), customer(7)],
        vec![service(1), customer(2)],
        vec![service(7), customer(5)],
        vec![service(5), customer(5)],
    ];
    tags.into_iter()
        .map(|tags| link_to(SERVER_MAC, tags).to_abi(u64::MAX))
        .collect()
}

/// A link at the interface of test runs.
pub fn link_to(mac: [u8; 6], tags: Vec<Tag>) -> LinkSpec {
    LinkSpec {
        index: LOOPBACK,
        tags,
        mac,
        interface: "lo".into(),
        top: LOOPBACK,
    }
}

/// The doors of a memcached that listens on all addresses of a server that has two.
pub fn doors_of_wildcard(port: u16, backend: u8) -> Vec<DoorSpec> {
    let door = |address, serves| DoorSpec {
        address,
        port,
        backend,
        serve_tcp: serves,
        serve_udp: serves,
        transports: Transports::all(address),
    };
    vec![
        door(Some(SERVER4.into()), true),
        door(Some(SERVER6.into()), true),
        door(None, false),
    ]
}

impl Setup {
    /// The settings in a datapath that had these.
    fn config(&self, before: Config) -> Config {
        let mut config = Config {
            seed: self.seed,
            serve_until: match clock::nanoseconds(self.serve_for) {
                0 => 0,
                span => clock::now_ns() + span,
            },
            max_age_ns: clock::nanoseconds(self.max_age),
            refresh_age_ns: clock::nanoseconds(self.refresh_age),
            settle_ns: clock::nanoseconds(self.settle),
            remember_ns: clock::nanoseconds(self.remember),
            base: self.buckets,
            parts: self.parts,
            controls: self.buckets,
            mtu: self.mtu,
            serve_reserved_ports: self.serve_reserved_ports.into(),
            whole_sums: self.whole_sums.into(),
            rate_interval_ns: clock::nanoseconds(self.rate_interval),
            rate_burst_ns: clock::nanoseconds(self.rate_burst),
            wall_offset_ns: clock::nanoseconds(self.wall_offset),
            attention: self.attention as u32,
            policy: self.policy,
            ..before
        };
        assert!(self.buckets * self.parts <= BUCKETS);
        // As in life: exact addresses before wildcards.
        let mut doors = self.doors.clone();
        doors.sort_by_key(|door| door.address.is_none());
        let layout = Layout {
            doors,
            allow: AllowList {
                networks: self.allow.clone(),
                is_given: true,
            },
            links: self.links.clone(),
        };
        layout.write(&mut config);
        config
    }
}

/// What `rx` did with a packet.
#[derive(Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on to the stack, bit for bit as it came.
    Passed,
    /// The cache has answered with this payload.
    Served(Vec<u8>),
}

impl fmt::Debug for Verdict {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => out.write_str("passed"),
            Self::Served(payload) => write!(out, "served \"{}\"", payload.escape_ascii()),
        }
    }
}

/// The programs with their maps, and a client that numbers its requests.
pub struct Datapath {
    /// `None` only while this is dropped.
    kernel: Option<Kernel>,
    next_id: u16,
}

impl Datapath {
    /// A datapath with the usual settings.
    pub fn new() -> Self {
        Self::with(&Setup::default())
    }

    pub fn with(setup: &Setup) -> Self {
        let kernel = Kernel::take();
        kernel.controls.init(&setup.config(Config::empty()));
        Self {
            kernel: Some(kernel),
            next_id: 0,
        }
    }

    /// Changes the settings; what is cached and remembered stays.
    pub fn configure(&mut self, setup: &Setup) {
        let controls = &self.kernel().controls;
        controls.init(&setup.config(controls.config()));
    }

    /// The programs and maps themselves.
    pub fn kernel(&self) -> &Kernel {
        self.kernel.as_ref().expect("not yet dropped")
    }

    /// The programs and maps themselves, to be altered.
    pub fn kernel_mut(&mut self) -> &mut Kernel {
        self.kernel.as_mut().expect("not yet dropped")
    }

    /// The counters.
    pub fn stats(&self) -> Stats {
        prestack::maps::counters(&self.kernel().programs.ids).expect("the counters")
    }

    /// The epoch of a backend.
    pub fn epoch_of(&self, backend: u8) -> u64 {
        self.kernel().controls.epoch_of(backend)
    }

    /// The epoch of the first backend.
    pub fn epoch(&self) -> u64 {
        self.epoch_of(0)
    }

    /// Runs `rx` on a packet. Panics when a packet that is passed has been changed, or a reply is
    /// not in order.
    pub fn rx_bytes(&self, packet: &[u8]) -> Verdict {
        verdict(packet, self.kernel().programs.rx(packet))
    }

    /// Runs `rx` on a packet of which it finds only the first `linear` bytes in one piece.
    pub fn rx_in_pieces(&self, packet: &[u8], linear: usize) -> Verdict {
        verdict(packet, self.kernel().programs.rx_in_pieces(packet, linear))
    }

    /// Runs `rx` on a packet.
    pub fn rx(&self, packet: &PacketBuilder) -> Verdict {
        self.rx_bytes(&packet.build())
    }

    /// Runs `rx` on a packet that is not to be served.
    pub fn pass(&self, packet: &PacketBuilder) {
        assert_eq!(self.rx(packet), Verdict::Passed, "{packet:?}");
    }

    /// Runs `tx` on a packet, which always goes on as it was.
    pub fn tx_bytes(&self, packet: &[u8]) {
        goes_on(packet, self.kernel().programs.tx(packet));
    }

    /// Runs `lo` on a packet, which always goes on as it was.
    pub fn lo(&self, packet: &PacketBuilder) {
        let packet = packet.build();
        goes_on(&packet, self.kernel().programs.lo(&packet));
    }

    /// Runs `lo` on a packet that is to be taken apart into segments of this size.
    pub fn lo_segments(&self, packet: &PacketBuilder, size: u32) {
        let packet = packet.build();
        let ran = self.kernel().programs.lo_segments(&packet, size);
        goes_on(&packet, ran);
    }

    /// Runs `tx` on a packet.
    pub fn tx(&self, packet: &PacketBuilder) {
        self.tx_bytes(&packet.build());
    }

    /// memcached's host accepts the connection of which this is the first segment with data.
    pub fn accept(&self, first: &PacketBuilder) {
        let answer = first.clone().reversed().payload("").untagged();
        let (sequence, acknowledgement) = first.numbers();
        self.tx(&answer
            .flags(SYN | ACK)
            .sequence(acknowledgement.wrapping_sub(1))
            .acknowledging(sequence));
    }

    /// A datagram with an id that has not been used.
    pub fn request(&mut self, payload: impl AsRef<[u8]>) -> PacketBuilder {
        self.next_id = self.next_id.wrapping_add(1);
        PacketBuilder::udp(payload).id(self.next_id)
    }

    /// A `get` of one key, with an id that has not been used.
    pub fn get_of(&mut self, key: impl AsRef<[u8]>) -> PacketBuilder {
        self.request(get(&[key]))
    }

    /// A request that is passed, and that memcached has not answered yet.
    pub fn only_pass(&mut self, request: impl AsRef<[u8]>) {
        let request = self.request(request);
        self.pass(&request);
    }

    /// A request that is passed and then answered.
    pub fn exchange(&mut self, request: impl AsRef<[u8]>, reply: impl AsRef<[u8]>) {
        let request = self.request(request);
        self.pass(&request);
        self.tx(&request.reply(reply));
    }

    /// Lets memcached answer a `get` with this value. Whether that fills the cache is in the
    /// counters.
    pub fn offer(&mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        self.exchange(get(&[&key]), hit(&key, value));
    }

    /// Caches a value, as memcached's answer to a `get` does, or the second one if it evicts something.
    pub fn fill(&mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        let before = self.stats();
        self.offer(&key, &value);
        if self.stats().fills_deferred > before.fills_deferred {
            self.offer(&key, value);
        }
        let key = key.as_ref().escape_ascii();
        assert_eq!(self.stats().fills, before.fills + 1, "{key} was not cached");
    }

    /// Whether an answer to a `get` of this key would be cached now; if so, it is.
    pub fn can_fill(&mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> bool {
        let before = self.stats().fills;
        self.offer(key, value);
        self.stats().fills > before
    }

    /// The key is cached with this value.
    pub fn assert_hit(&mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        let request = self.get_of(&key);
        assert_eq!(
            self.rx(&request),
            Verdict::Served(hit(&key, value)),
            "{}",
            key.as_ref().escape_ascii()
        );
    }

    /// The key is not cached. memcached, asked, does not have it either, so that no ticket is left.
    pub fn assert_miss(&mut self, key: impl AsRef<[u8]>) {
        self.exchange(get(&[key]), "END\r\n");
    }
}

/// A program that only looks has run on a packet.
fn goes_on(packet: &[u8], ran: Ran) {
    assert_eq!(ran.action, TC_ACT_UNSPEC, "{}", packet.escape_ascii());
    assert_eq!(ran.packet, packet, "what is looked at is not changed");
}

fn verdict(packet: &[u8], ran: Ran) -> Verdict {
    match ran.action {
        XDP_PASS => {
            assert_eq!(
                ran.packet,
                packet,
                "a packet that is passed stays as it came: {}",
                packet.escape_ascii()
            );
            Verdict::Passed
        }
        XDP_TX => Verdict::Served(check::reply(packet, &ran.packet)),
        other => panic!("XDP action {other}"),
    }
}

impl Drop for Datapath {
    fn drop(&mut self) {
        // After a failure the maps may hold anything.
        if let Some(kernel) = self.kernel.take().filter(|_| !std::thread::panicking()) {
            kernel.give_back();
        }
    }
}

/// Waits until the datapath's clock has advanced by more than this.
pub fn wait(span: Duration) {
    let start = clock::now_ns();
    std::thread::sleep(span);
    while clock::now_ns() <= start + clock::nanoseconds(span) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until a write that settles in this time has.
pub fn wait_to_settle(settle: Duration) {
    wait(settle + Duration::from_nanos(1 << SETTLE_SHIFT));
}

/// How often to do what is done many times: `full`, or less of it in a virtual machine, which runs
/// the programs ten to fifty times slower.
pub fn volume(full: usize) -> usize {
    if std::env::var_os("PRESTACK_VM").is_some() {
        full.div_ceil(20)
    } else {
        full
    }
}

/// Random numbers with a seed that is printed when the test fails. `PRESTACK_SEED` repeats one.
pub fn random() -> fastrand::Rng {
    let seed = match std::env::var("PRESTACK_SEED") {
        Ok(seed) => seed.parse().expect("PRESTACK_SEED is a number"),
        Err(_) => fastrand::u64(..),
    };
    println!("PRESTACK_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

/// A random IPv4 address that a host can have.
pub fn random_v4(random: &mut fastrand::Rng) -> Ipv4Addr {
    Ipv4Addr::from(random.u32(0x0100_0000..0xdfff_ffff))
}

/// A random global IPv6 address.
pub fn random_v6(random: &mut fastrand::Rng) -> Ipv6Addr {
    Ipv6Addr::from(random.u128(..) >> 3 | 1 << 125)
}
