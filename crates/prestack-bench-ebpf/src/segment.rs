//! TCP segments: `tcp_request` and `tcp_reply` make the packet the next segment of one of several flows,
//! which take turns, and go over to the program under test.
//!
//! What is under test lets segments through as they are, so what a segment has in common with the one
//! before need not be written again.

use aya_ebpf::Global;
use aya_ebpf::bindings::xdp_action::XDP_ABORTED;
use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::btf_maps::{Array, ProgramArray};
use aya_ebpf::macros::{btf_map, classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};

use crate::{hexadecimal, sequence};

// What user space sets (crates/prestack-bench/src/kernel/tcp.rs).

/// log₂ of the number of flows.
#[unsafe(no_mangle)]
static FLOW_BITS: Global<u64> = Global::new(0);
/// log₂ of the number of segments of a flow that are sent before any is answered.
#[unsafe(no_mangle)]
static BATCH_BITS: Global<u64> = Global::new(0);
/// Bytes of data in a request's segment.
#[unsafe(no_mangle)]
static REQUEST_LEN: Global<u64> = Global::new(0);
/// Bytes of data in a reply's segment.
#[unsafe(no_mangle)]
static REPLY_LEN: Global<u64> = Global::new(0);
/// Sequence number of the first byte from the clients.
#[unsafe(no_mangle)]
static CLIENT_START: Global<u64> = Global::new(0);
/// Sequence number of the first byte from the server.
#[unsafe(no_mangle)]
static SERVER_START: Global<u64> = Global::new(0);
/// The clients' first port.
#[unsafe(no_mangle)]
static CLIENT_PORT: Global<u64> = Global::new(0);
/// Position of the last eight bytes of a request's key; 0 if there is none.
#[unsafe(no_mangle)]
static REQUEST_KEY_AT: Global<u64> = Global::new(0);
/// Position of the last eight bytes of a reply's key; 0 if there is none.
#[unsafe(no_mangle)]
static REPLY_KEY_AT: Global<u64> = Global::new(0);
/// How many keys there are.
#[unsafe(no_mangle)]
static KEYS_OF_FLOWS: Global<u64> = Global::new(1);

/// Positions in a packet of IPv4 without options: the source port, the destination port, the sequence
/// number, and the acknowledgement.
const SOURCE_PORT: usize = 34;
const DESTINATION_PORT: usize = 36;
const SEQUENCE: usize = 38;
const ACKNOWLEDGEMENT: usize = 42;
/// Bytes of the headers that are there in any case.
const HEADERS: usize = 54;

/// Requests and replies made so far.
#[btf_map]
static MADE: Array<u64, 2> = Array::new();

/// The program under test, for replies.
#[btf_map]
static REPLY_TARGET: ProgramArray<1> = ProgramArray::new();

/// Makes the packet the next segment with a request and runs the program under test on it.
#[xdp(frags)]
pub fn tcp_request(ctx: XdpContext) -> u32 {
    if write(ctx.data(), ctx.data_end(), false).is_some() {
        // SAFETY: nothing here is to be dropped.
        unsafe { crate::TARGET.tail_call(&ctx, 0) };
    }
    XDP_ABORTED
}

/// Makes the packet the next segment with a reply and runs the program under test on it.
#[classifier]
pub fn tcp_reply(ctx: TcContext) -> i32 {
    if write(ctx.data(), ctx.data_end(), true).is_some() {
        // SAFETY: as above.
        unsafe { REPLY_TARGET.tail_call(&ctx, 0) };
    }
    TC_ACT_SHOT
}

/// Does nothing.
#[classifier]
pub fn echo_reply(_: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// Makes the packet between two addresses the next segment. `None` if it is too short.
#[inline(always)]
fn write(start: usize, end: usize, is_reply: bool) -> Option<()> {
    let made_at = MADE.get_ptr_mut(u32::from(is_reply))?;
    // SAFETY: an element of the map.
    let made = unsafe { made_at.read_volatile() };
    let (flows, batch) = (1 << (FLOW_BITS.load() & 31), 1 << (BATCH_BITS.load() & 31));
    let (flow, turn) = (made & (flows - 1), made >> (FLOW_BITS.load() & 31));
    let first_of_batch = turn & !(batch - 1);
    let from_client = |turns: u64| (CLIENT_START.load() + turns * REQUEST_LEN.load()) as u32;
    let from_server = |turns: u64| (SERVER_START.load() + turns * REPLY_LEN.load()) as u32;
    let (port_at, sequence, acknowledgement, key_at) = if is_reply {
        let all = from_client(first_of_batch + batch);
        (
            DESTINATION_PORT,
            from_server(turn),
            all,
            REPLY_KEY_AT.load(),
        )
    } else {
        let all = from_server(first_of_batch);
        (SOURCE_PORT, from_client(turn), all, REQUEST_KEY_AT.load())
    };
    let packet = start as *mut u8;
    if start + HEADERS > end {
        return None;
    }
    let port = (CLIENT_PORT.load() + flow) as u16;
    // SAFETY: the headers are there. BPF writes words at any address.
    unsafe {
        packet
            .add(port_at)
            .cast::<u16>()
            .write_volatile(port.to_be());
        let word = |at: usize| packet.add(at).cast::<u32>();
        word(SEQUENCE).write_volatile(sequence.to_be());
        word(ACKNOWLEDGEMENT).write_volatile(acknowledgement.to_be());
    }
    if key_at != 0 {
        let at = start + key_at as usize;
        if at + 8 > end {
            return None;
        }
        let number = (sequence::random(sequence::state(made), 0) >> 32) * KEYS_OF_FLOWS.load();
        // SAFETY: as above.
        unsafe { (at as *mut u64).write_volatile(hexadecimal(number >> 32)) };
    }
    // The packet is in the cache then, as `sequence::advance` says.
    // SAFETY: an element of the map.
    unsafe { sequence::add(made_at, 1) };
    Some(())
}
