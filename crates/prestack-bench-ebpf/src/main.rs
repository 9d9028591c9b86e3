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

mod sequence;

use aya_ebpf::Global;
use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_TX};
use aya_ebpf::btf_maps::{Array, ProgramArray};
use aya_ebpf::helpers::generated::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail};
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;

/// Words of eight bytes in a request.
const WORDS: usize = 9;
const LEN: usize = 8 * WORDS;
/// The word with the UDP checksum in bytes 0 and 1, and the request's id in 2 and 3.
const CHECKSUM_AND_ID: usize = 5;
/// The word whose last two bytes are the first two of the key's eight digits.
const DIGITS: usize = 7;

// What user space sets before it loads the programs (crates/prestack-bench/src/kernel).

/// The request: Ethernet, IPv4, UDP, frame, `get `, a key of 16 bytes, `\r\n`. Checksum, id and the
/// last eight bytes of the key are zero.
#[unsafe(no_mangle)]
static REQUEST: Global<[u64; WORDS]> = Global::new([0; WORDS]);
/// One's-complement sum of the request's UDP datagram and pseudo header, not folded.
#[unsafe(no_mangle)]
static SUM: Global<u64> = Global::new(0);
/// Number of the first key that is asked for.
#[unsafe(no_mangle)]
static FIRST_KEY: Global<u64> = Global::new(0);
/// How many keys are asked for.
#[unsafe(no_mangle)]
static KEYS: Global<u64> = Global::new(1);
/// Not 0: packets are cut at their head, so that one which was put at the end of its buffer stays
/// there.
#[unsafe(no_mangle)]
static CUT_HEAD: Global<u64> = Global::new(0);

/// The state of the [`sequence`].
#[btf_map]
static STATE: Array<u64, 1> = Array::new();

/// The program under test.
#[btf_map]
static TARGET: ProgramArray<1> = ProgramArray::new();

/// Makes the packet a request and runs the program under test on it.
#[xdp(frags)]
pub fn request(ctx: XdpContext) -> u32 {
    if write(&ctx).is_some() {
        // SAFETY: nothing here is to be dropped.
        unsafe { TARGET.tail_call(&ctx, 0) };
    }
    XDP_ABORTED
}

/// Does nothing.
#[xdp(frags)]
pub fn echo(_: XdpContext) -> u32 {
    XDP_TX
}

/// Makes the packet the next request. `None` if it cannot be given the right length.
#[inline(always)]
fn write(ctx: &XdpContext) -> Option<()> {
    let excess = (ctx.data_end() - ctx.data()) as i32 - LEN as i32;
    // Also when there is nothing to cut, as in runs of `echo`: both are to cost the same.
    // SAFETY: `ctx.ctx` is the program's context.
    let is_cut = unsafe {
        if CUT_HEAD.load() != 0 {
            bpf_xdp_adjust_head(ctx.ctx, excess)
        } else {
            bpf_xdp_adjust_tail(ctx.ctx, -excess)
        }
    };
    let packet = ctx.data() as *mut u64;
    if is_cut != 0 || ctx.data() + LEN > ctx.data_end() {
        return None;
    }
    let state = STATE.get_ptr_mut(0)?;
    // SAFETY: an element of the map.
    let sequence::Item { random, id } = sequence::item(unsafe { state.read_volatile() });
    let digits = hexadecimal((((random >> 32) * KEYS.load()) >> 32) + FIRST_KEY.load());

    let sum = SUM.load() + u64::from(id) + (digits & 0xffff_ffff) + (digits >> 32);
    let mut words = REQUEST.load();
    words[CHECKSUM_AND_ID] |= u64::from(checksum(sum)) | u64::from(id) << 16;
    words[DIGITS] |= digits << 48;
    words[DIGITS + 1] |= digits >> 16;
    for (i, word) in words.into_iter().enumerate() {
        // SAFETY: the packet has LEN bytes. Volatile, or the compiler makes the loop a call to
        // memcpy.
        unsafe { packet.add(i).write_volatile(word) };
    }
    // The atomic addition has the packet in the cache, as a network card leaves it, before it is
    // read: loads from stores under way stall. It also parts each packet from the one before.
    // SAFETY: an element of the map.
    unsafe { sequence::advance(state) };
    Some(())
}

/// The lower 32 bits of a number as eight hexadecimal digits, the first in the lowest byte.
#[inline(always)]
fn hexadecimal(number: u64) -> u64 {
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
