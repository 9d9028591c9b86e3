//! spike
#![no_std]
#![no_main]
use aya_ebpf::{bindings::{xdp_action, bpf_spin_lock}, btf_maps::Array, helpers::{bpf_spin_lock as lock, bpf_spin_unlock as unlock, bpf_loop}, macros::{btf_map, classifier, xdp}, programs::{TcContext, XdpContext}};

#[repr(C)]
struct Control { lock: bpf_spin_lock, version: u32, words: [u64; 7] }
#[repr(C, align(8))]
struct Block { b: [u8; 4096] }

#[btf_map]
static CONTROL: Array<Control, 16> = Array::new();
#[btf_map]
static BLOCKS: Array<Block, 16, 1024> = Array::new();

struct Ctx { n: u64, idx: u32 }

extern "C" fn cb(i: u32, c: *mut Ctx) -> i64 {
    let c = unsafe { &mut *c };
    c.n += u64::from(i);
    if let Some(b) = BLOCKS.get_ptr_mut(c.idx) { unsafe { (*b).b[(i & 4095) as usize] = 1; } }
    0
}

#[xdp]
pub fn rx(ctx: XdpContext) -> u32 {
    let mut c = Ctx { n: 0, idx: ctx.rx_queue_index() };
    unsafe { bpf_loop(100, cb as *mut core::ffi::c_void, (&raw mut c).cast(), 0) };
    if let Some(p) = CONTROL.get_ptr_mut(3) {
        unsafe {
            lock(&raw mut (*p).lock);
            (*p).version += 1;
            for i in 0..7 { (*p).words[i] += c.n; }
            unlock(&raw mut (*p).lock);
        }
    }
    xdp_action::XDP_PASS
}
#[classifier]
pub fn tx(_ctx: TcContext) -> i32 { 0 }

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! { loop {} }
