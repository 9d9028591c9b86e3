//! A testbed for prestack on one machine: network namespaces joined by veth pairs, stock memcached
//! and `prestack run` as processes inside them, and a plain memcached client.
//!
//! Everything goes away with the values that stand for it, also while a panic unwinds. Namespaces
//! have no name in the file system, so they vanish even when the process is killed, and child
//! processes are killed by the kernel when the thread that started them ends.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use prestack_testbed::{Memcached, MemcachedOptions, Prestack, Testbed, UdpClient};
//!
//! let bed = Testbed::new()?;
//! let memcached = Memcached::start(&bed.server, MemcachedOptions::default())?;
//! let prestack = Prestack::start(&bed.server, &["--interface", &bed.links[0].server_dev])?;
//! let mut client = UdpClient::connect(&bed.client, (bed.links[0].server4, 11211).into())?;
//! assert_eq!(client.get(b"key")?, None);
//! assert_eq!(prestack.stats()?.get("udp.misses")?, 1);
//! # drop(memcached); Ok(())
//! # }
//! ```

pub mod bpf;
mod capture;
mod client;
pub mod cpu;
mod ethtool;
mod link;
pub mod memcached;
mod namespace;
pub mod napi;
pub mod pace;
mod prestack;
mod process;
mod relay;
mod reply;
mod testbed;

pub use capture::Capture;
pub use client::tcp::TcpClient;
pub use client::udp::UdpClient;
pub use ethtool::Offload;
pub use link::{Link, Middle};
pub use memcached::{Memcached, MemcachedOptions};
pub use namespace::Namespace;
pub use prestack::{Counters, Instance, Prestack, binary};
pub use process::{Process, Signal};
pub use relay::{Disturbance, Relay, Relayed};
pub use reply::Item;
pub use testbed::Testbed;
