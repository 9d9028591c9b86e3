//! BPF programs for measuring another one under `BPF_PROG_TEST_RUN`: `request` makes the packet a
//! fresh request and goes over to the program under test; `echo` is the program that does nothing,
//! whose cost is to be taken off.
//!
//! Repeated runs share one packet, which the first has already turned into a reply. `request`
//! writes all of it anew, and brings it back to a request's length.
#![no_std]
#![no_main]
#![expect(
    missing_docs,
    reason = "the program attributes generate functions without comments"
)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

mod bounce;
mod flood;
mod segment;
mod sequence;
mod wire;

use aya_ebpf::Global;
use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_TX};
use aya_ebpf::btf_maps::{Array, ProgramArray};
use aya_ebpf::helpers::generated::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail};
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;

/// Most words of eight bytes in a request.
const MAX_WORDS: usize = 24;
/// Most keys in a request.
const MAX_KEYS: usize = 8;

// What user space sets before it loads the programs (crates/prestack-bench/src/kernel). The verifier
// knows these values, and leaves out what they make unreachable.

/// The request, from its Ethernet header. Its UDP checksum is zero, and so is what is filled in: the
/// id, and the last eight bytes of each key.
#[unsafe(no_mangle)]
static REQUEST: Global<[u64; MAX_WORDS]> = Global::new([0; MAX_WORDS]);
/// Its last eight bytes.
#[unsafe(no_mangle)]
static LAST: Global<u64> = Global::new(0);
/// Its length in bytes, at least 8.
#[unsafe(no_mangle)]
static LEN: Global<u64> = Global::new(8);
/// One's-complement sum of its UDP datagram and pseudo header, not folded.
#[unsafe(no_mangle)]
static SUM: Global<u64> = Global::new(0);
/// Position of the UDP checksum; the id follows it.
#[unsafe(no_mangle)]
static CHECKSUM_AT: Global<u64> = Global::new(0);
/// How many keys it has.
#[unsafe(no_mangle)]
static KEYS: Global<u64> = Global::new(1);
/// Position of the last eight bytes of each.
#[unsafe(no_mangle)]
static DIGITS_AT: Global<[u64; MAX_KEYS]> = Global::new([0; MAX_KEYS]);
/// Number of the first key that may be asked for.
#[unsafe(no_mangle)]
static FIRST_NUMBER: Global<u64> = Global::new(0);
/// How many keys may be asked for.
#[unsafe(no_mangle)]
static NUMBERS: Global<u64> = Global::new(1);
/// Not 0: packets are cut at their head, so that one which was put at the end of its buffer stays
/// there.
#[unsafe(no_mangle)]
static CUT_HEAD: Global<u64> = Global::new(0);

/// The state of the [`sequence`].
#[btf_map]
static STATE: Array<u64, 1> = Array::new();

/// The program under test.
#[btf_map]
pub static TARGET: ProgramArray<1> = ProgramArray::new();

/// Makes the packet a request and runs the program under test on it.
#[xdp(frags)]
pub fn request(ctx: XdpContext) -> u32 {
    if write(&ctx).is_some() {
        // SAFETY: nothing here is to be dropped.
        unsafe { TARGET.tail_call(&ctx, 0) };
    }
    XDP_ABORTED
}

/// The program under test, where it takes no packets in pieces: the kernel has such programs follow only
/// their like.
#[btf_map]
static PLAIN_TARGET: ProgramArray<1> = ProgramArray::new();

/// [`request`] for such a program.
#[xdp]
pub fn plain_request(ctx: XdpContext) -> u32 {
    if write(&ctx).is_some() {
        // SAFETY: as above.
        unsafe { PLAIN_TARGET.tail_call(&ctx, 0) };
    }
    XDP_ABORTED
}

/// [`echo`] for such a program.
#[xdp]
pub fn plain_echo(_: XdpContext) -> u32 {
    XDP_TX
}

/// Does nothing.
#[xdp(frags)]
pub fn echo(_: XdpContext) -> u32 {
    XDP_TX
}

