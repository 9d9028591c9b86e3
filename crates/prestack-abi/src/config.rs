//! What user space tells the datapath: written at start and when the host's sockets or
//! addresses change, read on every packet.

use prestack_translate::Policy;

use crate::cache::Place;
use crate::flow::FLOW_SETS;

/// Most doors (address and port pairs of all backends) that can be configured.
pub const MAX_DOORS: usize = 64;
/// Most networks in the allow list, for each of IPv4 and IPv6.
pub const MAX_ALLOWED: usize = 32;

/// Most links (places at which frames arrive, with the MAC address they are sent to).
pub const MAX_LINKS: usize = 64;

/// Most sources whose rate is known at a time: when there are more, the one heard of longest ago is
/// forgotten, and starts anew.
pub const RATED_SOURCES: u32 = 65_536;

/// The one element of the `CONFIG` map.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub struct Config {
    /// Random, chosen at load: keeps clients from choosing keys that collide.
    pub seed: u64,
    /// Coarse monotonic time in ns after which nothing is served: the daemon's heartbeat pushes
    /// it ahead, so that without a daemon, which watches for restarts of memcached, serving stops.
    pub serve_until: u64,
    /// Greatest age in ns at which an entry is served, counted from the GET that fetched it.
    pub max_age_ns: u64,
    /// Age in ns from which one GET is let through to fetch the entry anew.
    pub refresh_age_ns: u64,
    /// How long in ns a write without a visible end stays outstanding.
    pub settle_ns: u64,
    /// How long in ns an unanswered request is remembered; below 2³⁷ (137 s), for the stamps of
    /// forgotten ones wrap around.
    pub remember_ns: u64,
    /// Buckets of the cache, elements of `INDEX` and `BLOCKS`, in a part of it.
    pub base: u32,
    /// How many parts of it are in use: a power of two, which only grows (see
    /// [`Extent`](crate::extent::Extent)).
    pub parts: u32,
    /// Elements of `CONTROL` that are in use.
    pub controls: u32,
    /// Smallest MTU of the attached interfaces, in bytes: no longer IP packet is sent.
    pub mtu: u32,
    /// Used elements of `doors`.
    pub doors_len: u32,
    /// Used elements of `allow4`.
    pub allow4_len: u32,
    /// Used elements of `allow6`.
    pub allow6_len: u32,
    /// Non-zero to serve also source ports below 1024.
    pub serve_reserved_ports: u32,
    /// Non-zero if the host takes data with a SYN on every listener (TCP Fast Open).
    pub has_fast_open: u32,
    /// What becomes of what comes and goes: an [`Attention`].
    pub attention: u32,
    /// When requests are answered over TCP, and how. `room` 0: no connection is translated, and nothing looks
    /// at `TRANSLATIONS`.
    pub policy: Policy,
    /// Elements of `FLOW_SETS`, a power of two.
    pub flow_sets: u64,
    /// Nanoseconds between two hits that one source is entitled to; 0 for no limit.
    pub rate_interval_ns: u64,
    /// How far in nanoseconds a source may be ahead of that: a burst's hits times the interval.
    pub rate_burst_ns: u64,
    /// Always 0, which the verifier does not know: added to a number, it makes the verifier forget
    /// what it has learnt of it (which takes all 64 bits).
    pub zero: u64,
    /// Used elements of `links`.
    pub links_len: u64,
    /// Frames of which the kernel would take a packet, and whom they are served to.
    pub links: [Link; MAX_LINKS],
    /// Who may be served over IPv4.
    pub allow4: [Net4; MAX_ALLOWED],
    /// Who may be served over IPv6.
    pub allow6: [Net6; MAX_ALLOWED],
    /// The backends' addresses and ports, exact addresses before wildcards.
    pub doors: [Door; MAX_DOORS],
    /// Bit `p % 64` of word `p / 64` is set when a door has port `p` (host byte order).
    pub ports: [u64; 1024],
    /// By how many ns the wall clock (`CLOCK_REALTIME`) is ahead of the monotonic one.
    pub wall_offset_ns: u64,
    /// Coarse monotonic time in ns at which `parts` became more; 0 if it never did. Of the entries of
    /// before, half are no longer looked for.
    pub grown_ns: u64,
    /// Non-zero if only segments with whole checksums are answered. A partial one, the sum of the pseudo header alone,
    /// may then be that of what the kernel has put together of several segments (GRO): it would take the answer apart
    /// again, and spoil its checksum.
    pub whole_sums: u64,
}

