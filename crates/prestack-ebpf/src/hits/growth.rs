//! By how much the packets of an interface cannot grow, as far as it was seen: an answer that will not fit is not
//! copied in vain.

use aya_ebpf::programs::XdpContext;

use crate::scratch::Scratch;

/// After so many answers that were not tried one is: packets may have more room than the one that had not.
const SPARED: u64 = 256;

/// The least growth that a packet was refused.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Refused {
    /// The number of its interface; 0 if there was none lately.
    interface: u64,
    /// Bytes.
    growth: u64,
    /// Answers that were not tried since.
    spared: u64,
}

/// The packet was refused this growth.
#[inline(always)]
pub fn refuse(ctx: &XdpContext, scratch: *mut Scratch, growth: u64) {
    // SAFETY: this CPU's scratch. Volatile, or the compiler makes it a call to memcpy.
    unsafe {
        let refused = &raw mut (*scratch).refused;
        (&raw mut (*refused).interface).write_volatile(ctx.ingress_ifindex() as u64);
        (&raw mut (*refused).growth).write_volatile(growth);
        (&raw mut (*refused).spared).write_volatile(0);
    }
}

/// Whether a packet of this interface was refused as much before.
#[inline(always)]
pub fn is_refused(ctx: &XdpContext, scratch: *mut Scratch, growth: u64) -> bool {
    // SAFETY: this CPU's scratch.
    unsafe {
        let refused = &raw mut (*scratch).refused;
        if (*refused).interface != ctx.ingress_ifindex() as u64 || growth < (*refused).growth {
            return false;
        }
        (*refused).spared += 1;
        if (*refused).spared >= SPARED {
            (*refused).interface = 0;
        }
    }
    true
}
