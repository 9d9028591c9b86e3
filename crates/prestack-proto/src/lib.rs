//! memcached's wire formats: parsers and the arithmetic around them.
//!
//! The crate is `no_std`, allocates nothing and compiles for the BPF target as well as for the
//! host: the parsers that run under the kernel's verifier are the ones that the tests exercise.
//! Text is read eight bytes at a time.
#![cfg_attr(not(test), no_std)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod base64;
pub mod binary;
pub mod checksum;
pub mod command;
pub mod flush;
pub mod hash;
pub mod net;
pub mod stream;
pub mod swar;
pub mod text;
pub mod udp;
pub mod verifier;
pub mod window;

/// Longest key that memcached accepts, in bytes (`KEY_MAX_LENGTH` in memcached.h).
pub const MAX_KEY: usize = 250;