/// What becomes of what comes to memcached and leaves it.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Attention {
    /// Requests are followed and served, and all replies fill the cache.
    Learning = 0,
    /// The same, but nobody reads, so that what replies over TCP show is not worth storing.
    Following = 1,
    /// Everything passes, and nothing is noted but how much it is: nothing is served meanwhile. Only a `flush_all`
    /// with a delay that starts a datagram or a segment is heeded, for it may take effect when requests are
    /// followed again.
    Aside = 2,
}

/// An address and port at which a backend listens.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Door {
    /// IPv6 address in network byte order; an IPv4 address is mapped (`::ffff:a.b.c.d`). Ignored
    /// when `flags` has [`Door::ANY_ADDRESS`].
    pub address: [u32; 4],
    /// Port in network byte order.
    pub port: u16,
    /// Which backend: index into `BACKENDS`.
    pub backend: u8,
    /// [`Door::ANY_ADDRESS`], [`Door::SERVE_UDP`], [`Door::SERVE_TCP`], [`Door::LOOPBACK`], and what memcached has here:
    /// [`Door::HAS_UDP`], [`Door::HAS_TCP4`], [`Door::HAS_TCP6`].
    pub flags: u8,
}

impl Door {
    /// Matches every address: what arrives there invalidates, but is never served.
    pub const ANY_ADDRESS: u8 = 1;
    /// Hits may be served over UDP. Never without [`Door::HAS_UDP`].
    pub const SERVE_UDP: u8 = 2;
    /// memcached has a UDP socket for this very address: else what is sent from here over UDP may be
    /// another process's. Never with [`Door::ANY_ADDRESS`].
    pub const HAS_UDP: u8 = 4;
    /// memcached has a TCP listener for this address, or for every IPv4 address of the host.
    pub const HAS_TCP4: u8 = 8;
    /// The same for IPv6.
    pub const HAS_TCP6: u8 = Self::HAS_TCP4 << 1;
    /// A loopback address: only what arrives on the loopback interface is for it (a frame from elsewhere the kernel
    /// drops).
    pub const LOOPBACK: u8 = 1 << 5;
    /// Hits may be served over TCP. Translation does not depend on it.
    pub const SERVE_TCP: u8 = 1 << 6;
    /// The flags of the doors that most traffic is for: exact, served over UDP.
    pub const SERVED: u8 = Self::SERVE_UDP | Self::HAS_UDP;
    /// The flags that those doors have or have not.
    pub const SERVED_MASK: u8 = Self::SERVED | Self::LOOPBACK;
}

/// Frames that the kernel takes: with these VLAN tags, at this interface, to this MAC address. Any other
/// is passed, for the kernel to drop it or hand it on.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Link {
    /// Where frames arrive: see [`Link::place`]. Never 0.
    pub place: u64,
    /// The six bytes of the MAC address as the first in memory, then two zeros.
    pub mac: u64,
    /// Whose hosts are served here: a bit for each network of the [`Config`], see
    /// [`Link::allow_bit`].
    pub allow: u64,
}

impl Link {
    /// The bytes of a MAC address in a word that was read at its start.
    pub const MAC: u64 = u64::from_ne_bytes([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]);

    /// The number of the bit of `allow` that stands for `allow4[number]` or `allow6[number]`.
    #[inline(always)]
    #[must_use]
    pub const fn allow_bit(v6: bool, number: usize) -> usize {
        number + if v6 { MAX_ALLOWED } else { 0 }
    }

    /// The place of frames with these tags (see [`Link::tag`]) at an interface.
    #[inline(always)]
    #[must_use]
    pub const fn place(interface: u32, outer: u32, inner: u32) -> u64 {
        // A tag that is none leaves its place to the other.
        let tags = if outer == 0 {
            inner
        } else {
            outer | inner << 16
        };
        interface as u64 | (tags as u64) << 32
    }

