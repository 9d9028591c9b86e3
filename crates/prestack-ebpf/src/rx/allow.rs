//! Who may be served.

use prestack_abi::config::{Config, MAX_ALLOWED};
use prestack_proto::net::{MAC_GROUP, MEMCACHED_PORT, RESERVED_PORTS};

use crate::ledger::backend;
use crate::packet::{Headers, Packet};

/// Whether a reply could go elsewhere than to one client that asked: two servers could be made to
/// answer one another for ever, or a group to get what one has asked for.
#[inline(always)]
pub fn is_spoof_prone(config: &Config, packet: Packet, headers: &Headers) -> bool {
    let port = u16::from_be(headers.source_port());
    let (Some(to), Some(from)) = (packet.read::<u8>(0), packet.read::<u8>(6)) else {
        return true;
    };
    (port < RESERVED_PORTS && config.serve_reserved_ports == 0)
        || port == MEMCACHED_PORT
        || headers.source_port() == headers.destination_port()
        || (to | from) & MAC_GROUP != 0
}

/// Whether a source may be served from the cache.
#[inline(always)]
pub fn is_allowed(config: &Config, v6: bool, source: &[u32; 4]) -> bool {
    // Most hosts have one network for the clients that matter: it spares them the call.
    let first = &config.allow4[0];
    if !v6 && config.allow4_len != 0 && first.has_host(source[3]) {
        return true;
    }
    let high = u64::from(source[1]) << 32 | u64::from(source[0]);
    let low = u64::from(source[3]) << 32 | u64::from(source[2]);
    prestack_is_allowed(u64::from(v6), high, low) != 0
}

/// A global function (by its unmangled name): the verifier checks it once, for all arguments, and
/// not again on every path to it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_is_allowed(v6: u64, high: u64, low: u64) -> u64 {
    let Some(config) = backend::config() else {
        return 0;
    };
    let source = [
        high as u32,
        (high >> 32) as u32,
        low as u32,
        (low >> 32) as u32,
    ];
    u64::from(if v6 != 0 {
        is_allowed_v6(config, &source)
    } else {
        is_allowed_v4(config, source[3])
    })
}

#[inline(always)]
fn is_allowed_v4(config: &Config, source: u32) -> bool {
    for i in 0..MAX_ALLOWED {
        if i as u32 >= config.allow4_len {
            break;
        }
        let network = &config.allow4[i];
        if network.has_host(source) {
            return true;
        }
    }
    false
}

#[inline(always)]
fn is_allowed_v6(config: &Config, source: &[u32; 4]) -> bool {
    // ff00::/8 are groups, and :: is no address.
    if source[0] as u8 == 0xff || source[0] | source[1] | source[2] | source[3] == 0 {
        return false;
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
            return true;
        }
    }
    false
}
