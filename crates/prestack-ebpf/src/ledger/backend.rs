//! Backends: doors, epochs, and emptying the cache.

use prestack_abi::backend::{Backend, MAX_BACKENDS};
use prestack_abi::config::{Config, Door, MAX_DOORS};

use super::flushes;
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
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Arrival {
    /// Which backend.
    pub backend: u8,
    /// The door's flags, and [`Arrival::LOCAL`].
    pub flags: u8,
}

impl Arrival {
    /// The packet is from this host to itself. No flag of a door.
    pub const LOCAL: u8 = 1 << 7;

    /// The same door for a packet from this host to itself: nobody is served, nothing is learnt over UDP,
    /// and no address is another host's.
    #[inline(always)]
    pub fn locally(self) -> Self {
        Self {
            flags: self.flags & (Door::HAS_TCP4 | Door::HAS_TCP6) | Self::LOCAL,
            ..self
        }
    }

    /// Whether the packet is from this host to itself.
    #[inline(always)]
    pub fn is_local(self) -> bool {
        self.flags & Self::LOCAL != 0
    }

    /// Whether what this door's address sends over TCP is memcached's: not another host's behind this
    /// one, and not that of another process of this one.
    #[inline(always)]
    pub fn has_tcp(self, v6: bool) -> bool {
        let has = Door::HAS_TCP4 << v6 as u8;
        self.flags & (Door::ANY_ADDRESS | has) == has
    }

    /// The same over UDP.
    #[inline(always)]
    pub fn has_udp(self) -> bool {
        self.flags & Door::HAS_UDP != 0
    }
}

/// The door at which a packet with this destination arrives.
#[inline(always)]
pub fn door(config: &Config, address: &[u32; 4], port: u16) -> Option<Arrival> {
    // Most hosts have one for the traffic that matters: it spares them the call.
    let first = &config.doors[0];
    if first.port == port && is_same(&first.address, address) && config.doors_len != 0 {
        return Some(Arrival {
            backend: first.backend,
            flags: first.flags,
        });
    }
    let high = u64::from(address[1]) << 32 | u64::from(address[0]);
    let low = u64::from(address[3]) << 32 | u64::from(address[2]);
    let door = prestack_door(high, low, u64::from(port));
    (door & FOUND != 0).then_some(Arrival {
        backend: door as u8,
        flags: (door >> 8) as u8,
    })
}

/// Set in what [`prestack_door`] returns if there is a door.
const FOUND: u64 = 1 << 16;

/// A global function (by its unmangled name): the verifier checks it once, for all arguments, and
/// not again on every path to it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prestack_door(high: u64, low: u64, port: u64) -> u64 {
    let Some(config) = config() else { return 0 };
    let address = [
        high as u32,
        (high >> 32) as u32,
        low as u32,
        (low >> 32) as u32,
    ];
    for i in 0..MAX_DOORS {
        if i as u32 >= config.doors_len {
            break;
        }
        let door = &config.doors[i];
        if u64::from(door.port) == port
            && (door.flags & Door::ANY_ADDRESS != 0 || is_same(&door.address, &address))
        {
            return FOUND | u64::from(door.flags) << 8 | u64::from(door.backend);
        }
    }
    0
}

/// Compares addresses word by word: a comparison of arrays is a call to bcmp.
#[inline(always)]
fn is_same(a: &[u32; 4], b: &[u32; 4]) -> bool {
    a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3]
}

/// A backend's state.
#[inline(always)]
pub fn backend(number: u8) -> Option<*mut Backend> {
    BACKENDS.get_ptr_mut(u32::from(number))
}

/// A backend's epoch, as entries and tickets hold it. While a delayed flush may take effect it is one
/// that no entry has.
#[inline(always)]
pub fn epoch(backend: *const Backend, now: u64) -> u32 {
    let is_due = flushes::is_due(backend, now);
    fence();
    // SAFETY: `backend` is an element of `BACKENDS`.
    let epoch = unsafe { (&raw const (*backend).epoch).read_volatile() as u32 };
    epoch ^ u32::from(is_due) << 31
}

/// Whether this memcached was seen answering over UDP.
#[inline(always)]
pub fn answers_udp(backend: *const Backend) -> bool {
    // SAFETY: `backend` is an element of `BACKENDS`.
    unsafe { (&raw const (*backend).answers_udp).read_volatile() != 0 }
}

