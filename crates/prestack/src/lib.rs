//! prestack's control plane: loads, attaches, watches and reports on the datapath.

pub mod allow;
pub mod attach;
pub mod bpffs;
pub mod cache;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod daemon;
pub mod discovery;
pub mod doors;
pub mod host;
pub mod leftovers;
pub mod links;
pub mod lock;
pub mod mapping;
pub mod maps;
pub mod netlink;
pub mod object;
mod one_or_many;
pub mod preflight;
pub mod programs;
pub mod settings;
pub mod slots;
pub mod state;
pub mod sweep;
pub mod units;
pub mod watch;
