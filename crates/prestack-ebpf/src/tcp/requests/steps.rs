//! The steps that look at the packet: a function for each kind of context, which the verifier tells apart.

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use aya_ebpf::programs::{TcContext, XdpContext};

use super::{adopt, arrive, chunks, stray, trim};
use crate::inbound::Inbound;
use crate::tcp::{copies, hole};

/// Steps on a segment that is on its way to memcached. Global functions (by their unmangled names), which
/// the verifier checks once.
pub trait Steps: Inbound {
    /// Finds the segment's flow: see [`arrive`].
    fn arrive(&self) -> u64;
    /// Takes up its flow, if the host has a connection for it: see [`adopt`].
    fn adopt(&self) -> u64;
    /// Leaves out of the segment what the kernel has got: see [`trim`].
    fn trim(&self) -> u64;
    /// Asks the host whether it takes the segment all the same: see [`stray`].
    fn stray(&self);
    /// Loads its next chunk: see [`chunks::load`].
    fn load_chunk(&self, is_kept: u64) -> u64;
    /// Keeps its data: see [`hole::keep`].
    fn keep(&self);
    /// Compares it: see [`copies::compare`].
    fn compare(&self);
}

impl Steps for XdpContext {
    #[inline(always)]
    fn arrive(&self) -> u64 {
        // SAFETY: the program's context.
        unsafe { prestack_tcp_arrive(self.ctx) }
    }

    #[inline(always)]
    fn adopt(&self) -> u64 {
        // SAFETY: the program's context.
        unsafe { prestack_tcp_adopt(self.ctx) }
    }

    #[inline(always)]
    fn trim(&self) -> u64 {
        // SAFETY: the program's context.
        unsafe { prestack_tcp_trim(self.ctx) }
    }

    #[inline(always)]
    fn stray(&self) {
        // SAFETY: the program's context.
        unsafe { prestack_tcp_stray(self.ctx) };
    }

    #[inline(always)]
    fn load_chunk(&self, is_kept: u64) -> u64 {
        // SAFETY: the program's context.
        unsafe { prestack_tcp_load(self.ctx, is_kept) }
    }

    #[inline(always)]
    fn keep(&self) {
        // SAFETY: the program's context.
        unsafe { prestack_tcp_keep(self.ctx) };
    }

    #[inline(always)]
    fn compare(&self) {
        // SAFETY: the program's context.
        unsafe { prestack_tcp_compare(self.ctx) };
    }
}

impl Steps for TcContext {
    #[inline(always)]
    fn arrive(&self) -> u64 {
        // SAFETY: the program's context.
        unsafe { prestack_lo_arrive(self.skb.skb) }
    }

    #[inline(always)]
    fn adopt(&self) -> u64 {
        // SAFETY: the program's context.
        unsafe { prestack_lo_adopt(self.skb.skb) }
    }

    #[inline(always)]
    fn trim(&self) -> u64 {
        // SAFETY: the program's context.
        unsafe { prestack_lo_trim(self.skb.skb) }
    }

    #[inline(always)]
    fn stray(&self) {
        // SAFETY: the program's context.
        unsafe { prestack_lo_stray(self.skb.skb) };
    }

    #[inline(always)]
    fn load_chunk(&self, is_kept: u64) -> u64 {
        // SAFETY: the program's context.
        unsafe { prestack_lo_load(self.skb.skb, is_kept) }
    }

    #[inline(always)]
    fn keep(&self) {
        // SAFETY: the program's context.
        unsafe { prestack_lo_keep(self.skb.skb) };
    }

    #[inline(always)]
    fn compare(&self) {
        // SAFETY: the program's context.
        unsafe { prestack_lo_compare(self.skb.skb) };
    }
}

/// # Safety
///
/// `ctx` is the program's context, as of the functions that follow.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn prestack_tcp_arrive(ctx: *mut xdp_md) -> u64 {
    arrive(&XdpContext::new(ctx))
}

#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn prestack_tcp_adopt(ctx: *mut xdp_md) -> u64 {
    adopt(&XdpContext::new(ctx))
}

#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn prestack_lo_arrive(ctx: *mut __sk_buff) -> u64 {
    arrive(&TcContext::new(ctx))
}

#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn prestack_lo_adopt(ctx: *mut __sk_buff) -> u64 {
    adopt(&TcContext::new(ctx))
}

#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn prestack_tcp_trim(ctx: *mut xdp_md) -> u64 {
    trim(&XdpContext::new(ctx))
}

#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn prestack_lo_trim(ctx: *mut __sk_buff) -> u64 {
    trim(&TcContext::new(ctx))
}

#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn prestack_tcp_stray(ctx: *mut xdp_md) -> u64 {
    stray(&XdpContext::new(ctx))
}

#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn prestack_lo_stray(ctx: *mut __sk_buff) -> u64 {
    stray(&TcContext::new(ctx))
}

#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn prestack_tcp_load(ctx: *mut xdp_md, is_kept: u64) -> u64 {
    chunks::load(&XdpContext::new(ctx), is_kept)
}

#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn prestack_lo_load(ctx: *mut __sk_buff, is_kept: u64) -> u64 {
    chunks::load(&TcContext::new(ctx), is_kept)
}

#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn prestack_tcp_keep(ctx: *mut xdp_md) -> u64 {
    hole::keep(&XdpContext::new(ctx))
}

#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn prestack_lo_keep(ctx: *mut __sk_buff) -> u64 {
    hole::keep(&TcContext::new(ctx))
}

#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn prestack_tcp_compare(ctx: *mut xdp_md) -> u64 {
    copies::compare(&XdpContext::new(ctx))
}

#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn prestack_lo_compare(ctx: *mut __sk_buff) -> u64 {
    copies::compare(&TcContext::new(ctx))
}