/// Makes the packet the next request. `None` if it cannot be given the right length.
#[inline(always)]
fn write(ctx: &XdpContext) -> Option<()> {
    let len = LEN.load() as usize;
    let excess = (ctx.data_end() - ctx.data()) as i32 - len as i32;
    // Also when there is nothing to cut, as in runs of `echo`: both are to cost the same.
    // SAFETY: `ctx.ctx` is the program's context.
    let is_cut = unsafe {
        if CUT_HEAD.load() != 0 {
            bpf_xdp_adjust_head(ctx.ctx, excess)
        } else {
            bpf_xdp_adjust_tail(ctx.ctx, -excess)
        }
    };
    let packet = ctx.data() as *mut u8;
    if is_cut != 0 || len < 8 || ctx.data() + len > ctx.data_end() {
        return None;
    }
    let state_at = STATE.get_ptr_mut(0)?;
    // SAFETY: an element of the map.
    let state = unsafe { state_at.read_volatile() };
    let id = sequence::id(state);

    let words = REQUEST.load();
    for (i, word) in words.into_iter().enumerate() {
        if 8 * i + 8 > len {
            break;
        }
        // SAFETY: the packet has `len` bytes. Volatile, or the compiler makes the loop a call to
        // memcpy. BPF writes words at any address, here and below.
        unsafe { packet.add(8 * i).cast::<u64>().write_volatile(word) };
    }
    // SAFETY: as above.
    unsafe {
        packet
            .add(len - 8)
            .cast::<u64>()
            .write_volatile(LAST.load())
    };

    let mut sum = SUM.load() + u64::from(id);
    let places = DIGITS_AT.load();
    for (i, at) in places.into_iter().enumerate() {
        if i as u64 >= KEYS.load() {
            break;
        }
        let number = (sequence::random(state, i as u64) >> 32) * NUMBERS.load();
        let digits = hexadecimal((number >> 32) + FIRST_NUMBER.load());
        // At an odd position they count with their bytes the other way round.
        let counted = if at & 1 == 0 {
            digits
        } else {
            digits.swap_bytes()
        };
        sum += (counted & 0xffff_ffff) + (counted >> 32);
        // SAFETY: user space gives places inside the packet, which the verifier checks.
        unsafe { packet.add(at as usize).cast::<u64>().write_volatile(digits) };
    }
    let checksum_and_id = u32::from(checksum(sum)) | u32::from(id) << 16;
    // SAFETY: as above.
    unsafe {
        let at = packet.add(CHECKSUM_AT.load() as usize);
        at.cast::<u32>().write_volatile(checksum_and_id);
    }
    // The atomic addition has the packet in the cache, as a network card leaves it, before it is
    // read: loads from stores under way stall. It also parts each packet from the one before.
    // SAFETY: an element of the map.
    unsafe { sequence::advance(state_at) };
    Some(())
}

/// The lower 32 bits of a number as eight hexadecimal digits, the first in the lowest byte.
#[inline(always)]
pub fn hexadecimal(number: u64) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let mut digits = number & 0xffff_ffff;
    digits = (digits | digits << 16) & 0x0000_ffff_0000_ffff;
    digits = (digits | digits << 8) & 0x00ff_00ff_00ff_00ff;
    digits = (digits | digits << 4) & 0x0f0f_0f0f_0f0f_0f0f;
    let is_letter = ((digits + 6 * ONES) >> 4) & ONES;
    (digits + u64::from(b'0') * ONES + is_letter * u64::from(b'a' - 10 - b'0')).swap_bytes()
}

/// The UDP checksum (RFC 768) for a sum of the whole datagram.
#[inline(always)]
fn checksum(sum: u64) -> u16 {
    let sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + ((sum >> 32) & 0xffff) + (sum >> 48);
    let sum = (sum & 0xffff) + (sum >> 16);
    match !((sum & 0xffff) + (sum >> 16)) as u16 {
        0 => 0xffff,
        checksum => checksum,
    }
}

/// Read by the kernel at load time.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