/// Notes that a memcached has answered over UDP.
#[inline(always)]
pub fn has_answered_udp(number: u8) {
    let Some(backend) = backend(number) else {
        return;
    };
    if !answers_udp(backend) {
        // SAFETY: `backend` is an element of `BACKENDS`.
        unsafe { (&raw mut (*backend).answers_udp).write_volatile(1) };
    }
}

/// Empties a backend's cache and gives no tickets for the settle time: something may change any of
/// its items.
#[inline(always)]
pub fn forget(config: &Config, number: u8) {
    let Some(backend) = backend(number) else {
        return;
    };
    // SAFETY: `backend` is an element of `BACKENDS`; other CPUs change it too, and atomically what
    // they must not lose.
    unsafe {
        (&raw mut (*backend).quiet_until).write_volatile(clock::now() + config.settle_ns);
        fence();
        atomic::add(&raw mut (*backend).epoch, 1);
    }
    count!(forgets);
}

/// Empties the cache of a backend that has lost a socket, gives no tickets for the settle time, and serves
/// nothing over UDP until it was seen answering there anew.
///
/// Not for programs on packets: it counts nothing, since they might interrupt it.
#[inline(always)]
pub fn has_ended(config: &Config, number: u8) {
    let Some(backend) = backend(number) else {
        return;
    };
    // SAFETY: as in `forget`.
    unsafe {
        (&raw mut (*backend).answers_udp).write_volatile(0);
        (&raw mut (*backend).quiet_until).write_volatile(clock::now() + config.settle_ns);
        fence();
        atomic::add(&raw mut (*backend).epoch, 1);
    }
}

/// Gives no tickets for the settle time: something may be changing any of the backend's items.
#[inline(always)]
pub fn be_quiet(config: &Config, number: u8) {
    let Some(backend) = backend(number) else {
        return;
    };
    let until = clock::now() + config.settle_ns;
    // SAFETY: `backend` is an element of `BACKENDS`.
    unsafe { (&raw mut (*backend).quiet_until).write_volatile(until) };
}

/// Gives no tickets until as many calls of [`go_on`] have been made as of this.
#[inline(always)]
pub fn wait(number: u8) {
    if let Some(backend) = backend(number) {
        // SAFETY: `backend` is an element of `BACKENDS`.
        unsafe { atomic::add(&raw mut (*backend).waits, 1) };
    }
}

/// Ends one [`wait`].
#[inline(always)]
pub fn go_on(number: u8) {
    if let Some(backend) = backend(number) {
        // SAFETY: `backend` is an element of `BACKENDS`.
        unsafe { atomic::add(&raw mut (*backend).waits, u64::MAX) };
    }
}

/// One flow more is owed a reply to a write without a mark.
#[inline(always)]
pub fn crowd(number: u8) {
    if let Some(backend) = backend(number) {
        // SAFETY: `backend` is an element of `BACKENDS`.
        unsafe { atomic::add(&raw mut (*backend).crowding, 1) };
    }
}

/// A flow has ended its writes without marks.
#[inline(always)]
pub fn thin_out(number: u8) {
    let Some(backend) = backend(number) else {
        return;
    };
    let now = clock::now();
    // SAFETY: `backend` is an element of `BACKENDS`. A flow that begins to crowd after this has made the
    // count 0 does so after `now`.
    unsafe {
        atomic::add(&raw mut (*backend).crowding, u64::MAX);
        if (&raw const (*backend).crowding).read_volatile() == 0 {
            (&raw mut (*backend).calm_at).write_volatile(now);
        }
    }
}

/// Empties the caches of all backends that a packet to this address may reach.
#[inline(never)]
pub fn forget_address(address: &[u32; 4]) {
    forget_reached_by(|door| is_same(&door.address, address));
}

/// Empties the caches of all backends.
#[inline(never)]
pub fn forget_all() {
    forget_reached_by(|_| true);
}

#[inline(always)]
fn forget_reached_by(reaches: impl Fn(&Door) -> bool) {
    let Some(config) = config() else { return };
    let mut reached = 0u64;
    for i in 0..MAX_DOORS {
        if i as u32 >= config.doors_len {
            break;
        }
        let door = &config.doors[i];
        if door.flags & Door::ANY_ADDRESS != 0 || reaches(door) {
            reached |= 1 << (door.backend & 63);
        }
    }
    for number in 0..MAX_BACKENDS as u8 {
        if reached >> number & 1 != 0 {
            forget(config, number);
        }
    }
}
