//! Backends: doors, epochs, and emptying the cache.

use prestack_abi::backend::{Backend, MAX_BACKENDS};
use prestack_abi::config::{Config, Door, MAX_DOORS};

use crate::atomic;
use crate::cache::fence;
use crate::clock;
use crate::maps::{BACKENDS, CONFIG, count};

/// The configuration.
#[inline(always)]
pub fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}

/// Whether some door has this port (network byte order): all that most packets cost.
#[inline(always)]
pub fn is_port(config: &Config, port: u16) -> bool {
    let port = u16::from_be(port);
    config.ports[usize::from(port >> 6)] >> (port & 63) & 1 != 0
}

/// What matters of a door at which a packet arrives. A copy: a pointer into the list would keep
/// the verifier's paths for each door apart.
#[derive(Clone, Copy)]
pub struct Arrival {
    /// Which backend.
    pub backend: u8,
    /// The door's flags.
    pub flags: u8,
}

/// The door at which a packet with this destination arrives.
#[inline(always)]
pub fn door(config: &Config, address: &[u32; 4], port: u16) -> Option<Arrival> {
    for i in 0..MAX_DOORS {
        if i as u32 >= config.doors_len {
            break;
        }
        let door = &config.doors[i];
        if door.port == port && (door.flags & Door::ANY_ADDRESS != 0 || door.address == *address) {
            return Some(Arrival { backend: door.backend, flags: door.flags });
        }
    }
    None
}

/// A backend's state.
#[inline(always)]
pub fn backend(number: u8) -> Option<*mut Backend> {
    BACKENDS.get_ptr_mut(u32::from(number))
}

/// A backend's epoch, as entries and tickets hold it.
#[inline(always)]
pub fn epoch(backend: *const Backend) -> u32 {
    // SAFETY: `backend` is an element of `BACKENDS`.
    unsafe { (&raw const (*backend).epoch).read_volatile() as u32 }
}

/// Empties a backend's cache and gives no tickets for the settle time: something may change any of
/// its items.
#[inline(always)]
pub fn forget(config: &Config, number: u8) {
    let Some(backend) = backend(number) else { return };
    // SAFETY: `backend` is an element of `BACKENDS`; other CPUs change it too, and atomically what
    // they must not lose.
    unsafe {
        (&raw mut (*backend).quiet_until).write_volatile(clock::now() + config.settle_ns);
        fence();
        atomic::add(&raw mut (*backend).epoch, 1);
    }
    count!(forgets);
}

/// Empties the caches of all backends that a packet to this address may reach.
#[inline(never)]
pub fn forget_address(address: &[u32; 4]) {
    let Some(config) = config() else { return };
    let mut reached = 0u64;
    for i in 0..MAX_DOORS {
        if i as u32 >= config.doors_len {
            break;
        }
        let door = &config.doors[i];
        if door.flags & Door::ANY_ADDRESS != 0 || door.address == *address {
            reached |= 1 << (door.backend & 63);
        }
    }
    for number in 0..MAX_BACKENDS as u8 {
        if reached >> number & 1 != 0 {
            forget(config, number);
        }
    }
}
