//! The least that an answer at XDP can cost: every UDP datagram over IPv4 goes back as it came.

use aya_ebpf::bindings::xdp_action::{XDP_PASS, XDP_TX};
use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;

/// Positions in a packet of IPv4 without options.
const ETHERTYPE: usize = 12;
const PROTOCOL: usize = 23;
const SOURCE: usize = 26;
const DESTINATION: usize = 30;
const SOURCE_PORT: usize = 34;
const DESTINATION_PORT: usize = 36;
const CHECKSUM: usize = 40;
/// Bytes up to the end of the UDP header.
const HEADERS: usize = 42;

/// Datagrams sent back. prestack counts as well.
#[btf_map]
static BOUNCED: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Sends a datagram back.
#[xdp(frags)]
pub fn bounce(ctx: XdpContext) -> u32 {
    let packet = ctx.data() as *mut u8;
    if ctx.data() + HEADERS > ctx.data_end() {
        return XDP_PASS;
    }
    // SAFETY: the headers are there. BPF reads and writes words at any address.
    unsafe {
        let ethertype = packet.add(ETHERTYPE).cast::<u16>().read_volatile();
        if ethertype != 0x0800_u16.to_be() || packet.add(PROTOCOL).read_volatile() != 17 {
            return XDP_PASS;
        }
        let swap_halves = |a: usize, b: usize| {
            let (a, b) = (packet.add(a).cast::<u16>(), packet.add(b).cast::<u16>());
            let (from_a, from_b) = (a.read_volatile(), b.read_volatile());
            a.write_volatile(from_b);
            b.write_volatile(from_a);
        };
        for at in [0, 2, 4] {
            swap_halves(at, at + 6);
        }
        swap_halves(SOURCE, DESTINATION);
        swap_halves(SOURCE + 2, DESTINATION + 2);
        swap_halves(SOURCE_PORT, DESTINATION_PORT);
        // None: what came from a local stack has not got its own yet.
        packet.add(CHECKSUM).cast::<u16>().write_volatile(0);
    }
    if let Some(bounced) = BOUNCED.get_ptr_mut(0) {
        // SAFETY: this CPU's element.
        unsafe { *bounced += 1 };
    }
    XDP_TX
}
