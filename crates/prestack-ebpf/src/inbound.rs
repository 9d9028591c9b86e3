//! A packet on its way to memcached, whichever program runs on it.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::{bpf_skb_load_bytes, bpf_xdp_get_buff_len, bpf_xdp_load_bytes};
use aya_ebpf::programs::{TcContext, XdpContext};
use core::ffi::c_void;
use prestack_abi::config::Config;

use crate::maps::{LO_STEPS, RX_STEPS};
use crate::packet::{self, Packet, Sort, locate_long};
use crate::tcp::segment::Segment;

/// The context of a program that sees packets on their way to memcached.
pub trait Inbound: EbpfContext {
    /// Whether its packets are from this host to itself, over `lo`: whatever address they are sent to is
    /// this host's, and nobody is answered.
    const IS_LOCAL: bool;

    /// What of the packet can be read in place, as it is now.
    fn packet(&self, config: &Config) -> Packet;

    /// Most bytes of a packet behind its IP header.
    const MAX_L4_LEN: u64;

    /// Locates the headers of the packet.
    fn locate(&self, packet: Packet) -> Sort;

    /// Bytes of the whole packet.
    fn whole_len(&self) -> u64;

    /// Copies `len` bytes from position `at` to `to`, wherever in memory they lie; false if the packet
    /// does not have them.
    ///
    /// # Safety
    ///
    /// There are `len` bytes at `to`.
    unsafe fn load(&self, at: u32, to: *mut c_void, len: u32) -> bool;

    /// Hands the packet over to the program that follows TCP flows, and heeds packets while the datapath stands aside.
    /// Returns if there is none.
    fn hand_over(&self);

    /// Hands the packet over to the program that answers requests over TCP, if there is one.
    fn hand_over_hits(&self);

    /// Whether `len` bytes are all of the packet: a driver may hand over the rest in fragments of memory
    /// that only helpers reach, and a local stack makes packets of such.
    #[inline(always)]
    fn is_whole(&self, len: u64) -> bool {
        self.whole_len() == len
    }
}

/// From the wire.
impl Inbound for XdpContext {
    const IS_LOCAL: bool = false;
    const MAX_L4_LEN: u64 = 0xffff;

    #[inline(always)]
    fn locate(&self, packet: Packet) -> Sort {
        packet::locate(packet)
    }

    #[inline(always)]
    fn packet(&self, config: &Config) -> Packet {
        Packet::between(self.data(), self.data_end(), config)
    }

    #[inline(always)]
    fn whole_len(&self) -> u64 {
        // SAFETY: the program's context.
        unsafe { bpf_xdp_get_buff_len(self.ctx) }
    }

    #[inline(always)]
    unsafe fn load(&self, at: u32, to: *mut c_void, len: u32) -> bool {
        // SAFETY: the program's context, and the caller's.
        unsafe { bpf_xdp_load_bytes(self.ctx, at, to, len) == 0 }
    }

    #[inline(always)]
    fn hand_over(&self) {
        // SAFETY: the program takes over; nothing is held here.
        unsafe { RX_STEPS.tail_call(self, 0) };
    }

    #[inline(always)]
    fn hand_over_hits(&self) {
        // SAFETY: as above.
        unsafe { RX_STEPS.tail_call(self, 1) };
    }
}

/// Over `lo`.
impl Inbound for TcContext {
    const IS_LOCAL: bool = true;
    const MAX_L4_LEN: u64 = Segment::MAX_LEN;

    /// Headers do not say how long a segment is that offloads have put together, if it is longer than
    /// they can.
    #[inline(always)]
    fn locate(&self, packet: Packet) -> Sort {
        match packet::locate(packet) {
            Sort::Veiled(addresses) => match locate_long(packet, self.whole_len()) {
                Some(headers) => Sort::Plain(headers),
                None => Sort::Veiled(addresses),
            },
            sort => sort,
        }
    }

    #[inline(always)]
    fn packet(&self, config: &Config) -> Packet {
        Packet::between(self.data(), self.data_end(), config)
    }

    #[inline(always)]
    fn whole_len(&self) -> u64 {
        u64::from(self.len())
    }

    #[inline(always)]
    unsafe fn load(&self, at: u32, to: *mut c_void, len: u32) -> bool {
        // SAFETY: the program's context, and the caller's.
        unsafe { bpf_skb_load_bytes(self.skb.skb.cast(), at, to, len) == 0 }
    }

    #[inline(always)]
    fn hand_over(&self) {
        // SAFETY: the program takes over; nothing is held here.
        unsafe { LO_STEPS.tail_call(self, 0) };
    }

    /// This host's own processes are not answered here.
    #[inline(always)]
    fn hand_over_hits(&self) {}
}
