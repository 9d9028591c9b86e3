//! Who may be served.

use prestack_abi::config::{Config, Link, MAX_ALLOWED};
use prestack_proto::net::{MAC_GROUP, MEMCACHED_PORT, RESERVED_PORTS};

use crate::ledger::backend;

/// Whether a reply could go elsewhere than to one client that asked: two servers could be made to
/// answer one another for ever, or a group to get what one has asked for. `ports` are the first word of
/// the UDP header, `macs` that of the frame.
#[inline(always)]
pub fn is_spoof_prone(config: &Config, ports: u32, macs: u64) -> bool {
    let (source, destination) = (ports as u16, (ports >> 16) as u16);
    let port = u16::from_be(source);
    (port < RESERVED_PORTS && config.serve_reserved_ports == 0)
        || port == MEMCACHED_PORT
        || source == destination
        || (macs | macs >> 48) & u64::from(MAC_GROUP) != 0
}

/// The first network of the allow list that a source is in.
#[derive(Clone, Copy)]
pub struct Network(u64);

impl Network {
    /// Bits of [`Network::bits`].
    pub const BITS: u64 = 0x7f;

    /// From the least significant bit: whether there is one (1 bit), and its number in `Link::allow`.
    #[inline(always)]
    pub fn bits(self) -> u64 {
        self.0 & Self::BITS
    }

    #[inline(always)]
    pub fn from_bits(bits: u64) -> Self {
        Self(bits & Self::BITS)
    }

    /// The source is in no network.
    #[inline(always)]
    pub fn none() -> Self {
        Self(0)
    }

    #[inline(always)]
    const fn number(v6: bool, number: usize) -> Self {
        Self(1 | (Link::allow_bit(v6, number) as u64) << 1)
    }

    /// Whether the source is in any network.
    #[inline(always)]
    pub fn is_some(self) -> bool {
        self.0 & 1 != 0
    }

    /// Whether the source is in a network, and that is one of `networks`, a bit each.
    #[inline(always)]
    pub fn is_among(self, networks: u64) -> bool {
        self.0 & networks >> (self.0 >> 1 & 0x3f) & 1 != 0
    }
}

/// The first network of the allow list that a source is in; narrower ones precede those around them.
#[inline(always)]
pub fn network(config: &Config, v6: bool, source: &[u32; 4]) -> Network {
    // Most hosts have one network for the clients that matter: it spares them the call.
    let first = &config.allow4[0];
    if !v6 && config.allow4_len != 0 && first.has_host(source[3]) {
        return Network::number(false, 0);
    }
    let high = u64::from(source[1]) << 32 | u64::from(source[0]);
    let low = u64::from(source[3]) << 32 | u64::from(source[2]);
    Network(prestack_network(u64::from(v6), high, low))
}

/// A global function (by its unmangled name): the verifier checks it once, for all arguments, and
/// not again on every path to it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_network(v6: u64, high: u64, low: u64) -> u64 {
    let Some(config) = backend::config() else {
        return 0;
    };
    let source = [
        high as u32,
        (high >> 32) as u32,
        low as u32,
        (low >> 32) as u32,
    ];
    let network = if v6 != 0 {
        network_v6(config, &source)
    } else {
        network_v4(config, source[3])
    };
    network.map_or(0, Network::bits)
}

#[inline(always)]
fn network_v4(config: &Config, source: u32) -> Option<Network> {
    for i in 0..MAX_ALLOWED {
        if i as u32 >= config.allow4_len {
            break;
        }
        let network = &config.allow4[i];
        if network.has_host(source) {
            return Some(Network::number(false, i));
        }
    }
    None
}

#[inline(always)]
fn network_v6(config: &Config, source: &[u32; 4]) -> Option<Network> {
    // ff00::/8 are groups, and :: is no address.
    if source[0] as u8 == 0xff || source[0] | source[1] | source[2] | source[3] == 0 {
        return None;
    }
    for i in 0..MAX_ALLOWED {
        if i as u32 >= config.allow6_len {
            break;
        }
        let network = &config.allow6[i];
        if source[0] & network.mask[0] == network.address[0]
            && source[1] & network.mask[1] == network.address[1]
            && source[2] & network.mask[2] == network.address[2]
            && source[3] & network.mask[3] == network.address[3]
        {
            return Some(Network::number(true, i));
        }
    }
    None
}
