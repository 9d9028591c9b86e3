//! The BPF object, carried inside the binary.

/// The compiled BPF programs, an ELF object (`cargo xtask build` makes it).
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("PRESTACK_BPF_OBJECT"));