    /// Number of the interface at which its frames arrive.
    #[inline(always)]
    #[must_use]
    pub const fn interface(&self) -> u32 {
        self.place as u32
    }

    /// A VLAN tag in 16 bits; 0 if its VLAN is 0, as it then tells a priority and nothing else
    /// (IEEE 802.1Q, 6.9). `control` is the tag's second half in host byte order.
    #[inline(always)]
    #[must_use]
    pub const fn tag(is_service: bool, control: u16) -> u32 {
        match control as u32 & 0x0fff {
            0 => 0,
            id => id | 0x8000 | (is_service as u32) << 14,
        }
    }
}

/// The 32-bit word before the address in an IPv4-mapped IPv6 address (RFC 4291, 2.5.5.2), in
/// network byte order.
pub const MAPPED_V4: u32 = 0xffff_u32.to_be();

/// An IPv4 network, both words in network byte order, `address` already masked.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Net4 {
    /// Address of the network.
    pub address: u32,
    /// Its mask.
    pub mask: u32,
}

impl Net4 {
    /// Whether this address (network byte order) is one that a host in the network can have: no
    /// group's, not the first or last of the network, which are for broadcasts (unless it has two
    /// addresses or one, RFC 3021).
    #[inline(always)]
    #[must_use]
    pub const fn has_host(&self, address: u32) -> bool {
        let host = address & !self.mask;
        let is_broadcast = (host == 0 || host == !self.mask) && !self.mask.to_be() > 1;
        // 224.0.0.0/3 are groups, reserved, and the broadcast address.
        address & self.mask == self.address && !is_broadcast && (address as u8) < 224
    }
}

/// An IPv6 network, words in network byte order, `address` already masked.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Net6 {
    /// Address of the network.
    pub address: [u32; 4],
    /// Its mask.
    pub mask: [u32; 4],
}

impl Config {
    /// A configuration without doors: the datapath passes everything.
    #[must_use]
    pub const fn empty() -> Self {
        Self {
            seed: 0,
            serve_until: 0,
            max_age_ns: 0,
            refresh_age_ns: 0,
            settle_ns: 0,
            remember_ns: 0,
            base: 1,
            parts: 1,
            controls: 1,
            mtu: 0,
            doors_len: 0,
            allow4_len: 0,
            allow6_len: 0,
            serve_reserved_ports: 0,
            has_fast_open: 0,
            attention: Attention::Learning as u32,
            policy: Policy {
                is_serving: 0,
                forward_after: 0,
                trickle: 0,
                resend_after: 0,
                room: 0,
            },
            flow_sets: FLOW_SETS as u64,
            rate_interval_ns: 0,
            rate_burst_ns: 0,
            zero: 0,
            links_len: 0,
            links: [Link {
                place: 0,
                mac: 0,
                allow: 0,
            }; MAX_LINKS],
            allow4: [Net4 {
                address: 0,
                mask: 0,
            }; MAX_ALLOWED],
            allow6: [Net6 {
                address: [0; 4],
                mask: [0; 4],
            }; MAX_ALLOWED],
            doors: [Door {
                address: [0; 4],
                port: 0,
                backend: 0,
                flags: 0,
            }; MAX_DOORS],
            ports: [0; 1024],
            wall_offset_ns: 0,
            grown_ns: 0,
            whole_sums: 0,
        }
    }

    /// Where the entry of the key with this hash is.
    #[inline(always)]
    #[must_use]
    pub const fn place(&self, hash: u64) -> Place {
        Place::of(hash, self.base, self.parts)
    }

    /// Marks `port` (host byte order) as one that some door has.
    pub const fn add_port(&mut self, port: u16) {
        self.ports[port as usize / 64] |= 1 << (port % 64);
    }
}

const _: () = assert!(size_of::<Door>() == 20);
const _: () = assert!(size_of::<Link>() == 24);
const _: () = assert!(MAX_ALLOWED == 32);
const _: () = assert!(size_of::<Config>().is_multiple_of(64));
const _: () = assert!(core::mem::offset_of!(Config, base) == 48);
