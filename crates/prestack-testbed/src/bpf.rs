//! The smallest programs on a device: `return XDP_PASS`, `return TCX_PASS`, and one that loses what prestack answers.
//!
//! A veth device takes packets that its peer sends with `XDP_TX` only if it has an XDP program
//! itself: without one they stay in its ring until something else wakes it. (Seen on Linux 6.18;
//! GRO alone, which also makes the device use NAPI, does not help.)

use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc;

use crate::namespace::Namespace;

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
const BPF_TCX_EGRESS: u32 = 47;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// `r0 = XDP_PASS; exit`, as `struct bpf_insn` (opcode, registers, offset, immediate).
static PASS: [u64; 2] = [0xb7 | 2 << 32, 0x95];
/// `XDP_DROP` for what has [`PRESTACK_TTL`] where IPv4 has its time to live, else `XDP_PASS`.
static LOSE: [u64; 10] = [
    // r2 = data; r3 = data_end
    0x61 | 2 << 8 | 1 << 12,
    0x61 | 3 << 8 | 1 << 12 | 4 << 16,
    // r0 = XDP_PASS
    0xb7 | 2 << 32,
    // r4 = r2 + 23; if r4 > r3 goto end
    0xbf | 4 << 8 | 2 << 12,
    0x07 | 4 << 8 | 23 << 32,
    0x2d | 4 << 8 | 3 << 12 | 3 << 16,
    // r5 = *(u8 *)(r2 + 22); if r5 != PRESTACK_TTL goto end
    0x71 | 5 << 8 | 2 << 12 | 22 << 16,
    0x55 | 5 << 8 | 1 << 16 | PRESTACK_TTL << 32,
    // r0 = XDP_DROP; end: exit
    0xb7 | 1 << 32,
    0x95,
];
/// The time to live of what prestack answers over IPv4.
const PRESTACK_TTL: u64 = 64;
/// `r0 = TCX_PASS; exit`.
static END: [u64; 2] = [0xb7, 0x95];

/// The head of `union bpf_attr` for `BPF_PROG_LOAD`; the kernel takes the rest as zero.
#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
}

/// The head of `union bpf_attr` for `BPF_LINK_CREATE`.
#[repr(C)]
struct LinkCreate {
    prog_fd: RawFd,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

/// Attaches the program to `dev` in `namespace`, natively; it stays until the link is dropped.
///
/// # Errors
/// When there is an XDP program already, or the device takes none.
pub fn attach_pass(namespace: &Namespace, dev: &str) -> Result<OwnedFd> {
    let hook = (BPF_PROG_TYPE_XDP, BPF_XDP, XDP_FLAGS_DRV_MODE);
    attach(namespace, dev, &PASS, hook)
}

/// Attaches a program to `dev` in `namespace`, natively, that loses what prestack answers over IPv4, and nothing of a
/// host whose `ip_default_ttl` is another than prestack's; it stays until the link is dropped.
///
/// # Errors
/// When there is an XDP program already, or the device takes none.
pub fn attach_loss(namespace: &Namespace, dev: &str) -> Result<OwnedFd> {
    let hook = (BPF_PROG_TYPE_XDP, BPF_XDP, XDP_FLAGS_DRV_MODE);
    attach(namespace, dev, &LOSE, hook)
}

/// Attaches a program to the egress of `dev` in `namespace`, by TCX, that lets every packet go on to where it goes,
/// past the programs behind it; it stays until the link is dropped.
///
/// # Errors
/// When the kernel has no TCX.
pub fn attach_end(namespace: &Namespace, dev: &str) -> Result<OwnedFd> {
    attach(
        namespace,
        dev,
        &END,
        (BPF_PROG_TYPE_SCHED_CLS, BPF_TCX_EGRESS, 0),
    )
}

/// Attaches a program of these instructions; `hook` is its type, that of the attachment, and its flags.
fn attach(
    namespace: &Namespace,
    dev: &str,
    instructions: &'static [u64],
    hook: (u32, u32, u32),
) -> Result<OwnedFd> {
    let (prog_type, attach_type, flags) = hook;
    let license = CString::from(c"Dual MIT/GPL");
    let load = ProgLoad {
        prog_type,
        insn_cnt: instructions.len() as u32,
        insns: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
    };
    // SAFETY: `load` describes instructions and a licence that outlive the call.
    let program = unsafe { bpf(BPF_PROG_LOAD, &load) }.context("loading a program")?;
    namespace.run(|| {
        let target_ifindex = nix::net::if_::if_nametoindex(dev)?;
        let create = LinkCreate {
            prog_fd: program.as_raw_fd(),
            target_ifindex,
            attach_type,
            flags,
        };
        // SAFETY: `create` holds no pointers, and its descriptor is open.
        unsafe { bpf(BPF_LINK_CREATE, &create) }
            .with_context(|| format!("attaching a program to {dev}"))
    })
}

/// The bpf system call, for commands that return a descriptor.
///
/// # Safety
/// `attr` must be the head of `union bpf_attr` for `command`, with valid pointers.
unsafe fn bpf<T>(command: libc::c_long, attr: &T) -> Result<OwnedFd, Errno> {
    // SAFETY: the caller vouches for `attr`, and the kernel reads only its size.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attr),
            size_of::<T>(),
        )
    };
    let fd = Errno::result(fd)?;
    // SAFETY: the kernel just made the descriptor and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}
