//! Making room in the packet for a reply that is longer than the request, in a way that can be
//! undone.
//!
//! A packet grows at its tail. Where the driver left too little room there (veth since Linux 6.8
//! allocates just what a packet needs), it grows at its head, in the room that XDP reserves: the
//! headers then move to the front.

use aya_ebpf::helpers::generated::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail};
use aya_ebpf::programs::XdpContext;
use prestack_abi::config::Config;
use prestack_proto::window::Source;

use crate::inbound::Inbound as _;
use crate::packet::Packet;
use crate::scratch::{SAVED_WORDS, Scratch};

/// Greatest position of a payload: behind two VLAN tags, IPv6, UDP and the frame.
const MAX_AT: u64 = 22 + 40 + 16;
/// Most bytes a packet grows at its head: what XDP reserves (`XDP_PACKET_HEADROOM` in
/// include/uapi/linux/bpf.h).
const MAX_SHIFT: u64 = 256;

/// Bytes of the shortest frame, headers included (`ETH_ZLEN` in include/uapi/linux/if_ether.h).
const SHORTEST_FRAME: u64 = 60;
/// Bytes of a packet with the shortest reply: an acknowledgement over TCP.
const SHORTEST_REPLY: u64 = 14 + 20 + 20;

/// A packet with room for a reply, and the bytes of the request that the reply may overwrite.
#[derive(Clone, Copy)]
pub struct Room {
    /// The packet as it is now; the reply's payload goes where the request's was.
    pub packet: Packet,
    /// Bytes added.
    growth: u64,
    /// Bytes added at the head.
    shift: u64,
    /// First byte that was saved, counted from where the packet started.
    from: u64,
    /// Length of the packet as it arrived.
    old_len: u64,
}

impl Room {
    /// Grows `packet`, whose payload starts at `at`, to `new_len` bytes at least. With `scratch` the
    /// bytes that the reply may overwrite are kept there. `None` if there is no room, or the frame goes
    /// on in memory that cannot be read in place, for what lies there would be sent with the reply: the
    /// packet is then as it was. The headers have still to be [moved](Self::move_headers).
    #[inline(always)]
    pub fn make(
        ctx: &XdpContext,
        config: &Config,
        packet: Packet,
        scratch: Option<*mut Scratch>,
        at: u64,
        new_len: u64,
    ) -> Option<Self> {
        let old_len = packet.len();
        if scratch.is_some() && old_len > SAVED_WORDS as u64 * 8 {
            return None;
        }
        let mut room = Self {
            packet,
            growth: 0,
            shift: 0,
            from: at,
            old_len,
        };
        let growth = new_len.saturating_sub(old_len);
        // SAFETY: `ctx.ctx` is the program's context.
        if growth != 0 && unsafe { bpf_xdp_adjust_tail(ctx.ctx, growth as i32) } == 0 {
            room.growth = growth;
            room.packet = ctx.packet(config);
            // It is then whole, which spares the helper that says so: of another one the end of the last
            // fragment has moved.
            if room.packet.len() != new_len {
                room.undo_growth(ctx);
                return None;
            }
        } else if !ctx.is_whole(old_len) {
            return None;
        } else if growth != 0 {
            // SAFETY: as above.
            if unsafe { bpf_xdp_adjust_head(ctx.ctx, -(growth as i32)) } != 0 {
                return None;
            }
            room.growth = growth;
            room.shift = growth;
            room.from = 0;
            room.packet = ctx.packet(config);
        }
        // From here on, one path for every way in which the packet has grown.
        room.growth = room.packet.forgotten(room.growth);
        room.shift = room.packet.forgotten(room.shift);
        room.from = room.packet.forgotten(room.from);
        room.old_len = room.packet.forgotten(room.old_len);
        if let Some(scratch) = scratch {
            let kept = room.each_word(|packet, at, i| {
                // SAFETY: this CPU's scratch, and `i` is in bounds.
                unsafe { (*scratch).saved[i] = packet.read(at)? };
                Some(())
            });
            if kept.is_none() {
                room.undo_growth(ctx);
                return None;
            }
        }
        Some(room)
    }

    /// Puts everything back: the packet is as it arrived.
    #[inline(always)]
    pub fn undo(&self, ctx: &XdpContext, scratch: *mut Scratch) {
        // SAFETY: this CPU's scratch, and `i` is in bounds.
        self.each_word(|packet, at, i| packet.write(at, unsafe { (*scratch).saved[i] }));
        self.undo_growth(ctx);
    }

    /// Calls `each` with the position of every word that is saved, and its number.
    #[inline(always)]
    fn each_word(&self, each: impl Fn(Packet, u64, usize) -> Option<()>) -> Option<()> {
        let packet = self.packet;
        let first = packet.forgotten(self.shift + self.from);
        let end = packet.forgotten(self.shift + self.old_len);
        if first > MAX_SHIFT + MAX_AT || end < 8 || end > MAX_SHIFT + SAVED_WORDS as u64 * 8 {
            return None;
        }
        for i in 0..SAVED_WORDS {
            let at = first + 8 * i as u64;
            if at >= end {
                break;
            }
            // The last word is read backwards from the end; headers precede it.
            each(packet, if at + 8 > end { end - 8 } else { at }, i)?;
        }
        Some(())
    }

    /// Copies the headers to the packet's start if it has grown there. `None` if it broke off
    /// half-way.
    #[inline(always)]
    pub fn move_headers(&self, at: u64) -> Option<()> {
        if self.shift == 0 {
            return Some(());
        }
        let at = self.packet.forgotten(at);
        let shift = self.packet.forgotten(self.shift);
        for i in 0..MAX_AT.div_ceil(8) {
            if 8 * i >= at {
                break;
            }
            // From front to front, so that nothing is read after it was overwritten. What is written
            // behind the headers makes way for the reply.
            let word: u64 = self.packet.read(shift + 8 * i)?;
            self.packet.write(8 * i, word)?;
        }
        Some(())
    }

    /// The packet is as long as before. Nothing of it was written.
    #[inline(always)]
    pub fn undo_growth(&self, ctx: &XdpContext) {
        // SAFETY: `ctx.ctx` is the program's context. What was added can be taken away.
        unsafe {
            if self.shift != 0 {
                bpf_xdp_adjust_head(ctx.ctx, self.growth as i32);
            } else if self.growth != 0 {
                bpf_xdp_adjust_tail(ctx.ctx, -(self.growth as i32));
            }
        }
    }
}

/// Cuts a packet that holds a short reply to `new_len` bytes, but not below the shortest frame, which
/// is filled up with zeros.
#[inline(always)]
pub fn cut_to_frame(ctx: &XdpContext, packet: Packet, new_len: u64) {
    let new_len = packet.forgotten(new_len);
    if new_len >= SHORTEST_FRAME {
        return cut(ctx, packet, new_len);
    }
    // Each may be missing: a local stack does not fill its frames.
    for i in 0..SHORTEST_FRAME - SHORTEST_REPLY {
        let _ = packet.write(new_len + i, 0u8);
    }
    cut(ctx, packet, SHORTEST_FRAME);
}

/// Cuts a packet that holds its reply to `new_len` bytes.
#[inline(always)]
pub fn cut(ctx: &XdpContext, packet: Packet, new_len: u64) {
    let len = packet.len();
    if len > new_len {
        // SAFETY: `ctx.ctx` is the program's context.
        unsafe { bpf_xdp_adjust_tail(ctx.ctx, -((len - new_len) as i32)) };
    }
}
