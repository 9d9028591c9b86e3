//! A segment arrives from the client.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use prestack_abi::translated::Translated;
use prestack_proto::net::{TCP_FIN, TCP_LEN, TCP_RST, TCP_SYN};
use prestack_translate::{Arrival, Segment};

use super::element::{self, locked};
use super::numbered;
use crate::clock;
use crate::inbound::Inbound as _;
use crate::ledger::backend::{self, Arrival as Door};
use crate::maps::count;
use crate::packet::{Headers, Ipv4, Ipv6, Packet};
use crate::rx::again;
use crate::scratch::{Located, Scratch, scratch};
use crate::tcp::segment::name_of;
use crate::tcp::table;

/// What [`prestack_hits_find`] says of a segment: nothing is to be done; it is of a connection on which nothing is
/// answered, and is to be followed; requests may be answered on its connection, and its options are usual, or are
/// to be looked at.
pub const NOTHING: u64 = 0;
pub const FOLLOW: u64 = 1;
pub const USUAL: u64 = 2;
pub const UNUSUAL: u64 = 3;
/// The same of a plain segment: see `express`.
pub const PLAIN: u64 = 4;
/// It is in a packet that this does not look into: see `odd`.
pub const ODD: u64 = 5;

/// Finds the connection of the segment in the packet.
///
/// A global function (by its unmangled name), as those that follow: the verifier checks it once.
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn prestack_hits_find(ctx: *mut xdp_md) -> u64 {
    // What cannot be told here, the other steps may still understand: it may be a write.
    find(&XdpContext::new(ctx)).unwrap_or(FOLLOW)
}

#[inline(always)]
fn find(ctx: &XdpContext) -> Option<u64> {
    let scratch = scratch()?;
    let Some((config, packet, headers, door)) = again(ctx) else {
        return Some(ODD);
    };
    let (segment, options, is_usual) =
        numbered::read(packet, &headers, is_congested(packet, &headers))?;
    let other = if is_followed(&segment) {
        FOLLOW
    } else {
        NOTHING
    };
    let key = numbered::key(&headers, false);
    let known = table::find(name_of(config, &key), clock::now());
    let Some(known) = known.filter(|_| !segment.has(TCP_SYN)) else {
        return Some(other);
    };
    if element::state(element::at(known.place)?) != Translated::READY {
        return Some(other);
    }
    note(scratch, &segment, options, headers, door, known.place);
    Some(if is_usual { USUAL } else { UNUSUAL })
}

/// Leaves the segment, and where it is, in the scratch for the steps that follow.
#[inline(always)]
pub fn note(
    scratch: *mut Scratch,
    segment: &Segment,
    options: u64,
    headers: Headers,
    door: Door,
    place: u32,
) {
    // SAFETY: this CPU's scratch. Volatile, or the compiler makes it a call to memcpy.
    unsafe {
        let numbered = &raw mut (*scratch).numbered;
        (&raw mut (*numbered).segment).write_volatile(*segment);
        (&raw mut (*numbered).place).write_volatile(place);
        (&raw mut (*numbered).l3).write_volatile(headers.l3);
        (&raw mut (*numbered).l4).write_volatile(headers.l4);
        (&raw mut (*numbered).options).write_volatile(options);
        (&raw mut (*numbered).v6).write_volatile(headers.v6.into());
        (&raw mut (*numbered).found.count).write_volatile(0);
        (&raw mut (*numbered).answer).write_volatile(0);
        (&raw mut (*scratch).located).write_volatile(Located {
            headers,
            backend: u64::from(door.backend),
            flags: u64::from(door.flags),
            frame: 0,
            payload: 0,
            len: 0,
            network: 0,
        });
    }
}

/// Whether a segment is to be followed: others tell nothing of the requests.
#[inline(always)]
pub fn is_followed(segment: &Segment) -> bool {
    segment.len != 0 || segment.has(TCP_FIN | TCP_RST)
}

/// Whether the IP header says that congestion was experienced.
#[inline(always)]
fn is_congested(packet: Packet, headers: &Headers) -> bool {
    const EXPERIENCED: u8 = 3;
    if headers.v6 {
        let Some(ip) = packet.at::<Ipv6>(headers.l3) else {
            return true;
        };
        // SAFETY: `at` checked the length.
        let class = unsafe { u32::from_be((*ip).version_class_flow) } >> 20;
        class as u8 & EXPERIENCED == EXPERIENCED
    } else {
        let Some(ip) = packet.at::<Ipv4>(headers.l3) else {
            return true;
        };
        // SAFETY: as above.
        unsafe { (*ip).tos & EXPERIENCED == EXPERIENCED }
    }
}

/// Looks at the options of the segment. 0 if they are not there, and the kernel drops it.
///
/// # Safety
///
/// `ctx` is the program's context.
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn prestack_hits_options(ctx: *mut xdp_md) -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    let ctx = XdpContext::new(ctx);
    // SAFETY: this CPU's scratch, whose window is longer than options.
    unsafe {
        let numbered = &mut (*scratch).numbered;
        let at = numbered.l4 + TCP_LEN as u64;
        let size = numbered::options_size(numbered.options);
        if !ctx.load(at as u32, (*scratch).head.start().cast(), size) {
            return 0;
        }
        numbered::read_options(numbered, &(*scratch).head);
    }
    1
}

/// The segment arrives: [`GO`] or what is to be sent in its place. The header of an acknowledgement is then in the
/// scratch's `numbered`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn prestack_hits_arrive() -> u64 {
    let (Some(scratch), Some(config)) = (scratch(), backend::config()) else {
        return GO;
    };
    let now = clock::now();
    // SAFETY: this CPU's scratch.
    let numbered = unsafe { &mut (*scratch).numbered };
    let Some(element) = element::at(numbered.place) else {
        return GO;
    };
    let segment = numbered.segment;
    let policy = config.policy;
    let result = locked(element, |_, ends, translation| {
        numbered.has_timestamps = translation.agreement.has_timestamps().into();
        if translation.is_active == 0 {
            return GO;
        }
        let was_missing = translation.is_unacknowledged();
        let arrival = translation.arrive(ends, &policy, &segment, now);
        let received = if was_missing && !translation.is_unacknowledged() {
            RECEIVED
        } else {
            0
        };
        let action = match arrival {
            Arrival::Go => GO,
            Arrival::Resend => RESEND,
            Arrival::Acknowledge => {
                numbered.reply = translation.reply_bare(ends, &segment);
                numbered.answer = 0;
                ACKNOWLEDGE
            }
        };
        action | received
    });
    if result & RECEIVED != 0 {
        count!(tcp_received);
    }
    result & !RECEIVED
}

/// The client has acknowledged the last answer.
const RECEIVED: u64 = 8;

/// What [`prestack_hits_arrive`] returns.
pub const GO: u64 = 0;
pub const RESEND: u64 = 1;
pub const ACKNOWLEDGE: u64 = 2;
